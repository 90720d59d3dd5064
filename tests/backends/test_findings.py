"""What modes that carry connections tell of endpoints."""

from __future__ import annotations

from typing import Any

import pytest

from kproxy.backends.base import Finding, Outcome, Witnessing
from kproxy.backends.fastpath.apply import FastpathBackend
from kproxy.backends.fastpath.carrier import OUTCOMES, Carrier
from kproxy.backends.iptables.apply import IptablesBackend
from kproxy.backends.userspace.apply import UserspaceBackend
from kproxy.backends.userspace.carried import Carried, Served
from kproxy.backends.userspace.plan import Service
from kproxy.core.objects import Family, PortName, Protocol
from kproxy.core.twin import retry

WEB = PortName("ns1", "web", "http", Protocol.TCP)


class Told:
    """A relay, or an engine, that has something to tell."""

    def __init__(self, verdicts: list[Any]) -> None:
        self.verdicts = verdicts

    def take_verdicts(self) -> list[Any]:
        taken, self.verdicts = self.verdicts, []
        return taken


def test_which_modes_see_it() -> None:
    """Those that carry connections themselves; before they carry any there is nothing."""
    assert not isinstance(IptablesBackend(Family.IPV4, "nft"), Witnessing)
    for backend in (UserspaceBackend(Family.IPV4, "nft"), FastpathBackend(Family.IPV4)):
        assert isinstance(backend, Witnessing)
        assert backend.findings() == []


@pytest.mark.parametrize("outcome", Outcome)
def test_userspace(outcome: Outcome) -> None:
    """By name instead of the relay's number; what is told of services that are gone is dropped."""
    relay: Any = Told([(7, "10.0.0.1", 80, outcome.value), (8, "10.0.0.1", 80, "refused")])
    carried = Carried(Family.IPV4, lambda: relay)
    assert carried.relay is relay
    carried.services[WEB] = Served(7, Service(WEB))
    assert carried.findings() == [Finding(WEB, "10.0.0.1", 80, outcome)]
    assert carried.findings() == []


@pytest.mark.parametrize(
    ("family", "place", "ip"),
    [
        (Family.IPV4, bytes([10, 0, 0, 1]), "10.0.0.1"),
        (Family.IPV6, b"\xfd" + bytes(14) + b"\x01", "fd00::1"),
    ],
)
def test_fastpath(family: Family, place: bytes, ip: str) -> None:
    """The same, with addresses as the packets have them."""
    carrier = Carrier.__new__(Carrier)
    carrier.family = family
    end = place + (8080).to_bytes(2)
    engine: Any = Told([*[(3, end, int(found)) for found in retry.Finding], (4, end, 0)])
    carrier.engine = engine
    carrier._numbers = {WEB: 3}
    assert [(each.ip, each.port) for each in carrier.findings()] == [(ip, 8080)] * len(OUTCOMES)
    assert carrier.findings() == []


def test_the_engines_words_are_those_of_all_modes() -> None:
    """In the order of its numbers."""
    assert [each.value for each in OUTCOMES] == [each.name.lower() for each in retry.Finding]
