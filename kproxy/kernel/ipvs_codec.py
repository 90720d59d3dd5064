"""IPVS's messages, packed and unpacked, and its listing in /proc: for :mod:`kproxy.kernel.ipvs`.

Pure. Source of the format: linux/ip_vs.h, and net/netfilter/ipvs/ip_vs_ctl.c for what must be
there.

::

    IPVS_CMD_ATTR_SERVICE
      AF (2 bytes), PROTOCOL (2), ADDR, PORT (2, network order)       which virtual server
      SCHED_NAME, FLAGS (flags, mask), TIMEOUT, NETMASK               adding and setting one
    IPVS_CMD_ATTR_DEST
      ADDR, PORT (2, network order), ADDR_FAMILY                      which real server
      FWD_METHOD, WEIGHT, U_THRESH, L_THRESH                          adding and setting one
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Container
from functools import cache, lru_cache

from kproxy.core.objects import Family
from kproxy.core.servers import (
    LOCAL,
    MASQUERADE,
    ROUTE,
    TUNNEL,
    HeldReal,
    Order,
    Scheduling,
    Verb,
)
from kproxy.errors import NetlinkError
from kproxy.kernel.channel import Message
from kproxy.kernel.ctnetlink import ATTRIBUTE, HEADER, REQUEST, attribute, contents

# Commands beside those of Verb.
GET_SERVICE, GET_DEST, SET_CONFIG, GET_CONFIG, GET_INFO = 4, 8, 12, 13, 15

_VERSION = 1

#: genlmsghdr: command, version, nothing.
GENERIC = struct.Struct("=BBH")

_SERVICE, _DEST = 1, 2

_AF, _PROTOCOL, _ADDRESS, _PORT, _MARK = 1, 2, 3, 4, 5
_SCHEDULER, _FLAGS, _TIMEOUT, _NETMASK = 6, 7, 8, 9

_REAL_ADDRESS, _REAL_PORT, _FORWARDING, _WEIGHT, _UPPER, _LOWER = 1, 2, 3, 4, 5, 6
_ACTIVE, _INACTIVE, _REAL_FAMILY = 7, 8, 11
#: Of a virtual server: counters, which come last.
_STATISTICS = 10

#: CTRL_ATTR_FAMILY_ID (linux/genetlink.h)
_FAMILY_ID = 1

#: IP_VS_SVC_F_HASHED: the kernel's own mark on every server.
_HASHED = 0x2

_U16, _U32, _FLAG_PAIR = struct.Struct("=H"), struct.Struct("=I"), struct.Struct("=II")

#: Bytes of the largest message: an IPv6 real server, or a virtual one with a name of 15 letters.
LARGEST = 160

CODES = {Family.IPV4: (socket.AF_INET, 4), Family.IPV6: (socket.AF_INET6, 16)}

_ABOUT_REALS = (Verb.ADD_REAL, Verb.SET_REAL, Verb.REMOVE_REAL)

#: Of a header: length, kind, flags.
_BEGIN = struct.Struct("=IHH")

Reals = dict[bytes, HeldReal]


class Codec:
    """One family's messages. ``kind``: the number that IPVS has among generic netlink families."""

    def __init__(self, family: Family, kind: int) -> None:
        self.kind = kind
        self.code, self.size = CODES[family]
        # IPv4 has a mask in network order, IPv6 the length of a prefix (ip_vs_add_service).
        self._netmask = b"\xff" * 4 if family is Family.IPV4 else _U32.pack(128)
        self._real_layout = struct.Struct(f"=8sI12s{self._which_size}s8s{self.size}s4s2s2x36sI")
        self._templates = {verb: self._template(verb) for verb in _ABOUT_REALS}
        self._scheduling = lru_cache(maxsize=256)(self._pack_scheduling)

    @property
    def _which_size(self) -> int:
        return 8 + 8 + 4 + self.size + 8

    # --- orders --------------------------------------------------------------------------------

    def pack(self, orders: list[Order], first: int) -> list[bytes]:
        """A message for each, numbered from ``first`` upwards."""
        size, templates, layout = self.size, self._templates, self._real_layout.pack
        messages = []
        known, which = b"", b""
        for number, (verb, server, real, weight, scheduling) in enumerate(orders, first):
            if server != known:  # the real servers of a virtual one mostly come together
                known, which = server, self._which(server)
            template = templates.get(verb)
            if template is None:
                messages.append(self._pack_server(verb, which, scheduling, number))
            else:
                begin, middle, head, tail = template
                messages.append(
                    layout(begin, number, middle, which, head, real[:size], _REAL_PORT_HEAD,
                           real[size:], tail, weight)
                )  # fmt: skip
        return messages

    def _template(self, verb: Verb) -> tuple[bytes, bytes, bytes, bytes]:
        """What the messages of a verb have in common: before the number, between that and the
        virtual server, before the real one's key, after it. Removing needs only the key, and the
        kernel does not look at the rest."""
        size = self._real_layout.size
        begin = _BEGIN.pack(size, self.kind, REQUEST)
        middle = bytes(4) + _generic(verb) + _head(self._which_size, _SERVICE)
        head = _head(size - 24 - self._which_size - 4, _DEST) + _head(self.size, _REAL_ADDRESS)
        tail = attribute(_REAL_FAMILY, _U16.pack(self.code))
        tail += attribute(_FORWARDING, _U32.pack(MASQUERADE))
        tail += attribute(_UPPER, bytes(4)) + attribute(_LOWER, bytes(4))
        return begin, middle, head, tail + _head(4, _WEIGHT)

    def _pack_server(self, verb: Verb, which: bytes, how: Scheduling, number: int) -> bytes:
        inner = which if verb is Verb.REMOVE_SERVER else which + self._scheduling(how)
        body = _generic(verb) + attribute(_SERVICE, inner)
        return HEADER.pack(HEADER.size + len(body), self.kind, REQUEST, number, 0) + body

    def _which(self, server: bytes) -> bytes:
        """The attributes that say which virtual server is meant."""
        size = self.size
        return (
            attribute(_AF, _U16.pack(self.code))
            + attribute(_PROTOCOL, _U16.pack(server[-1]))
            + attribute(_ADDRESS, server[:size])
            + attribute(_PORT, server[size:-1])
        )

    def _pack_scheduling(self, how: Scheduling) -> bytes:
        return (
            attribute(_SCHEDULER, how.scheduler.encode() + b"\0")
            + attribute(_FLAGS, _FLAG_PAIR.pack(how.flags, 0xFFFFFFFF))
            + attribute(_TIMEOUT, _U32.pack(how.timeout))
            + attribute(_NETMASK, self._netmask)
        )

    # --- listings ------------------------------------------------------------------------------

    def about(self, server: bytes) -> bytes:
        """What a question about one virtual server says."""
        return attribute(_SERVICE, self._which(server))

    def server(self, message: Message) -> tuple[bytes | int, Scheduling, int] | None:
        """Key (or packet mark), scheduling and prefix of a listed virtual server; None when it is
        of the other family."""
        _, buffer, at, end = message
        found = _inner(buffer, at + GENERIC.size, end, _SERVICE, _STATISTICS)
        if not found or _U16.unpack(found[_AF])[0] != self.code:
            return None
        flags = _FLAG_PAIR.unpack(found[_FLAGS])[0] & ~_HASHED
        timeout = _U32.unpack(found[_TIMEOUT])[0]
        scheduling = Scheduling(found[_SCHEDULER][:-1].decode(), flags, timeout)
        mask = found[_NETMASK]
        prefix = int.from_bytes(mask).bit_count() if self.size == 4 else _U32.unpack(mask)[0]
        if _MARK in found:
            return _U32.unpack(found[_MARK])[0], scheduling, prefix
        protocol = _U16.unpack(found[_PROTOCOL])[0]
        key = found[_ADDRESS][: self.size] + found[_PORT] + bytes((protocol & 0xFF,))
        return key, scheduling, prefix

    def real(self, message: Message) -> tuple[bytes, HeldReal]:
        """Key and state of a listed real server, whose address may be of the other family."""
        _, buffer, at, end = message
        found = _inner(buffer, at + GENERIC.size, end, _DEST, 0)
        if not found:
            raise NetlinkError("a listed real server says nothing", errno.EBADMSG)
        code = _U16.unpack(found[_REAL_FAMILY])[0] if _REAL_FAMILY in found else self.code
        size = 16 if code == socket.AF_INET6 else 4
        weight, method, active, inactive = (
            _U32.unpack(found[kind])[0] for kind in (_WEIGHT, _FORWARDING, _ACTIVE, _INACTIVE)
        )
        key = found[_REAL_ADDRESS][:size] + found[_REAL_PORT]
        return key, HeldReal(weight, method, active, inactive)


