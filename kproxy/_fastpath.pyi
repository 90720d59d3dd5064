"""Signatures of the compiled module; what each function does is told in kproxy.core.packet."""

from collections.abc import Iterable, Sequence
from typing import Any

from _typeshed import ReadableBuffer

#: True in the debug build.
DEBUG: bool
#: True where this processor computes CRC32c itself.
HARDWARE_CRC32C: bool

def ones_sum(data: ReadableBuffer, initial: int = 0) -> int: ...
def checksum(data: ReadableBuffer, initial: int = 0) -> int: ...
def update16(check: int, old: int, new: int) -> int: ...
def update32(check: int, old: int, new: int) -> int: ...
def update_range(
    check: int, old: ReadableBuffer, new: ReadableBuffer, odd: bool = False
) -> int: ...
def crc32c(data: ReadableBuffer, crc: int = 0) -> int: ...

# What crc32c does on a processor that cannot compute it itself.
def crc32c_by_tables(data: ReadableBuffer, crc: int = 0) -> int: ...
def sctp_checksum(packet: ReadableBuffer) -> bytes: ...

# The hashes of kproxy.core.hashing.
def siphash(key: ReadableBuffer, data: ReadableBuffer) -> int: ...
def maglev(
    key: ReadableBuffer, names: Sequence[ReadableBuffer], weights: Sequence[int]
) -> tuple[int, ...]: ...

class Batch:
    """Packets in memory of its own, which an :class:`Engine` works on in place.

    ``size`` packets of ``room`` bytes each. ``exact``: each packet's memory ends where its capacity
    does, for sanitizers.
    """

    size: int
    room: int
    exact: bool
    def __init__(self, size: int = 64, room: int = 2048, exact: bool = False) -> None: ...
    def put(
        self,
        index: int,
        data: ReadableBuffer,
        header: ReadableBuffer | None = None,
        capacity: int = -1,
    ) -> None:
        """``header`` is a virtio_net_hdr of 10 bytes. ``capacity``: bytes that an answer may take,
        all of the room by default."""

    def get(self, index: int) -> tuple[int, int, bytes, bytes]:
        """(code, reason, packet, header) as :class:`kproxy.core.twin.values.Outcome`."""

    def service(self, index: int) -> int | None:
        """The number of the service that the packet belongs to."""

class Engine:
    """The packet engine: what kproxy.core.twin.engine.Twin says, a batch at a time, with no GIL.

    One for all queues and both families. A lock is held for one batch, and for the moment in which
    new tables are put in force: packets see the old or the new ones. Tables are set by one thread
    at a time; all else may be called from any. kproxy.backends.fastpath.tables packs what is told.

    ValueError for bytes that hold no table, OverflowError when there is no room for more; nothing
    has changed then.
    """

    def __init__(
        self,
        *,
        flow_key: bytes,
        seed: bytes,
        transitions: bytes,
        timeouts: Sequence[int],
        max_flows: int,
        max_affinities: int,
        max_fragments: int,
        syn_copies: int,
        patience: int,
        tries: int,
        drain: int,
        max_services: int = 65_536,
        max_endpoints: int = 1_048_576,
        max_ways: int = 262_144,
    ) -> None:
        """Time-outs and ``drain`` are ticks of 100 ms, ``patience`` is nanoseconds. All memory is
        reserved here and taken as it is used."""

    def set_node(
        self,
        family: int,
        local: bytes,
        node_ports: bytes,
        pods: bytes,
        *,
        localhost: bool = False,
        masquerade: bytes = b"",
        ports: tuple[int, int] = (49152, 65535),
    ) -> None:
        """``family`` is 4 or 6."""

    def commit(
        self, changed: Iterable[tuple[int, bytes]], removed: Iterable[int], now: int
    ) -> None:
        """Put service tables in force, all at once. Flows to endpoints that are not named any more
        have their time to drain from ``now`` on (UDP: none)."""

    def reap(self) -> int:
        """Forget endpoints that are gone and have no flow; how many are left with some."""

    def known(self, number: int) -> bool:
        """Whether a service is in force, or endpoints of it still have flows."""

    def process(self, batch: Batch, count: int, now: int, first: int = 0) -> None: ...
    def due(self, batch: Batch, count: int, now: int) -> int:
        """First SYNs that go to another endpoint now, into the first packets of ``batch``; how
        many there were. All ``count`` of them: there may be more."""

    def sweep(self, count: int, now: int) -> int:
        """Look at so many flows of each family; how many had expired. Every batch sweeps a little,
        so that this is for idle times."""

    def take_verdicts(self) -> list[tuple[int, bytes, int]]:
        """(service, endpoint's address and port, kproxy.core.twin.retry.Finding), oldest first."""

    def totals(self) -> dict[str, Any]:
        """``codes`` and ``drops`` by code and reason; ``flows`` and ``affinities`` by family;
        ``endpoints``, ``ways``; flows ``recycled`` for want of room and ``expired``."""

    def service_counters(self, number: int) -> tuple[int, ...]:
        """Packets that were dropped or answered, by reason. KeyError: not in force."""

    def endpoint_counters(self, number: int) -> dict[bytes, dict[str, int]]:
        """By address and port: ``packets_in`` (from clients), ``packets_out``, ``bytes_in``,
        ``bytes_out``, ``flows`` (ever), ``active`` (now), ``failures``, ``gone``."""

    def memory(self) -> dict[str, int]:
        """Bytes: ``flows_ipv4`` and ``flows_ipv6`` when full, the others as they are."""

    def flow(self, family: int, data: ReadableBuffer) -> tuple[int, bytes, int] | None:
        """(state, endpoint's address and port, direction) of the flow that a packet belongs to."""

def measure(engine: Engine, source: Batch, size: int, now: int) -> list[int]:
    """Run copies of all packets in batches of ``size``; nanoseconds that each batch took."""

def measure_floor(source: Batch, size: int) -> list[int]:
    """The same for a loop that only copies the packets and sums their bytes."""

class Pump:
    """One queue of a TUN device at the engine.

    ``queue`` is a descriptor that does not block, with IFF_VNET_HDR and IFF_NO_PI;
    it has to stay open as long as :meth:`run` works. Several share an engine. ``spin``: nanoseconds
    without a packet in which the thread only yields; then it sleeps until one comes.
    ``keeps_time``: it also sends first SYNs again and sweeps flows in idle times; one of an
    engine's pumps has to.
    """

    def __init__(
        self, engine: Engine, queue: int, *, spin: int = 0, keeps_time: bool = False
    ) -> None: ...
    def run(self) -> int:
        """Carry packets until told to end (0) or until the queue fails (errno): in a thread of its
        own, that has the caller's scheduling and, of its descriptors, these two."""

    def stop(self) -> None:
        """End :meth:`run`; from any thread, also before it has begun."""

    def figures(self) -> dict[str, int]:
        """``packets_in`` (read), ``packets_out``, ``bytes_in``, ``bytes_out``, ``batches``,
        ``sleeps``, and ``unwritten``: packets that the kernel did not take."""

def leave_flows(engine: Engine, now: int) -> bytes:
    """All flows and affinities, for an engine of another process on the same machine."""

def take_flows(engine: Engine, data: ReadableBuffer, numbers: dict[int, int], now: int) -> int:
    """Take over what was left by an engine whose service ``n`` is ``numbers[n]`` here; other
    services' are passed over, and so are flows of which a tuple is known. Endpoints that no table
    names count as gone. How many flows and affinities there were; ValueError for other bytes."""
