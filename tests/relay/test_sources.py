"""Connecting from other addresses of the node when one has no ports left towards an endpoint."""

from __future__ import annotations

import ctypes
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from kproxy.kernel.netlink import open_route
from tests.relay.peers import (
    HOST,
    PATIENCE,
    Lab,
    Pair,
    carried,
    closed,
    received,
    relaying,
    until,
)

pytestmark = pytest.mark.kernel

NETWORK = Path("/proc/sys/net/ipv4")

#: Ports that each address has towards an endpoint.
PORTS = 4

#: The first of them, and of those that clients come from: below all that the kernel has dealt out
#: to the relay's front and to endpoints.
FIRST_PORT, FIRST_CLIENT = 20000, 21000

#: More addresses of the node besides the one that the kernel chooses.
OTHERS = ("127.0.0.2", "127.0.0.3")

#: Of the node, but endpoints do not answer to it.
STRANGE = "198.51.100.7"

#: Not in :mod:`socket`.
SO_ATTACH_FILTER = 26


@contextmanager
def scarce(
    relays: ModuleType, *sources: str, endpoints: int = 1, **settings: object
) -> Iterator[Lab]:
    """A relay whose node has few ports, each of them used up for a minute by a short connection."""
    with relaying(relays, endpoints, **settings) as lab:
        NETWORK.joinpath("ip_local_port_range").write_text(f"{FIRST_PORT} {FIRST_PORT + PORTS - 1}")
        NETWORK.joinpath("tcp_tw_reuse").write_text("0")
        lab.relay.set_sources(sources)
        yield lab


def pair(lab: Lab, number: int) -> Pair:
    """A flow of a client that does not need one of the few ports."""
    client = client_of(lab, number)
    return Pair(client, lab.accepted())


def client_of(lab: Lab, number: int) -> socket.socket:
    made = socket.create_connection(
        lab.place, PATIENCE, source_address=(HOST, FIRST_CLIENT + number)
    )
    return lab.stack.enter_context(made)


def source_of(flow: Pair) -> str:
    return str(flow.server.getpeername()[0])


def test_the_next_address_when_one_is_used_up(relays: ModuleType) -> None:
    """No client notices: each address serves as many as it has ports, in the order given."""
    with scarce(relays, *OTHERS) as lab:
        flows = [pair(lab, number) for number in range(3 * PORTS)]
        assert [source_of(flow) for flow in flows] == [
            address for address in (HOST, *OTHERS) for _ in range(PORTS)
        ]
        for flow in flows:
            carried(flow.client, flow.server, b"question")
            carried(flow.server, flow.client, b"answer")
        assert lab.counted("retries") == lab.counted("failures") == 0
        assert lab.relay.totals()["other_sources"] == 2 * PORTS
        assert lab.relay.totals()["no_ports"] == 0
        assert lab.relay.take_verdicts() == []
        closed(flows)
        lab.is_empty()


def test_ports_that_linger(relays: ModuleType) -> None:
    """Connections that were closed here keep their ports as those do that live."""
    with scarce(relays, *OTHERS) as lab:
        seen = []
        for number in range(3 * PORTS):
            flow = pair(lab, number)
            carried(flow.client, flow.server, b"question")
            seen.append(source_of(flow))
            # The client ends it, so it is the relay that ends it towards the endpoint.
            flow.client.close()
            assert flow.server.recv(1) == b""
            flow.server.close()
        assert seen == [address for address in (HOST, *OTHERS) for _ in range(PORTS)]
        assert lab.counted("retries") == lab.counted("failures") == 0
        lab.is_empty()


def test_none_left_of_any(relays: ModuleType) -> None:
    """The client waits, and is served from whichever address has a port first."""
    with scarce(relays, OTHERS[0], ladder=(0.02, *7 * (1.0,))) as lab:
        flows = [pair(lab, number) for number in range(2 * PORTS)]
        waiting = client_of(lab, 1000)
        until(lambda: lab.relay.totals()["no_ports"] > 0)
        # Ended by the endpoint's side first, so that no port lingers at ours.
        flows[1].server.close()
        assert flows[1].client.recv(1) == b""
        flows[1].client.close()
        server = lab.accepted()
        carried(waiting, server, b"question")
        assert server.getpeername()[0] == HOST
        assert lab.counted("failures") == 0
        assert lab.relay.take_verdicts() == []


