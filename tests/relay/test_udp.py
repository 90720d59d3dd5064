"""UDP in the relay: who gets which datagram, from where, and what happens to sessions."""

from __future__ import annotations

import random
import socket
import struct
from collections import Counter
from ipaddress import ip_address
from types import ModuleType

import pytest

from kproxy.core.objects import Family
from tests.relay.datagrams import (
    HOSTS,
    SOL_UDP,
    UDP_SEGMENT,
    answered,
    front_sockets,
    place,
    relaying,
    until,
    whoever_got,
)

pytestmark = pytest.mark.kernel

families = pytest.mark.parametrize("family", list(Family), ids=lambda family: f"ipv{family.value}")

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


# --- sessions ----------------------------------------------------------------------------------


@families
@pytest.mark.parametrize("workers", [1, 3])
def test_each_client_hears_its_own(relays: ModuleType, family: Family, workers: int):
    """Many clients at once, each with a session; the sessions are spread over the workers."""
    with relaying(relays, family=family, workers=workers) as lab:
        clients = [lab.client() for _ in range(100)]
        for number, client in enumerate(clients):
            client.send(b"%d" % number)
        for _ in clients:
            data, upstream = lab.endpoints[0].recvfrom(100)
            lab.endpoints[0].sendto(data, upstream)
        assert [int(client.recv(100)) for client in clients] == list(range(100))
        assert lab.relay.totals()["sessions"] == len(clients)
        assert lab.counters()["active"] == lab.counters()["connections"] == len(clients)


def test_a_session_keeps_its_socket(relays: ModuleType):
    """All datagrams of a client come to the endpoint from one port."""
    with relaying(relays) as lab:
        client = lab.client()
        assert len({answered(client, lab.endpoints[0]) for _ in range(5)}) == 1


def test_round_robin(relays: ModuleType):
    """Without affinity, clients are dealt to the endpoints in turn."""
    with relaying(relays, 3) as lab:
        got: Counter[socket.socket] = Counter()
        for _ in range(9):
            lab.client().send(b"")
            got[whoever_got(lab.endpoints)[0]] += 1
        assert set(got.values()) == {3}


def test_affinity(relays: ModuleType):
    """With affinity, all ports of a client host go to one endpoint; another host goes elsewhere."""
    with relaying(relays, 2, affinity_seconds=1000) as lab:
        chosen = {}
        for host in HOSTS[Family.IPV4][:2]:
            for _ in range(3):
                client = lab.socket(host)
                client.sendto(b"", (HOSTS[Family.IPV4][0], lab.port))
                chosen.setdefault(host, set()).add(whoever_got(lab.endpoints)[0])
        assert [len(endpoints) for endpoints in chosen.values()] == [1, 1]
        assert len(set.union(*chosen.values())) == 2


def test_endpoint_gone(relays: ModuleType):
    """Sessions of an endpoint that went end at once, and their clients go elsewhere; those of the
    others are left alone."""
    with relaying(relays, 2) as lab:
        clients = [lab.client(), lab.client()]
        where = {}
        for client in clients:
            client.send(b"before")
            endpoint, _, upstream = whoever_got(lab.endpoints)
            where[endpoint] = client, upstream
        gone, stays = lab.endpoints
        lab.publish([stays])
        assert lab.counters()["active"] == 1
        for endpoint in lab.endpoints:
            where[endpoint][0].send(b"after")
        got = dict(reversed(stays.recvfrom(100)) for _ in clients)
        assert set(got.values()) == {b"after"}
        assert where[stays][1] in got
        gone.setblocking(False)
        with pytest.raises(BlockingIOError):
            gone.recv(100)


def test_removed_service(relays: ModuleType):
    """Its fronts are closed and its sessions end."""
    with relaying(relays) as lab:
        client = lab.client()
        answered(client, lab.endpoints[0])
        lab.relay.remove_service(lab.service)
        assert lab.relay.totals()["sessions"] == 0
        client.send(b"")
        with pytest.raises(ConnectionRefusedError):
            client.recv(1)


def test_closed_front(relays: ModuleType):
    """Sessions by a front that closes end; those by another front of the service go on."""
    with relaying(relays) as lab:
        first_client = lab.client()
        answered(first_client, lab.endpoints[0])
        first = lab.another_front()
        client = lab.client()
        upstream = answered(client, lab.endpoints[0])
        lab.relay.close(first)
        assert lab.relay.totals()["sessions"] == 1
        assert answered(client, lab.endpoints[0]) == upstream
        first_client.send(b"")
        with pytest.raises(ConnectionRefusedError):
            first_client.recv(1)


def test_no_endpoint(relays: ModuleType):
    """A datagram for nobody is dropped and counted; the next one finds who has come since."""
    with relaying(relays, 0) as lab:
        client = lab.client()
        for _ in range(3):
            client.send(b"lost")
        until(lambda: lab.counters()["refused"] == 3)
        endpoint = lab.endpoint()
        lab.publish()
        answered(client, endpoint)
        assert lab.counters()["connections"] == 1


def test_idle_sessions_end(relays: ModuleType):
    """A session that nobody uses goes; draining waits for that and closes nothing before."""
    with relaying(relays, udp_idle_seconds=0.2) as lab:
        answered(lab.client(), lab.endpoints[0])
        assert lab.relay.drain(60) == 0
        assert lab.relay.sessions(lab.service) == []
        assert lab.counters()["active"] == 0


