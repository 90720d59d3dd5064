"""TCP in the relay: who is served by whom, what is counted and told, what a successor gets."""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
import subprocess
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kproxy.kernel.netlink import open_route
from tests.contract.namespaces import scratch
from tests.relay.peers import (
    HOST,
    PATIENCE,
    Lab,
    Pair,
    all_of,
    carried,
    is_reset,
    listening,
    nobody,
    relaying,
    reset,
    until,
)

pytestmark = pytest.mark.kernel

#: Of the namespace of whoever opens it.
LOCAL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def served_by(lab: Lab, client: socket.socket) -> int:
    """Which endpoint got the connection that was made last; both ends are closed."""
    client.sendall(b"?")
    client.shutdown(socket.SHUT_WR)
    for endpoint in lab.endpoints:
        endpoint.setblocking(False)
    found: list[int] = []

    def look() -> bool:
        for number, endpoint in enumerate(lab.endpoints):
            try:
                server, _ = endpoint.accept()
            except BlockingIOError:
                continue
            server.settimeout(PATIENCE)
            assert all_of(server) == b"?"
            server.close()
            found.append(number)
        return bool(found)

    until(look)
    for endpoint in lab.endpoints:
        endpoint.settimeout(PATIENCE)
    assert all_of(client) == b""
    client.close()
    (number,) = found
    return number


def turned_away(place: tuple[str, int]) -> bool:
    """Whether the relay lets a client in only to reset it, now or in a moment."""
    try:
        with socket.create_connection(place, PATIENCE) as client:
            return is_reset(client)
    except ConnectionResetError:
        return True


def client_from(lab: Lab, source: str, place: tuple[str, int] | None = None) -> socket.socket:
    return lab.stack.enter_context(
        socket.create_connection(place or lab.place, PATIENCE, source_address=(source, 0))
    )


def another_front(lab: Lab, use: int, service: int | None = None) -> tuple[int, tuple[str, int]]:
    """Its id and where it is."""
    socket_ = listening()
    place = socket_.getsockname()
    return lab.relay.open(service or lab.service, use, [socket_.detach()]), place


def publish(lab: Lab, cluster: Sequence[int], local: Sequence[int]) -> None:
    places = [each.getsockname() for each in lab.endpoints]
    lab.relay.set_endpoints(lab.service, places, cluster, local)


# --- choice ------------------------------------------------------------------------------------


def test_round_robin(relays: ModuleType):
    """Each endpoint has its turn before any has a second one."""
    with relaying(relays, endpoints=5) as lab:
        for _ in range(3):
            assert sorted(served_by(lab, lab.client()) for _ in range(5)) == [0, 1, 2, 3, 4]


def test_lists_of_fronts(relays: ModuleType):
    """A front is served by its own list."""
    with relaying(relays, endpoints=4) as lab:
        publish(lab, cluster=[0, 1, 2], local=[2, 3])
        _, local = another_front(lab, relays.LOCAL)
        assert {served_by(lab, lab.client()) for _ in range(6)} == {0, 1, 2}
        assert {served_by(lab, client_from(lab, HOST, local)) for _ in range(6)} == {2, 3}


#: Weights of three endpoints, and how often each is served in so many connections from the start of
#: a list: a hundred rounds of the heaviest, or what the greatest common divisor leaves of them.
BY_WEIGHT = [
    ((100, 100, 100), 12, (4, 4, 4)),
    ((20, 20, 20), 12, (4, 4, 4)),
    ((100, 50, 25), 7, (4, 2, 1)),
    ((100, 100, 5), 41, (20, 20, 1)),
    ((100, 5, 5), 22, (20, 1, 1)),
    ((3, 2, 1), 6, (3, 2, 1)),
]


@pytest.mark.parametrize(("weights", "connections", "served"), BY_WEIGHT)
def test_round_robin_by_weight(
    relays: ModuleType,
    weights: tuple[int, ...],
    connections: int,
    served: tuple[int, ...],
):
    """Each has its share of the turns, to the very turn, wherever one begins to count."""
    with relaying(relays, endpoints=3) as lab:
        places = [each.getsockname() for each in lab.endpoints]
        lab.relay.set_endpoints(lab.service, places, [0, 1, 2], [], weights)
        for _ in range(2):
            found = [served_by(lab, lab.client()) for _ in range(connections)]
            assert tuple(found.count(one) for one in range(3)) == served


