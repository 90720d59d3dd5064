"""Carries out the steps of :mod:`kproxy.lab.plan`: namespaces, veth pairs, addresses, routes.

All rtnetlink work goes through one socket for each namespace, kept open while the builder lives.
"""

from __future__ import annotations

import errno
import os
import secrets
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import singledispatchmethod
from typing import Any, Self

from kproxy.core.objects import Family, family_of
from kproxy.errors import MachineError, NetlinkError
from kproxy.kernel import netns, sysctl
from kproxy.kernel.netlink import explained, open_route
from kproxy.lab.network import End, Host, RouteKind, Shape, namespace_name
from kproxy.lab.plan import (
    AddAddress,
    AddRoute,
    MakeBridge,
    MakeHost,
    MakeLink,
    RemoveAddress,
    RemoveBridge,
    RemoveHost,
    RemoveLink,
    RemoveRoute,
    SetSysctls,
    Step,
)

_AF = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
_IFA_F_NODAD = 0x02  # linux/if_addr.h
_RTNH_F_ONLINK, _TABLE_LOCAL, _SCOPE_HOST = 4, 255, 254  # linux/rtnetlink.h

#: Far above the numbers that the kernel hands out, far below 2^31.
_FIRST_INDEX = 1 << 28

#: Bytes that tbf may send at once: a GSO packet of 64 KiB must fit or it is dropped.
_BURST = 128 * 1024

#: The kernel says "gone already" in these words when a namespace took the object with it.
_GONE = (errno.ENODEV, errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL)


