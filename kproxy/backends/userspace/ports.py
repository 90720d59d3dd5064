"""Which relay port a front gets: the one it had, one of ``--proxy-port-range``, or the kernel's.

A port that somebody has is passed over. A range in which nothing is left is an error for the
service port that asked, not for the others.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator

from kproxy.backends.userspace.sockets import PortTaken, Sockets
from kproxy.errors import KernelError

#: Opens sockets on a port, 0 for one of the kernel's choice; PortTaken when somebody has it.
Open = Callable[[int], Sockets]


def walk(first: int, last: int, rng: random.Random) -> Iterator[int]:
    """Every port from ``first`` to ``last`` once, in an order drawn at random.

    By a stride that has no divisor in common with their number, from a random start: nothing is
    stored, and nothing is drawn twice.
    """
    size = last - first + 1
    stride = rng.randrange(1, size + 1)
    while math.gcd(stride, size) != 1:
        stride += 1
    place = rng.randrange(size)
    for _ in range(size):
        yield first + place
        place = (place + stride) % size


class Ports:
    """Chooses relay ports of one protocol of one family.

    ``span`` are the first and last port of a range, None: the kernel chooses.
    """

    def __init__(self, span: tuple[int, int] | None, rng: random.Random | None = None) -> None:
        self._span = span
        self._rng = rng or random.SystemRandom()
        self._ours: set[int] = set()
        self._exhausted = False

    def open(self, open_: Open, before: int = 0) -> Sockets:
        """Sockets on a port: ``before`` if it can be had, as rules may still lead there.

        A port outside the range is not asked for again: the range may have been changed.
        KernelError when the range has none left.
        """
        if before and self.allows(before) and before not in self._ours:
            try:
                return self._taken(open_(before))
            except PortTaken:
                pass
        if self._span is None:
            return self._taken(open_(0))
        return self._drawn(open_)

    def adopt(self, port: int) -> None:
        """A port that we have by other ways: it is not drawn."""
        self._ours.add(port)

    def free(self, port: int) -> None:
        """It is not ours any more."""
        self._ours.discard(port)
        self._exhausted = False

    def again(self) -> None:
        """Others may have given ports back: look through the whole range once more."""
        self._exhausted = False

    def allows(self, port: int) -> bool:
        """Whether it is in the range."""
        return self._span is None or self._span[0] <= port <= self._span[1]

    def _taken(self, sockets: Sockets) -> Sockets:
        self._ours.add(sockets.port)
        return sockets

    def _drawn(self, open_: Open) -> Sockets:
        assert self._span is not None
        first, last = self._span
        # Thousands of service ports would each try every port of a range that has none left.
        for port in () if self._exhausted else walk(first, last, self._rng):
            if port in self._ours:
                continue
            try:
                return self._taken(open_(port))
            except PortTaken:
                pass
        self._exhausted = True
        raise KernelError(
            f"no free relay port in {first}-{last}",
            hint="make --proxy-port-range larger, or see who has them with: ss -tulnp",
        )
