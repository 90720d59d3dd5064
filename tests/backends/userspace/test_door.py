"""The door to a relay, with a real one: what stands, what is refused, what goes."""

from __future__ import annotations

import errno
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from msgspec.structs import replace

from kproxy.backends.userspace import sockets
from kproxy.backends.userspace.door import RelayDoor
from kproxy.backends.userspace.plan import Front, NodePort, Service
from kproxy.core.objects import Family, PortName, Protocol
from kproxy.core.policy import Use
from kproxy.core.snapshot import UserspaceSettings
from tests.contract.namespaces import scratch
from tests.relay.peers import until

pytestmark = pytest.mark.kernel

V4, V6 = Family.IPV4, Family.IPV6
LOOPBACK = {V4: "127.0.0.1", V6: "::1"}
CLUSTER, LOCAL = Use.CLUSTER, Use.LOCAL
TCP, UDP = Protocol.TCP, Protocol.UDP

#: Seconds after which a test that waits for something has failed.
PATIENCE = 60.0

#: State of a connection whose first packet was not answered (enum in Linux' tcp_states.h).
SYN_SENT = 2


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with scratch(loopback=True):
        yield


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def made(stack: ExitStack, family: Family = V4, **settings: object) -> RelayDoor:
    return stack.enter_context(
        closing(RelayDoor(family, UserspaceSettings(**settings)))  # type: ignore[arg-type]
    )


def endpoint(stack: ExitStack, family: Family = V4) -> tuple[socket.socket, tuple[str, int]]:
    """Somebody who listens."""
    listening = stack.enter_context(socket.socket(sockets.plain(family, udp=False).family))
    listening.settimeout(PATIENCE)
    listening.bind((LOOPBACK[family], 0))
    listening.listen()
    return listening, listening.getsockname()[:2]


def service(
    name: str = "a", *uses: Use, ends: tuple[tuple[str, int], ...] = (), protocol: Protocol = TCP
) -> Service:
    every = tuple(range(len(ends)))
    return Service(PortName("ns", name, "p", protocol), ends, every, every, uses or (CLUSTER,))


def reached(door: RelayDoor, wanted: Service, use: Use, listening: socket.socket) -> bool:
    """Whether a client of a front gets to the endpoint; False when it is refused."""
    port = door.running()[wanted.name].ports[use]
    try:
        client = socket.create_connection((LOOPBACK[door.family], port), timeout=PATIENCE)
    except ConnectionRefusedError:
        return False
    with client:
        client.sendall(b"x")
        accepted, _ = listening.accept()
        with accepted:
            accepted.settimeout(PATIENCE)
            return accepted.recv(1) == b"x"


@pytest.mark.parametrize("family", [V4, V6])
def test_what_is_put_is_served(opened: ExitStack, family: Family) -> None:
    """By a port of its own for each list; what stands is told as it was put."""
    door, (listening, end) = made(opened, family), endpoint(opened, family)
    both = service("a", CLUSTER, LOCAL, ends=(end,))
    assert door.put([both]) == {}
    standing = door.running()[both.name]
    assert standing.service == both
    assert len(set(standing.ports.values())) == 2
    assert all(reached(door, both, use, listening) for use in both.uses)


def test_a_deaf_front_lets_nobody_in(opened: ExitStack) -> None:
    """A client who comes too early hears nothing, not even that it is too early."""
    door, (listening, end) = made(opened), endpoint(opened)
    wanted = service(ends=(end,))
    assert door.put([wanted], deaf=True) == {}
    early = opened.enter_context(sockets.plain(V4, udp=False))
    port = door.running()[wanted.name].ports[CLUSTER]
    assert early.connect_ex(("127.0.0.1", port)) == errno.EINPROGRESS
    # On loopback the answer to a first packet is there when connect() returns.
    assert early.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == bytes([SYN_SENT])
    early.close()
    assert door.deaf
    door.hear()
    assert not door.deaf
    assert reached(door, wanted, CLUSTER, listening)


def test_a_deaf_front_drops_datagrams(opened: ExitStack) -> None:
    """What came too early is not served later either."""
    door, end = made(opened), opened.enter_context(sockets.plain(V4, udp=True))
    end.setblocking(True)
    end.settimeout(PATIENCE)
    end.bind(("127.0.0.1", 0))
    wanted = service(ends=(end.getsockname(),), protocol=UDP)
    assert door.put([wanted], deaf=True) == {}
    client = opened.enter_context(sockets.plain(V4, udp=True))
    port = door.running()[wanted.name].ports[CLUSTER]
    client.connect(("127.0.0.1", port))
    client.send(b"early")
    until(lambda: dropped(port) == 1)
    door.hear()
    client.send(b"late")
    assert end.recv(9) == b"late"


