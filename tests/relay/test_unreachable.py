"""Endpoints that cannot be reached, or go: clients notice as little as can be."""

from __future__ import annotations

import random
import socket
import struct
import threading
from types import ModuleType

import pytest

from kproxy.kernel.netlink import open_route
from tests.relay.peers import (
    MILLION,
    PATIENCE,
    Lab,
    Pair,
    all_of,
    carried,
    closed,
    is_reset,
    listening,
    nobody,
    received,
    relaying,
    reset,
    sending,
    until,
)

pytestmark = pytest.mark.kernel

# --- endpoints that cannot be reached ------------------------------------------------------------


def test_refused_by_one_served_by_another(relays: ModuleType) -> None:
    """No client notices, whichever of them is tried first."""
    with relaying(relays) as lab:
        closed_ = nobody()
        lab.publish(closed_, lab.endpoints[0].getsockname())
        for _ in range(6):
            lab.works()
        # Not all six begin with the same one.
        assert 0 < lab.counted("retries") <= 6
        assert lab.counted("failures") == 0
        failures = lab.relay.endpoint_counters(lab.service)[closed_]["failures"]
        assert failures == lab.counted("retries")
        lab.is_empty()


def test_refused_by_all(relays: ModuleType) -> None:
    """The client is reset, and the next one is served when there is somebody."""
    with relaying(relays) as lab:
        lab.publish(nobody(), nobody())
        assert is_reset_at_once(lab)
        assert lab.counted("failures") == 1
        lab.publish()
        lab.works()
        lab.is_empty()


def is_reset_at_once(lab: Lab) -> bool:
    """The reset may come before connect has returned."""
    try:
        return is_reset(lab.client())
    except ConnectionResetError:
        return True


#: Nobody answers there: neither a connection nor a refusal.
BLACK_HOLES = [("198.51.100.1", 80), ("198.51.100.2", 80), ("198.51.100.3", 80)]


def test_black_hole(relays: ModuleType) -> None:
    """After the patience of its rung another endpoint is tried, which gets all that the client has
    sent by then."""
    with relaying(relays, ladder=(0.25, 0.25, 0.25, PATIENCE)) as lab:
        dig(BLACK_HOLES)
        lab.publish(*BLACK_HOLES, lab.endpoints[0].getsockname())
        for _ in range(4):
            client = lab.client()
            with sending(client, MILLION):
                server = lab.accepted()
                assert received(server, len(MILLION)) == MILLION
            carried(server, client, b"answer")
            closed([Pair(client, server)])
        # Not all four begin with the one that answers.
        assert 0 < lab.counted("retries") <= 4 * 3
        assert lab.counted("failures") == 0
        assert {what for *_, what in lab.relay.take_verdicts()} == {"timeout"}
        lab.is_empty()


def test_an_endpoint_that_accepts_nobody(relays: ModuleType) -> None:
    """It listens, but its queue is full: the kernel says nothing, and another one is tried."""
    with relaying(relays, ladder=(0.25, PATIENCE)) as lab, listening(0) as full:
        lab.stack.enter_context(socket.create_connection(full.getsockname(), PATIENCE))
        until(lambda: is_full(full))
        lab.publish(full.getsockname(), lab.endpoints[0].getsockname())
        for _ in range(4):
            lab.works()
        assert lab.counted("retries") > 0
        assert lab.counted("failures") == 0
        lab.is_empty()


def is_full(listener: socket.socket) -> bool:
    """Of a listener, TCP_INFO tells how many wait (tcpi_unacked) and how many may
    (tcpi_sacked); the kernel takes one more than that."""
    waiting, most = struct.unpack_from(
        "=II", listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32), 24
    )
    return bool(waiting > most)


@pytest.mark.parametrize("goes", ["closes", "resets"])
def test_client_that_goes_while_a_black_hole_is_tried(relays: ModuleType, goes: str) -> None:
    """One that resets is gone at once; what one has sent before it closed is for whoever serves."""
    # So many rungs, because another endpoint is published in the meantime, and this may take time.
    with relaying(relays, ladder=(*7 * (0.5,), PATIENCE)) as lab:
        dig(BLACK_HOLES[:1])
        lab.publish(*BLACK_HOLES[:1])
        client = lab.client()
        client.sendall(b"question")
        if goes == "resets":
            until(lambda: lab.counted("active") == 1)
            reset(client)
            lab.is_empty()
            return
        client.close()
        lab.publish()
        server = lab.accepted()
        assert all_of(server) == b"question"
        server.close()
        lab.is_empty()