class Builder:
    """Builds one lab's network.

    ``on_namespace(name)`` is called before a namespace is made, so that a crash right after finds
    it recorded; ``on_removed(name)`` after one is gone.
    """

    def __init__(
        self,
        lab: str,
        *,
        on_namespace: Callable[[str], None] = lambda name: None,
        on_removed: Callable[[str], None] = lambda name: None,
    ) -> None:
        self.lab = lab
        self._on_namespace = on_namespace
        self._on_removed = on_removed
        self._fds: dict[str, int] = {}
        self._sockets: dict[str, Any] = {}
        self._indexes: dict[tuple[str, str], int] = {}

    def close(self) -> None:
        """Close what is open; the network stays."""
        for route in self._sockets.values():
            route.close()
        for fd in self._fds.values():
            os.close(fd)
        self._sockets.clear()
        self._fds.clear()
        self._indexes.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def fd(self, host: str) -> int:
        """Descriptor of a host's namespace, owned by the builder."""
        if host not in self._fds:
            self._fds[host] = netns.open_fd(namespace_name(self.lab, host))
        return self._fds[host]

    def apply(self, steps: Iterable[Step]) -> None:
        """Carry out steps in order. NetlinkError names the step that the kernel refused."""
        for step in steps:
            self._do(step)

    def _route(self, host: str) -> Any:
        if host not in self._sockets:
            self._sockets[host] = open_route(self.fd(host))
        return self._sockets[host]

    def _index(self, host: str, interface: str) -> int:
        key = (host, interface)
        if key not in self._indexes:
            with explained(f"find interface {interface} of {host}"):
                self._indexes[key] = self._route(host).link("get", ifname=interface)[0]["index"]
        return self._indexes[key]

    def _forget(self, host: str, interface: str | None = None) -> None:
        for key in [k for k in self._indexes if k[0] == host and interface in (None, k[1])]:
            del self._indexes[key]

    @singledispatchmethod
    def _do(self, step: Step) -> None:
        raise AssertionError(f"no way to carry out {step!r}")

    @_do.register
    def _make_host(self, step: MakeHost) -> None:
        host: Host = step.host
        name = namespace_name(self.lab, host.name)
        self._on_namespace(name)
        netns.create(name)
        self._set_sysctls(SetSysctls(host.name, host.sysctls))
        self._route(host.name).link("set", index=1, state="up")
        for bridge in host.bridges:
            self._make_bridge(MakeBridge(host.name, bridge))

    @_do.register
    def _remove_host(self, step: RemoveHost) -> None:
        name = namespace_name(self.lab, step.name)
        if step.name in self._sockets:
            self._sockets.pop(step.name).close()
        if step.name in self._fds:
            os.close(self._fds.pop(step.name))
        self._forget(step.name)
        netns.remove(name)
        self._on_removed(name)

    @_do.register
    def _set_sysctls(self, step: SetSysctls) -> None:
        with netns.entered(self.fd(step.host)):
            for name, value in step.sysctls:
                if sysctl.read(name) != value:
                    sysctl.write(name, value)

    @_do.register
    def _make_bridge(self, step: MakeBridge) -> None:
        route = self._route(step.host)
        with explained(f"make bridge {step.bridge} on {step.host}"):
            route.link("add", ifname=step.bridge, kind="bridge", state="up")

    @_do.register
    def _remove_bridge(self, step: RemoveBridge) -> None:
        self._delete_link(step.host, step.bridge)

    @_do.register
    def _make_link(self, step: MakeLink) -> None:
        a, b, mtu = step.link.a, step.link.b, step.link.mtu
        with explained(f"link {a.host}:{a.interface} with {b.host}:{b.interface}"):
            self._route(a.host).link(
                "add",
                ifname=a.interface,
                # Linux takes a veth end whose peer has the same index for no veth at all and
                # reports its carrier up to a second late (linkwatch_urgent_event): for so long
                # IPv6 does not use it. A number of our own never meets the peer's.
                index=_FIRST_INDEX + secrets.randbelow(_FIRST_INDEX),
                kind="veth",
                mtu=mtu,
                peer={"ifname": b.interface, "net_ns_fd": self.fd(b.host), "mtu": mtu},
            )
        for end in (a, b):
            self._raise_end(end, step.link.shape)

    def _raise_end(self, end: End, shape: Shape) -> None:
        route, index = self._route(end.host), self._index(end.host, end.interface)
        with explained(f"set {end.host}:{end.interface} up"):
            if end.bridge:
                master = self._index(end.host, end.bridge)
                route.link("set", index=index, state="up", master=master)
            else:
                route.link("set", index=index, state="up")
        if shape:
            self._shape(end, index, shape)

    def _shape(self, end: End, index: int, shape: Shape) -> None:
        """Rate alone by tbf, which every kernel has; delay and loss need netem."""
        route = self._route(end.host)
        try:
            if shape.delay or shape.loss:
                options: dict[str, Any] = {
                    "delay": round(shape.delay * 1e6),
                    "loss": shape.loss * 100,
                }
                if shape.rate:
                    options["rate"] = f"{shape.rate}bit"
                with explained("add netem"):
                    route.tc("add", "netem", index, **options)
            else:
                with explained("add tbf"):
                    route.tc(
                        "add", "tbf", index, rate=f"{shape.rate}bit", burst=_BURST, latency="50ms"
                    )
        except NetlinkError as refused:
            if refused.errno != errno.ENOENT:
                raise
            need = "netem (delay, loss)" if shape.delay or shape.loss else "tbf (rate)"
            raise MachineError(
                f"this kernel has no packet scheduler {need}",
                where=f"link {end.host}:{end.interface}",
                hint="leave the key out, or use a kernel that has it (modprobe sch_netem)",
            ) from refused

    @_do.register
    def _remove_link(self, step: RemoveLink) -> None:
        self._delete_link(step.end.host, step.end.interface)

    def _delete_link(self, host: str, interface: str) -> None:
        try:
            with explained(f"remove {host}:{interface}"):
                self._route(host).link("del", index=self._index(host, interface))
        except NetlinkError as refused:
            if refused.errno not in _GONE:
                raise
        # The other end is gone as well; its host may get a new interface of the same name.
        self._indexes.clear()

    @_do.register
    def _add_address(self, step: AddAddress) -> None:
        self._address("add", step.host, step.address.interface, step.address.cidr)

    @_do.register
    def _remove_address(self, step: RemoveAddress) -> None:
        try:
            self._address("del", step.host, step.address.interface, step.address.cidr)
        except NetlinkError as refused:
            if refused.errno not in _GONE:
                raise

    def _address(self, verb: str, host: str, interface: str, cidr: str) -> None:
        address, _, length = cidr.partition("/")
        family = family_of(address)
        options: dict[str, Any] = {"flags": _IFA_F_NODAD} if family is Family.IPV6 else {}
        with explained(f"{verb} address {cidr} on {host}:{interface}"):
            self._route(host).addr(
                verb,
                index=self._index(host, interface),
                address=address,
                prefixlen=int(length),
                family=_AF[family],
                **options,
            )

    @_do.register
    def _add_route(self, step: AddRoute) -> None:
        self._change_route("add", step)

    @_do.register
    def _remove_route(self, step: RemoveRoute) -> None:
        # ENETDOWN and friends: the route went with its address or interface.
        with suppress(NetlinkError):
            self._change_route("del", step)

    def _change_route(self, verb: str, step: AddRoute | RemoveRoute) -> None:
        wanted = step.route
        options: dict[str, Any] = {
            "dst": wanted.destination,
            "family": _AF[family_of(wanted.destination)],
        }
        if wanted.kind is not RouteKind.UNICAST:
            options["type"] = wanted.kind.value
        if wanted.kind is RouteKind.LOCAL:
            options["scope"] = _SCOPE_HOST
        if wanted.kind is RouteKind.LOCAL or wanted.table:
            options["table"] = wanted.table or _TABLE_LOCAL
        if wanted.interface:
            options["oif"] = self._index(step.host, wanted.interface)
        if wanted.via:
            options["gateway"] = wanted.via
            options["flags"] = _RTNH_F_ONLINK
        if wanted.source:
            options["prefsrc"] = wanted.source
        with explained(f"{verb} route {wanted.destination} on {step.host}"):
            self._route(step.host).route(verb, **options)
