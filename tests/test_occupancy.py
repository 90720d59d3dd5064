"""One proxy for each network namespace: who holds it, and how a second one is told."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from kproxy.errors import OccupiedError
from kproxy.kernel import netns
from kproxy.occupancy import Occupancy, Occupant, card, occupant
from tests.contract.namespaces import scratch

pytestmark = pytest.mark.kernel

HERE = Path("/run/here")


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with scratch():
        yield


def taken(mode: str = "iptables", folder: Path = HERE) -> Occupancy:
    made = Occupancy.take(mode, folder)
    assert made is not None
    return made


def in_child(work: Callable[[], object]) -> int:
    """A process that has done some work and waits to be killed."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work()
            os.write(write, b"x")
            signal.pause()
        finally:
            os._exit(1)
    assert os.read(read, 1) == b"x"
    os.close(read)
    os.close(write)
    return child


def ended(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_the_second_one_is_told_who_is_here() -> None:
    """Process, mode and state directory, and what to do; whatever it wants to be itself."""
    kept: list[Occupancy] = []
    child = in_child(lambda: kept.append(taken("ipvs", Path("/run/a place"))))
    try:
        assert occupant() == Occupant(child, "ipvs", "/run/a place")
        for mode in ("ipvs", "userspace"):
            with pytest.raises(OccupiedError) as refused:
                taken(mode)
            assert str(refused.value) == (
                f"process {child} (ipvs mode, --state-dir /run/a place) is the proxy of this "
                f"network namespace already; stop it first (kill {child}): two would undo each "
                "other's rules"
            )
        assert refused.value.exit_status == 1
    finally:
        ended(child)


def test_a_killed_one_leaves_nothing() -> None:
    """The next one is in at once."""
    kept: list[Occupancy] = []
    ended(in_child(lambda: kept.append(taken())))
    assert occupant() is None
    with closing(taken()):
        assert occupant() == Occupant(os.getpid(), "iptables", str(HERE))
    assert occupant() is None


def test_each_namespace_has_its_own() -> None:
    with closing(taken()), netns.fresh():
        assert occupant() is None
        with closing(taken("ipvs")):
            assert occupant() == Occupant(os.getpid(), "ipvs", str(HERE))


def test_it_goes_to_a_successor_without_a_gap() -> None:
    """Who is here is the successor as soon as it serves; the old one's end changes nothing."""
    old = taken("userspace")
    kept: list[Occupancy] = []
    place = Path("/run/new")
    child = in_child(lambda: kept.append(Occupancy("userspace", place, os.dup(old.fileno()))))
    try:
        assert occupant() == Occupant(child, "userspace", "/run/new")
        old.close()
        assert occupant() == Occupant(child, "userspace", "/run/new")
        with pytest.raises(OccupiedError, match=f"process {child} "):
            taken()
    finally:
        ended(child)
    assert occupant() is None


def test_whoever_asks_is_let_go() -> None:
    """Thousands may ask, of one that answers and of one that hangs."""
    with closing(taken()) as occupancy:
        for _ in range(3):
            for _ in range(200):
                assert occupant() == Occupant(os.getpid(), "iptables", str(HERE))
            occupancy.hear()


def test_somebody_who_can_be_no_proxy(caplog: pytest.LogCaptureFixture) -> None:
    """Any user may take an abstract name; he does not keep a proxy from its work."""

    def squat() -> None:
        os.setuid(65534)
        squatting = socket.socket(socket.AF_UNIX)
        squatting.bind("\0kproxy")
        squatting.listen()
        kept.append(squatting)

    kept: list[socket.socket] = []
    child = in_child(squat)
    try:
        assert occupant() is None
        with caplog.at_level("WARNING"):
            assert Occupancy.take("iptables", HERE) is None
        assert "no protection from a second proxy" in caplog.text
    finally:
        ended(child)


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("/run/kproxy", "kproxy/7/ipvs//run/kproxy"),
        ("/run/with\nline", "kproxy/7/ipvs//run/with%0Aline"),
        ("/run/" + 100 * "long/" + "end", "kproxy/7/ipvs/..." + 15 * "/long" + "/end"),
    ],
)
def test_a_card_fits_into_a_name(folder: str, name: str) -> None:
    """Nothing in it breaks the kernel's table of names, and of a long directory it has the end."""
    made = card(7, "ipvs", Path(folder))
    assert len(made) <= 107
    assert made == name or (made.startswith("kproxy/7/ipvs/...") and made.endswith("long/end"))
