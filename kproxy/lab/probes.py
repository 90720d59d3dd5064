"""``readinessProbe`` and ``livenessProbe`` of a lab's pods: Kubernetes' fields, as frozen values.

Pure. What is read is what Kubernetes reads, with its defaults; a field that it does not have is an
error that names it. Two things are the lab's own: seconds may be fractions, so that a lesson need
not wait, and what is not for a lab (``terminationGracePeriodSeconds``) is no field.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Literal

import msgspec

from kproxy.core.decode import leaf
from kproxy.core.health.values import Check, Exec, Grpc, Http, Pace, Tcp
from kproxy.core.objects import Protocol, Value

#: Kubernetes probes succeed with these (pkg/probe/http); redirects count as answers.
_FINE = ((200, 399),)

#: What a kubelet says it is.
_AGENT = ("User-Agent", "kube-probe/1.30")


class HttpGet(Value, frozen=True, tag="httpGet"):
    """``host`` "" is the pod's own address."""

    port: int
    path: str = "/"
    host: str = ""
    scheme: str = "HTTP"
    headers: tuple[tuple[str, str], ...] = ()


class TcpSocket(Value, frozen=True, tag="tcpSocket"):
    port: int
    host: str = ""


class GrpcCall(Value, frozen=True, tag="grpc"):
    port: int
    service: str = ""


class Command(Value, frozen=True, tag="exec"):
    """Runs in the pod's network namespace."""

    argv: tuple[str, ...]


Action = HttpGet | TcpSocket | GrpcCall | Command


class Probe(Value, frozen=True):
    """One probe: what is done, and in seconds and times in a row how its results count."""

    action: Action
    delay: float = 0.0
    period: float = 10.0
    timeout: float = 1.0
    successes: int = 1
    failures: int = 3

    @property
    def patience(self) -> float:
        """Seconds within which a pod that is well has shown it."""
        return self.delay + self.successes * self.period + self.timeout


class Probes(Value, frozen=True):
    """What a pod has of them."""

    readiness: Probe | None = None
    liveness: Probe | None = None

    def __bool__(self) -> bool:
        return self.readiness is not None or self.liveness is not None


# --- as written -------------------------------------------------------------------------------


