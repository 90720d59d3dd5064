"""Datagrams through the relay: whole, in order, from the right address, headed and counted."""

from __future__ import annotations

import random
import struct
from ipaddress import ip_address
from types import ModuleType

import pytest

from kproxy.core.objects import Family
from tests.relay.datagrams import (
    HOSTS,
    SOL_UDP,
    UDP_SEGMENT,
    answered,
    families,
    front_sockets,
    place,
    relaying,
    until,
)

pytestmark = pytest.mark.kernel

#: Payloads around what matters: none, one byte, the longest in a frame, several fragments, the
#: longest that IPv4 carries.
SIZES = [0, 1, 64, 1472, 1473, 9000, 65507]


def payload(size: int, seed: int = 0) -> bytes:
    return random.Random(size << 8 | seed).randbytes(size)


# --- datagrams ---------------------------------------------------------------------------------


@families
@pytest.mark.parametrize("size", SIZES)
def test_datagrams_of_any_size(relays: ModuleType, family: Family, size: int):
    """A datagram crosses whole, both ways, whatever its size."""
    with relaying(relays, family=family) as lab:
        for seed in range(3):
            answered(lab.client(), lab.endpoints[0], payload(size, seed))


@families
def test_answers_come_from_where_the_client_asked(relays: ModuleType, family: Family):
    """The front is bound to all addresses; each client hears the one it has sent to."""
    with relaying(relays, family=family) as lab:
        for host in HOSTS[family]:
            answered(lab.client(host), lab.endpoints[0])


def test_one_client_at_two_addresses(relays: ModuleType):
    """A client that uses two addresses of the front from one port has a session at each."""
    with relaying(relays) as lab:
        client = lab.socket("0.0.0.0")
        for host in HOSTS[Family.IPV4][:2]:
            client.sendto(host.encode(), (host, lab.port))
        for _ in range(2):
            data, upstream = lab.endpoints[0].recvfrom(100)
            lab.endpoints[0].sendto(data, upstream)
        answers = [client.recvfrom(100) for _ in range(2)]
        assert {(data.decode(), lab.port) for data, _ in answers} == {at for _, at in answers}


def mixed(number: int, seed: int) -> list[bytes]:
    """Runs of datagrams of one size, some followed by a shorter one, some single or empty."""
    chance = random.Random(seed)
    found: list[bytes] = []
    while len(found) < number:
        size = chance.choice([0, 1, 64, 500, 1400, 3000])
        found += [chance.randbytes(size) for _ in range(chance.choice([1, 2, 3, 30]))]
        found.append(chance.randbytes(chance.randint(0, size)))
    return found[:number]


@families
@pytest.mark.parametrize("seed", range(4))
def test_bursts_keep_order_and_borders(relays: ModuleType, family: Family, seed: int):
    """What is sent in one go arrives datagram by datagram, in order; so do the answers."""
    burst = mixed(90, seed)
    with relaying(relays, family=family) as lab:
        client, (endpoint,) = lab.client(), lab.endpoints
        for datagram in burst:
            client.send(datagram)
        got = [endpoint.recvfrom(65536) for _ in burst]
        assert [data for data, _ in got] == burst
        for data, upstream in got:
            endpoint.sendto(data, upstream)
        assert [client.recv(65536) for _ in burst] == burst