def test_the_oldest_is_evicted(relays: ModuleType):
    """A full table takes new clients at the cost of the one that was silent longest."""
    with relaying(relays, max_sessions=3) as lab:
        clients = [lab.client() for _ in range(4)]
        for client in clients[:3]:
            answered(client, lab.endpoints[0])
        before = {port for _, port, _, _ in lab.relay.sessions(lab.service)}
        clients[0].send(b"still here")
        lab.endpoints[0].recv(100)
        clients[3].send(b"new")
        lab.endpoints[0].recv(100)
        after = {port for _, port, _, _ in lab.relay.sessions(lab.service)}
        assert before - after == {place(clients[1])[1]}
        assert after - before == {place(clients[3])[1]}
        assert lab.relay.totals()["evicted"] == 1


# --- endpoints that refuse ---------------------------------------------------------------------


@families
def test_a_refused_datagram_is_not_lost(relays: ModuleType, family: Family):
    """The client sends once, to an endpoint that is not there; another one gets it, and is used
    from then on. The failure is told."""
    with relaying(relays, 2, family=family) as lab:
        closed, alive = lab.endpoints
        address = place(closed)
        closed.close()
        for number in range(4):
            client = lab.client()
            for data in (b"%d" % number, b"again"):
                answered(client, alive, data)
        told = lab.relay.take_verdicts()
        assert set(told) == {(lab.service, *address, "refused")}
        assert lab.counters()["retries"] == len(told) > 0
        assert lab.counters()["failures"] == 0
        of_closed = lab.relay.endpoint_counters(lab.service)[address]
        assert (of_closed["failures"], of_closed["active"]) == (len(told), 0)


def test_an_endpoint_that_dies_later(relays: ModuleType):
    """A session moves when its endpoint starts to refuse; what the relay still holds goes along."""
    with relaying(relays, 2) as lab:
        client = lab.client()
        client.send(b"first")
        used, _, upstream = whoever_got(lab.endpoints)
        used.sendto(b"answer", upstream)
        assert client.recv(100) == b"answer"
        (other,) = set(lab.endpoints) - {used}
        used.close()
        # The refusal of the first is what tells the relay: that one is lost with its endpoint.
        client.send(b"lost")
        until(lambda: lab.counters()["retries"] == 1)
        answered(client, other, b"next")


def test_recovery_is_told(relays: ModuleType):
    """The first success after a failure is a verdict too, and only the first."""
    with relaying(relays, 1) as lab:
        address = place(lab.endpoints[0])
        lab.endpoints.pop().close()
        lab.client().send(b"")
        until(lambda: lab.counters()["failures"] == 1)
        lab.endpoints.append(lab.socket(*address))
        for _ in range(2):
            answered(lab.client(), lab.endpoints[0])
        assert [told for *_, told in lab.relay.take_verdicts()] == ["refused", "ok"]


def test_nobody_takes_it(relays: ModuleType):
    """Where all refuse, each is tried once; the session ends and the client may begin anew."""
    with relaying(relays, 3) as lab:
        addresses = {place(endpoint) for endpoint in lab.endpoints}
        while lab.endpoints:
            lab.endpoints.pop().close()
        client = lab.client()
        client.send(b"")
        until(lambda: lab.counters()["failures"] == 1)
        assert {(host, port) for _, host, port, _ in lab.relay.take_verdicts()} == addresses
        assert lab.counters()["active"] == 0
        endpoint = lab.endpoint()
        lab.publish()
        answered(client, endpoint)


def test_affinity_is_forgotten_with_a_refusal(relays: ModuleType):
    """A client is not sent back to the endpoint that refused it."""
    with relaying(relays, 2, affinity_seconds=1000) as lab:
        closed, alive = lab.endpoints
        closed.close()
        for _ in range(3):
            answered(lab.client(), alive)
        ((_, host, port, _),) = lab.relay.affinities(lab.service)
        assert (host, port) == place(alive)


# --- handing over ------------------------------------------------------------------------------


def test_quiet_front(relays: ModuleType):
    """What a successor shall read is left in the socket; answers of old sessions still leave by
    it, from the address that was asked."""
    with relaying(relays) as lab:
        client = lab.client(HOSTS[Family.IPV4][2])
        client.send(b"before")
        _, upstream = lab.endpoints[0].recvfrom(100)
        (copy,) = lab.relay.lend(lab.front)
        successor = lab.stack.enter_context(socket.socket(fileno=copy))
        successor.settimeout(10)
        lab.relay.quiet(lab.front)
        client.send(b"after")
        assert successor.recv(100) == b"after"
        lab.endpoints[0].sendto(b"late", upstream)
        assert client.recv(100) == b"late"


def test_successor(relays: ModuleType):
    """A second relay with the first one's sockets and sessions sends each client where it was."""
    with relaying(relays, 4) as lab:
        clients = [lab.client() for _ in range(8)]
        where = {}
        for client in clients:
            client.send(b"before")
            where[client] = whoever_got(lab.endpoints)[0]
        sessions = lab.relay.sessions(lab.service)
        assert {(host, port): (to, at) for host, port, to, at in sessions} == {
            place(client): place(endpoint) for client, endpoint in where.items()
        }
        fds = lab.relay.lend(lab.front)
        lab.relay.quiet(lab.front)
        lab.another_relay()
        lab.publish()
        stranger = ("127.0.0.9", 9, "127.0.0.9", 9)
        lab.relay.set_sessions(lab.service, [*sessions, stranger])
        lab.open(fds)
        for client in reversed(clients):
            client.send(b"after")
            assert whoever_got(lab.endpoints)[0] is where[client]


def test_expected_endpoint_is_gone(relays: ModuleType):
    """A predecessor's word counts only while that endpoint serves."""
    with relaying(relays, 2) as lab:
        client = lab.client()
        gone, stays = lab.endpoints
        lab.relay.set_sessions(lab.service, [(*place(client), *place(gone))])
        lab.publish([stays])
        lab.publish()
        lab.publish([stays])
        answered(client, stays)


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