def test_light_endpoints_take_turns_apart(relays: ModuleType):
    """Two of a fifth of the third one's weight are not served in the same round through the list:
    no burst of both."""
    with relaying(relays, endpoints=3) as lab:
        places = [each.getsockname() for each in lab.endpoints]
        lab.relay.set_endpoints(lab.service, places, [0, 1, 2], [], (100, 20, 20))
        found = [served_by(lab, lab.client()) for _ in range(28)]
        light = [at for at, one in enumerate(found) if one]
        assert len(light) == 8
        assert all(later - earlier > 1 for earlier, later in pairwise(light))


def test_further_tries_by_weight(relays: ModuleType):
    """Who met a dead endpoint goes on to the others by their weights as well; when nobody is left,
    that is found out however light they are."""
    with relaying(relays, endpoints=2) as lab:
        places = [*(each.getsockname() for each in lab.endpoints), nobody()]
        lab.relay.set_endpoints(lab.service, places, [0, 1, 2], [], (100, 10, 100))
        found = [served_by(lab, lab.client()) for _ in range(42)]
        assert 2 <= found.count(1) <= 6
        lab.relay.set_endpoints(lab.service, [nobody(), nobody()], [0, 1], [], (100, 1))
        assert turned_away(lab.place)


def test_other_weights_alone(relays: ModuleType):
    """Neither the order of a list nor anybody's affinity changes, and flows go on."""
    sources = [f"127.0.0.{last}" for last in range(11, 15)]
    with relaying(relays, endpoints=4) as lab:
        places = [each.getsockname() for each in lab.endpoints]
        order = [served_by(lab, lab.client()) for _ in range(4)]
        lab.relay.set_service(lab.service, affinity_seconds=1000)
        assert [served_by(lab, client_from(lab, source)) for source in sources] == order
        flow = client_from(lab, sources[0])
        server = lab.accepted(lab.endpoints[order[0]])
        for weights in ((100, 100, 5, 100), (7, 100, 100, 100), ()):
            lab.relay.set_endpoints(lab.service, places, range(4), (), weights)
            assert [served_by(lab, client_from(lab, source)) for source in sources] == order
            carried(flow, server, b"question")
            carried(server, flow, b"answer")
        lab.relay.set_service(lab.service)
        assert [served_by(lab, lab.client()) for _ in range(4)] == order


@pytest.mark.parametrize("weights", [(1,), (0, 100), (100, 101)])
def test_weights_that_make_no_sense(relays: ModuleType, weights: tuple[int, ...]):
    """One for each endpoint, from 1 to 100."""
    with relaying(relays, endpoints=2) as lab:
        places = [each.getsockname() for each in lab.endpoints]
        with pytest.raises(ValueError, match="weight"):
            lab.relay.set_endpoints(lab.service, places, [0, 1], [], weights)


def test_further_tries_do_not_take_turns(relays: ModuleType):
    """Of two endpoints one is dead: every second client meets it first, and not each of them."""
    with relaying(relays) as lab:
        (alive,) = (each.getsockname() for each in lab.endpoints)
        lab.publish(alive, nobody())
        for _ in range(6):
            assert served_by(lab, lab.client()) == 0
        assert lab.counted("retries") == 3


def test_lists_are_shuffled(relays: ModuleType):
    """Services do not all begin with the same endpoint: of forty lists of eight, not all do (the
    chance that they would by accident is 8**-39)."""
    with relaying(relays, endpoints=8) as lab:
        first = Counter[int]()
        for _ in range(40):
            lab.relay.set_endpoints(lab.service, [], [], [])
            lab.publish()
            first[served_by(lab, lab.client())] += 1
        assert len(first) > 1


def test_the_same_list_again_changes_nothing(relays: ModuleType):
    """Round robin goes on where it was."""
    with relaying(relays, endpoints=4) as lab:
        order = []
        for _ in range(8):
            order.append(served_by(lab, lab.client()))
            publish(lab, cluster=[3, 2, 1, 0], local=[])
        assert order[:4] == order[4:]
        assert sorted(order[:4]) == [0, 1, 2, 3]


