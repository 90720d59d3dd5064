"""Sockets of clients and endpoints around a relay, for the tests of UDP.

Everything happens in a namespace of its own, on its loopback, in one thread: a test sends, receives
what must come out, and goes on. Nothing waits for a time; a receive that gets nothing fails after
:data:`PATIENCE` seconds.
"""

from __future__ import annotations

import itertools
import select
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import ModuleType

import pytest

from kproxy._relay import Relay
from kproxy.core.objects import Family
from kproxy.kernel.netlink import open_route
from tests.contract.namespaces import scratch

PATIENCE = 60.0

#: Where endpoints are: below the ports that the kernel deals out, or a session's own socket might
#: get the port of an endpoint that is closed, and would talk to itself.
FIRST_PORT = 10000

SOL_UDP = 17
UDP_SEGMENT = 103
SO_RCVBUFFORCE = 33
IFA_F_NODAD = 0x02
RTN_LOCAL = 2

#: Addresses on the namespace's loopback.
HOSTS = {
    Family.IPV4: tuple(f"127.0.0.{last}" for last in range(1, 5)),
    Family.IPV6: ("::1", *(f"fd00::{last}" for last in range(2, 5))),
}
ANY = {Family.IPV4: "0.0.0.0", Family.IPV6: "::"}
SOCKET = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}

Place = tuple[str, int]

#: A test in both families; its argument is ``family``.
families = pytest.mark.parametrize("family", list(Family), ids=lambda family: f"ipv{family.value}")


@dataclass
class Lab:
    """One relay and one UDP service with a front on every address, and what a test adds."""

    relay: Relay
    module: ModuleType
    family: Family
    stack: ExitStack
    service: int = 0
    front: int = 0
    port: int = 0
    endpoints: list[socket.socket] = field(default_factory=list)
    ports: Iterator[int] = field(default_factory=lambda: itertools.count(FIRST_PORT))

    def socket(self, host: str | None = None, port: int = 0) -> socket.socket:
        """Bound, with patience, closed with the lab."""
        made = socket.socket(SOCKET[self.family], socket.SOCK_DGRAM)
        made.settimeout(PATIENCE)
        # Whole bursts wait here until the test reads them.
        made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 22)
        made.bind((host or HOSTS[self.family][0], port))
        return self.stack.enter_context(made)

    def endpoint(self) -> socket.socket:
        """One more that the service knows; :meth:`publish` tells the relay."""
        self.endpoints.append(self.socket(port=next(self.ports)))
        return self.endpoints[-1]

    def publish(self, endpoints: Sequence[socket.socket] | None = None) -> None:
        """These, or all there are, serve both kinds of fronts."""
        places = [place(one) for one in (self.endpoints if endpoints is None else endpoints)]
        everyone = range(len(places))
        self.relay.set_endpoints(self.service, places, everyone, everyone)

    def client(self, host: str | None = None) -> socket.socket:
        """Connected to the front by one of its addresses: it hears that address alone."""
        made = self.socket()
        made.connect((host or HOSTS[self.family][0], self.port))
        return made

    def open(self, fds: Sequence[int]) -> None:
        self.front = self.relay.open(self.service, self.module.CLUSTER, fds)

    def another_front(self) -> int:
        """In place of the one before, which stays open; returns that one."""
        before = self.front
        fds, self.port = front_sockets(self.family)
        self.open(fds)
        return before

    def another_relay(self) -> None:
        """In place of the one before, which runs on; it has one service, and nothing else yet."""
        self.relay = self.module.Relay()
        self.stack.callback(self.relay.stop)
        self.service = self.relay.add_service(udp=True)
        self.relay.start()

    @contextmanager
    def loopback_mtu(self, size: int) -> Iterator[None]:
        with open_route() as route:
            before = route.get_links(1)[0].get("mtu")
            route.link("set", index=1, mtu=size)
            try:
                yield
            finally:
                route.link("set", index=1, mtu=before)

    def counters(self) -> dict[str, int]:
        return self.relay.service_counters(self.service)


def place(of: socket.socket) -> Place:
    host, port, *_ = of.getsockname()
    return host, port


def front_sockets(family: Family, number: int = 1) -> tuple[list[int], int]:
    """So many on one port of all addresses, and the port."""
    made: list[socket.socket] = []
    port = 0
    for _ in range(number):
        one = socket.socket(SOCKET[family], socket.SOCK_DGRAM)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family is Family.IPV6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind((ANY[family], port))
        port = one.getsockname()[1]
        made.append(one)
    return [one.detach() for one in made], port


def add_hosts(hosts: Sequence[str]) -> None:
    """IPv6 addresses of the loopback. The kernel makes them ours some time after it was told."""
    with open_route() as route:
        for host in hosts:
            route.addr("add", index=1, address=host, prefixlen=128, flags=IFA_F_NODAD)
        for host in hosts:
            until(lambda host=host: route.route("get", dst=host)[0]["type"] == RTN_LOCAL)


@contextmanager
def relaying(
    module: ModuleType,
    endpoints: int = 1,
    *,
    family: Family = Family.IPV4,
    workers: int = 1,
    affinity_seconds: int = 0,
    proxy_protocol: bool = False,
    **settings: float,
) -> Iterator[Lab]:
    """A relay at work in a new namespace, with so many endpoints."""
    with scratch(loopback=True), ExitStack() as stack:
        if family is Family.IPV6:
            add_hosts(HOSTS[family][1:])
        relay = module.Relay(workers=workers, **settings)
        stack.callback(relay.stop)
        lab = Lab(relay, module, family, stack)
        lab.service = relay.add_service(
            udp=True, affinity_seconds=affinity_seconds, proxy_protocol=proxy_protocol
        )
        for _ in range(endpoints):
            lab.endpoint()
        lab.publish()
        relay.start()
        fds, lab.port = front_sockets(family, workers)
        lab.open(fds)
        yield lab


def answered(client: socket.socket, endpoint: socket.socket, data: bytes = b"ping") -> Place:
    """One datagram there and one back, both unchanged; returns who it was for the endpoint."""
    client.send(data)
    got, (host, port, *_) = endpoint.recvfrom(65536)
    assert got == data
    endpoint.sendto(data[::-1], (host, port))
    assert client.recv(65536) == data[::-1]
    return host, port


def whoever_got(endpoints: Sequence[socket.socket]) -> tuple[socket.socket, bytes, Place]:
    """Which endpoint was sent something, what, and by whom."""
    ready, _, _ = select.select(endpoints, [], [], PATIENCE)
    assert ready, "no endpoint was sent anything"
    data, (host, port, *_) = ready[0].recvfrom(65536)
    return ready[0], data, (host, port)


def until(holds: Callable[[], bool]) -> None:
    """Look again and again; for what no socket can tell of."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, "it never came true"