@cache
def codec(family: Family, kind: int) -> Codec:
    """One for all channels, in whatever thread: all that it keeps is what messages have in common,
    which takes longer to make than a small send."""
    return Codec(family, kind)


def question(command: int, body: bytes = b"") -> bytes:
    """What follows the header of a message that asks, or that sets time-outs."""
    return _generic(command) + body


def family_id(message: Message) -> int:
    """The number of a generic netlink family, from the controller's answer."""
    _, buffer, at, end = message
    for kind, start, _ in contents(buffer, at + GENERIC.size, end):
        if kind == _FAMILY_ID:
            return int(_U16.unpack_from(buffer, start)[0])
    raise NetlinkError("an answer about generic netlink has no number in it", errno.EBADMSG)


def numbers(message: Message) -> dict[int, int]:
    """Attribute -> value, of an answer that has numbers of four bytes only."""
    _, buffer, at, end = message
    return {
        kind: _U32.unpack_from(buffer, start)[0]
        for kind, start, _ in contents(buffer, at + GENERIC.size, end)
    }


def _generic(command: int) -> bytes:
    return GENERIC.pack(command, _VERSION, 0)


def _head(size: int, kind: int) -> bytes:
    """What precedes a value of ``size`` bytes."""
    return ATTRIBUTE.pack(4 + size, kind)