def test_the_same_place_twice_is_one_endpoint(relays: ModuleType):
    """It is in a list once, and in both lists if each names it."""
    with relaying(relays, endpoints=2) as lab:
        places = [lab.endpoints[number].getsockname() for number in (0, 0, 1)]
        lab.relay.set_endpoints(lab.service, places, [0, 1, 2], [1])
        assert sorted(served_by(lab, lab.client()) for _ in range(4)) == [0, 0, 1, 1]


def test_workers_share_a_front(relays: ModuleType):
    """With a socket for each worker, all serve; with one socket, one does."""
    with relaying(relays, workers=3) as lab:
        first = socket.socket()
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        first.bind((HOST, 0))
        place = first.getsockname()
        sockets = [first]
        for _ in range(2):
            sockets.append(socket.socket())
            sockets[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sockets[-1].bind(place)
        for each in sockets:
            each.listen()
        lab.relay.open(lab.service, relays.CLUSTER, [each.detach() for each in sockets])
        for _ in range(30):
            assert served_by(lab, client_from(lab, HOST, place)) == 0
        assert lab.relay.totals()["workers"] == 3


# --- affinity ----------------------------------------------------------------------------------


def test_affinity(relays: ModuleType):
    """A client stays with its endpoint, at either front; others go elsewhere."""
    with relaying(relays, endpoints=4) as lab:
        publish(lab, cluster=[0, 1, 2, 3], local=[0, 1, 2, 3])
        lab.relay.set_service(lab.service, affinity_seconds=1000)
        _, local = another_front(lab, relays.LOCAL)
        clients = [f"127.0.0.{last}" for last in range(10, 14)]
        first = [served_by(lab, client_from(lab, client)) for client in clients]
        assert sorted(first) == [0, 1, 2, 3]
        for place in (lab.place, local):
            assert [served_by(lab, client_from(lab, each, place)) for each in clients] == first


def test_affinity_to_who_is_not_in_the_list(relays: ModuleType):
    """A front serves from its own list, whatever another one chose before."""
    with relaying(relays, endpoints=2) as lab:
        publish(lab, cluster=[0], local=[1])
        lab.relay.set_service(lab.service, affinity_seconds=1000)
        _, local = another_front(lab, relays.LOCAL)
        assert served_by(lab, lab.client()) == 0
        assert served_by(lab, client_from(lab, HOST, local)) == 1


def test_affinity_ends(relays: ModuleType):
    """With the endpoint, and when the service has none any more."""
    with relaying(relays, endpoints=3) as lab:
        lab.relay.set_service(lab.service, affinity_seconds=1000)
        bound = served_by(lab, lab.client())
        lab.publish(*(each.getsockname() for each in lab.endpoints if each != lab.endpoints[bound]))
        assert lab.relay.affinities(lab.service) == []
        served_by(lab, lab.client())
        assert len(lab.relay.affinities(lab.service)) == 1
        lab.publish()
        lab.relay.set_service(lab.service)
        assert lab.relay.affinities(lab.service) == []
        assert {served_by(lab, lab.client()) for _ in range(3)} == {0, 1, 2}


def test_affinity_after_a_failure(relays: ModuleType):
    """A client is bound to the endpoint that took it, not to the one that refused."""
    with relaying(relays) as lab:
        lab.relay.set_service(lab.service, affinity_seconds=1000)
        dead = nobody()
        alive = lab.endpoints[0].getsockname()
        lab.publish(dead, alive)
        for last in range(10, 20):
            assert served_by(lab, client_from(lab, f"127.0.0.{last}")) == 0
        assert {entry[1:3] for entry in lab.relay.affinities(lab.service)} == {alive}


def test_affinity_is_handed_over(relays: ModuleType):
    """What one relay tells, another one takes; the age goes along, and the newer entry wins."""
    with relaying(relays, endpoints=2) as lab:
        lab.relay.set_service(lab.service, affinity_seconds=1000)
        one, other = (each.getsockname() for each in lab.endpoints)
        given = [
            ("10.0.0.1", *one, 30.0),
            ("10.0.0.2", *other, 20.0),
            ("10.0.0.3", *one, 900.0),
            ("10.0.0.4", *one, 2000.0),
            ("10.0.0.5", "10.9.9.9", 80, 1.0),
            (HOST, *one, 10.0),
        ]
        now = served_by(lab, lab.client())
        lab.relay.set_affinities(lab.service, given)
        told = {entry[0]: entry[1:] for entry in lab.relay.affinities(lab.service)}
        assert set(told) == {"10.0.0.1", "10.0.0.2", "10.0.0.3", HOST}
        assert told["10.0.0.2"][:2] == other
        assert 20.0 <= told["10.0.0.2"][2] < 20.0 + PATIENCE
        assert told[HOST][:2] == lab.endpoints[now].getsockname()
        ages = [entry[3] for entry in lab.relay.affinities(lab.service)]
        assert ages == sorted(ages, reverse=True)


def test_affinity_is_bounded(relays: ModuleType):
    """65,536 clients of a service; the table takes them in and gives them back whole."""
    with relaying(relays, endpoints=2) as lab:
        lab.relay.set_service(lab.service, affinity_seconds=100000)
        place = lab.endpoints[0].getsockname()
        base = int(ipaddress.ip_address("10.0.0.0"))
        given = [(str(ipaddress.ip_address(base + n)), *place, float(n)) for n in range(70000)]
        lab.relay.set_affinities(lab.service, given)
        assert len(lab.relay.affinities(lab.service)) == 65536
        assert served_by(lab, lab.client()) in {0, 1}
        told = lab.relay.affinities(lab.service)
        assert len(told) == 65536
        assert told[-1][0] == HOST


# --- what is counted and told ------------------------------------------------------------------


def test_counters(relays: ModuleType):
    """Connections and bytes, by service and by endpoint, while a flow lives and after it."""
    with relaying(relays) as lab:
        pair = lab.pair()
        carried(pair.client, pair.server, b"x" * 1000)
        carried(pair.server, pair.client, b"y" * 70000)
        place = lab.endpoints[0].getsockname()

        def counted() -> tuple[dict[str, int], dict[str, int]]:
            service = lab.relay.service_counters(lab.service)
            (endpoint,) = lab.relay.endpoint_counters(lab.service).items()
            assert endpoint[0] == place
            return service, endpoint[1]

        expected = {"connections": 1, "bytes_in": 1000, "bytes_out": 70000, "failures": 0}
        for active in (1, 0):
            wanted = {**expected, "active": active}.items()
            # Bytes arrive before they are counted.
            until(lambda wanted=wanted: all(wanted <= found.items() for found in counted()))
            pair.client.close()
            pair.server.close()
        lab.is_empty()


def test_an_endpoint_that_went_is_told_of_as_long_as_it_is_used(relays: ModuleType):
    """Its flows go on and count; it comes back as itself, or is forgotten with the last flow."""
    with relaying(relays, endpoints=2) as lab:
        lab.publish(lab.endpoints[0].getsockname())
        pair = lab.pair()
        gone = lab.endpoints[0].getsockname()
        lab.publish(lab.endpoints[1].getsockname())
        carried(pair.client, pair.server, b"still here")
        until(lambda: lab.relay.endpoint_counters(lab.service)[gone]["bytes_in"] == 10)
        lab.publish(*(each.getsockname() for each in lab.endpoints))
        assert lab.relay.endpoint_counters(lab.service)[gone]["active"] == 1
        lab.publish(lab.endpoints[1].getsockname())
        pair.client.close()
        pair.server.close()
        until(lambda: gone not in lab.relay.endpoint_counters(lab.service))


def test_verdicts(relays: ModuleType):
    """A refusal is told, and the first success after it; successes after that are not."""
    with relaying(relays) as lab:
        alive = lab.endpoints[0].getsockname()
        lab.endpoints[0].close()
        lab.publish(alive)
        assert turned_away(lab.place)
        told = (lab.service, *alive)
        until(lambda: lab.counted("failures") == 1)
        assert lab.relay.take_verdicts() == [(*told, "refused")]
        lab.endpoints[0] = lab.stack.enter_context(
            socket.create_server(alive, reuse_port=False, backlog=10)
        )
        for _ in range(2):
            pair = lab.pair()
            pair.client.close()
            pair.server.close()
        lab.is_empty()
        assert lab.relay.take_verdicts() == [(*told, "ok")]
        assert lab.relay.endpoint_counters(lab.service)[alive]["failures"] == 1


def test_no_local_port_left(relays: ModuleType):
    """A client waits until there is one again; that none was there is no fault of the endpoint."""
    with relaying(relays, ladder=(0.02, *7 * (1.0,))) as lab:
        # Below those that the kernel has dealt out to the front and the endpoint.
        LOCAL_PORTS.write_text("20000 20000")
        clients = []
        for port in (21000, 21001):
            clients.append(
                socket.create_connection(lab.place, PATIENCE, source_address=(HOST, port))
            )
            lab.stack.enter_context(clients[-1])
        carried(clients[0], lab.accepted(), b"by the only port")
        until(lambda: lab.counted("retries") >= 1)
        LOCAL_PORTS.write_text("20000 20010")
        carried(clients[1], lab.accepted(), b"by another one")
        assert lab.relay.take_verdicts() == []
        assert lab.counted("failures") == 0


# --- limits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ended", [False, True])
def test_time_limits(relays: ModuleType, ended: bool):
    """A flow on which nothing moves is reset: all, or only those of which one side has finished."""
    limits = {"half_open_seconds": 0.25} if ended else {"idle_seconds": 0.25}
    with relaying(relays, **limits) as lab:
        pair = lab.pair()
        if ended:
            pair.client.shutdown(socket.SHUT_WR)
            assert pair.server.recv(1) == b""
        assert is_reset(pair.client)
        lab.is_empty()


# --- fronts ------------------------------------------------------------------------------------


def test_a_front_is_closed(relays: ModuleType):
    """Nobody is let in, though somebody holds a copy of the socket; flows go on."""
    with relaying(relays) as lab:
        front, place = another_front(lab, relays.CLUSTER)
        client = client_from(lab, HOST, place)
        pair = Pair(client, lab.accepted())
        copies = lab.relay.lend(front)
        lab.relay.close(front)
        with pytest.raises(KeyError):
            lab.relay.close(front)
        late = client_from(lab, HOST, place)
        carried(pair.client, pair.server, b"on and on")
        lab.works()
        with socket.socket(fileno=copies[0]) as copy:
            copy.settimeout(PATIENCE)
            assert copy.accept()[1] == late.getsockname()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(place, PATIENCE)


def test_a_quiet_front_leaves_clients_to_the_successor(relays: ModuleType):
    """Two relays on one socket: from ``quiet`` on every client is served by the second one."""
    with relaying(relays) as lab:
        front, place = another_front(lab, relays.CLUSTER)
        old = Pair(client_from(lab, HOST, place), lab.accepted())
        successor = relays.Relay()
        lab.stack.callback(successor.stop)
        service = successor.add_service()
        endpoint = lab.stack.enter_context(listening())
        successor.set_endpoints(service, [endpoint.getsockname()], [0], [])
        copies = lab.relay.lend(front)
        lab.relay.quiet(front)
        waiting = [client_from(lab, HOST, place) for _ in range(10)]
        successor.open(service, relays.CLUSTER, copies)
        successor.start()
        for client in waiting:
            client.sendall(b"!")
        # In whichever order they come.
        for _ in waiting:
            with lab.accepted(endpoint) as server:
                assert server.recv(1) == b"!"
        carried(old.client, old.server, b"still the first one's")
        lab.relay.close(front)


def test_drain(relays: ModuleType):
    """Fronts are closed at once; it ends with the last flow, or tells how many are left."""
    with relaying(relays) as lab:
        pairs = [lab.pair() for _ in range(3)]
        assert lab.relay.drain(0) == 3
        with pytest.raises(ConnectionRefusedError):
            lab.client()
        for pair in pairs:
            carried(pair.client, pair.server, b"not yet")
            pair.client.close()
            pair.server.close()
        assert lab.relay.drain(PATIENCE) == 0


def test_stop(relays: ModuleType):
    """Flows are reset, descriptors given back; nothing can be asked any more."""
    before = len(os.listdir("/proc/self/fd"))
    with relaying(relays, workers=2) as lab:
        pair = lab.pair()
        lab.relay.stop()
        lab.relay.stop()
        assert is_reset(pair.client)
        assert is_reset(pair.server)
        for asked in (lab.relay.totals, lab.relay.start, lab.relay.add_service):
            with pytest.raises(ValueError, match="stopped"):
                asked()
        service = lab.service
        with pytest.raises(ValueError, match="stopped"):
            lab.relay.service_counters(service)
        lab.relay = relays.Relay()
    del lab
    assert len(os.listdir("/proc/self/fd")) <= before


def test_served_before_start(relays: ModuleType):
    """What is published before the workers run is served when they do."""
    with scratch(loopback=True), ExitStack() as stack:
        relay = relays.Relay(workers=2)
        stack.callback(relay.stop)
        lab = Lab(relays, relay, stack)
        lab.endpoint()
        lab.publish()
        client = lab.client()
        relay.start()
        with pytest.raises(ValueError, match="runs"):
            relay.start()
        carried(client, lab.accepted(), b"at last")


# --- wrong use ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"workers": 0},
        {"ladder": ()},
        {"ladder": (1.0,) * 9},
        {"ladder": (-1.0,)},
        {"idle_seconds": float("nan")},
        {"buffer_bytes": 100},
        {"bulk": 4},
    ],
    ids=str,
)
def test_settings_that_make_no_sense(relays: ModuleType, settings: dict[str, Any]):
    """They are refused before anything is made."""
    with pytest.raises(ValueError, match=r".+"):
        relays.Relay(**settings)


