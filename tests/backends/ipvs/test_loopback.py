"""The relay for loopback clients: its ports, over restarts too, and that it carries both ways."""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import pytest

from kproxy.backends.fake_ipvs import FakeIpvs
from kproxy.backends.ipvs import chains, sets
from kproxy.backends.ipvs.apply import IpvsBackend
from kproxy.backends.ipvs.diff import Patch
from kproxy.backends.ipvs.fixed import Context, RelayPorts, wanted
from kproxy.backends.ipvs.held import Held
from kproxy.backends.ipvs.host import Machine
from kproxy.backends.ipvs.loopback import Loopback, found
from kproxy.backends.ipvs.render import Desired
from kproxy.backends.syncer import Syncer
from kproxy.backends.xtables import ruleset
from kproxy.backends.xtables.door import ToolDoor, tool
from kproxy.backends.xtables.host import detect_variant
from kproxy.backends.xtables.ruleset import RulesHeld
from kproxy.core.objects import Family
from kproxy.core.snapshot import Snapshot
from kproxy.kernel import command
from kproxy.kernel.ipset import IpSets
from kproxy.kernel.netlink import open_route
from tests.backends.iptables.plans import port, settings, snapshot
from tests.contract.namespaces import KERNEL, scratch

V4 = Family.IPV4
VIP, NODE = "172.30.0.10", "192.168.0.2"
LIMIT = 20.0
NOT_SERVED = "clients with a loopback source are not served"


def nothing() -> str:
    return ""


@contextmanager
def relay() -> Iterator[Loopback]:
    made = Loopback()
    try:
        yield made
    finally:
        made.close()


def saved(chain: str, ports: Mapping[str, int]) -> str:
    """What the save tool prints of a chain that leads there."""
    to = "-j DNAT --to-destination 127.0.0.1"
    rows = [f"-A {chain} -p {protocol} {to}:{port}\n" for protocol, port in ports.items()]
    return "".join(["*nat\n", f":{chain} - [0:0]\n", *rows, "COMMIT\n"])


@pytest.mark.parametrize(
    ("chain", "ports"),
    [
        (chains.FROM_LOOPBACK, {}),
        (chains.FROM_LOOPBACK, {"tcp": 40001}),
        ("OTHER", {"tcp": 40001, "udp": 40002}),
    ],
)
def test_rules_that_lead_to_no_relay(chain: str, ports: dict[str, int]) -> None:
    """None, one protocol only, and another chain."""
    assert found(saved(chain, ports)) is None


@pytest.mark.kernel
@pytest.mark.parametrize(("family", "variant"), [each for each in KERNEL if each.values[0] is V4])
def test_ports_are_found_in_the_rules(family: Family, variant: object) -> None:
    """As each tool prints them."""
    ports = RelayPorts(tcp=40001, udp=50002)
    target = wanted(Context(V4, settings(local_addresses=(NODE,)), relay=ports))
    with scratch():
        with IpSets(V4) as door:
            for name, kind in sets.kinds(V4).items():
                door.create(name, kind)
        door_ = ToolDoor(V4, variant)  # type: ignore[arg-type]
        patch = ruleset.diff(target, RulesHeld())
        assert patch is not None
        door_.restore([piece.encode() for piece in ruleset.call(patch)])
        assert found(door_.save()) == ports


@contextmanager
def net() -> Iterator[tuple[Loopback, RelayPorts, ExitStack]]:
    """A relay in a namespace where a service's address and the node's are local, and a rule that
    leads what comes from loopback to ports below 100 there."""
    with scratch(loopback=True), relay() as made, ExitStack() as sockets:
        with open_route() as route:
            for address in (VIP, NODE):
                route.addr("add", index=1, address=address, prefixlen=32)
        ports = made.ports(NODE, nothing)
        assert ports is not None
        rule = "-w -t nat -A OUTPUT -p tcp -s 127.0.0.0/8 --dport 1:99 -j DNAT --to-destination"
        program = tool(V4, detect_variant())
        command.run([program, *rule.split(), f"127.0.0.1:{ports.tcp}"])
        yield made, ports, sockets


def served(sockets: ExitStack, address: str) -> socket.socket:
    made = sockets.enter_context(socket.create_server((address, 80)))
    made.settimeout(LIMIT)
    return made


def called(sockets: ExitStack, to: tuple[str, int]) -> socket.socket:
    made = socket.create_connection(to, LIMIT, source_address=("127.0.0.1", 0))
    return sockets.enter_context(made)


