"""UDP of loopback clients, carried to service addresses: real sockets, rules and conntrack."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest

from kproxy.backends.ipvs import datagrams
from kproxy.backends.ipvs.datagrams import Datagrams
from kproxy.backends.xtables.door import tool
from kproxy.backends.xtables.host import detect_variant
from kproxy.core.objects import Family
from kproxy.kernel import command
from kproxy.kernel.conntrack import Conntrack
from kproxy.kernel.netlink import open_route
from tests.contract.namespaces import scratch

pytestmark = pytest.mark.kernel

#: A service's addresses and the node's own: here all are local, and a plain socket serves there.
VIP, OTHER, NODE = "172.30.0.10", "172.30.0.11", "192.168.0.2"
LIMIT = 20.0

Place = tuple[str, int]


class Net:
    """The relay of a namespace, and a rule that leads the node's own loopback datagrams to it."""

    def __init__(self, relay: Datagrams, place: Place) -> None:
        self.relay = relay
        self.place = place
        self.sockets: list[socket.socket] = []

    def bound(self, place: Place) -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.settimeout(LIMIT)
        made.bind(place)
        self.sockets.append(made)
        return made

    def client(self) -> socket.socket:
        return self.bound(("127.0.0.1", 0))


@pytest.fixture
def net() -> Iterator[Net]:
    with scratch(loopback=True):
        with open_route() as route:
            for address in (VIP, OTHER, NODE):
                route.addr("add", index=1, address=address, prefixlen=32)
        front = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        front.bind(("127.0.0.1", 0))
        made = Net(Datagrams(front), front.getsockname())
        made.relay.instead = NODE
        rule = "-w -t nat -A OUTPUT -p udp -s 127.0.0.0/8 --dport 1:99 -j DNAT --to-destination"
        program = tool(Family.IPV4, detect_variant())
        command.run([program, *rule.split(), f"127.0.0.1:{made.place[1]}"])
        try:
            yield made
        finally:
            made.relay.close()
            for each in made.sockets:
                each.close()


def asked(client: socket.socket, to: Place, server: socket.socket) -> Place:
    """A question that ``server`` answers; the source that the server saw."""
    client.sendto(b"question", to)
    data, source = server.recvfrom(100)
    assert data == b"question"
    server.sendto(b"answer", source)
    assert client.recvfrom(100) == (b"answer", to)
    return source


@pytest.mark.parametrize(
    ("to", "served_at"),
    [((VIP, 53), VIP), (("127.0.0.1", 53), NODE), (("127.0.0.53", 53), NODE)],
)
def test_both_ways(net: Net, to: Place, served_at: str) -> None:
    """The service sees a source that is not loopback's, the client an answer from where it asked;
    for node ports of loopback those of the node's address are asked."""
    server, client = net.bound((served_at, 53)), net.client()
    source = asked(client, to, server)
    assert not source[0].startswith("127.")
    # The same client is the same source, so that a service with affinity or a session knows it.
    assert asked(client, to, server) == source


def test_one_client_of_several_services(net: Net) -> None:
    """One socket, two destinations: each datagram goes where it was sent."""
    client = net.client()
    for address in (VIP, OTHER):
        asked(client, (address, 53), net.bound((address, 53)))


def test_a_client_that_means_somebody_else_by_now(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a pause in which conntrack has forgotten the flow, the same port of a client may lead
    to another service."""
    client, first, second = net.client(), net.bound((VIP, 53)), net.bound((OTHER, 53))
    asked(client, (VIP, 53), first)
    with Conntrack(Family.IPV4) as table:
        batches = list(table.udp(IPv4Address(VIP).packed))
        handles = [batch.handle(at) for batch in batches for at in range(len(batch.flows))]
        # The client's, and that of the relay itself.
        assert table.delete(handles).entries == 2
    monkeypatch.setattr(datagrams, "PAUSE", 0.0)
    asked(client, (OTHER, 53), second)


def test_a_datagram_that_was_sent_to_the_relay_itself(net: Net) -> None:
    """Nobody asked for a service: nothing is sent on, and others are served."""
    server = net.bound((NODE, net.place[1]))
    server.setblocking(False)
    net.client().sendto(b"question", net.place)
    asked(net.client(), (VIP, 53), net.bound((VIP, 53)))
    with pytest.raises(BlockingIOError):
        server.recv(100)


def test_a_service_that_refuses(net: Net) -> None:
    """What was refused is lost; as soon as somebody answers there, the same client is served."""
    client = net.client()
    for _ in range(3):
        client.sendto(b"question", (VIP, 53))
    # Served after them by the same thread: by now they have been refused.
    asked(net.client(), (OTHER, 53), net.bound((OTHER, 53)))
    asked(client, (VIP, 53), net.bound((VIP, 53)))


def test_more_clients_than_there_is_room_for(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that was quiet longest makes room, and has another socket when it returns."""
    monkeypatch.setattr(datagrams, "MOST", 2)
    server = net.bound((VIP, 53))
    first, second, third = clients = [net.client() for _ in range(3)]
    sources = {each: asked(each, (VIP, 53), server) for each in clients}
    assert asked(third, (VIP, 53), server) == sources[third]
    assert asked(second, (VIP, 53), server) == sources[second]
    asked(first, (VIP, 53), server)
    assert asked(second, (VIP, 53), server) == sources[second]


def test_clients_are_forgotten(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is quiet for long enough keeps no socket: what it sends then comes by a new one."""
    monkeypatch.setattr(datagrams, "IDLE", 0.0)
    server, client = net.bound((VIP, 53)), net.client()
    sources = set()
    # What is sent before the relay has looked at the time once more still finds its socket.
    for _ in range(1000):
        client.sendto(b"question", (VIP, 53))
        sources.add(server.recvfrom(100)[1])
        if len(sources) > 1:
            return
    pytest.fail("a thousand datagrams of one client came by one socket")


@pytest.mark.parametrize("size", [0, 1, 1472, 9000, 65507])
def test_any_size(net: Net, size: int) -> None:
    """From nothing to the most that a datagram holds."""
    server, client = net.bound((VIP, 53)), net.client()
    client.sendto(bytes(size), (VIP, 53))
    data, source = server.recvfrom(1 << 16)
    assert len(data) == size
    server.sendto(data, source)
    assert len(client.recv(1 << 16)) == size