@pytest.mark.parametrize(
    ("endpoints", "cluster", "error"),
    [
        ([("not an address", 80)], [0], ValueError),
        ([("10.0.0.1", 65536)], [0], ValueError),
        ([("10.0.0.1", 80)], [1], IndexError),
        ([("10.0.0.1", 80)], [-1], IndexError),
    ],
)
def test_endpoints_that_make_no_sense(
    relays: ModuleType, endpoints: Any, cluster: Any, error: type[Exception]
):
    """They are refused whole, and those before them serve on."""
    with relaying(relays) as lab:
        with pytest.raises(error):
            lab.relay.set_endpoints(lab.service, endpoints, cluster, [])
        lab.works()


def test_sockets_that_cannot_be_served(relays: ModuleType):
    """They are refused and closed, and so are those that came with them."""
    with relaying(relays) as lab:
        wrong = {
            "not listening": socket.socket(),
            "udp": socket.socket(type=socket.SOCK_DGRAM),
        }
        for made in wrong.values():
            good = listening()
            place = good.getsockname()
            with pytest.raises(ValueError, match="listening TCP"):
                lab.relay.open(lab.service, relays.CLUSTER, [good.detach(), made.detach()])
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(place, PATIENCE)
        for service, error in ((lab.service + 1, KeyError), (lab.service, ValueError)):
            good = listening()
            place = good.getsockname()
            with pytest.raises(error):
                lab.relay.open(service, relays.ORIGINAL + 1, [good.detach()])
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(place, PATIENCE)


