"""Many flows: more than there is room for, and flows on which anything at all happens."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack
from types import ModuleType

import pytest

from tests.contract.namespaces import scratch
from tests.relay.apart import apart
from tests.relay.peers import (
    PATIENCE,
    Pair,
    all_of,
    carried,
    closed,
    is_over,
    listening,
    received,
    relaying,
    reset,
    until,
)

pytestmark = pytest.mark.kernel

# --- too many ------------------------------------------------------------------------------------


def test_eight_thousand_idle_connections(relays: ModuleType) -> None:
    """Each takes some hundred bytes of the relay, works when it is called upon, and is freed."""
    with scratch(loopback=True), ExitStack() as stack:
        endpoint = stack.enter_context(listening())
        with apart(relays.__file__ or "", [endpoint.getsockname()]) as relay:
            empty, descriptors = relay.memory(), relay.descriptors()
            pairs = [_idle_pair(stack, relay.place, endpoint) for _ in range(8000)]
            assert relay.totals()["flows"] == 8000
            assert relay.memory() - empty < 8000 * 2048
            for pair in pairs[::100]:
                carried(pair.client, pair.server, b"question")
                carried(pair.server, pair.client, b"answer")
            closed(pairs)
            until(lambda: relay.totals()["flows"] == 0)
            # Some sockets are made ahead.
            assert relay.descriptors() <= descriptors + 8


def _idle_pair(stack: ExitStack, place: tuple[str, int], endpoint: socket.socket) -> Pair:
    client = stack.enter_context(socket.create_connection(place, PATIENCE))
    server = stack.enter_context(endpoint.accept()[0])
    server.settimeout(PATIENCE)
    return Pair(client, server)


def test_out_of_descriptors(relays: ModuleType) -> None:
    """Those that are in are served, others wait; as soon as one goes, the next one is let in, until
    all have been served."""
    with scratch(loopback=True), ExitStack() as stack:
        endpoint = stack.enter_context(listening())
        with apart(relays.__file__ or "", [endpoint.getsockname()], limit=60) as relay:
            clients = [
                stack.enter_context(socket.create_connection(relay.place, PATIENCE))
                for _ in range(200)
            ]
            for number, client in enumerate(clients):
                client.sendall(b"%3d" % number)
            until(lambda: relay.totals()["accept_pauses"] > 0)
            inside = relay.totals()["flows"]
            assert 0 < inside < 30
            served = set()
            for _ in range(200):
                server, _ = endpoint.accept()
                with server:
                    server.settimeout(PATIENCE)
                    number = int(received(server, 3))
                    server.sendall(b"answer")
                assert all_of(clients[number]) == b"answer"
                clients[number].close()
                served.add(number)
            assert served == set(range(200))
            until(lambda: relay.totals()["flows"] == 0)
            assert relay.totals()["failures"] == 0


def test_more_flows_than_are_permitted(relays: ModuleType) -> None:
    """The same with the relay's own limit."""
    with relaying(relays, max_flows=3) as lab:
        pairs = [lab.pair() for _ in range(3)]
        waiting = lab.client()
        waiting.sendall(b"question")
        until(lambda: lab.relay.totals()["accept_pauses"] > 0)
        assert lab.relay.totals()["flows"] == 3
        closed(pairs[:1])
        server = lab.accepted()
        assert received(server, 8) == b"question"
        closed([*pairs, Pair(waiting, server)])
        lab.is_empty()
        lab.works()


# --- anything at all -----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_anything_at_all(relays: ModuleType, seed: int) -> None:
    """Pieces of any size, ends, resets, in any order on many flows at once: each end hears a
    beginning of what the other said, all of it if that one finished and nobody reset; nothing is
    left in the end."""
    with relaying(relays, workers=2, buffer_bytes=16384) as lab:
        chance = random.Random(seed)
        flows = [Talk(lab.pair(), chance) for _ in range(40)]
        moves = [flow for flow in flows for _ in range(12)]
        chance.shuffle(moves)
        for flow in moves:
            flow.move()
        for flow in flows:
            flow.finish()
        lab.is_empty()
        lab.works()


class Talk:
    """One flow whose ends do as they like."""

    def __init__(self, pair: Pair, chance: random.Random) -> None:
        self._ends = (End(pair.client), End(pair.server))
        self._chance = chance
        self._reset = False

    def move(self) -> None:
        """Something happens at one end."""
        if self._reset:
            return
        which = self._chance.randrange(2)
        end, other = self._ends[which], self._ends[1 - which]
        what = self._chance.choices(("say", "hear", "end", "reset"), (10, 10, 2, 1))[0]
        if what == "say":
            end.say(self._chance.randbytes(self._chance.choice((1, 100, 5000, 300_000))))
        elif what == "hear":
            other.hear(end, self._chance.choice((1, 1000, 1 << 20)))
        elif what == "end":
            end.end()
        else:
            reset(end.socket)
            self._reset = True

    def finish(self) -> None:
        if self._reset:
            for end, other in (self._ends, self._ends[::-1]):
                if end.socket.fileno() >= 0:
                    assert is_reset_or_over(end, other)
                    end.socket.close()
            return
        for end in self._ends:
            end.end()
        for end, other in (self._ends, self._ends[::-1]):
            while end.hear(other, 1 << 20):
                pass
            assert end.heard == len(other.said)
        for end in self._ends:
            end.socket.close()


class End:
    """``said``: what was taken of what it said; ``heard``: how many bytes of the other's."""

    def __init__(self, of: socket.socket) -> None:
        self.socket = of
        self.said = bytearray()
        self.heard = 0
        self.ended = False

    def say(self, data: bytes) -> None:
        if self.ended:
            return
        self.socket.setblocking(False)
        try:
            self.said += data[: self.socket.send(data)]
        except BlockingIOError:
            pass
        finally:
            self.socket.settimeout(PATIENCE)

    def hear(self, other: End, most: int) -> int:
        """What must be there, if anything must."""
        if self.heard == len(other.said) and not other.ended:
            return 0
        data = self.socket.recv(most)
        assert data == other.said[self.heard : self.heard + len(data)]
        self.heard += len(data)
        return len(data)

    def end(self) -> None:
        if not self.ended:
            self.socket.shutdown(socket.SHUT_WR)
        self.ended = True


def is_reset_or_over(end: End, other: End) -> bool:
    """The other one has reset: what it had said before may still come, nothing else does."""
    try:
        while data := end.socket.recv(1 << 20):
            assert data == other.said[end.heard : end.heard + len(data)]
            end.heard += len(data)
    except ConnectionResetError:
        return True
    # The other one had finished before it reset, or both had, and there was nothing more to tell.
    return bool(is_over(end.socket)) or (end.ended and end.heard == len(other.said))
