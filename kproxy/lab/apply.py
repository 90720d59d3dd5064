"""Carries out the steps of :mod:`kproxy.lab.plan`: namespaces, veth pairs, addresses, routes.

All rtnetlink work goes through one socket for each namespace, kept open while the builder lives.
What hangs on devices is collected and ordered by the batch: nothing in between depends on it.
"""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import singledispatchmethod
from typing import Self

from kproxy.errors import NetlinkError
from kproxy.kernel import netns, rtnetlink, sysctl, wiring
from kproxy.kernel.channel import Channel
from kproxy.kernel.wiring import Order
from kproxy.lab import shaping
from kproxy.lab.network import End, Host, RouteKind, namespace_name
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

#: Steps that need nothing from each other but their order on one host.
_ONE_BATCH = {(AddAddress, AddRoute)}

_LOOPBACK = 1

#: Seconds that a new link may take to carry packets, and between two looks at it.
_CARRIER, _LOOK = 2.0, 0.001

#: Far above the numbers that the kernel hands out, far below 2^31.
_FIRST_INDEX = 1 << 28

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
        self._channels: dict[str, Channel] = {}
        self._indexes: dict[tuple[str, str], int] = {}
        #: Orders that wait, by host.
        self._waiting: dict[str, list[Order]] = {}
        #: Near ends, (host, index), whose far ends wait to be raised.
        self._rising: list[tuple[str, int]] = []

    def close(self) -> None:
        """Close what is open; the network stays."""
        for channel in self._channels.values():
            channel.close()
        for fd in self._fds.values():
            os.close(fd)
        self._channels.clear()
        self._waiting.clear()
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
        kind: type | None = None
        try:
            for step in steps:
                if kind is not type(step) and (kind, type(step)) not in _ONE_BATCH:
                    self._order_waiting()
                kind = type(step)
                self._do(step)
            self._order_waiting()
        finally:
            self._waiting.clear()  # after a refusal: the next steps are others
            self._rising.clear()

    def _channel(self, host: str) -> Channel:
        if host not in self._channels:
            self._channels[host] = wiring.open_channel(self.fd(host))
        return self._channels[host]

    def _order(self, host: str, order: Order) -> None:
        """Now; NetlinkError when it is refused."""
        wiring.carry_out(self._channel(host), [order])

    def _wait(self, host: str, order: Order) -> None:
        """With the others of the host, when something else is to be done."""
        self._waiting.setdefault(host, []).append(order)

    def _order_waiting(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for host, orders in waiting.items():
            wiring.carry_out(self._channel(host), orders)
        rising, self._rising = self._rising, []
        for host, index in rising:
            self._await(host, index)

    def _await(self, host: str, index: int) -> None:
        """Until a device carries packets: as a rule it does so at the first look."""
        deadline = time.monotonic() + _CARRIER
        while not wiring.carries(self._channel(host), index) and time.monotonic() < deadline:
            time.sleep(_LOOK)

    def _index(self, host: str, interface: str) -> int:
        key = (host, interface)
        if key not in self._indexes:
            with netns.entered(self.fd(host)):
                index = rtnetlink.index_of(interface)
            if not index:
                raise NetlinkError(
                    f"cannot find interface {interface} of {host}: {os.strerror(errno.ENODEV)}",
                    errno.ENODEV,
                )
            self._indexes[key] = index
        return self._indexes[key]

    def _new_index(self, host: str, interface: str) -> int:
        """A number for a device that is about to be made."""
        number = _FIRST_INDEX + secrets.randbelow(_FIRST_INDEX)
        self._indexes[host, interface] = number
        return number

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
        self._order(host.name, wiring.raise_link(f"set lo of {host.name} up", _LOOPBACK))
        for bridge in host.bridges:
            self._make_bridge(MakeBridge(host.name, bridge))

    @_do.register
    def _remove_host(self, step: RemoveHost) -> None:
        name = namespace_name(self.lab, step.name)
        if step.name in self._channels:
            self._channels.pop(step.name).close()
        if step.name in self._fds:
            os.close(self._fds.pop(step.name))
        self._forget(step.name)
        netns.remove(name)
        self._on_removed(name)

    @_do.register
    def _set_sysctls(self, step: SetSysctls) -> None:
        with netns.entered(self.fd(step.host)):
            for name, value in step.sysctls:
                sysctl.write(name, value)

    @_do.register
    def _make_bridge(self, step: MakeBridge) -> None:
        index = self._new_index(step.host, step.bridge)
        what = f"make bridge {step.bridge} on {step.host}"
        self._order(step.host, wiring.bridge(what, step.bridge, index))

    @_do.register
    def _remove_bridge(self, step: RemoveBridge) -> None:
        self._delete_link(step.host, step.bridge)

    @_do.register
    def _make_link(self, step: MakeLink) -> None:
        """The near end is up at once, the far one with all others that wait."""
        a, b = step.link.a, step.link.b
        # Linux takes a veth end whose peer has the same index for no veth at all and reports its
        # carrier up to a second late (linkwatch_urgent_event): for so long IPv6 does not use it.
        # Numbers of our own never meet, and nobody has to be asked for them.
        near, far = self._new_index(a.host, a.interface), self._new_index(b.host, b.interface)
        pair = wiring.veth(
            f"link {a.host}:{a.interface} with {b.host}:{b.interface}",
            (a.interface, near),
            (b.interface, far),
            self.fd(b.host),
            mtu=step.link.mtu,
            master=self._bridge_of(a),
        )
        self._order(a.host, pair)
        up = f"set {b.host}:{b.interface} up"
        self._wait(b.host, wiring.raise_link(up, far, self._bridge_of(b)))
        self._rising.append((a.host, near))
        if step.link.shape:
            self._order_waiting()
            for end, index in ((a, near), (b, far)):
                shaping.put(self.fd(end.host), "add", end, index, step.link.shape)

    def _bridge_of(self, end: End) -> int:
        return self._index(end.host, end.bridge) if end.bridge else 0

    @_do.register
    def _remove_link(self, step: RemoveLink) -> None:
        self._delete_link(step.end.host, step.end.interface)

    def _delete_link(self, host: str, interface: str) -> None:
        try:
            what = f"remove {host}:{interface}"
            self._order(host, wiring.delete_link(what, self._index(host, interface)))
        except NetlinkError as refused:
            if refused.errno not in _GONE:
                raise
        # The other end is gone as well; its host may get a new interface of the same name.
        self._indexes.clear()

    @_do.register
    def _add_address(self, step: AddAddress) -> None:
        self._wait(step.host, self._address("add", step))

    @_do.register
    def _remove_address(self, step: RemoveAddress) -> None:
        try:
            self._order(step.host, self._address("del", step))
        except NetlinkError as refused:
            if refused.errno not in _GONE:
                raise

    def _address(self, verb: str, step: AddAddress | RemoveAddress) -> Order:
        interface, cidr = step.address.interface, step.address.cidr
        what = f"{verb} address {cidr} on {step.host}:{interface}"
        return wiring.address(what, verb, cidr, self._index(step.host, interface))

    @_do.register
    def _add_route(self, step: AddRoute) -> None:
        self._wait(step.host, self._route("add", step))

    @_do.register
    def _remove_route(self, step: RemoveRoute) -> None:
        # ENETDOWN and friends: the route went with its address or interface.
        with suppress(NetlinkError):
            self._order(step.host, self._route("del", step))

    def _route(self, verb: str, step: AddRoute | RemoveRoute) -> Order:
        wanted = step.route
        habit = wiring.LOCAL if wanted.kind is RouteKind.LOCAL else wiring.MAIN
        return wiring.route(
            f"{verb} route {wanted.destination} on {step.host}",
            verb,
            wanted.destination,
            kind=wanted.kind.value,
            table=wanted.table or habit,
            index=self._index(step.host, wanted.interface) if wanted.interface else 0,
            gateway=wanted.via,
            source=wanted.source,
        )