def test_nothing_but_black_holes(relays: ModuleType) -> None:
    """The client is reset when the ladder is at its end."""
    with relaying(relays, ladder=(0.05, 0.05)) as lab:
        dig(BLACK_HOLES)
        lab.publish(*BLACK_HOLES)
        assert is_reset(lab.client())
        assert (lab.counted("failures"), lab.counted("retries")) == (1, 1)
        lab.is_empty()


def dig(places: list[tuple[str, int]]) -> None:
    """What is sent there leaves, and arrives at nobody's device: its neighbour is made up."""
    with open_route() as route:
        route.link("add", ifname="hole", kind="veth", peer="void")
        index = route.link_lookup(ifname="hole")[0]
        for name in ("hole", "void"):
            route.link("set", ifname=name, state="up")
        route.addr("add", index=index, address="198.51.100.254", prefixlen=24)
        for host, _ in places:
            route.neigh("add", dst=host, lladdr="02:00:00:00:00:99", ifindex=index, state=0x80)


# --- change under way ----------------------------------------------------------------------------


def test_endpoints_are_replaced_under_live_flows(relays: ModuleType) -> None:
    """Flows to those that went go on; new ones get the new ones."""
    with relaying(relays) as lab:
        old, before = lab.endpoints[0], lab.pair()
        new = lab.endpoint()
        lab.publish(new.getsockname())
        for _ in range(3):
            lab.works(new)
        carried(before.client, before.server, MILLION[:70000])
        carried(before.server, before.client, MILLION[:70000])
        old.setblocking(False)
        with pytest.raises(BlockingIOError):
            old.accept()
        closed([before])
        lab.is_empty()


def test_endpoints_come_and_go_while_flows_begin(relays: ModuleType) -> None:
    """Two hundred lists, one after the other, under clients that come and go: each is served by
    one that was in a list when it came."""
    with relaying(relays, endpoints=4) as lab:
        places = [each.getsockname() for each in lab.endpoints]
        ended = threading.Event()

        def serve(listener: socket.socket) -> None:
            while not ended.is_set():
                try:
                    server, _ = listener.accept()
                except TimeoutError:
                    return
                with server:
                    server.sendall(server.recv(100))

        threads = [threading.Thread(target=serve, args=(each,)) for each in lab.endpoints]
        for thread in threads:
            thread.start()
        chance = random.Random(7)
        for number in range(200):
            lab.publish(*chance.sample(places, chance.randint(1, 4)))
            with socket.create_connection(lab.place, PATIENCE) as client:
                client.sendall(b"%d" % number)
                assert all_of(client) == b"%d" % number
        ended.set()
        for place in places:
            socket.create_connection(place, PATIENCE).close()
        for thread in threads:
            thread.join(PATIENCE)
        assert lab.counted("connections") == 200
        assert lab.counted("failures") == lab.counted("refused") == 0
        lab.is_empty()


def test_a_service_goes_under_live_flows(relays: ModuleType) -> None:
    """They go on; nobody else is let in."""
    with relaying(relays) as lab:
        pair = lab.pair()
        lab.relay.remove_service(lab.service)
        with pytest.raises(ConnectionRefusedError):
            lab.client()
        carried(pair.client, pair.server, MILLION[:70000])
        carried(pair.server, pair.client, MILLION[:70000])
        closed([pair])
        until(lambda: lab.relay.totals()["flows"] == 0)


def test_nobody_to_serve(relays: ModuleType) -> None:
    """Without endpoints whoever comes is reset, and counted."""
    with relaying(relays) as lab:
        lab.relay.set_endpoints(lab.service, (), (), ())
        assert is_reset_at_once(lab)
        until(lambda: lab.counted("refused") == 1)
        lab.is_empty()
