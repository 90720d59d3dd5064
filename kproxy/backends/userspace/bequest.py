"""Both ends of a change of hands: a relay that gives away what it serves, and one that gets it.

What travels in between are the values of :mod:`kproxy.backends.userspace.estate`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from kproxy.backends.userspace.carried import Carried, code_of
from kproxy.backends.userspace.door import RelayDoor
from kproxy.backends.userspace.estate import Estate, Lent, LentFront, LentPort, Words
from kproxy.backends.userspace.sockets import address_of
from kproxy.core.objects import PortName
from kproxy.errors import KernelError


class Lender:
    """Gives away what a door serves, step by step; at each of them it can go on as before."""

    def __init__(self, door: RelayDoor) -> None:
        self._carried = door.carried
        self._held = door.node_ports
        self.family = door.family
        #: With copies of the sockets: a quiet relay has closed its own.
        self._lent: tuple[Lent, ...] = ()
        self._said: dict[PortName, Words] = {}

    def lend(self) -> Estate:
        """All that is served and held, with copies of the descriptors, which stay ours. We serve
        on. KernelError when there are no descriptors left for the copies."""
        lent: list[Lent] = []
        try:
            for served in self._carried.services.values():
                fronts: list[LentFront] = []
                lent.append(Lent(served.service, ()))
                for use, front in served.fronts.items():
                    fds = self._carried.relay.lend(front.id)
                    fronts.append(LentFront(use, front.port, fds))
                    lent[-1] = Lent(served.service, tuple(fronts))
        except OSError as refused:
            raise KernelError(
                f"no copies of the sockets: {refused.strerror}",
                hint="allow the process more open files (ulimit -n, LimitNOFILE=)",
            ) from refused
        finally:
            self._lent = tuple(lent)
        held = tuple([LentPort(port, fds) for port, fds in self._held.lent().items()])
        return Estate(self.family, self._lent, held)

    def quiet(self) -> Iterator[Words]:
        """Take nothing more of what was lent, one service after the other: a successor does from
        the moment at which it hears what we know of the service's clients."""
        for lent in self._lent:
            relay, served = self._carried.relay, self._carried.services[lent.service.name]
            for front in served.fronts.values():
                relay.quiet(front.id)
            words = self._said[lent.service.name] = Words(
                lent.service.name,
                tuple(relay.affinities(served.id)),
                tuple(relay.sessions(served.id)),
            )
            yield words

    def resume(self) -> None:
        """No successor came about: serve on what was lent, wherever we were."""
        for lent in self._lent:
            words = self._said.get(lent.service.name)
            if words is None:
                _close(lent)
                continue
            relay, served = self._carried.relay, self._carried.services[lent.service.name]
            _repeat(self._carried, words)
            for front in lent.fronts:
                old = served.fronts[front.use].id
                served.fronts[front.use].id = relay.open(served.id, code_of(front.use), front.fds)
                relay.close(old)
        self._lent, self._said = (), {}

    def give_up(self) -> None:
        """The successor serves: let the copies and the node ports go. Our flows go on."""
        for lent in self._lent:
            _close(lent)
        self._lent, self._said = (), {}
        self._held.close()


class Heir:
    """Gets what a predecessor served into a door that serves nothing yet."""

    def __init__(self, door: RelayDoor) -> None:
        self._door = door
        self._waiting: dict[PortName, Lent] = {}

    def adopt(self, estate: Estate) -> None:
        """Get ready to serve all of it, and hold what it holds; the value's descriptors are ours.
        Nobody is served before :meth:`enter`."""
        self._waiting = {lent.service.name: self._fitting(lent) for lent in estate.services}
        for held in estate.node_ports:
            self._door.node_ports.adopt(held.port, held.fds)
        for lent in estate.services:
            self._door.carried.tell(lent.service)

    def _fitting(self, lent: Lent) -> Lent:
        """But for fronts that listen elsewhere than we are to (another --bind-address or
        --proxy-port-range): rules will not lead there, and the first sync opens others."""
        fronts = []
        for front in lent.fronts:
            addresses = map(address_of, front.fds)
            udp = lent.service.udp
            if all(self._door.fits(front.port, address, udp=udp) for address in addresses):
                fronts.append(front)
            else:
                close_all(front.fds)
        return Lent(lent.service, tuple(fronts))

    def enter(self, words: Words) -> None:
        """Serve a service that was adopted: the predecessor takes nothing more for it."""
        lent = self._waiting.pop(words.name, None)
        if lent is None:
            return
        _repeat(self._door.carried, words)
        for front in lent.fronts:
            self._door.adopt(lent.service, front.use, front.port, front.fds)

    def close(self) -> None:
        """It did not come about: let go of what is not served yet."""
        for lent in self._waiting.values():
            _close(lent)
        self._waiting.clear()


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors that nobody wants."""
    for fd in fds:
        os.close(fd)


def _close(lent: Lent) -> None:
    for front in lent.fronts:
        close_all(front.fds)


def _repeat(carried: Carried, words: Words) -> None:
    relay, served = carried.relay, carried.services[words.name]
    if words.affinities:
        relay.set_affinities(served.id, words.affinities)
    if words.sessions:
        relay.set_sessions(served.id, words.sessions)
