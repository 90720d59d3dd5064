"""Signatures of the compiled relay of userspace mode: sockets in, sockets out, no GIL between.

A :class:`Relay` runs worker threads. A *service* is one service port: its endpoints, its affinity,
its counters. A *front* is one way in to it: listening sockets of one port (one for each worker, by
SO_REUSEPORT) and which of the service's two lists serves who comes in there. Endpoints are
``(address, port)``, the address as text. Everything here may be called from any thread while the
workers run; nothing touches a flow that lives, but for what is said.
"""

from collections.abc import Sequence

#: True in the debug build.
DEBUG: bool

#: Which list of a service serves who comes in by a front: those of :class:`core.policy.Use`, or
#: the place that the client asked for before translation (SO_ORIGINAL_DST), TCP only.
CLUSTER: int
LOCAL: int
ORIGINAL: int

#: How bytes are moved. ADAPTIVE is what runs: it copies short messages and splices streams. The
#: others are there to be measured.
COPY: int
SPLICE: int
ZEROCOPY: int
ADAPTIVE: int

class Relay:
    def __init__(
        self,
        *,
        workers: int = 1,
        max_flows: int = 65536,
        max_sessions: int = 65536,
        idle_seconds: float = 86400.0,
        half_open_seconds: float = 300.0,
        udp_idle_seconds: float = 30.0,
        ladder: Sequence[float] = (0.25, 0.5, 1.0, 2.0),
        buffer_bytes: int = 262144,
        bulk: int = ...,
        spin_seconds: float = 0.0,
    ) -> None:
        """Nothing runs before :meth:`start`. ``max_flows`` and ``max_sessions`` are per worker:
        accepting pauses at the former, the oldest UDP session goes at the latter. ``half_open``:
        after one side has finished. ``ladder``: patience with each endpoint that is tried."""

    def start(self) -> None: ...
    def stop(self) -> None:
        """End every flow at once (RST), join the workers, close all. May be called twice."""

    def drain(self, seconds: float) -> int:
        """Close all fronts, let flows end by themselves for so long; returns how many are left.
        UDP sessions are given up after their idle time at the latest."""
    def set_sources(self, addresses: Sequence[str]) -> None:
        """Addresses of this node to connect from (TCP) when the one that the kernel chooses has no
        port left towards an endpoint, in this order; at most 16 of each family, () for none. From
        one that an endpoint does not answer to, it is not connected to again for a minute."""
    # --- services ---
    def add_service(
        self,
        *,
        udp: bool = False,
        affinity_seconds: int = 0,
        proxy_protocol: bool = False,
    ) -> int:
        """An id, never used twice. It has no endpoints yet: who comes in is reset."""

    def set_service(
        self, service: int, *, affinity_seconds: int = 0, proxy_protocol: bool = False
    ) -> None: ...
    def set_endpoints(
        self,
        service: int,
        endpoints: Sequence[tuple[str, int]],
        cluster: Sequence[int],
        local: Sequence[int],
        weights: Sequence[int] = (),
    ) -> None:
        """``cluster`` and ``local`` index ``endpoints``; one in neither takes nobody new, and keeps
        its UDP sessions. TCP flows to one that is gone go on; UDP sessions to it end, and so does
        affinity. A list is shuffled when it differs, other weights alone leave its order.

        ``weights`` (1 to 100) are by endpoint, () for all the same: in a hundred rounds through a
        list whose largest weight is 100, one of 5 has its turn in five."""

    def remove_service(self, service: int) -> None:
        """Its fronts are closed, its UDP sessions end, its TCP flows go on. KeyError: unknown."""
    # --- fronts ---
    def open(self, service: int, use: int, fds: Sequence[int]) -> int:
        """Serve what arrives at these sockets (listening, or bound for UDP). Takes the descriptors
        over, also when it raises. Returns an id."""

    def close(self, front: int) -> None:
        """Nobody is let in any more: the sockets are closed. UDP sessions by it end."""

    def lend(self, front: int) -> tuple[int, ...]:
        """Copies of a front's descriptors, for a successor; ours serve on. The caller closes."""

    def quiet(self, front: int) -> None:
        """A successor serves the sockets now: take nothing more from them, answer those UDP
        sessions that are ours until they are idle. Connections that we have not accepted stay in
        the sockets' queues."""
    # --- what a successor needs to go on as we did ---
    def affinities(self, service: int) -> list[tuple[str, str, int, float]]:
        """(client, endpoint address, endpoint port, seconds since its last connection)."""

    def set_affinities(self, service: int, entries: Sequence[tuple[str, str, int, float]]) -> None:
        """Entries of endpoints that the service does not have are left out."""

    def sessions(self, service: int) -> list[tuple[str, int, str, int]]:
        """(client address, client port, endpoint address, endpoint port) of living UDP sessions."""

    def set_sessions(self, service: int, entries: Sequence[tuple[str, int, str, int]]) -> None:
        """UDP clients whose next datagram goes to that endpoint, if the service has it."""
    # --- figures; none stops a worker ---
    def service_counters(self, service: int) -> dict[str, int]:
        """``connections`` (accepted, or UDP sessions), ``active``, ``retries``, ``failures`` (no
        endpoint took it), ``bytes_in`` (from clients), ``bytes_out``, ``datagrams_in``,
        ``datagrams_out``, ``datagrams_dropped`` (no room on the way out, or for a session),
        ``refused`` (no endpoint to try)."""

    def endpoint_counters(self, service: int) -> dict[tuple[str, int], dict[str, int]]:
        """By (address, port): ``connections``, ``active``, ``failures``, ``bytes_in``,
        ``bytes_out``. One that went stays as long as flows to it do."""

    def totals(self) -> dict[str, int]:
        """``flows``, ``sessions``, ``accept_pauses`` (descriptor or flow limit), ``evicted`` (UDP),
        ``buffered`` (bytes kept for peers that do not read), ``other_sources`` (connections made
        from an address of :meth:`set_sources`), ``no_ports`` (times that no address had a port
        left), ``workers``."""
    # --- passive health (told, never acted upon here) ---
    def take_verdicts(self) -> list[tuple[int, str, int, str]]:
        """What happened to endpoints since the last call, oldest first, at most 65,536 kept:
        (service, address, port, ``refused`` | ``timeout`` | ``unreachable`` | ``reset`` (before it
        sent a byte) | ``ok`` (the first success after any of these))."""

def flow_step(
    state: tuple[int, ...], event: str, value: int = 0
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The relay's decisions about one TCP flow without any socket: (state after, actions), for
    tests and for teaching. The workers run this very function."""