@pytest.mark.kernel
@pytest.mark.parametrize(("to", "at"), [(VIP, VIP), ("127.0.0.1", NODE), ("127.0.0.53", NODE)])
def test_connections_are_carried(to: str, at: str) -> None:
    """To where the client asked, for loopback's node ports to the node's address, from a source
    that is not loopback's; both ends close as they like."""
    with net() as (_, _, sockets):
        server, client = served(sockets, at), called(sockets, (to, 80))
        there, source = server.accept()
        with there:
            assert not source[0].startswith("127.")
            client.sendall(b"question")
            assert there.recv(100) == b"question"
            client.shutdown(socket.SHUT_WR)
            assert there.recv(100) == b""
            there.sendall(b"answer")
        assert client.recv(100) == b"answer"
        assert client.recv(100) == b""


@pytest.mark.kernel
def test_who_calls_the_relay_itself_reaches_nobody() -> None:
    """No rule led there, so that there is no place that was asked for."""
    with net() as (_, ports, sockets), pytest.raises(ConnectionResetError):
        called(sockets, ("127.0.0.1", ports.tcp)).recv(100)


@pytest.mark.kernel
def test_only_loopback_can_call_it() -> None:
    """At the node's other addresses nobody listens."""
    with net() as (_, ports, _), pytest.raises(ConnectionRefusedError):
        socket.create_connection((NODE, ports.tcp), LIMIT)


@pytest.mark.kernel
def test_a_successor_takes_the_ports_that_rules_name() -> None:
    """If they are free; where one is not, it takes another, and keeps the one that is."""
    with scratch(loopback=True):
        with relay() as first:
            ports = first.ports(NODE, nothing)
            assert ports is not None
        text = saved(chains.FROM_LOOPBACK, {"tcp": ports.tcp, "udp": ports.udp})
        with relay() as second:
            assert second.ports(NODE, lambda: text) == ports
            with relay() as third:
                other = third.ports(NODE, lambda: text)
                assert other is not None
                assert other.tcp != ports.tcp
                assert other.udp != ports.udp
                # Asked again it stays where it is.
                assert third.ports(VIP, nothing) == other


@pytest.mark.kernel
def test_without_descriptors_services_are_served_without_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """That is told once, and tried again each time."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with scratch(loopback=True), relay() as made:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            found_ = [made.ports(NODE, nothing) for _ in range(2)]
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert found_ == [None, None]
        assert [each.getMessage() for each in caplog.records].count(NOT_SERVED) == 1
        assert made.ports(NODE, nothing) is not None


def proxy(door: FakeIpvs, loopback: Loopback) -> Syncer[Desired, Held, Patch]:
    """Of a process that knows nothing of those before it."""
    return Syncer(IpvsBackend(V4, "nft", door=door, machine=Machine(), loopback=loopback))


def now() -> Snapshot:
    return snapshot(port(ways="cn"), settings_=settings(local_addresses=(NODE,)))


@pytest.mark.kernel
def test_a_restart_writes_nothing() -> None:
    """The next process listens where the rules lead already."""
    door = FakeIpvs(V4)
    with scratch(loopback=True):
        with relay() as first:
            proxy(door, first).sync(now())
            before = found(door.save())
            assert before == first.ports(NODE, nothing)
        with relay() as second:
            assert proxy(door, second).sync(now()).written == 0
            assert second.ports(NODE, nothing) == before


@pytest.mark.kernel
def test_rules_follow_a_port_that_is_not_free_any_more() -> None:
    """And a sync after that writes nothing."""
    door = FakeIpvs(V4)
    with scratch(loopback=True), relay() as first, relay() as second:
        proxy(door, first).sync(now())
        syncer = proxy(door, second)
        assert syncer.sync(now()).written
        assert found(door.save()) == second.ports(NODE, nothing) != first.ports(NODE, nothing)
        syncer.forget()
        assert syncer.sync(now()).written == 0


@pytest.mark.kernel
def test_cleanup_ends_it() -> None:
    """No rule leads there, and nobody listens."""
    door = FakeIpvs(V4)
    with scratch(loopback=True), relay() as made:
        syncer = proxy(door, made)
        syncer.sync(now())
        ports = made.ports(NODE, nothing)
        assert ports is not None
        syncer.backend.cleanup()
        assert found(door.save()) is None
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", ports.tcp), LIMIT)
