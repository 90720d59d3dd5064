"""What a client is asked to do, and what came of it, as values.

A load says all that decides about its figure, who closes first included: two results of different
loads are not compared. Addresses are filled in when it runs, because each subject has its own.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, TypedDict

from kproxy.bench import _load
from kproxy.bench.histogram import Histogram
from kproxy.core.objects import Value

Place = tuple[str, int]


class Kind(StrEnum):
    """What a client does over and over."""

    CRR = "crr"  # connect, request, response, close
    RR = "rr"  # request, response, on connections that are kept
    STREAM = "stream"  # TCP bulk
    UDP = "udp"  # datagrams, answered or only counted at the receiver

    @property
    def protocol(self) -> Literal["tcp", "udp"]:
        return "udp" if self is Kind.UDP else "tcp"


class Load(Value, frozen=True):
    """One measurement; see :file:`kproxy/bench/_load.pyi` for each field.

    ``rate`` 0 is the closed loop: ``connections`` operations at once, each started when the last
    one ended. Otherwise operations start at that rate whatever happens, and their latency counts
    from when they should have started. ``response_bytes`` 0 (udp): nothing is answered.
    """

    kind: Kind
    connections: int = 1
    rate: float = 0.0
    seconds: float = 0.0
    operations: int = 0
    warmup: float = 0.0
    timeout: float = 5.0
    closer: Literal["client", "reset", "server", "both"] = "client"
    direction: Literal["down", "up", "both"] = "down"
    window: int = 1
    request_bytes: int = 64
    response_bytes: int = 64

    def __str__(self) -> str:
        return _WORDS[self.kind](self)


_CLOSED = {
    "client": "the client closes",
    "reset": "the client resets",
    "server": "the server closes",
    "both": "both close at once",
}


def _crr(load: Load) -> str:
    loop = f"at {load.rate:g}/s" if load.rate else f"{load.connections} at once"
    sizes = f"{load.request_bytes}/{load.response_bytes} bytes"
    return f"connect/request/response/close, {loop}, {sizes}, {_CLOSED[load.closer]}"


def _rr(load: Load) -> str:
    pace = f" at {load.rate:g}/s" if load.rate else ""
    sizes = f"{load.request_bytes}/{load.response_bytes} bytes"
    return f"requests on {load.connections} kept connections{pace}, {sizes}"


def _stream(load: Load) -> str:
    return f"{load.connections} stream{'s' * (load.connections > 1)} {load.direction}"


def _udp(load: Load) -> str:
    way = f"answered, {load.window} under way on each" if load.response_bytes else "one way"
    pace = f"at {load.rate:g}/s" if load.rate else "as fast as it goes"
    return f"{load.request_bytes}-byte datagrams from {load.connections} sockets, {way}, {pace}"


_WORDS = {Kind.CRR: _crr, Kind.RR: _rr, Kind.STREAM: _stream, Kind.UDP: _udp}


class Lost(Value, frozen=True, array_like=True):
    """One TCP operation that failed: when it should have started and when it was given up
    (CLOCK_MONOTONIC ns), the kind of failure, and whether its connection had been made."""

    intended: int
    at: int
    kind: str
    connected: bool


class Result(Value, frozen=True):
    """What came of a load. ``began`` and ``ended`` are CLOCK_MONOTONIC ns of what was counted.

    ``started`` operations are ``completed``, or in ``failures`` (kind -> how many), or ended after
    the time was over. ``bytes_in`` is what the client received, ``received`` and
    ``received_datagrams`` are bytes and datagrams a second that arrived at the server. ``series``
    is what was completed in each second (streams: bytes). ``cpu`` is seconds of the client's
    thread, warm-up included; ``retransmits`` TCP segments that the client's side sent again: on a
    path that loses nothing there are none. ``quiet`` is the longest time (ns) in which nothing was
    completed, ``lost`` are TCP's failures one by one, the first 65,536.
    """

    load: Load
    began: int
    ended: int
    started: int
    completed: int
    bytes_in: int
    bytes_out: int
    failures: dict[str, int]
    latency: Histogram
    connect: Histogram
    series: tuple[int, ...]
    cpu: float
    retransmits: int = 0
    quiet: int = 0
    lost: tuple[Lost, ...] = ()
    received: float = 0.0
    received_datagrams: float = 0.0

    @property
    def seconds(self) -> float:
        return (self.ended - self.began) / 1e9

    @property
    def failed(self) -> int:
        return sum(self.failures.values())

    @property
    def rate(self) -> float:
        """Completed operations a second."""
        return self.completed / self.seconds if self.seconds else 0.0

    @property
    def bits(self) -> float:
        """Bits a second that arrived, at whichever end the load sends to."""
        down = self.bytes_in / self.seconds if self.seconds else 0.0
        share = {"down": down, "up": self.received, "both": down + self.received}
        return 8 * share[self.load.direction]

    def part(self, first: int, last: int) -> float:
        """Mean of the series from one second to another (exclusive); negative: from the end."""
        taken = self.series[first : last or None]
        return sum(taken) / len(taken) if taken else 0.0


class _Common(TypedDict):
    connections: int
    rate: float
    seconds: float
    operations: int
    warmup: float
    timeout: float
    request_bytes: int
    response_bytes: int


def run(load: Load, targets: list[Place], sources: list[str]) -> Result:
    """Run a load here and now, in this thread; errors as of :func:`kproxy.bench._load.exchange`."""
    common: _Common = {
        "connections": load.connections,
        "rate": load.rate,
        "seconds": load.seconds,
        "operations": load.operations,
        "warmup": load.warmup,
        "timeout": load.timeout,
        "request_bytes": load.request_bytes,
        "response_bytes": load.response_bytes,
    }
    match load.kind:
        case Kind.CRR | Kind.RR:
            counted = _load.exchange(
                targets,
                sources,
                closer=load.closer,
                per_connection=int(load.kind is Kind.CRR),
                **common,
            )
        case Kind.STREAM:
            counted = _load.stream(targets, sources, direction=load.direction, **common)
        case Kind.UDP:
            counted = _load.datagram(targets, sources, window=load.window, **common)
    return Result(
        load=load,
        began=counted["began"],
        ended=counted["ended"],
        started=counted["started"],
        completed=counted["completed"],
        bytes_in=counted["bytes_in"],
        bytes_out=counted["bytes_out"],
        failures=counted["failures"],
        latency=Histogram(counted["latency"]),
        connect=Histogram(counted["connect"]),
        series=tuple(counted["series"]),
        cpu=counted["cpu"],
        quiet=counted["quiet"],
        lost=tuple(Lost(*each) for each in counted["lost"]),
    )