def test_an_endpoint_has_ports_that_another_has_not(relays: ModuleType) -> None:
    """Ports are used up towards one endpoint only: others are reached from the usual address."""
    with scarce(relays, *OTHERS, endpoints=2) as lab:
        one, another = lab.endpoints
        lab.publish(one.getsockname())
        for number in range(PORTS + 1):
            last = pair(lab, number)
        assert source_of(last) == OTHERS[0]
        lab.publish(another.getsockname())
        client_of(lab, 1000)
        assert lab.accepted(another).getpeername()[0] == HOST


def test_an_address_that_is_gone(relays: ModuleType) -> None:
    """It is passed over."""
    with scarce(relays, "192.0.2.77", OTHERS[0]) as lab:
        flows = [pair(lab, number) for number in range(PORTS + 1)]
        assert source_of(flows[-1]) == OTHERS[0]
        assert lab.counted("retries") == lab.counted("failures") == 0


def test_an_address_that_the_endpoint_does_not_answer(relays: ModuleType) -> None:
    """After one silence another address is used, the endpoint is not blamed, and its client keeps
    its affinity."""
    with scarce(relays, STRANGE, OTHERS[0], ladder=(0.5, *7 * (PATIENCE,))) as lab:
        deaf_to(lab.endpoints[0], STRANGE)
        lab.relay.set_service(lab.service, affinity_seconds=600)
        flows = [pair(lab, number) for number in range(PORTS + 3)]
        assert [source_of(flow) for flow in flows[PORTS:]] == 3 * [OTHERS[0]]
        assert (lab.counted("retries"), lab.counted("failures")) == (1, 0)
        assert lab.relay.take_verdicts() == []
        assert len(lab.relay.affinities(lab.service)) == 1


def deaf_to(endpoint: socket.socket, address: str) -> None:
    """Give the node that address, and let the endpoint get nothing that comes from there."""
    with open_route() as route:
        index = route.link_lookup(ifname="lo")[0]
        route.addr("add", index=index, address=address, prefixlen=32)
    (source,) = struct.unpack("!I", socket.inet_aton(address))
    # Load the word at 12 of the IPv4 header (SKF_NET_OFF); drop if it is that, else take all.
    lines = (
        (0x20, 0, 0, 0xFFF00000 + 12),
        (0x15, 0, 1, source),
        (0x06, 0, 0, 0),
        (0x06, 0, 0, 1 << 16),
    )
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in lines))
    program = struct.pack("@HP", len(lines), ctypes.addressof(code))
    endpoint.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


def test_other_addresses_while_flows_begin(relays: ModuleType) -> None:
    """The list is exchanged five hundred times under clients that come and go; all are served."""
    with scarce(relays, *OTHERS, workers=1) as lab:
        ended = threading.Event()

        def exchange() -> None:
            turn = 0
            while not ended.is_set():
                lab.relay.set_sources(OTHERS[turn % 3 :] if turn % 3 < 2 else ())
                turn += 1

        thread = threading.Thread(target=exchange)
        thread.start()
        try:
            for number in range(300):
                flow = pair(lab, number)
                flow.client.sendall(b"?")
                assert received(flow.server, 1) == b"?"
                flow.server.close()
                assert flow.client.recv(1) == b""
                flow.client.close()
        finally:
            ended.set()
            thread.join(PATIENCE)
        assert lab.counted("failures") == 0
        lab.is_empty()


def test_sources_that_are_none(relays: ModuleType) -> None:
    """Wrong addresses are refused, and those of before stay."""
    with scarce(relays, *OTHERS) as lab:
        for wrong in (["nowhere"], ["2001:db8::1%eth0"], [f"127.0.1.{last}" for last in range(17)]):
            with pytest.raises(ValueError, match=r"address"):
                lab.relay.set_sources(wrong)
        lab.relay.set_sources([*(f"127.0.1.{last}" for last in range(16)), "2001:db8::1"])
        lab.relay.set_sources(OTHERS)
        flows = [pair(lab, number) for number in range(PORTS + 1)]
        assert source_of(flows[-1]) == OTHERS[0]
