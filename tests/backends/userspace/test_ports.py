"""Relay ports and shares of descriptors, by table."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection

import pytest

from kproxy.backends.userspace.budget import RESERVE, Budget, budget, for_each_front
from kproxy.backends.userspace.ports import Ports, walk
from kproxy.backends.userspace.sockets import PortTaken, Sockets
from kproxy.errors import KernelError

KERNELS_CHOICE = 40000


class Opener:
    """Opens any port that is not ``taken``, as the kernel would."""

    def __init__(self, taken: Collection[int] = ()) -> None:
        self.taken = set(taken)
        self.tried: list[int] = []

    def __call__(self, port: int) -> Sockets:
        self.tried.append(port)
        if port in self.taken:
            raise PortTaken("cannot be had")
        return Sockets(port or KERNELS_CHOICE, ())


@pytest.mark.parametrize("size", [1, 2, 3, 10, 64, 97, 1000])
def test_a_walk_meets_every_port_once(size: int) -> None:
    """Whatever is drawn, each port of the range comes exactly once."""
    for seed in range(20):
        met = list(walk(300, 300 + size - 1, random.Random(seed)))
        assert sorted(met) == list(range(300, 300 + size))


def test_walks_begin_anywhere() -> None:
    """The first port is not the same one each time."""
    firsts = Counter(next(walk(1, 50, random.Random(seed))) for seed in range(500))
    assert len(firsts) > 40


@pytest.mark.parametrize(
    ("span", "before", "taken", "got"),
    [
        (None, 0, (), KERNELS_CHOICE),
        (None, 33000, (), 33000),
        (None, 33000, (33000,), KERNELS_CHOICE),
        ((10, 10), 0, (), 10),
        ((10, 11), 11, (), 11),
        ((10, 11), 11, (11,), 10),
        # The range has been changed since.
        ((10, 10), 33000, (), 10),
    ],
)
def test_the_port_of_before_comes_first(
    span: tuple[int, int] | None, before: int, taken: tuple[int, ...], got: int
) -> None:
    """A front gets the port that it had, if it can be had and may be; else another."""
    assert Ports(span).open(Opener(taken), before).port == got


def test_no_port_is_given_twice() -> None:
    """What is ours is not asked for again, until it is given back."""
    ports, opener = Ports((1, 5)), Opener()
    assert sorted(ports.open(opener).port for _ in range(5)) == [1, 2, 3, 4, 5]
    assert len(opener.tried) == 5
    with pytest.raises(KernelError, match=r"no free relay port in 1-5; make --proxy-port-range"):
        ports.open(opener, before=3)
    ports.free(3)
    assert ports.open(opener).port == 3
    assert len(opener.tried) == 6


def test_an_adopted_port_is_ours() -> None:
    """A predecessor's port is passed over without a try."""
    ports, opener = Ports((1, 2)), Opener()
    ports.adopt(2)
    assert ports.open(opener).port == 1
    assert opener.tried == [1]


def test_an_exhausted_range_is_walked_once() -> None:
    """Others that ask are refused without thousands of tries; at the next change it is looked
    through again."""
    ports, opener = Ports((1, 100)), Opener(range(1, 101))
    for _ in range(3):
        with pytest.raises(KernelError):
            ports.open(opener)
    assert len(opener.tried) == 100
    opener.taken.remove(7)
    ports.again()
    assert ports.open(opener).port == 7


@pytest.mark.parametrize(
    ("workers", "cpus", "got"), [(0, 1, 1), (0, 2, 2), (0, 64, 4), (3, 1, 3), (64, 2, 64)]
)
def test_workers_follow_the_cores(workers: int, cpus: int, got: int) -> None:
    """As many as cores, at most four, unless told."""
    assert budget(1 << 20, workers, cpus).workers == got


@pytest.mark.parametrize("limit", [1024, 20000, 1 << 20])
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_two_families_fit_into_the_limit(limit: int, workers: int) -> None:
    """All flows and sessions of both families, and the usual sockets, leave the reserve."""
    one = budget(limit, workers, 1)
    assert 2 * (one.easy + one.workers * (2 * one.flows + one.sessions)) <= limit - RESERVE
    # Even all sockets that there may be leave half of the limit for flows.
    assert 2 * one.sockets <= limit // 2


SMALL = Budget(workers=4, sockets=100, easy=50, flows=1, sessions=1)


@pytest.mark.parametrize(
    ("in_use", "coming", "got"),
    [
        (0, 1, 4),
        (0, 12, 4),
        (0, 13, 3),
        (0, 40, 1),
        (0, 400, 1),
        (46, 1, 4),
        (48, 1, 2),
        (50, 1, 1),
        (99, 1, 1),
        (100, 1, 0),
        (0, 0, 0),
    ],
)
def test_sockets_of_a_front(in_use: int, coming: int, got: int) -> None:
    """One for each worker while there is plenty; then fewer, one, and none."""
    assert for_each_front(SMALL, in_use, coming) == got
