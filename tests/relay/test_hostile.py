"""Peers that misbehave, on real sockets: a flow ends as it would without a relay, others go on."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable
from types import ModuleType

import pytest

from tests.relay.peers import (
    MILLION,
    PATIENCE,
    all_of,
    carried,
    closed,
    ends,
    filled,
    is_reset,
    received,
    relaying,
    reset,
    seen_from,
    sending,
    stuffed,
    until,
)

pytestmark = pytest.mark.kernel

# --- bytes ---------------------------------------------------------------------------------------


@ends
def test_one_byte_at_a_time(relays: ModuleType, end: str) -> None:
    """Each arrives, in order, before the next one is sent."""
    with relaying(relays) as lab:
        near, far = seen_from(end, lab.pair())
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number in range(500):
            carried(near, far, bytes((number % 256,)))
        lab.works()


@ends
def test_a_million_bytes_then_close(relays: ModuleType, end: str) -> None:
    """All of them arrive, and then the end, though the sender is long gone."""
    with relaying(relays) as lab:
        near, far = seen_from(end, lab.pair())
        with sending(near, MILLION, then_close=True):
            assert all_of(far) == MILLION
        far.close()
        lab.is_empty()


@ends
def test_a_million_bytes_to_a_slow_reader(relays: ModuleType, end: str) -> None:
    """In small pieces, from a window that fills: none is lost, and the end is told last."""
    with relaying(relays) as lab:
        near, far = seen_from(end, lab.pair())
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        found = bytearray()
        with sending(near, MILLION, then_close=True):
            while data := far.recv(1000):
                found += data
        assert bytes(found) == MILLION
        far.close()
        lab.is_empty()


def test_both_ways_at_once(relays: ModuleType) -> None:
    """Both talk and neither waits for the other."""
    with relaying(relays) as lab:
        client, server = lab.pair()
        with sending(client, MILLION), sending(server, MILLION[::-1]):
            found: dict[str, bytes] = {}
            reader = threading.Thread(
                target=lambda: found.update(server=received(server, len(MILLION)))
            )
            reader.start()
            assert received(client, len(MILLION)) == MILLION[::-1]
            reader.join(PATIENCE)
        assert found == {"server": MILLION}


@ends
def test_urgent_data(relays: ModuleType, end: str) -> None:
    """Its mark is not carried; what comes before and after it is, and the flow does not stall."""
    with relaying(relays) as lab:
        near, far = seen_from(end, lab.pair())
        carried(near, far, b"before")
        near.send(b"!", socket.MSG_OOB)
        near.sendall(b"after")
        near.shutdown(socket.SHUT_WR)
        assert all_of(far).replace(b"!", b"") == b"after"
        lab.works()


@ends
def test_a_peer_that_never_reads(relays: ModuleType, end: str) -> None:
    """Its sender is held up, what is kept for it is bounded, others are served; and when it reads
    at last, everything is there."""
    with relaying(relays, buffer_bytes=65536) as lab:
        near, far = seen_from(end, lab.pair())
        taken = stuffed(lab, near)
        assert lab.relay.totals()["buffered"] <= 65536
        lab.works()
        near.shutdown(socket.SHUT_WR)
        assert len(all_of(far)) == taken
        carried(far, near, b"thanks")
        far.close()
        assert near.recv(1) == b""
        near.close()
        lab.is_empty()


@ends
def test_many_peers_that_never_read(relays: ModuleType, end: str) -> None:
    """Memory grows by a bounded piece for each; all of it is free when they are gone."""
    with relaying(relays, buffer_bytes=65536) as lab:
        pairs = [lab.pair() for _ in range(10)]
        for pair in pairs:
            filled(seen_from(end, pair).client)
        stuffed(lab, seen_from(end, pairs[0]).client)
        lab.works()
        assert lab.relay.totals()["buffered"] <= 10 * 65536
        closed(pairs)
        lab.is_empty()


# --- ends ----------------------------------------------------------------------------------------


@ends
def test_fin_before_data(relays: ModuleType, end: str) -> None:
    """Who has finished without a word still hears everything that the other one has to say."""
    with relaying(relays) as lab:
        near, far = seen_from(end, lab.pair())
        near.shutdown(socket.SHUT_WR)
        assert far.recv(1) == b""
        with sending(far, MILLION, then_close=True):
            assert all_of(near) == MILLION
        near.close()
        lab.is_empty()


@ends
def test_half_close_after_a_request(relays: ModuleType, end: str) -> None:
    """Request, end, answer, end: as `nc -N` and many protocols of old do it."""
    with relaying(relays) as lab:
        near, far = seen_from(end, lab.pair())
        near.sendall(MILLION[:5000])
        near.shutdown(socket.SHUT_WR)
        assert all_of(far) == MILLION[:5000]
        carried(far, near, b"one")
        carried(far, near, b"two")
        far.shutdown(socket.SHUT_WR)
        assert near.recv(1) == b""
        lab.is_empty()


def test_both_finish_without_a_word(relays: ModuleType) -> None:
    """At once, from both ends."""
    with relaying(relays) as lab:
        client, server = lab.pair()
        client.shutdown(socket.SHUT_WR)
        server.shutdown(socket.SHUT_WR)
        assert client.recv(1) == server.recv(1) == b""
        lab.is_empty()


# --- resets --------------------------------------------------------------------------------------


def _at_once(near: socket.socket, far: socket.socket) -> None:
    """Nothing was said."""


def _after_a_request(near: socket.socket, far: socket.socket) -> None:
    carried(near, far, b"question")


def _after_an_answer(near: socket.socket, far: socket.socket) -> None:
    carried(near, far, b"question")
    carried(far, near, b"answer")


def _with_something_unread(near: socket.socket, far: socket.socket) -> None:
    far.sendall(b"nobody reads this")


def _after_its_own_end(near: socket.socket, far: socket.socket) -> None:
    near.shutdown(socket.SHUT_WR)
    assert far.recv(1) == b""


def _after_the_others_end(near: socket.socket, far: socket.socket) -> None:
    far.shutdown(socket.SHUT_WR)
    assert near.recv(1) == b""


def _in_the_middle_of_much(near: socket.socket, far: socket.socket) -> None:
    filled(near)


def _while_the_other_sends_much(near: socket.socket, far: socket.socket) -> None:
    filled(far)


#: What has happened on a flow when its near end resets it. After its own end as well: a peer that
#: waits for an answer learns that nobody does any more.
STEPS = [
    _at_once,
    _after_a_request,
    _after_an_answer,
    _with_something_unread,
    _after_its_own_end,
    _after_the_others_end,
    _in_the_middle_of_much,
    _while_the_other_sends_much,
]


@ends
@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__.strip("_"))
def test_reset_at_each_step(
    relays: ModuleType, end: str, step: Callable[[socket.socket, socket.socket], None]
) -> None:
    """The other end is reset as well, whatever was under way; nothing is left, others go on."""
    with relaying(relays) as lab:
        near, far = seen_from(end, lab.pair())
        step(near, far)
        reset(near)
        assert is_reset(far)
        far.close()
        lab.is_empty()
        lab.works()


@ends
def test_close_with_something_unread_is_a_reset(relays: ModuleType, end: str) -> None:
    """As the kernel says it to a peer without a relay in between."""
    with relaying(relays) as lab:
        near, far = seen_from(end, lab.pair())
        carried(far, near, b"one")
        far.sendall(b"two")
        assert near.recv(1, socket.MSG_PEEK) == b"t"
        near.close()
        assert is_reset(far)
        lab.is_empty()


def test_clients_that_are_gone_before_they_are_let_in(relays: ModuleType) -> None:
    """A hundred that reset as soon as they are connected."""
    with relaying(relays) as lab:
        for _ in range(100):
            reset(lab.client())
        until(lambda: lab.counted("connections") == 100)
        lab.is_empty()
        # Connections for some of them may wait at the first endpoint.
        another = lab.endpoint()
        lab.publish(another.getsockname())
        lab.works(another)


def test_an_endpoint_that_resets_whoever_comes(relays: ModuleType) -> None:
    """It took the connection: no other one is tried, the client is reset, and it is told."""
    with relaying(relays) as lab:
        client, server = lab.pair()
        reset(server)
        assert is_reset(client)
        host, port = lab.endpoints[0].getsockname()
        told: list[tuple[int, str, int, str]] = []
        until(lambda: bool(told.extend(lab.relay.take_verdicts()) or told))
        assert told == [(lab.service, host, port, "reset")]
        lab.is_empty()


# --- silence -----------------------------------------------------------------------------------


def test_a_flow_on_which_nothing_moves(relays: ModuleType) -> None:
    """Both ends are reset when the idle limit is over, and not before: one that talks lives on."""
    # As long as this process may be held up: who is silent that long is silent.
    with relaying(relays, idle_seconds=3) as lab:
        quiet, loud = lab.pair(), lab.pair()
        poll = select.poll()
        poll.register(quiet.client, 0)
        while not poll.poll(50):
            carried(loud.client, loud.server, b"still here")
        assert is_reset(quiet.client)
        assert is_reset(quiet.server)
        carried(loud.server, loud.client, b"so am I")
        closed([quiet, loud])
        lab.is_empty()


@ends
def test_a_half_open_flow_on_which_nothing_moves(relays: ModuleType, end: str) -> None:
    """When one end has finished the limit is another one."""
    with relaying(relays, half_open_seconds=0.2) as lab:
        near, far = seen_from(end, lab.pair())
        near.shutdown(socket.SHUT_WR)
        assert is_reset(far)
        assert is_reset(near)
        lab.is_empty()


def test_stop_ends_everything(relays: ModuleType) -> None:
    """Whatever is under way: both ends are reset, nobody is let in."""
    with relaying(relays) as lab:
        talking, stuck, half = lab.pair(), lab.pair(), lab.pair()
        carried(talking.client, talking.server, b"question")
        stuffed(lab, stuck.client)
        half.client.shutdown(socket.SHUT_WR)
        assert half.server.recv(1) == b""
        lab.relay.stop()
        for pair in (talking, stuck, half):
            assert is_reset(pair.client)
            assert is_reset(pair.server)
        with pytest.raises(ConnectionRefusedError):
            lab.client()