def _inner(buffer: bytes, at: int, end: int, kind: int, last: int) -> dict[int, bytes]:
    """The values inside of the attribute ``kind``, up to the first one of type ``last``."""
    found = {}
    for outer, start, stop in contents(buffer, at, end):
        if outer == kind:
            for inner, first, past in contents(buffer, start, stop):
                if inner == last:
                    break
                found[inner] = buffer[first:past]
    return found


_REAL_PORT_HEAD = _head(2, _REAL_PORT)


# --- /proc -------------------------------------------------------------------------------------


def listed(text: str, family: Family, wanted: Container[bytes] | None = None) -> dict[bytes, Reals]:
    """Real servers by virtual server, from ``/proc/net/ip_vs``; ``wanted``: of these alone.

    ::

        IP Virtual Server version 1.2.1 (size=4096)
        Prot LocalAddress:Port Scheduler Flags
          -> RemoteAddress:Port Forward Weight ActiveConn InActConn
        TCP  0A000001:0050 rr
          -> 0A010001:1F90      Masq    1      0          0
        UDP  [fd00:0000:0000:0000:0000:0000:0000:0001]:0035 wrr persistent 300 FFFFFFFF
          -> [fd00:0000:0000:0000:0000:0000:0000:0002]:0035      Masq    1      0          0
        FWM  00000007 rr

    Servers by packet mark are left out. The kernel lists each virtual server together with all of
    its real ones at one time.
    """
    four = family is Family.IPV4
    found: dict[bytes, Reals] = {}
    # Fifty thousand real servers have few states: what follows the port -> the one value.
    states: dict[str, HeldReal] = {}
    reals: Reals | None = None
    unpack = bytes.fromhex
    for line in text.split("\n")[3:]:
        if line.startswith("  -> "):
            if reals is None:
                continue
            if line[5] == "[":
                key, rest = unpack(line[6:45].replace(":", "") + line[47:51]), line[51:]
            else:
                key, rest = unpack(line[5:13] + line[14:18]), line[18:]
            state = states.get(rest)
            if state is None:
                state = states[rest] = _state(rest)
            reals[key] = state
        else:
            reals = None
            name, _, rest = line.partition("  ")
            protocol = _protocol(name)
            if protocol is None or (rest[0] == "[") is four:
                continue
            place, _, _ = rest.strip().partition(" ")
            server = unpack(place.translate(_BARE)) + protocol
            if wanted is None or server in wanted:
                reals = found[server] = {}
    return found


_METHODS = {"Masq": MASQUERADE, "Local": LOCAL, "Tunnel": TUNNEL, "Route": ROUTE}
_PROTOCOLS = {"TCP": 6, "UDP": 17, "SCTP": 132, "ICMP": 1, "ICMPv6": 58, "IP": 0}
_BARE = str.maketrans("", "", "[]:")


def _state(rest: str) -> HeldReal:
    """From the columns after a real server's address."""
    method, weight, active, inactive = rest.split()
    return HeldReal(int(weight), _METHODS[method], int(active), int(inactive))


def _protocol(name: str) -> bytes | None:
    """From the first column; None for what is no protocol: a packet mark, the text's end."""
    number = _PROTOCOLS.get(name)
    if number is None and name.startswith("IP_"):
        number = int(name[3:])
    return None if number is None else bytes((number,))
