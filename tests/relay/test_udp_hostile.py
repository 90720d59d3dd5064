"""UDP peers that mean harm, limits that are reached, and changes in the middle of traffic."""

from __future__ import annotations

import gc
import itertools
import os
import random
import resource
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

import pytest

from tests.relay.datagrams import (
    ANY,
    HOSTS,
    PATIENCE,
    SOCKET,
    Lab,
    answered,
    front_sockets,
    place,
    relaying,
    until,
)

pytestmark = pytest.mark.kernel


def passers_by(lab: Lab, number: int) -> None:
    """So many clients that send once and are never seen again."""
    for _ in range(number):
        with socket.socket(SOCKET[lab.family], socket.SOCK_DGRAM) as client:
            client.sendto(b"?", (HOSTS[lab.family][0], lab.port))


def test_flood_of_clients(relays: ModuleType):
    """Clients that nobody has answered push out each other, never one that has proven to be there:
    the table stays bounded and the session goes on."""
    with relaying(relays, max_sessions=50) as lab:
        client, (endpoint,) = lab.client(), lab.endpoints
        upstream = answered(client, endpoint)
        assert answered(client, endpoint) == upstream
        for _ in range(10):
            passers_by(lab, 100)
            assert [endpoint.recv(100) for _ in range(100)] == [b"?"] * 100
        assert answered(client, endpoint) == upstream
        assert lab.relay.totals()["sessions"] <= 50
        assert lab.relay.totals()["evicted"] >= 900


def test_more_clients_in_one_batch_than_sessions(relays: ModuleType):
    """Even then each datagram reaches the endpoint: none waits for a session that is gone."""
    with relaying(relays, max_sessions=3) as lab:
        fds, lab.port = front_sockets(lab.family)
        passers_by(lab, 60)
        lab.open(fds)
        assert [lab.endpoints[0].recv(100) for _ in range(60)] == [b"?"] * 60
        assert lab.relay.totals()["sessions"] == 3


@contextmanager
def few_descriptors(more: int) -> Iterator[None]:
    """The process may have so many more open than it has now: the limit is on the number that a
    descriptor has, and a new one takes the lowest that is free."""
    # What earlier tests have left would be closed in between, and make room.
    gc.collect()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    listed = map(int, os.listdir("/proc/self/fd"))
    used = {number for number in listed if Path(f"/proc/self/fd/{number}").exists()}
    free = (number for number in itertools.count() if number not in used)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next(itertools.islice(free, more, None)), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_descriptor_limit(relays: ModuleType):
    """Without a descriptor for a new session, the oldest gives up its own."""
    with relaying(relays) as lab:
        clients = [lab.client() for _ in range(200)]
        with few_descriptors(30):
            for client in clients:
                client.send(b"?")
            assert [lab.endpoints[0].recv(100) for _ in clients] == [b"?"] * 200
            assert 0 < lab.relay.totals()["sessions"] <= 30
        assert lab.counters()["datagrams_dropped"] == 0


def test_no_descriptor_at_all(relays: ModuleType):
    """Where no session can be had, datagrams are dropped and counted, and the relay recovers."""
    with relaying(relays) as lab:
        client = lab.client()
        with few_descriptors(0):
            client.send(b"lost")
            until(lambda: lab.counters()["datagrams_dropped"] == 1)
        answered(client, lab.endpoints[0])


def test_local_ports_used_up(relays: ModuleType):
    """Sessions take a local port each; when there is none, the oldest session gives up its own."""
    with relaying(relays) as lab:
        # Of this namespace, and below those that are in use already.
        Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("30000 30007")
        for port in range(20000, 20050):
            lab.socket(port=port).sendto(b"?", (HOSTS[lab.family][0], lab.port))
        assert [lab.endpoints[0].recv(100) for _ in range(50)] == [b"?"] * 50
        assert 0 < lab.relay.totals()["sessions"] <= 8


def test_strangers_are_not_heard(relays: ModuleType):
    """Nobody but its endpoint can send to a session's socket."""
    with relaying(relays, 2) as lab:
        client = lab.client()
        client.send(b"")
        until(lambda: lab.counters()["datagrams_in"] == 1)
        ((_, _, host, port),) = lab.relay.sessions(lab.service)
        (endpoint,) = (one for one in lab.endpoints if place(one) == (host, port))
        _, upstream = endpoint.recvfrom(100)
        for stranger in (*lab.endpoints, lab.socket()):
            if stranger is not endpoint:
                stranger.sendto(b"forged", upstream)
        endpoint.sendto(b"true", upstream)
        assert client.recv(100) == b"true"


def test_front_as_its_own_endpoint(relays: ModuleType):
    """A datagram that goes round in circles stops with the endpoint, and harms nothing."""
    with relaying(relays, 0) as lab:
        (copy,) = lab.relay.lend(lab.front)
        with socket.socket(fileno=copy) as front:
            target = (HOSTS[lab.family][0], lab.port)
            lab.relay.set_endpoints(lab.service, [target], [0], [0])
            front.sendto(b"round", target)
            # Each session that this makes leads to the front again, by a port of its own.
            until(lambda: lab.relay.totals()["evicted"] > 0 or lab.relay.totals()["sessions"] > 3)
            lab.relay.set_endpoints(lab.service, [], [], [])
            until(lambda: lab.counters()["refused"] > 0)
        assert lab.counters()["active"] == 0


