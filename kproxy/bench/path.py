"""The path that is measured: client – node – pod, three namespaces joined by two veth pairs.

::

    client 10.77.0.2, .3, …  ── 10.77.0.1  node  10.78.0.1, … ── 10.78.0.2, .3, …  pod
           fd77::2 …            fd77::1          fd78::1 …       fd78::2 …

The node forwards, so *direct routing* is the client speaking to the pod's address; a relay listens
on the node's side of the client's link. Each measurement that could leave anything behind
(TIME_WAIT, conntrack, neighbours) has a path of its own: it takes a tenth of a second.

What is set in the namespaces and nothing else: :data:`ENDS` for client and pod, which are not what
is measured, so they must not run out of ports first; :data:`NODE` (how labs forward) and one of
:data:`SETTINGS` for the node.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import ExitStack
from typing import Self

import msgspec

from kproxy.bench.agent import Agent
from kproxy.bench.load import Load, Place, Result
from kproxy.core.objects import Family
from kproxy.kernel import conntrack_table, netns
from kproxy.kernel.netns import entered
from kproxy.lab.apply import Builder
from kproxy.lab.network import (
    BASE_SYSCTLS,
    FORWARDING_SYSCTLS,
    Address,
    End,
    Host,
    Link,
    Network,
    Route,
    namespace_name,
)
from kproxy.lab.plan import plan

Sysctls = tuple[tuple[str, str], ...]

#: Ports are taken again after a second of TIME_WAIT, and there are twice as many.
ENDS: Sysctls = (
    ("net/ipv4/tcp_tw_reuse", "1"),
    ("net/ipv4/ip_local_port_range", "1024 65535"),
)
NODE: Sysctls = FORWARDING_SYSCTLS

#: What a node may be set to: as Linux comes, and as userspace mode sets it for itself.
SETTINGS: dict[str, Sysctls] = {
    "stock": (("net/ipv4/tcp_tw_reuse", "2"),),
    "tuned": (("net/ipv4/tcp_tw_reuse", "1"),),
}

#: Where the server of the pod is, TCP and UDP, and where relays listen on the node.
PORT = 7000

_CLIENTS = {Family.IPV4: "10.77.0.{}", Family.IPV6: "fd77::{:x}"}
_PODS = {Family.IPV4: "10.78.0.{}", Family.IPV6: "fd78::{:x}"}
_LENGTH = {Family.IPV4: 24, Family.IPV6: 64}
_DEFAULT = {Family.IPV4: "0.0.0.0/0", Family.IPV6: "::/0"}

#: More would not fit into the /24 of IPv4.
_MOST_ADDRESSES = 200


class Path:
    """The three namespaces, a server in the pod, a client; gone when the ``with`` ends.

    ``clients`` and ``pods`` are how many addresses each has, ``sources`` how many the node has on
    the pods' side. ``settings`` names the node's sysctls. ``apart``: each number of a pod's address
    has a server process of its own once :meth:`serve` starts it, and the one of all is not there.
    """

    def __init__(
        self,
        *,
        settings: str = "tuned",
        clients: int = 4,
        pods: int = 1,
        sources: int = 1,
        apart: bool = False,
    ) -> None:
        if not all(1 <= count <= _MOST_ADDRESSES for count in (clients, pods, sources)):
            raise ValueError(f"between 1 and {_MOST_ADDRESSES} addresses of each")
        self.settings = settings
        self._counts = {"client": clients, "pod": pods, "node": sources}
        self.lab = f"b{secrets.token_hex(3)}"
        self._stack = ExitStack()
        self._builder = Builder(self.lab)
        self._apart = apart
        self.client: Agent
        self.pod: Agent

    def __enter__(self) -> Self:
        try:
            self._build()
            self.pod = self._stack.enter_context(Agent(self.fd("pod")))
            self.client = self._stack.enter_context(Agent(self.fd("client")))
            if self._apart:
                return self
            # Each address its own door: a wildcard UDP socket answers from any address it likes.
            places = [(host, PORT) for family in Family for host in self.pod_addresses(family)]
            self.pod.serve(places, places)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _build(self) -> None:
        for host in ("client", "node", "pod"):
            self._stack.callback(netns.remove, namespace_name(self.lab, host))
        self._stack.enter_context(self._builder)
        self._builder.apply(plan(None, self._network()))

    def fd(self, host: str) -> int:
        """Descriptor of a namespace (client, node, pod), the path's own."""
        return self._builder.fd(host)

    def agent(self, host: str) -> Agent:
        """Another one in a namespace, gone with the path."""
        return self._stack.enter_context(Agent(self.fd(host)))

    def serve(self, number: int) -> Agent:
        """A server process for the pod's addresses of that number, gone with the path."""
        agent = self.agent("pod")
        places = [self.pod_place(family, number) for family in Family]
        agent.serve(places, places)
        return agent

    # --- addresses ------------------------------------------------------------------------------

    def client_addresses(self, family: Family = Family.IPV4) -> list[str]:
        return [_CLIENTS[family].format(2 + at) for at in range(self._counts["client"])]

    def pod_addresses(self, family: Family = Family.IPV4) -> list[str]:
        return [_PODS[family].format(2 + at) for at in range(self._counts["pod"])]

    def pod_place(self, family: Family = Family.IPV4, number: int = 0) -> Place:
        return self.pod_addresses(family)[number], PORT

    def node_place(self, family: Family = Family.IPV4) -> Place:
        """Where a relay listens."""
        return _CLIENTS[family].format(1), PORT

    def node_sources(self, family: Family = Family.IPV4) -> list[str]:
        """What the node may connect to pods from: above all pods, the first excepted."""
        more = (255 - at for at in range(1, self._counts["node"]))
        return [_PODS[family].format(number) for number in (1, *more)]

    # --- measuring ------------------------------------------------------------------------------

    def run(self, load: Load, target: Place) -> Result:
        """A load from the client, with what arrived at the pod in it."""
        family = Family.IPV6 if ":" in target[0] else Family.IPV4
        result = self.client.run(load, target, sources=self.client_addresses(family))
        return self.completed(result)

    def completed(self, result: Result) -> Result:
        """A result with the server's side of it: whole hundredths of seconds within its time."""
        arrived = self.pod.series(result.began, result.ended)
        if not arrived:
            return result
        seconds = len(arrived) / 100
        return msgspec.structs.replace(
            result,
            received=sum(octets for octets, _ in arrived) / seconds,
            received_datagrams=sum(datagrams for _, datagrams in arrived) / seconds,
        )

    def forget(self) -> None:
        """The node forgets all connections: what the next load opens is new to it. NetlinkError:
        it does not let itself be asked."""
        with entered(self.fd("node")):
            conntrack_table.flush()

    # --- the network ----------------------------------------------------------------------------

    def _network(self) -> Network:
        hosts = [
            Host("client", _on("eth0", self.client_addresses), _defaults(_CLIENTS), _END),
            Host("pod", _on("eth0", self.pod_addresses), _defaults(_PODS), _END),
            Host(
                "node",
                _on("client", lambda family: [_CLIENTS[family].format(1)])
                + _on("pod", self.node_sources),
                sysctls=(*NODE, *SETTINGS[self.settings]),
            ),
        ]
        links = [Link(End("node", end), End(end, "eth0")) for end in ("client", "pod")]
        return Network(self.lab, tuple(hosts), tuple(links))


_END = (*BASE_SYSCTLS, *ENDS)


def _on(interface: str, addresses: Callable[[Family], list[str]]) -> tuple[Address, ...]:
    return tuple(
        Address(interface, f"{address}/{_LENGTH[family]}")
        for family in Family
        for address in addresses(family)
    )


def _defaults(plan_of: dict[Family, str]) -> tuple[Route, ...]:
    """By the node."""
    return tuple(
        Route(_DEFAULT[family], "eth0", via=plan_of[family].format(1)) for family in Family
    )
