"""First packets among many services: real daemons, the kernel's own order, and no figure for who
does not serve."""

from __future__ import annotations

import pytest

from kproxy.bench import many
from kproxy.bench.many import MOST, Many, address
from kproxy.bench.measures.first_packet import MEASURE, FirstPacket
from kproxy.bench.path import Path
from kproxy.bench.peers import running
from kproxy.bench.results import Point
from kproxy.core.objects import Family
from kproxy.errors import CheckFailed


def test_each_service_has_an_address_of_its_own() -> None:
    """As many as are allowed, all of them in one /16."""
    addresses = {address(number) for number in range(MOST)}
    assert len(addresses) == MOST
    assert (address(0), address(MOST - 1)) == ("10.96.1.1", "10.96.250.250")


@pytest.mark.parametrize("services", [0, MOST + 1])
def test_not_more_than_addresses(services: int) -> None:
    with pytest.raises(ValueError, match="between 1 and"):
        Many("nftables", services)


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("name", "services"),
    # The nft variant is given hundreds at once: its order is that of several calls.
    [("iptables-nft", 350), ("iptables-legacy", 30), ("userspace", 30)],
)
def test_first_and_last_are_those_of_the_chain(name: str, services: int) -> None:
    """Read from the kernel's rules, which for iptables are in the order of names."""
    subject = Many(name, services)
    with Path(clients=1) as path, running(subject, path):
        ends = subject.place(Family.IPV4)[0], subject.last()[0]
    if name != "userspace":
        assert ends == (address(0), address(services - 1))
    assert set(ends) <= {address(number) for number in range(services)}
    assert ends[0] != ends[1]


@pytest.mark.kernel
def test_both_ends_at_every_size() -> None:
    """For each mode and for direct routing, in each round; who serves one service says so."""
    sizes = (1, 20)
    with FirstPacket(["nftables", "relay"], sizes=sizes, connections=30) as group:
        assert list(group.subjects) == ["direct", "nftables"]
        assert [(each.subject, each.reason) for each in group.absent] == [
            ("relay", "it serves one service")
        ]
        rounds = [{name: group.turn(name) for name in group.subjects} for _ in range(2)]
    wanted = {Point(MEASURE.name, size, where) for size in sizes for where in ("first", "last")}
    for readings in (each for found in rounds for each in found.values()):
        assert set(readings) == wanted
        for reading in readings.values():
            assert reading.figure.value > 0
            assert (reading.figure.attempts, reading.figure.failures) == (30, 0)
            # One that was due in the warm-up may have been opened after it.
            assert sum(reading.histogram.values()) in (30, 31)
    assert all(each.cost.memory > 0 for each in rounds[0]["nftables"].values())


@pytest.mark.kernel
def test_a_size_that_cannot_stand_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """And larger ones are not tried; smaller ones have their figures."""
    tried = []
    start = Many.start

    def started(subject: Many, path: Path) -> None:
        tried.append(subject.services)
        if subject.services > 1:
            raise CheckFailed("no room")
        start(subject, path)

    monkeypatch.setattr(many.Many, "start", started)
    with FirstPacket(["nftables"], sizes=[1, 2, 3], connections=5) as group:
        assert {point.at for point in group.turn("nftables")} == {1}
        assert {point.at for point in group.turn("direct")} == {1, 2, 3}
        assert [each.reason for each in group.absent] == ["at 2 services: no room"]
    assert tried == [1, 2]