def test_endpoint_that_comes_and_goes(relays: ModuleType):
    """An endpoint that is away for every other datagram costs those datagrams at most."""
    with relaying(relays) as lab:
        address = place(lab.endpoints[0])
        client = lab.client()
        for number in range(20):
            lab.endpoints.pop().close()
            before = lab.counters()["failures"]
            client.send(b"lost")
            until(lambda before=before: lab.counters()["failures"] == before + 1)
            lab.endpoints.append(lab.socket(*address))
            answered(client, lab.endpoints[0], b"%d" % number)


def test_client_that_is_gone(relays: ModuleType):
    """Answers for a client whose socket is closed are refused by its host: that harms nobody."""
    with relaying(relays) as lab:
        gone, stays = lab.client(), lab.client()
        gone.send(b"")
        _, upstream = lab.endpoints[0].recvfrom(100)
        gone.close()
        for _ in range(100):
            lab.endpoints[0].sendto(b"nobody hears", upstream)
            answered(stays, lab.endpoints[0])


def test_endpoint_that_cannot_be_reached(relays: ModuleType):
    """No route to an endpoint: the next one is tried before the client notices."""
    with relaying(relays) as lab:
        places = [("203.0.113.1", 9), place(lab.endpoints[0])]
        lab.relay.set_endpoints(lab.service, places, [0, 1], [])
        for _ in range(3):
            answered(lab.client(), lab.endpoints[0])
        told = set(lab.relay.take_verdicts())
        assert told == {(lab.service, "203.0.113.1", 9, "unreachable")}


def visited(relays: ModuleType) -> None:
    """A relay that had sessions, and fronts that are closed before it is, and with it."""
    with relaying(relays, 2, workers=2) as lab:
        for _ in range(20):
            lab.client().send(b"")
        until(lambda: lab.relay.totals()["sessions"] == 20)
        lab.relay.close(lab.another_front())
        lab.client().send(b"")


def test_descriptors_come_back(relays: ModuleType):
    """What sessions, fronts and workers had open is closed with them."""
    before = len(os.listdir("/proc/self/fd"))
    visited(relays)
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize("seed", range(3))
def test_changes_in_the_middle_of_traffic(relays: ModuleType, seed: int):
    """While clients send and endpoints answer without pause, lists are replaced, fronts opened,
    closed and made quiet, services added and removed: in the end, all is served, and no session
    is left of what is gone."""
    chance = random.Random(seed)
    with relaying(relays, 4, workers=2, max_sessions=20, affinity_seconds=5) as lab:
        over = threading.Event()
        threads = [
            threading.Thread(target=echo, args=(endpoint, over)) for endpoint in lab.endpoints
        ]
        threads += [threading.Thread(target=talk, args=(lab, over)) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(60):
                change(lab, chance)
        finally:
            over.set()
            for thread in threads:
                thread.join()
        # What clients have sent to this front may still wait in it.
        lab.relay.close(lab.another_front())
        fresh = lab.endpoint()
        lab.publish([fresh])
        client = lab.client()
        answered(client, fresh)
        assert lab.relay.sessions(lab.service) == [(*place(client), *place(fresh))]


def change(lab: Lab, chance: random.Random) -> None:
    """One of the things that Python may do while the workers run."""
    kind = chance.randrange(5)
    if kind == 0:
        lab.publish(chance.sample(lab.endpoints, chance.randint(0, 4)))
    elif kind == 1:
        lab.relay.close(lab.another_front())
    elif kind == 2:
        before = lab.another_front()
        lab.relay.quiet(before)
        lab.relay.close(before)
    elif kind == 3:
        other = lab.relay.add_service(udp=True)
        fds, port = front_sockets(lab.family)
        lab.relay.set_endpoints(other, [place(lab.endpoints[0])], [0], [])
        lab.relay.open(other, lab.module.CLUSTER, fds)
        with lab.socket() as client:
            client.sendto(b"other", (HOSTS[lab.family][0], port))
        lab.relay.remove_service(other)
    else:
        lab.relay.set_sessions(lab.service, lab.relay.sessions(lab.service))


def echo(endpoint: socket.socket, over: threading.Event) -> None:
    endpoint.settimeout(0.01)
    while not over.is_set():
        try:
            data, upstream = endpoint.recvfrom(65536)
            endpoint.sendto(data, upstream)
        except (TimeoutError, ConnectionRefusedError):
            continue
    endpoint.settimeout(PATIENCE)


def talk(lab: Lab, over: threading.Event) -> None:
    """From few ports, so that sessions are found as well as made, to wherever the front is now."""
    clients = []
    for _ in range(15):
        client = socket.socket(SOCKET[lab.family], socket.SOCK_DGRAM)
        client.bind((ANY[lab.family], 0))
        client.setblocking(False)
        clients.append(client)
    while not over.is_set():
        for client in clients:
            # No answer yet, or the front has just been closed.
            with suppress(BlockingIOError, ConnectionRefusedError):
                client.sendto(b"x" * 100, (HOSTS[lab.family][0], lab.port))
                client.recv(65536)
    for client in clients:
        client.close()
