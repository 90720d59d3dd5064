"""IPVS's virtual servers and their real servers, as the kernel holds and changes them. Pure.

A **server key** is packed: address (4 or 16 bytes), port (2, network order), protocol number (1).
A **real key** is packed: address, port. Both are what stands in sets of addresses and ports.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import NamedTuple

from kproxy.core.objects import Value

#: The schedulers of the kernel (net/netfilter/ipvs), each a module of its own.
SCHEDULERS = (
    *("rr", "wrr", "lc", "wlc", "lblc", "lblcr", "sh", "dh", "sed", "nq", "mh", "fo", "ovf"),
    "twos",
)

#: By it a Service chooses its own scheduler, one of these.
SCHEDULER_ANNOTATION = "kproxy/ipvs-scheduler"

#: Flags of a virtual server (linux/ip_vs.h). What the three of the scheduler mean depends on it.
PERSISTENT, ONE_PACKET = 0x1, 0x4
SH_FALLBACK, SH_PORT = 0x8, 0x10
MH_FALLBACK, MH_PORT = 0x8, 0x10

#: Forwarding methods of a real server.
MASQUERADE, LOCAL, TUNNEL, ROUTE = range(4)


class Timeouts(NamedTuple):
    """Seconds that an idle connection is kept: TCP, TCP after a FIN, UDP. 0 means no change when
    they are set."""

    tcp: int = 0
    tcp_fin: int = 0
    udp: int = 0


class Scheduling(Value, frozen=True):
    """How a virtual server picks a real one. ``timeout``: seconds of persistence, whose flag is
    :data:`PERSISTENT`; each client address is kept apart (a full netmask)."""

    scheduler: str = "rr"
    flags: int = 0
    timeout: int = 0


class HeldReal(Value, frozen=True, gc=False):
    """A real server in the kernel. ``active`` and ``inactive`` are connections."""

    weight: int
    forwarding: int = MASQUERADE
    active: int = 0
    inactive: int = 0


class HeldServer(Value, frozen=True, eq=False):
    """A virtual server in the kernel. ``prefix``: how much of a client's address persistence looks
    at, in bits (ones of the netmask; all of them, 32 or 128, for every server of ours)."""

    scheduling: Scheduling
    prefix: int
    reals: Mapping[bytes, HeldReal]


class Held(Value, frozen=True, eq=False):
    """All of one family: server key -> server. ``marks`` are servers by packet mark (never ours),
    by mark."""

    servers: Mapping[bytes, HeldServer]
    marks: tuple[int, ...] = ()


class Verb(IntEnum):
    """What is done to a server; numbered as the commands of linux/ip_vs.h."""

    ADD_SERVER = 1
    SET_SERVER = 2
    REMOVE_SERVER = 3
    ADD_REAL = 5
    SET_REAL = 6
    REMOVE_REAL = 7


class Order(NamedTuple):
    """One change. ``real`` and ``weight`` belong to the verbs of real servers, ``scheduling`` to
    adding and setting a virtual one. Removing a virtual server removes its real ones."""

    verb: Verb
    server: bytes
    real: bytes = b""
    weight: int = 1
    scheduling: Scheduling = Scheduling()


class Refused(NamedTuple):
    """An order that the kernel did not carry out, and its errno: ESRCH no such virtual server,
    ENOENT no such real server (or, for a virtual one, no such scheduler), EEXIST is there already.
    """

    order: Order
    errno: int
