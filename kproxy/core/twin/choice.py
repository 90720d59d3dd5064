"""Which endpoint serves a new flow, and by which port a hidden client is told apart."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from itertools import accumulate

from kproxy.core.hashing import maglev, siphash
from kproxy.core.twin.flows import Endpoint, Flow, FlowTable
from kproxy.core.twin.rewrite import Tuple
from kproxy.core.twin.states import ENDED, UNCONFIRMED
from kproxy.core.twin.values import Algorithm, Member

#: So many ports are tried before one is taken from a flow that has ended.
PORT_TRIES = 256


class Chooser:
    """One set of a service: its members, with the endpoints that they are."""

    def __init__(
        self,
        members: Sequence[Member],
        endpoints: Sequence[Endpoint],
        algorithm: Algorithm,
        seed: bytes,
    ) -> None:
        self.members = list(zip(members, endpoints))
        self.seed = seed
        self.table: tuple[int, ...] = ()
        if algorithm is Algorithm.MAGLEV:
            self.table = maglev(
                seed, [member.place for member in members], [member.weight for member in members]
            )
        self.sums = list(accumulate(member.weight for member in members))
        self._pick: Callable[[int, int], int] = {
            Algorithm.MAGLEV: self._maglev,
            Algorithm.RANDOM: self._random,
            Algorithm.LEAST: self._least,
        }[algorithm]

    def choose(self, word: int, number: int) -> tuple[Member, Endpoint]:
        """``word`` is the hash of the client's tuple, ``number`` how many choices were made."""
        return self.members[self._pick(word, number)]

    def _maglev(self, word: int, number: int) -> int:
        return self.table[word % len(self.table)]

    def _random(self, word: int, number: int) -> int:
        data = word.to_bytes(8, "little") + number.to_bytes(8, "little")
        drawn = siphash(self.seed, data) % self.sums[-1]
        return next(place for place, total in enumerate(self.sums) if drawn < total)

    def _least(self, word: int, number: int) -> int:
        """Fewest flows for its weight. Who looks first is chance, or all clients of an idle
        service would go to the same one."""
        count = len(self.members)
        first = best = word % count
        for step in range(1, count):
            place = (first + step) % count
            member, endpoint = self.members[place]
            best_member, best_endpoint = self.members[best]
            if endpoint.active * best_member.weight < best_endpoint.active * member.weight:
                best = place
        return best

    def another(self, word: int, tried: Container[Endpoint]) -> tuple[Member, Endpoint] | None:
        """One that has not been tried, None when all have."""
        count = len(self.members)
        for step in range(count):
            found = self.members[((word >> 32) % count + step) % count]
            if found[1] not in tried:
                return found
        return None


def free_port(
    flows: FlowTable, back: Tuple, there: Tuple, ports: tuple[int, int], word: int, tick: int
) -> int | None:
    """A destination port with which ``back`` is no tuple of a flow, nor ``there``.

    Where the search begins follows from the client's tuple, so that the same client is likely to
    get the same port after a restart. When many are taken, that of the flow that ended first is
    taken from it: its tuple may live on at the endpoint (TIME_WAIT), which answers a SYN with a
    larger sequence number or timestamp well (RFC 6191), so this is done for want of another. When
    none has ended, the oldest that nobody has confirmed gives its port, as under a flood its slot.
    """
    first, last = ports
    size = last - first + 1
    ended: tuple[Flow, int] | None = None
    unconfirmed: tuple[Flow, int] | None = None
    for step in range(min(size, PORT_TRIES)):
        port = first + ((word >> 32) % size + step) % size
        wish = Tuple(back.source, back.destination, (back.ports[0], port), back.protocol)
        if wish == there:
            continue
        found = flows.find(wish)
        if found is None:
            return port
        flow = found[0]
        if tick >= flow.deadline:
            flows.remove(flow)
            return port
        if flow.state in ENDED:
            ended = min(ended or (flow, port), (flow, port), key=_deadline)
        elif flow.state in UNCONFIRMED:
            unconfirmed = min(unconfirmed or (flow, port), (flow, port), key=_deadline)
    taken = ended or unconfirmed
    if taken is None:
        return None
    flows.remove(taken[0])
    return taken[1]


def _deadline(found: tuple[Flow, int]) -> int:
    return found[0].deadline