def test_unknown_services(relays: ModuleType):
    """KeyError, also for one that is gone."""
    with relaying(relays) as lab:
        lab.relay.remove_service(lab.service)
        for asked in (
            lab.relay.remove_service,
            lab.relay.service_counters,
            lab.relay.endpoint_counters,
            lab.relay.affinities,
            lab.relay.sessions,
        ):
            with pytest.raises(KeyError):
                asked(lab.service)


# --- the PROXY header --------------------------------------------------------------------------


@pytest.mark.parametrize("early", [b"", b"GET / HTTP/1.0\r\n\r\n"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_proxy_header(relays: ModuleType, host: str, early: bytes):
    """It comes before the client's bytes, also when the client says nothing, and names both."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with scratch(loopback=True), ExitStack() as stack:
        relay = relays.Relay()
        stack.callback(relay.stop)
        relay.start()
        service = relay.add_service(proxy_protocol=True)
        made = [socket.create_server((host, 0), family=family) for _ in range(2)]
        endpoint = stack.enter_context(made[0])
        endpoint.settimeout(PATIENCE)
        place = made[1].getsockname()
        relay.set_endpoints(service, [endpoint.getsockname()[:2]], [0], [])
        relay.open(service, relays.CLUSTER, [made[1].detach()])
        client = stack.enter_context(socket.create_connection(place[:2], PATIENCE))
        client.sendall(early)
        server, _ = endpoint.accept()
        server.settimeout(PATIENCE)
        stack.enter_context(server)
        addresses = [socket.inet_pton(family, each[0]) for each in (client.getsockname(), place)]
        ports = struct.pack(">HH", client.getsockname()[1], place[1])
        body = b"".join(addresses) + ports
        kind = b"\x21\x21" if family == socket.AF_INET6 else b"\x21\x11"
        header = SIGNATURE + kind + struct.pack(">H", len(body)) + body
        client.shutdown(socket.SHUT_WR)
        assert all_of(server) == header + early


# --- the place that the client asked for -------------------------------------------------------


def translated(*rules: str) -> None:
    for rule in rules:
        subprocess.run(["iptables-legacy", "-t", "nat", *rule.split()], check=True, timeout=60)


@pytest.fixture
def redirected(relays: ModuleType):
    """A relay with an ORIGINAL front, which gets what goes to port 700 of 127.0.0.0 to .31."""
    with scratch(loopback=True), ExitStack() as stack:
        relay = relays.Relay()
        stack.callback(relay.stop)
        relay.start()
        lab = Lab(relays, relay, stack)
        place = another_front(lab, relays.ORIGINAL)[1]
        translated(
            f"-A OUTPUT -p tcp --dport 700 -d {HOST}/27 -j DNAT --to-destination {HOST}:{place[1]}"
        )
        lab.front = place
        yield lab


def at_700(lab: Lab, host: str) -> socket.socket:
    made = lab.stack.enter_context(socket.create_server((host, 700)))
    made.settimeout(PATIENCE)
    lab.endpoints = [made]
    return made


@pytest.mark.parametrize(
    ("asked", "instead"), [("127.0.0.1", "127.0.0.55"), ("127.0.0.31", "127.0.0.66")]
)
def test_original_loopback(relays: ModuleType, redirected: Lab, asked: str, instead: str):
    """A loopback address that was asked for is exchanged for the endpoint's; its port is kept."""
    at_700(redirected, instead)
    redirected.relay.set_endpoints(redirected.service, [(instead, 9)], [0], [])
    client = client_from(redirected, HOST, (asked, 700))
    carried(client, redirected.accepted(), b"there")


def test_original_that_leads_back(relays: ModuleType, redirected: Lab):
    """Who comes without translation asked for the relay itself: reset, and no loop."""
    redirected.relay.set_endpoints(redirected.service, [(HOST, 9)], [0], [])
    assert turned_away(redirected.front)
    redirected.is_empty()
    assert redirected.counted("connections") == 1


def test_original_elsewhere(relays: ModuleType, redirected: Lab):
    """Any other address that was asked for is where the relay goes, endpoints or not."""
    translated("-I OUTPUT -p tcp --dport 700 -d 127.0.0.1 -j RETURN")
    with open_route() as route:
        route.addr("add", index=1, address="10.1.2.3", prefixlen=32)
    listens = at_700(redirected, "10.1.2.3")
    _, port = redirected.front
    translated(f"-A OUTPUT -p tcp --dport 700 -d 10.1.2.3 -s {HOST} -j DNAT --to {HOST}:{port}")
    client = client_from(redirected, HOST, ("10.1.2.3", 700))
    server, source = listens.accept()
    assert source[0] == "10.1.2.3"
    carried(client, redirected.stack.enter_context(server), b"there")


# --- the other ways to move bytes ---------------------------------------------------------------


@pytest.mark.parametrize("bulk", ["COPY", "SPLICE", "ZEROCOPY", "ADAPTIVE"])
@pytest.mark.parametrize("end", ["client", "server"])
def test_bulk(relays: ModuleType, bulk: str, end: str):
    """Whichever way they go, all bytes arrive once and in order, and the end after them."""
    data = os.urandom(1 << 20) * 8
    with relaying(relays, bulk=getattr(relays, bulk)) as lab:
        pair = lab.pair()
        near, far = (pair.client, pair.server) if end == "client" else (pair.server, pair.client)
        near.setblocking(False)
        sent, got = 0, bytearray()
        while sent < len(data):
            try:
                sent += near.send(data[sent : sent + 300000])
            except BlockingIOError:
                got += far.recv(1 << 20)
        near.shutdown(socket.SHUT_WR)
        got += all_of(far)
        assert got == data
        reset(near)
        assert is_reset(far)
        lab.is_empty()
