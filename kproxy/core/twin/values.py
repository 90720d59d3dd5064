"""What the packet engine is told and what it answers, as frozen values.

Addresses are bytes in network order (4 or 16), protocols are IP's numbers, time is nanoseconds of a
clock that never goes back.
"""

from __future__ import annotations

from enum import IntEnum

from kproxy.core.objects import Family, Value
from kproxy.core.twin.states import State

TCP, UDP, SCTP = 6, 17, 132

#: Flow time-outs count in ticks of 100 ms, which fit 32 bits for 13 years.
TICK = 100_000_000
TICKS_PER_SECOND = 1_000_000_000 // TICK


class Code(IntEnum):
    """What is to be done with a packet after the engine had it.

    FORWARD: rewritten, send it on. PASS: none of ours, hand it back untouched. DROP: end it. REPLY:
    it was turned into an answer to its sender. STOLEN: it ended here, and a first SYN comes out of
    :meth:`due` instead.
    """

    FORWARD = 0
    PASS = 1
    DROP = 2
    REPLY = 3
    STOLEN = 4


class Reason(IntEnum):
    """Why a packet was not forwarded; drops are counted by it."""

    NONE = 0
    MALFORMED = 1  # headers that contradict themselves or are cut off
    FRAGMENT = 2  # a later fragment whose first one did not come by
    SOURCE = 3  # not in loadBalancerSourceRanges
    NO_LOCAL = 4  # endpoints exist, but none that this policy lets us use
    NO_FLOW = 5  # a segment that cannot begin a flow
    STALE = 6  # of a flow to an endpoint that is gone
    FULL = 7  # no room for another flow
    NO_PORT = 8  # no free port, or no address, to masquerade with
    NO_ROOM = 9  # the answer does not fit the buffer
    REFUSED = 10  # no endpoint anywhere: answered
    DRAINED = 11  # the endpoint is gone and its time to drain is up: answered


class WayKind(IntEnum):
    """The kind of address by which a client comes in."""

    CLUSTER_IP = 0
    EXTERNAL_IP = 1
    LOAD_BALANCER = 2
    NODE_PORT = 3


class Algorithm(IntEnum):
    """How an endpoint is chosen for a new flow."""

    MAGLEV = 0
    RANDOM = 1
    LEAST = 2


class ClientKind(IntEnum):
    """Where a packet comes from; the order of :class:`kproxy.core.policy.Client`."""

    POD = 0
    NODE = 1
    OTHER = 2


class Fate(IntEnum):
    """What becomes of a new flow that a set serves (:class:`kproxy.core.policy.Verdict`)."""

    FORWARD = 0
    REFUSE = 1
    DROP = 2


class Way(Value, frozen=True, gc=False):
    """One way in to a service port; ``address`` is b"" for a node port."""

    kind: WayKind
    address: bytes
    port: int


class Member(Value, frozen=True, gc=False):
    """An endpoint of a service port. ``cluster`` and ``local`` say which sets it is in; one in
    neither serves the UDP flows that it has. ``near``: it is on this node. ``weight`` from 1."""

    address: bytes
    port: int
    weight: int = 1
    cluster: bool = True
    local: bool = False
    near: bool = False

    @property
    def place(self) -> bytes:
        """By this an endpoint is known: sorted by it, and hashed by it for Maglev's table."""
        return self.address + self.port.to_bytes(2, "big")


#: (set: 0 cluster or 1 local, masquerade)
Row = tuple[int, bool]
#: By :class:`ClientKind`.
Rows = tuple[Row, Row, Row]


class Range(Value, frozen=True, gc=False):
    """A CIDR: host bits of ``net`` are zero."""

    net: bytes
    bits: int

    def holds(self, address: bytes) -> bool:
        shift = 8 * len(self.net) - self.bits
        return int.from_bytes(address) >> shift == int.from_bytes(self.net) >> shift


class ServiceTable(Value, frozen=True, gc=False):
    """One service port as the engine needs it.

    ``members`` are sorted by :attr:`Member.place`, without repeats. ``rows`` are the policy tables
    of the node for packets to the cluster IP, and for all others; ``fates`` by set. ``ranges`` None
    means that load-balancer addresses may be reached from everywhere.
    """

    family: Family
    protocol: int
    ways: tuple[Way, ...]
    members: tuple[Member, ...]
    rows: tuple[Rows, Rows]
    fates: tuple[Fate, Fate]
    ranges: tuple[Range, ...] | None = None
    affinity_seconds: int | None = None
    algorithm: Algorithm = Algorithm.MAGLEV


class NodeTable(Value, frozen=True):
    """This node in one family.

    ``local`` are its addresses (127.0.0.0/8 and ::1 need not be named), ``node_ports`` those on
    which node ports answer, ``localhost``: 127.0.0.0/8 as well. ``pods``: sources that are pods of
    this node. ``masquerade`` is the address that clients are hidden behind (b"": nobody can be),
    ``ports`` the first and last port that are reserved for that.
    """

    family: Family
    local: frozenset[bytes] = frozenset()
    pods: tuple[Range, ...] = ()
    node_ports: frozenset[bytes] = frozenset()
    localhost: bool = False
    masquerade: bytes = b""
    ports: tuple[int, int] = (49152, 65535)


#: Seconds that a flow is kept after its last packet, by state.
TIMEOUTS: dict[State, int] = {
    State.SYN_SENT: 60,
    State.SYN_RECEIVED: 60,
    State.PICKED_UP: 60,
    State.ESTABLISHED: 86400,
    State.CLIENT_FINISHED: 3600,
    State.SERVER_FINISHED: 3600,
    State.CLOSED: 120,
    State.RESET: 10,
    State.UDP_NEW: 30,
    State.UDP_ANSWERED: 180,
    State.SCTP_NEW: 60,
    State.SCTP_OPEN: 3600,
    State.SCTP_CLOSED: 60,
}


class EngineSettings(Value, frozen=True):
    """What does not change while an engine lives.

    ``flow_key`` (16 random bytes, new in each process) keeps collisions in the flow table from
    being provoked; ``seed`` (16 bytes, the same everywhere) decides which endpoint a client gets.
    Limits are per family but for ``syn_copies``. ``patience``: nanoseconds that a first SYN is
    waited for, doubled for each next endpoint; ``tries`` is how many endpoints get one.
    ``drain_seconds``: how long flows to an endpoint that went are carried on.
    """

    flow_key: bytes
    seed: bytes
    max_flows: int = 262_144
    max_affinities: int = 65_536
    max_fragments: int = 4_096
    syn_copies: int = 4_096
    patience: int = 250_000_000
    tries: int = 4
    drain_seconds: int = 900
    timeouts: tuple[int, ...] = tuple(TIMEOUTS.values())


class Outcome(Value, frozen=True):
    """What the engine made of one packet. ``header`` is its virtio_net_hdr, b"" without."""

    code: Code
    reason: Reason
    packet: bytes
    header: bytes = b""