@families
@pytest.mark.parametrize("size", [1, 64, 1400])
@pytest.mark.parametrize("last", [0, 1])
def test_trains(relays: ModuleType, family: Family, size: int, last: int):
    """Datagrams that reach the relay as one message (GSO) leave it as the datagrams they are, with
    the shorter one at the end; in both directions."""
    cars = [payload(size, seed) for seed in range(40)]
    if last and size > 1:
        cars.append(payload(size // 2))
    with relaying(relays, family=family) as lab:
        client, (endpoint,) = lab.client(), lab.endpoints
        for end in (client, endpoint):
            end.setsockopt(SOL_UDP, UDP_SEGMENT, size)
        client.send(b"".join(cars))
        got = [endpoint.recvfrom(65536) for _ in cars]
        assert [data for data, _ in got] == cars
        endpoint.sendto(b"".join(cars), got[0][1])
        assert [client.recv(65536) for _ in cars] == cars


@families
def test_trains_that_the_path_does_not_take(relays: ModuleType, family: Family):
    """Datagrams over the MTU of the way on cannot be cut by the kernel: they go singly."""
    cars = [payload(3000, seed) for seed in range(20)]
    with relaying(relays, family=family) as lab, lab.loopback_mtu(1500):
        # They wait in the socket, so that the relay reads all of them at once.
        fds, lab.port = front_sockets(family)
        client, (endpoint,) = lab.client(), lab.endpoints
        for car in cars:
            client.send(car)
        lab.open(fds)
        got = [endpoint.recvfrom(65536) for _ in cars]
        assert [data for data, _ in got] == cars
        for data, upstream in got:
            endpoint.sendto(data, upstream)
        assert [client.recv(65536) for _ in cars] == cars
        assert lab.counters()["datagrams_dropped"] == 0


# --- PROXY header ------------------------------------------------------------------------------


def header(client: tuple[str, int], asked: tuple[str, int]) -> bytes:
    """Version 2, PROXY, datagram; written down from the specification by other means."""
    addresses = b"".join(ip_address(host).packed for host, _ in (client, asked))
    kind = 0x12 if len(addresses) == 8 else 0x22
    body = addresses + struct.pack("!HH", client[1], asked[1])
    return b"\r\n\r\n\0\r\nQUIT\n" + struct.pack("!BBH", 0x21, kind, len(body)) + body


@families
def test_proxy_header(relays: ModuleType, family: Family):
    """Who the client is stands before the first datagram of a session, and only there."""
    with relaying(relays, family=family, proxy_protocol=True) as lab:
        client = lab.client(HOSTS[family][1])
        for data in (b"one", b"two", b"three"):
            client.send(data)
        told = header(place(client), (HOSTS[family][1], lab.port))
        assert [lab.endpoints[0].recv(1000) for _ in range(3)] == [told + b"one", b"two", b"three"]


def test_proxy_header_for_the_next_endpoint(relays: ModuleType):
    """An endpoint that a session moves to is told as well."""
    with relaying(relays, 2, proxy_protocol=True) as lab:
        closed, alive = lab.endpoints
        closed.close()
        for _ in range(2):
            client = lab.client()
            client.send(b"one")
            told = header(place(client), (HOSTS[Family.IPV4][0], lab.port))
            assert alive.recv(1000) == told + b"one"


def test_proxy_header_leaves_no_room(relays: ModuleType):
    """A datagram that cannot be sent with the header before it is dropped and counted; the header
    then stands before the next one."""
    with relaying(relays, proxy_protocol=True) as lab:
        client = lab.client()
        for data in (payload(65507), b"next"):
            client.send(data)
        told = header(place(client), (HOSTS[Family.IPV4][0], lab.port))
        assert lab.endpoints[0].recv(65536) == told + b"next"
        until(lambda: lab.counters()["datagrams_dropped"] == 1)


# --- figures -----------------------------------------------------------------------------------


def test_figures(relays: ModuleType):
    """Datagrams and bytes are counted each way, of the service and of the endpoint."""
    with relaying(relays) as lab:
        client = lab.client()
        sizes = [10, 200, 0]
        for size in sizes:
            answered(client, lab.endpoints[0], payload(size))
        counters = lab.counters()
        want = {
            "connections": 1,
            "active": 1,
            "retries": 0,
            "failures": 0,
            "refused": 0,
            "bytes_in": sum(sizes),
            "bytes_out": sum(sizes),
            "datagrams_in": len(sizes),
            "datagrams_out": len(sizes),
            "datagrams_dropped": 0,
        }
        assert counters == want
        of_endpoint = lab.relay.endpoint_counters(lab.service)[place(lab.endpoints[0])]
        assert of_endpoint == {
            key: want[key] for key in ("connections", "active", "failures", "bytes_in", "bytes_out")
        }