class _Written(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Base of what is read: a key that Kubernetes does not know is an error."""


class _Header(_Written, frozen=True):
    name: str
    value: str = ""


class _HttpGet(_Written, frozen=True):
    port: int | str
    path: str = "/"
    host: str = ""
    scheme: Literal["HTTP", "HTTPS"] = "HTTP"
    http_headers: tuple[_Header, ...] = ()


class _TcpSocket(_Written, frozen=True):
    port: int | str
    host: str = ""


class _Grpc(_Written, frozen=True):
    port: int
    service: str | None = None


class _Exec(_Written, frozen=True):
    command: tuple[str, ...] = ()


class Written(_Written, frozen=True, kw_only=True):
    """A probe as YAML has it."""

    http_get: _HttpGet | None = None
    tcp_socket: _TcpSocket | None = None
    grpc: _Grpc | None = None
    exec: _Exec | None = None
    initial_delay_seconds: float = 0
    period_seconds: float = 10
    timeout_seconds: float = 1
    success_threshold: int = 1
    failure_threshold: int = 3


class ProbeFault(Exception):
    """``field`` is where, below the probe; ``what`` is wrong there."""

    def __init__(self, field: str, what: str) -> None:
        super().__init__(f"{field}: {what}")
        self.field = field
        self.what = what


#: Named ports of a pod: (name, number, protocol).
Ports = Iterable[tuple[str, int, Protocol]]

#: field -> least value.
_LEAST = {
    "initialDelaySeconds": 0.0,
    "periodSeconds": 0.1,
    "timeoutSeconds": 0.05,
    "successThreshold": 1,
    "failureThreshold": 1,
}

#: Seconds and times: a day, so that timers stay sensible.
_MOST = 86400


def made(written: Written, ports: Ports, *, liveness: bool) -> Probe:
    """The probe that was written; ProbeFault names the field that makes no sense."""
    values = (
        written.initial_delay_seconds,
        written.period_seconds,
        written.timeout_seconds,
        written.success_threshold,
        written.failure_threshold,
    )
    for (field, least), value in zip(_LEAST.items(), values, strict=True):
        if not least <= value <= _MOST:
            raise ProbeFault(field, f"must be {least:g} to {_MOST}")
    if liveness and written.success_threshold != 1:
        raise ProbeFault("successThreshold", "must be 1 for a livenessProbe")
    return Probe(_action(written, tuple(ports)), *values)


def _action(written: Written, ports: tuple[tuple[str, int, Protocol], ...]) -> Action:
    actions: list[Action] = []
    if (http := written.http_get) is not None:
        headers = _request(http)
        port = _port("httpGet.port", http.port, ports)
        actions.append(HttpGet(port, http.path, http.host, http.scheme, headers))
    if (tcp := written.tcp_socket) is not None:
        if tcp.host and not _is_address(tcp.host):
            raise ProbeFault("tcpSocket.host", "must be an IP address: the lab has no DNS")
        actions.append(TcpSocket(_port("tcpSocket.port", tcp.port, ports), tcp.host))
    if (grpc := written.grpc) is not None:
        actions.append(GrpcCall(_port("grpc.port", grpc.port, ports), grpc.service or ""))
    if (command := written.exec) is not None:
        if not command.command:
            raise ProbeFault("exec.command", "is empty")
        if any("\0" in word for word in command.command):
            raise ProbeFault("exec.command", "must not hold a NUL character")
        actions.append(Command(command.command))
    if len(actions) != 1:
        raise ProbeFault("", "needs exactly one of httpGet, tcpSocket, grpc, exec")
    return actions[0]


def _request(http: _HttpGet) -> tuple[tuple[str, str], ...]:
    """The headers, when nothing in the request can end a line of it, or a host name."""
    field = "path"
    try:
        leaf.path(http.path)
        field = "host"
        if http.host:
            leaf.host(http.host)
        field = "httpHeaders"
        headers = tuple(leaf.header(each.name, each.value) for each in http.http_headers)
        for name, value in headers:
            if name.lower() == "host" and value:
                leaf.host(value)
    except leaf.Wrong as wrong:
        raise ProbeFault(f"httpGet.{field}", str(wrong)) from None
    return headers


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _port(field: str, given: int | str, ports: tuple[tuple[str, int, Protocol], ...]) -> int:
    """A number, or the name of one of the pod's TCP ports."""
    if isinstance(given, int):
        if not 0 < given < 65536:
            raise ProbeFault(field, "must be 1 to 65535")
        return given
    named = {name: number for name, number, protocol in ports if protocol is Protocol.TCP}
    if given not in named:
        known = ", ".join(name for name in named if name) or "none has a name"
        raise ProbeFault(field, f"the pod has no TCP port {given!r} (it has: {known})")
    return named[given]


# --- as a check -------------------------------------------------------------------------------


def check_of(probe: Probe, *, initial: bool, prefix: tuple[str, ...] = ()) -> Check:
    """The check that does what a kubelet would. ``initial``: what holds before anything is known;
    ``prefix`` is put before commands, to run them where the pod is."""
    pace = Pace(
        interval=probe.period,
        timeout=probe.timeout,
        rise=probe.successes,
        fall=probe.failures,
        jitter=0.0,
        fast_interval=probe.period,
        initial=initial,
    )
    match probe.action:
        case HttpGet(port, path, host, scheme, headers):
            # A kubelet's header Host is the one among the headers, else the address it speaks to.
            named = next((value for name, value in headers if name.lower() == "host"), host)
            others = tuple(pair for pair in headers if pair[0].lower() != "host")
            if not any(name.lower() == "user-agent" for name, _ in others):
                others = (*others, _AGENT)
            found: Http | Tcp | Grpc | Exec = Http(
                port, scheme.lower(), path, named, others, _FINE, verify=False
            )
        case TcpSocket(port, _):
            found = Tcp(port)
        case GrpcCall(port, service):
            found = Grpc(port, service)
        case Command(argv):
            found = Exec(command=(*prefix, *argv))
    return Check(found, pace)


def host_of(probe: Probe) -> str:
    """The address that a probe speaks to, "": the pod's own."""
    action = probe.action
    return action.host if isinstance(action, HttpGet | TcpSocket) else ""


def port_of(probe: Probe) -> int:
    """The port that a probe speaks to, 0 for a command."""
    return 0 if isinstance(probe.action, Command) else probe.action.port