def dropped(port: int) -> int:
    """How many datagrams the UDP sockets of a port have not taken."""
    _, *rows = Path("/proc/thread-self/net/udp").read_text().splitlines()
    each = [row.split() for row in rows]
    return sum(int(row[-1]) for row in each if row[1].endswith(f":{port:04X}"))


def test_changes_leave_ports_alone(opened: ExitStack) -> None:
    """New endpoints, affinity and fronts, and a front that goes: what stays keeps its port."""
    door, (old, old_end), (new, new_end) = made(opened), endpoint(opened), endpoint(opened)
    first = service("a", CLUSTER, ends=(old_end,))
    door.put([first])
    port = door.running()[first.name].ports[CLUSTER]
    assert reached(door, first, CLUSTER, old)
    second = replace(service("a", CLUSTER, LOCAL, ends=(new_end,)), affinity_seconds=10)
    assert door.put([second]) == {}
    assert door.running()[first.name].service == second
    assert door.running()[first.name].ports[CLUSTER] == port
    assert reached(door, second, CLUSTER, new)
    assert reached(door, second, LOCAL, new)
    third = replace(second, uses=(CLUSTER,))
    door.put([third])
    assert set(door.running()[first.name].ports) == {CLUSTER, LOCAL}
    door.shut([Front(first.name, LOCAL)])
    standing = door.running()[first.name]
    assert (standing.service, standing.ports) == (third, {CLUSTER: port})


def test_what_goes_is_refused_and_leaves_nothing(opened: ExitStack) -> None:
    """No port listens any more, no descriptor is left; what was never there is no fault."""
    door, (_, end) = made(opened), endpoint(opened)
    door.put([service("keep", ends=(end,))])
    before = set(os.listdir("/proc/self/fd"))
    gone = service("a", CLUSTER, LOCAL, ends=(end,))
    door.put([gone, service("u", CLUSTER, ends=(end,), protocol=UDP)])
    ports = door.running()[gone.name].ports.values()
    door.shut([Front(gone.name, LOCAL), Front(gone.name, LOCAL)])
    for _ in range(2):
        door.drop([gone.name, service("u", protocol=UDP).name])
    assert list(door.running()) == [service("keep").name]
    assert set(os.listdir("/proc/self/fd")) <= before
    for port in ports:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


def test_a_range_that_is_full(opened: ExitStack) -> None:
    """Who finds no port is told and has no front; the others are served, and when one goes the
    next one gets its port."""
    door, (listening, end) = made(opened, port_range=(20000, 20001)), endpoint(opened)
    three = [service(name, ends=(end,)) for name in "abc"]
    refused = door.put(three)
    assert list(refused) == [three[2].name]
    assert "no free relay port in 20000-20001" in refused[three[2].name]
    standing = door.running()[three[2].name]
    assert (standing.service, standing.ports) == (replace(three[2], uses=()), {})
    # The other protocol has ports of its own.
    assert door.put([service("u", ends=(end,), protocol=UDP)]) == {}
    door.drop([three[0].name])
    assert door.put(three[2:]) == {}
    assert reached(door, three[2], CLUSTER, listening)


def test_ports_of_before_are_taken_again(opened: ExitStack) -> None:
    """A front gets the port that it had with an earlier process, unless somebody has it."""
    (_, end), first = endpoint(opened), made(opened)
    wanted = service("a", CLUSTER, LOCAL, ends=(end,))
    first.put([wanted])
    ports = dict(first.ports)
    # Before those are free: it might get one of them.
    _, (_, taken) = endpoint(opened)
    first.close()
    second = made(opened)
    second.remember({**ports, Front(service("b").name, CLUSTER): taken})
    assert second.put([wanted, service("b", ends=(end,))]) == {}
    assert {front: second.ports[front] for front in ports} == ports
    assert second.ports[Front(service("b").name, CLUSTER)] != taken


def test_an_address_to_listen_at(opened: ExitStack) -> None:
    """With --bind-address there and nowhere else."""
    door, (_, end) = made(opened, listen="127.0.0.7"), endpoint(opened)
    one = service("a", ends=(end,))
    door.put([one])
    assert door.listen == "127.0.0.7"
    port = door.running()[one.name].ports[CLUSTER]
    socket.create_connection(("127.0.0.7", port)).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


