"""Sessions of UDP in the relay: whom they lead to, when they move, end, or are handed over."""

from __future__ import annotations

import select
import socket
from collections import Counter
from types import ModuleType

import pytest

from kproxy.core.objects import Family
from tests.relay.datagrams import (
    HOSTS,
    PATIENCE,
    answered,
    families,
    place,
    relaying,
    until,
    whoever_got,
)

pytestmark = pytest.mark.kernel


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


def test_sessions_are_found_again(relays: ModuleType):
    """However full the table was, and whichever half of it went, each of the rest is found."""
    with relaying(relays, 2) as lab:
        clients = [lab.client() for _ in range(300)]
        where = {}
        for client in clients:
            client.send(b"")
            endpoint, _, upstream = whoever_got(lab.endpoints)
            where[client] = endpoint, upstream
        stays = lab.endpoints[0]
        lab.publish([stays])
        rest = [client for client in clients if where[client][0] is stays]
        assert lab.counters()["active"] == len(rest) == 150
        for client in rest:
            assert answered(client, stays) == where[client][1]


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
        client, (endpoint,) = lab.client(), lab.endpoints

        def heard() -> bool:
            # An answer that is later than the limit finds no session: then the client asks again.
            client.send(b"")
            endpoint.sendto(b"", endpoint.recvfrom(100)[1])
            return bool(select.select([client], [], [], 1)[0])

        until(heard)
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
        # The failure is counted just before the session ends.
        until(lambda: lab.counters()["active"] == 0)
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
        successor.settimeout(PATIENCE)
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
