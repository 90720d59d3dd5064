"""IPVS: virtual servers and their real ones, ordered by the thousand, listed and counted.

Own packed messages on a generic netlink socket, because a cluster has fifty thousand real servers
and a tool takes a system call or two for each. Keys are packed (:mod:`kproxy.core.servers`).

Netlink lists the real servers of one virtual server at a time, which is three system calls for
each, and /proc/net/ip_vs lists all of them but not what schedulers are told. So virtual servers are
listed by netlink, and real ones by /proc unless only a few are asked for.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Collection, Iterable, Mapping
from typing import Self

from kproxy.core.objects import Family
from kproxy.core.servers import (
    Held,
    HeldReal,
    HeldServer,
    Order,
    Refused,
    Scheduling,
    Timeouts,
    Verb,
)
from kproxy.errors import NetlinkError
from kproxy.kernel.channel import Channel
from kproxy.kernel.ctnetlink import attribute
from kproxy.kernel.ipvs_codec import (
    GENERIC,
    GET_CONFIG,
    GET_DEST,
    GET_INFO,
    GET_SERVICE,
    LARGEST,
    SET_CONFIG,
    Reals,
    codec,
    family_id,
    listed,
    numbers,
    question,
)

_NETLINK_GENERIC = 16
# linux/genetlink.h: the family that knows the others.
_CONTROLLER, _GET_FAMILY, _FAMILY_NAME = 16, 3, 2

_TIMEOUTS = (4, 5, 6)
_INFO_VERSION = 1

#: The real servers of the namespace of the thread that opens it.
_LISTING = "/proc/thread-self/net/ip_vs"

#: What one read gives is a page, whatever is offered (seq_file); the room for it costs nothing.
_PAGE = 1 << 16

#: From so many virtual servers on, reading the whole listing is the cheaper way.
_MANY = 500


class Ipvs:
    """One family's servers, in the network namespace of the thread that makes it, for life.

    A context manager; use it in one thread at a time. NetlinkError when the kernel has no IPVS, or
    refuses.
    """

    def __init__(self, family: Family) -> None:
        self.family = family
        self._channel = Channel(_NETLINK_GENERIC, "virtual servers")
        try:
            self._codec = codec(family, family_number(self._channel, "IPVS", "ip_vs"))
            self._listing = os.open(_LISTING, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            self._channel.close()
            raise _unread(error) from error
        except NetlinkError:
            self._channel.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._listing)
        self._channel.close()

    # --- orders --------------------------------------------------------------------------------

    def send(self, orders: Iterable[Order]) -> list[Refused]:
        """Carry out all orders, one after the other, and say which of them were refused.

        A refusal stops nothing: the kernel has worked off all orders when this returns. See
        :func:`told` for words.
        """
        refused = self._channel.carry_out(orders, self._codec.pack, LARGEST)
        return [Refused(order, code) for order, code in refused]

    # --- listings ------------------------------------------------------------------------------

    def dump(self) -> Held:
        """All servers of the family.

        The kernel gives both listings in parts, and one that others change meanwhile may lack a
        server: whatever is in one alone is asked for by itself.
        """
        heads: dict[bytes, tuple[Scheduling, int]] = {}
        marks = []
        for message in self._channel.dump(self._codec.kind, question(GET_SERVICE)):
            server = self._codec.server(message)
            if server is None:
                continue
            key, scheduling, prefix = server
            if isinstance(key, bytes):
                heads[key] = scheduling, prefix
            else:
                marks.append(key)
        reals = self._listed()
        servers = {
            key: HeldServer(*head, reals[key]) for key, head in heads.items() if key in reals
        }
        for key in heads.keys() ^ reals.keys():
            alone = self._server(key)
            if alone is not None:
                servers[key] = alone
        return Held(servers, tuple(marks))

    def _server(self, key: bytes) -> HeldServer | None:
        body = question(GET_SERVICE, self._codec.about(key))
        try:
            messages = self._channel.ask(self._codec.kind, body)
        except NetlinkError as refused:
            if refused.errno == errno.ESRCH:
                return None
            raise
        found = self._codec.server(messages[0])
        return None if found is None else HeldServer(found[1], found[2], self._reals(key))

    def reals(self, servers: Collection[bytes]) -> Mapping[bytes, Mapping[bytes, HeldReal]]:
        """The real servers of some virtual ones, with their connections; none for one that is not
        there."""
        found = self._listed(frozenset(servers)) if len(servers) >= _MANY else {}
        return {
            server: found[server] if server in found else self._reals(server) for server in servers
        }

    def _reals(self, server: bytes) -> Reals:
        body = question(GET_DEST, self._codec.about(server))
        messages = self._channel.dump(self._codec.kind, body)
        return dict(self._codec.real(message) for message in messages)

    def listing(self) -> bytes:
        """All of /proc/net/ip_vs, both families; :func:`.ipvs_codec.listed` reads it.

        Of more than a page the kernel may leave servers out while other namespaces have some too:
        it goes on after so many servers of all namespaces (``ip_vs_info_seq_next``), but counts
        only those of this one to find the place again (``ip_vs_info_array``; seen in 6.1).
        """
        parts = []
        try:
            os.lseek(self._listing, 0, os.SEEK_SET)
            while part := os.read(self._listing, _PAGE):
                parts.append(part)
        except OSError as error:
            raise _unread(error) from error
        return b"".join(parts)

    def _listed(self, wanted: frozenset[bytes] | None = None) -> dict[bytes, Reals]:
        return listed(self.listing().decode("ascii"), self.family, wanted)

    # --- settings ------------------------------------------------------------------------------

    def version(self) -> tuple[int, int, int]:
        """Of IPVS: 1.2.1 since Linux 2.6.28."""
        answer = self._channel.ask(self._codec.kind, question(GET_INFO))
        number = numbers(answer[0])[_INFO_VERSION]
        return number >> 16, number >> 8 & 0xFF, number & 0xFF

    def timeouts(self) -> Timeouts:
        """In force for the namespace, both families."""
        answer = self._channel.ask(self._codec.kind, question(GET_CONFIG))
        found = numbers(answer[0])
        return Timeouts(*(found.get(kind, 0) for kind in _TIMEOUTS))

    def set_timeouts(self, timeouts: Timeouts) -> None:
        """For new packets of all connections of the namespace."""
        body = b"".join(
            attribute(kind, struct.pack("=I", seconds))
            for kind, seconds in zip(_TIMEOUTS, timeouts)
            if seconds
        )
        code = self._channel.order(self._codec.kind, 0, question(SET_CONFIG, body))
        if code:
            raise NetlinkError(
                f"cannot set the time-outs {timeouts}: {os.strerror(code)}",
                code,
                hint="seconds must be less than 2^31 over the kernel's ticks a second",
            )


def _unread(error: OSError) -> NetlinkError:
    return NetlinkError(
        f"cannot read: {error.strerror}",
        error.errno or 0,
        where=_LISTING,
        hint="is /proc mounted here?" if error.errno == errno.ENOENT else "",
    )


def family_number(channel: Channel, name: str, module: str) -> int:
    """What a generic netlink family is called in this kernel; asking for it loads the module, if
    it says that it serves net-pf-16-proto-16-family-NAME."""
    body = GENERIC.pack(_GET_FAMILY, 1, 0) + attribute(_FAMILY_NAME, name.encode() + b"\0")
    try:
        (message,) = channel.ask(_CONTROLLER, body)
    except NetlinkError as refused:
        if refused.errno != errno.ENOENT:
            raise
        raise NetlinkError(
            f"this kernel has no {name}", errno.ENOENT, hint=f"try: modprobe {module}"
        ) from None
    return family_id(message)


# --- words -------------------------------------------------------------------------------------

_ACTS = {
    Verb.ADD_SERVER: "add",
    Verb.SET_SERVER: "change",
    Verb.REMOVE_SERVER: "remove",
    Verb.ADD_REAL: "add",
    Verb.SET_REAL: "change",
    Verb.REMOVE_REAL: "remove",
}

#: (about a real server, errno) -> what it means here.
_WHY = {
    (False, errno.EEXIST): "it is there already",
    (True, errno.EEXIST): "it is there already",
    (False, errno.ESRCH): "there is no such virtual server",
    (True, errno.ESRCH): "there is no such virtual server",
    (True, errno.ENOENT): "there is no such real server",
    # Also where IPv4 has no table of local routes: in a namespace that never had an address.
    (True, errno.EINVAL): "its address is no unicast one",
    (False, errno.EAFNOSUPPORT): "this kernel's IPVS has no IPv6",
    (True, errno.EAFNOSUPPORT): "this kernel's IPVS has no IPv6",
}

_NAMES = {6: "tcp", 17: "udp", 132: "sctp"}


def told(refused: Refused) -> str:
    """``cannot add tcp 10.0.0.1:80 → 10.1.0.1:8080: there is no such virtual server``."""
    order, code = refused
    what = server_text(order.server)
    if order.real:
        what = f"{what} → {real_text(order.real)}"
    why = _WHY.get((bool(order.real), code)) or os.strerror(code)
    if code == errno.ENOENT and not order.real:
        name = order.scheduling.scheduler
        why = f"this kernel has no scheduler {name}; try: modprobe ip_vs_{name}"
    return f"cannot {_ACTS[order.verb]} {what}: {why}"


def server_text(server: bytes) -> str:
    """``tcp 10.0.0.1:80``, ``udp [fd00::1]:53``."""
    protocol = server[-1]
    return f"{_NAMES.get(protocol, protocol)} {real_text(server[:-1])}"


def real_text(real: bytes) -> str:
    """``10.1.0.1:8080``, ``[fd00::1]:8080``."""
    address, port = real[:-2], int.from_bytes(real[-2:])
    if len(address) == 4:
        return f"{socket.inet_ntop(socket.AF_INET, address)}:{port}"
    return f"[{socket.inet_ntop(socket.AF_INET6, address)}]:{port}"