@pytest.mark.parametrize("when", ["before the relay starts", "while it runs"])
def test_other_addresses_to_connect_from(opened: ExitStack, when: str) -> None:
    """Used when the usual one has no port left; whoever comes is served."""
    door = made(opened)
    listening, place = endpoint(opened)
    wanted = service(ends=(place,))
    if when == "before the relay starts":
        door.set_sources(("127.0.0.2",))
    door.put([wanted])
    if when == "while it runs":
        door.set_sources(("127.0.0.2",))
    # Below those that the kernel has dealt out to the front and the endpoint.
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("20000 20000")
    port = door.running()[wanted.name].ports[CLUSTER]
    seen = []
    for number in (21000, 21001):
        client = socket.create_connection(
            ("127.0.0.1", port), timeout=PATIENCE, source_address=("127.0.0.1", number)
        )
        opened.enter_context(client)
        accepted, (source, _) = listening.accept()
        opened.enter_context(accepted)
        seen.append(source)
    assert seen == ["127.0.0.1", "127.0.0.2"]
    until(lambda: door.figures().totals["other_sources"] == 1)


def test_no_descriptors_left(opened: ExitStack) -> None:
    """At the process's limit service ports are refused by name, with what to do; room that others
    give back is used."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened.callback(resource.setrlimit, resource.RLIMIT_NOFILE, before)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
    door, (listening, end) = made(opened, workers=2), endpoint(opened)
    many = [service(f"s{number:03}", ends=(end,)) for number in range(250)]
    refused = door.put(many)
    # A quarter of what is left of 1024 beside the reserve: 192, one socket each.
    assert list(refused) == [one.name for one in many[192:]]
    assert all("LimitNOFILE" in why for why in refused.values())
    assert reached(door, many[0], CLUSTER, listening)
    door.drop([one.name for one in many[:192]])
    assert door.put(many[192:]) == {}


def test_node_ports_are_held_and_given_back(opened: ExitStack) -> None:
    """As long as the door is open."""
    door, port = made(opened), NodePort(30080, False)
    assert door.hold([port]) == {}
    assert door.held == {port}
    door.close()
    door.close()
    other = opened.enter_context(sockets.plain(V4, udp=False))
    other.bind(("0.0.0.0", 30080))


def test_a_door_costs_nothing_until_it_serves(opened: ExitStack) -> None:
    """No thread, no descriptor; it can be asked all the same."""
    before = {place: set(os.listdir(place)) for place in ("/proc/self/fd", "/proc/self/task")}
    door = made(opened)
    assert (door.running(), door.held, door.figures().services) == ({}, frozenset(), ())
    assert (door.drain(1), door.left()) == (0, 0)
    door.drop([service("a").name])
    door.shut([Front(service("a").name, CLUSTER)])
    door.close()
    # What earlier tests have left may go meanwhile: a thread that was joined ends a moment later.
    assert all(set(os.listdir(place)) <= found for place, found in before.items())


def test_figures_are_by_service_port(opened: ExitStack) -> None:
    """Connections that are there and that were, for every service port that is served."""
    door, (listening, end) = made(opened), endpoint(opened)
    one, other = service("a", ends=(end,)), service("b", ends=(end,))
    door.put([one, other])
    for _ in range(3):
        assert reached(door, one, CLUSTER, listening)
    figures = door.figures()
    counted = {each.name: each.counters["connections"] for each in figures.services}
    assert counted == {one.name: 3, other.name: 0}
    assert figures.totals["workers"] >= 1
    assert not any(each.endpoints for each in figures.services)


def told(door: RelayDoor) -> dict[tuple[PortName, str], tuple[int, int]]:
    """Connections and failures of each endpoint of each service port."""
    return {
        (each.name, str(endpoint)): (
            endpoint.counters["connections"],
            endpoint.counters["failures"],
        )
        for each in door.figures(endpoints=True).services
        for endpoint in each.endpoints
    }


@pytest.mark.parametrize("family", [V4, V6])
def test_figures_are_by_endpoint_for_who_asks(opened: ExitStack, family: Family) -> None:
    """Of each service port its own, also where two share an endpoint; one that nobody was sent to
    is told of, and one that took nobody says so."""
    door, (listening, end), idle = made(opened, family), endpoint(opened, family), ("192.0.2.1", 9)
    if family is V6:
        idle = ("2001:db8::1", 9)
    with sockets.plain(family, udp=False) as nobody:
        nobody.bind((LOOPBACK[family], 0))
        refusing = nobody.getsockname()[:2]
        one = replace(service("a", ends=(end, idle)), cluster=(0,), local=(0,))
        other = service("b", ends=(end, refusing))
        door.put([one, other])
        assert all(reached(door, one, CLUSTER, listening) for _ in range(3))
        # Both have had their turn after two connections, and the first try of one was refused.
        assert all(reached(door, other, CLUSTER, listening) for _ in range(2))
        text = "{}:{}" if family is V4 else "[{}]:{}"
        expected = {
            (one.name, text.format(*end)): (3, 0),
            (one.name, text.format(*idle)): (0, 0),
            (other.name, text.format(*end)): (2, 0),
            (other.name, text.format(*refusing)): (0, 1),
        }
        # An endpoint may know of a connection before the relay has heard that it stands.
        until(lambda: told(door) == expected)
