"""What may be asked of endpoints' health, and what is found out about it.

A Service asks by a :class:`Policy`. What happens to its endpoints comes in as observations
(:class:`Checked`, :class:`Ejected`, :class:`Ramped`), which :class:`kproxy.core.health.book.Book`
remembers and :mod:`kproxy.core.health.verdict` judges by. All times are seconds: durations, or
moments since the epoch (``at``).
"""

from __future__ import annotations

from functools import lru_cache

import msgspec

from kproxy.core.basics import PortName, Protocol, Value

#: An endpoint or a target within its port or check: address and port.
Place = tuple[str, int]

#: Of an endpoint without slow start, or at its end.
FULL_WEIGHT = 100


class Tcp(Value, frozen=True, tag="tcp"):
    """A connection can be opened. ``port`` 0, here and below: the endpoint's own."""

    port: int = 0


class Http(Value, frozen=True, tag="http"):
    """A GET is answered as wanted. Redirects are answers and are not followed.

    ``scheme`` is http or https. ``path`` starts with "/" and may have a query. ``host`` is the
    Host header, and with https the name in the TLS greeting and in the certificate; "" is the
    address itself. ``headers`` come on top. ``statuses`` are ranges, both ends included. ``body``
    is text that the answer must hold, "" is any. ``verify``: the certificate must be valid;
    ``ca`` are PEM certificates to trust for that instead of the machine's, "" are the machine's.
    """

    port: int = 0
    scheme: str = "http"
    path: str = "/"
    host: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    statuses: tuple[tuple[int, int], ...] = ((200, 399),)
    body: str = ""
    verify: bool = True
    ca: str = ""


class Udp(Value, frozen=True, tag="udp"):
    """A datagram is answered. ``expect`` are bytes that the reply must hold, b"": any reply."""

    port: int = 0
    send: bytes = b""
    expect: bytes = b""


class Grpc(Value, frozen=True, tag="grpc"):
    """``grpc.health.v1.Health/Check`` (clear text) answers SERVING. ``service`` "" asks for the
    server as a whole."""

    port: int = 0
    service: str = ""


class Exec(Value, frozen=True, tag="exec"):
    """A program on the node ends with status 0. ``command`` is its argv, no shell is between."""

    port: int = 0
    command: tuple[str, ...] = ()


Probe = Tcp | Http | Udp | Grpc | Exec

#: Protocols of service ports whose endpoints' own ports a probe can speak to.
_SPEAKS: dict[type, frozenset[Protocol]] = {
    Tcp: frozenset({Protocol.TCP}),
    Http: frozenset({Protocol.TCP}),
    Grpc: frozenset({Protocol.TCP}),
    Udp: frozenset({Protocol.UDP}),
    Exec: frozenset(Protocol),
}


def speaks(probe: Probe, protocol: Protocol) -> bool:
    """Whether the probe can judge endpoints of a service port of that protocol.

    One that names its port asks for the pod as a whole, whatever the service port speaks.
    """
    return bool(probe.port) or protocol in _SPEAKS[type(probe)]


class Pace(Value, frozen=True):
    """How often a target is tried, and how many results change the mind.

    ``interval`` from the start of one try to the start of the next, ``fast_interval`` instead of it
    while the last result and the state differ or nothing is known; both give or take the share
    ``jitter``. ``rise`` good results in a row bring up, ``fall`` bad ones down. ``initial``: up
    before anything is known.
    """

    interval: float = 2.0
    timeout: float = 1.0
    rise: int = 2
    fall: int = 3
    jitter: float = 0.1
    fast_interval: float = 0.5
    initial: bool = True


class Check(Value, frozen=True):
    """An active check: what is tried, and how often."""

    probe: Probe
    pace: Pace = Pace()


class Target(Value, frozen=True, gc=False):
    """One thing to check. Equal targets are one check, however many services name them.

    ``port`` is the port to speak to; ``check.probe.port`` is always 0 here, so that a check of port
    8080 and one of an endpoint's own port 8080 are the same. Made by :func:`target_of`.
    """

    check: Check
    ip: str
    port: int

    def __str__(self) -> str:
        kind = type(self.check.probe).__name__.lower()
        address = f"[{self.ip}]:{self.port}" if ":" in self.ip else f"{self.ip}:{self.port}"
        return f"{kind} {address}"


@lru_cache(maxsize=1024)
def portless(check: Check) -> Check:
    """The check without its port: what :class:`Target` holds."""
    if not check.probe.port:
        return check
    return Check(msgspec.structs.replace(check.probe, port=0), check.pace)


def target_of(check: Check, ip: str, port: int) -> Target:
    """What ``check`` looks at for the endpoint ``ip``, ``port``."""
    return Target(portless(check), ip, check.probe.port or port)


class Passive(Value, frozen=True):
    """Ejection for failures of real connections.

    ``failures`` in a row eject for ``base`` seconds times the number of ejections in a row, at most
    ``most`` seconds. At most ``share`` (0 to 1) of a port's endpoints are ejected at a time.
    """

    failures: int = 3
    base: float = 10.0
    most: float = 300.0
    share: float = 0.5


class Policy(Value, frozen=True):
    """What a service wants of its endpoints.

    ``panic``: when less than that share (0 to 1) of the endpoints that the API allows is up, all of
    them are used; so they are always when none is up. ``slow_start``: seconds in which an endpoint
    that came up grows to its full share of connections, 0: at once.

    ``Policy()`` asks for nothing, which is more than no Policy: it also keeps the default of the
    configuration away.
    """

    check: Check | None = None
    passive: Passive | None = None
    panic: float = 0.0
    slow_start: float = 0.0

    @property
    def idle(self) -> bool:
        """Nothing is judged by it."""
        return self.check is None and self.passive is None

    def on(self, protocol: Protocol) -> Policy:
        """What of it holds for a service port of that protocol: a check that cannot speak to its
        endpoints is left out."""
        if self.check is None or speaks(self.check.probe, protocol):
            return self
        return msgspec.structs.replace(self, check=None)


class HealthSettings(Value, frozen=True):
    """The node's part: the policy of services that have none of their own, and whether a Service
    may have programs run on the node."""

    default: Policy | None = None
    allow_exec: bool = False


class Opinion(Value, frozen=True, gc=False):
    """What one judge thinks of an endpoint, why, and since when."""

    up: bool
    reason: str
    at: float


class Checked(Value, frozen=True, gc=False):
    """An active check's state: after rise and fall, not the single result."""

    target: Target
    up: bool
    reason: str
    at: float


class Ejected(Value, frozen=True, gc=False):
    """Passive detection put an endpoint of one service port ``out``, or let it in again."""

    name: PortName
    ip: str
    port: int
    out: bool
    reason: str
    at: float


class Ramped(Value, frozen=True, gc=False):
    """An endpoint of one service port has grown to ``weight`` (1 to 100)."""

    name: PortName
    ip: str
    port: int
    weight: int
    at: float


Observation = Checked | Ejected | Ramped
