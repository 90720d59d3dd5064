"""From the network that is there to the network that is wanted: a list of steps, in safe order.

Pure. Namespaces are what has to be undone: everything else a step makes lives inside one and goes
with it, so the undo record of a lab is the list of its namespaces (and processes, which
:mod:`kproxy.lab.apply` records).
"""

from __future__ import annotations

from kproxy.core.objects import Value
from kproxy.lab.network import Address, End, Host, Link, Network, Route


class MakeHost(Value, frozen=True, tag=True):
    """A new namespace: loopback up, sysctls set, bridges made."""

    host: Host


class RemoveHost(Value, frozen=True, tag=True):
    name: str


class MakeLink(Value, frozen=True, tag=True):
    link: Link


class RemoveLink(Value, frozen=True, tag=True):
    """Removing one end of a veth pair removes both."""

    end: End


class SetSysctls(Value, frozen=True, tag=True):
    host: str
    sysctls: tuple[tuple[str, str], ...]


class MakeBridge(Value, frozen=True, tag=True):
    host: str
    bridge: str


class RemoveBridge(Value, frozen=True, tag=True):
    host: str
    bridge: str


class AddAddress(Value, frozen=True, tag=True):
    host: str
    address: Address


class RemoveAddress(Value, frozen=True, tag=True):
    host: str
    address: Address


class AddRoute(Value, frozen=True, tag=True):
    host: str
    route: Route


class RemoveRoute(Value, frozen=True, tag=True):
    host: str
    route: Route


Step = (
    MakeHost
    | RemoveHost
    | MakeLink
    | RemoveLink
    | SetSysctls
    | MakeBridge
    | RemoveBridge
    | AddAddress
    | RemoveAddress
    | AddRoute
    | RemoveRoute
)

#: Removals first and from the outside in; then makings from the inside out, so that every step
#: finds what it refers to.
_ORDER: tuple[type, ...] = (
    RemoveRoute,
    RemoveAddress,
    RemoveLink,
    RemoveHost,
    RemoveBridge,
    MakeHost,
    SetSysctls,
    MakeBridge,
    MakeLink,
    AddAddress,
    AddRoute,
)


def plan(old: Network | None, new: Network) -> tuple[Step, ...]:
    """Steps from ``old`` (None: nothing is there) to ``new``.

    What hangs on a removed host or link goes with it by itself and gets no step of its own; what
    hangs on a re-made link is made again.
    """
    before = old if old is not None else Network(new.lab)
    hosts_before = {host.name: host for host in before.hosts}
    hosts_after = {host.name: host for host in new.hosts}
    links_before, links_after = set(before.links), set(new.links)
    gone = hosts_before.keys() - hosts_after.keys()

    steps: list[Step] = [RemoveHost(name) for name in sorted(gone)]
    steps += [
        RemoveLink(link.a)
        for link in before.links
        if link not in links_after and link.a.host not in gone and link.b.host not in gone
    ]
    dropped = {
        (end.host, end.interface)
        for link in before.links
        if link not in links_after
        for end in (link.a, link.b)
    }
    for host in new.hosts:
        was = hosts_before.get(host.name)
        if was is None:
            steps.append(MakeHost(host))
        steps += _inside(was, host, dropped)
    steps += [MakeLink(link) for link in new.links if link not in links_before]
    return tuple(sorted(steps, key=lambda step: _ORDER.index(type(step))))


def _inside(was: Host | None, host: Host, dropped: set[tuple[str, str]]) -> list[Step]:
    """Steps that change one host: what sat on a dropped interface is gone already."""
    name = host.name
    steps: list[Step] = []
    old_addresses: set[Address] = set()
    old_routes: set[Route] = set()
    if was is not None:
        old_addresses = {a for a in was.addresses if (name, a.interface) not in dropped}
        old_routes = {r for r in was.routes if (name, r.interface) not in dropped}
        if was.sysctls != host.sysctls:
            steps.append(SetSysctls(name, host.sysctls))
        steps += [RemoveBridge(name, b) for b in was.bridges if b not in host.bridges]
        steps += [MakeBridge(name, b) for b in host.bridges if b not in was.bridges]
    wanted_addresses, wanted_routes = set(host.addresses), set(host.routes)
    steps += [RemoveRoute(name, r) for r in sorted(old_routes - wanted_routes, key=str)]
    steps += [RemoveAddress(name, a) for a in sorted(old_addresses - wanted_addresses, key=str)]
    steps += [AddAddress(name, a) for a in host.addresses if a not in old_addresses]
    steps += [AddRoute(name, r) for r in host.routes if r not in old_routes]
    return steps
