"""Asks: many flows at once from any namespace, each with a named outcome.

Sockets are made and bound inside the sender's namespace, then all of them are waited for together.
The errno tells a refusal apart: Linux gives ECONNREFUSED for a reset and for ICMP *port*
unreachable (3/3, 1/4) only; every other unreachable code has an errno of its own.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import cycle, islice
from typing import Self

import msgspec

from kproxy.core.objects import Family, Protocol, Value, family_of
from kproxy.kernel.netns import entered
from kproxy.lab.traffic import sockets
from kproxy.lab.traffic.handlers import RESET_ON_CLOSE
from kproxy.lab.traffic.wire import (
    GREETING,
    Answer,
    Outcome,
    Reach,
    decode_answer,
    join_host_port,
    web_answer,
    web_request,
)

#: IP_RECVERR (linux/in.h, linux/in6.h). Without it a UDP socket hears of port unreachable only,
#: other ICMP errors would look like silence; and a TCP socket whose refusal arrives while it is
#: still inside connect(2), as in a network without delay, forgets it until the SYN's second try.
_RECVERR = {
    Family.IPV4: (socket.IPPROTO_IP, 11),
    Family.IPV6: (socket.IPPROTO_IPV6, 25),
}
_MSG_ERRQUEUE = 0x2000

#: Seconds that a flow may take that is expected to arrive: a lost SYN is sent again after 1 s, and
#: on a busy machine whoever answers has to wait for a processor.
PATIENT = 8.0

#: Flows in flight at a time: far below the descriptor limit of a plain session (1024).
_AT_ONCE = 256


#: Ports that no scenario asks for by number, each taken once in a long while.
_FRESH = range(42_000, 61_000)
_fresh_ports = cycle(_FRESH)


class Probe(Value, frozen=True):
    """One flow to try from ``namespace`` (descriptor; None: the caller's own).

    ``source`` "" and ``source_port`` 0 leave the choice to the kernel. ``timeout`` in seconds.
    ``control`` is sent when this probe met silence for its whole time: silence is only believed
    when the control is answered, and nothing came back for this probe meanwhile. ``path``: a web
    server is asked for it instead of a responder.
    """

    to: str
    port: int
    protocol: Protocol = Protocol.TCP
    namespace: int | None = None
    source: str = ""
    source_port: int = 0
    timeout: float = PATIENT
    control: Probe | None = None
    path: str = ""


class _Flow:
    """A probe under way. Ends by setting ``outcome``."""

    def __init__(self, probe: Probe, clock: Callable[[], float]) -> None:
        self.probe = probe
        self.clock = clock
        self.began = clock()
        self.outcome: Outcome | None = None
        self.sock: socket.socket | None = None
        self.sender = ""
        self.connected = False
        self.buffer = b""
        self.control: _Flow | None = None

    @property
    def deadline(self) -> float:
        return self.began + self.probe.timeout

    def open(self) -> None:
        """Make the socket and send the first packet; the thread is in the right namespace."""
        probe = self.probe
        self.sock = sock = sockets.make(family_of(probe.to), probe.protocol)
        sock.setblocking(False)
        sock.setsockopt(*_RECVERR[family_of(probe.to)], 1)
        try:
            if probe.source or probe.source_port:
                self._bind(sock)
            code = sock.connect_ex((probe.to, probe.port))
            self.sender = join_host_port(*sock.getsockname()[:2])
            if code not in (0, errno.EINPROGRESS):
                self._fail(code)
            elif probe.protocol is Protocol.UDP:
                self._greet()
        except OSError as error:
            self._fail(error.errno or errno.EIO)

    def _bind(self, sock: socket.socket) -> None:
        probe = self.probe
        if probe.source_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        source = probe.source or ("::" if ":" in probe.to else "0.0.0.0")
        if probe.source_port:
            sock.bind((source, probe.source_port))
            return
        # Else the port is chosen here, one that no other flow from this address has or had. Left to
        # connect(2), flows to two service addresses may share one, and IPVS takes the answers of
        # the endpoint that both of them reach for one connection's (ip_vs_conn_out_get). And a
        # port that comes again within seconds goes on where its last connection went.
        for port in islice(_fresh_ports, len(_FRESH)):
            try:
                sock.bind((source, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                return
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))

    def _greet(self) -> None:
        assert self.sock is not None
        self.connected = True
        try:
            path = self.probe.path
            self.sock.sendall(web_request(path) if path else GREETING + b"\n")
        except PermissionError:
            # A rule in OUTPUT took the datagram. REJECT's ICMP error waits in the socket and is
            # read next, as a refusal; after a DROP there is silence.
            if self.probe.protocol in sockets.STREAMS:
                raise

    @property
    def events(self) -> int:
        return selectors.EVENT_READ if self.connected else selectors.EVENT_WRITE

    def ready(self) -> None:
        """The socket has something to say."""
        assert self.sock is not None
        try:
            if not self.connected:
                code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                code = code or _queued_error(self.sock)
                if code:
                    self._fail(code)
                else:
                    self._greet()
                return
            data = self.sock.recv(65536)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(error.errno or errno.EIO)
            return
        self.buffer += data
        if self.probe.path:
            if not data:
                self._answered_by_web(*web_answer(self.buffer))
        elif b"\n" in self.buffer:
            self._answered(decode_answer(self.buffer.partition(b"\n")[0]))
        elif not data and self.probe.protocol in sockets.STREAMS:
            self._end(Reach.CLOSED, detail="connection accepted, then closed without an answer")

    def _answered(self, answer: Answer | None) -> None:
        if answer is None:
            self._end(Reach.ERROR, detail=f"not our answer: {self.buffer[:80]!r}")
            return
        self.outcome = Outcome(
            Reach.REACHED,
            self.sender,
            answer.name,
            answer.client,
            answer.local,
            self.clock() - self.began,
        )

    def _answered_by_web(self, status: int, page: str) -> None:
        if not status:
            self._end(Reach.ERROR, detail=f"not a web server's answer: {self.buffer[:80]!r}")
            return
        self._end(Reach.REACHED)
        assert self.outcome is not None
        local = join_host_port(self.probe.to, self.probe.port)
        self.outcome = msgspec.structs.replace(
            self.outcome, local=local, client=self.sender, status=status, page=page
        )

    def _fail(self, code: int) -> None:
        if code == errno.ECONNREFUSED:
            self._end(Reach.REFUSED)
        elif code == errno.ECONNRESET and self.connected:
            self._end(Reach.CLOSED, detail="connection accepted, then reset without an answer")
        elif code == errno.ETIMEDOUT:
            self._end(Reach.SILENCE, detail="connect timed out")
        else:
            self._end(Reach.ERROR, detail=f"{errno.errorcode.get(code, code)}: {os.strerror(code)}")

    def late(self) -> _Flow | None:
        """The time is over. Returns a control flow to run first, when the probe has one."""
        if self.control is None and self.probe.control is not None:
            self.control = _Flow(self.probe.control, self.clock)
            return self.control
        if self.control is None or _reached(self.control):
            how = "no answer to the request" if self._established else "no answer"
            self._end(Reach.SILENCE, detail=f"{how} within {self.probe.timeout:g} s")
        else:
            self._end(Reach.ERROR, detail=f"silence, but the control flow: {self.control.outcome}")
        return None

    @property
    def _established(self) -> bool:
        return self.connected and self.probe.protocol in sockets.STREAMS

    def _end(self, reach: Reach, *, detail: str = "") -> None:
        self.outcome = Outcome(reach, self.sender, seconds=self.clock() - self.began, detail=detail)

    def close(self) -> None:
        if self.sock is not None:
            if self.probe.protocol in sockets.STREAMS:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            self.sock.close()
            self.sock = None


def _queued_error(sock: socket.socket) -> int:
    """The errno of an ICMP error that waits in the error queue; 0 when none does."""
    try:
        _, control, _, _ = sock.recvmsg(0, 512, _MSG_ERRQUEUE)
    except BlockingIOError:
        return 0
    wanted = _RECVERR.values()
    # struct sock_extended_err (linux/errqueue.h) begins with the errno, 32 bits.
    errors = [data for level, kind, data in control if (level, kind) in wanted]
    return int.from_bytes(errors[0][:4], sys.byteorder) if errors else 0


def _reached(flow: _Flow) -> bool:
    return flow.outcome is not None and flow.outcome.reach is Reach.REACHED


def probe_all(probes: Iterable[Probe]) -> list[Outcome]:
    """Run all probes in parallel; the outcomes stand in the order of the probes."""
    todo = list(probes)
    outcomes: list[Outcome] = []
    for start in range(0, len(todo), _AT_ONCE):
        flows = _run(todo[start : start + _AT_ONCE])
        outcomes += [_outcome(flow) for flow in flows]
        for flow in flows:
            flow.close()
    return outcomes


def _outcome(flow: _Flow) -> Outcome:
    assert flow.outcome is not None
    return flow.outcome


def _run(probes: Sequence[Probe]) -> list[_Flow]:
    clock = time.monotonic
    flows = [_Flow(probe, clock) for probe in probes]
    pending: set[_Flow] = set()
    with selectors.DefaultSelector() as selector:
        _launch(flows, selector, pending)
        while pending:
            soonest = min(flow.deadline for flow in pending)
            for key, _ in selector.select(max(0.0, soonest - clock())):
                flow: _Flow = key.data
                was = flow.events
                flow.ready()
                if flow.outcome is not None:
                    _settle(flow, selector, pending)
                elif flow.events != was:
                    selector.modify(key.fileobj, flow.events, flow)
            now = clock()
            for flow in [flow for flow in pending if flow.deadline <= now]:
                _expire(flow, selector, pending)
    return flows


def _launch(flows: Iterable[_Flow], selector: selectors.BaseSelector, pending: set[_Flow]) -> None:
    """Open sockets, entering each namespace once, and start to wait for them."""
    by_namespace: dict[int | None, list[_Flow]] = {}
    for flow in flows:
        by_namespace.setdefault(flow.probe.namespace, []).append(flow)
    for namespace, group in by_namespace.items():
        with entered(namespace):
            for flow in group:
                flow.open()
        for flow in group:
            if flow.outcome is None:
                assert flow.sock is not None
                selector.register(flow.sock, flow.events, flow)
                pending.add(flow)


def _settle(flow: _Flow, selector: selectors.BaseSelector, pending: set[_Flow]) -> None:
    assert flow.sock is not None
    selector.unregister(flow.sock)
    pending.discard(flow)


def _expire(flow: _Flow, selector: selectors.BaseSelector, pending: set[_Flow]) -> None:
    if flow.control is not None and flow.control in pending:
        return  # its control is still under way and has a deadline of its own
    control = flow.late()
    if control is not None:
        _launch([control], selector, pending)
    if flow.outcome is not None:
        _settle(flow, selector, pending)
        if flow.control is not None:
            flow.control.close()


class Held(Value, frozen=True):
    """State of a held flow at a check: ``lost`` counts requests that got no answer."""

    alive: bool
    endpoint: str = ""
    client: str = ""
    local: str = ""
    lost: int = 0
    detail: str = ""


class Holding:
    """A flow that is kept open: its first request is the outcome, later checks send more."""

    def __init__(self, probe: Probe) -> None:
        (flow,) = _run([probe])
        self.outcome = _outcome(flow)
        self.probe = probe
        self._sock = flow.sock
        if self.outcome.reach is not Reach.REACHED:
            flow.close()
            self._sock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def check(self, requests: int = 3, timeout: float = 1.0) -> Held:
        """Send ``requests`` one after the other, each waited for ``timeout`` seconds."""
        if self._sock is None:
            return Held(False, lost=requests, detail=f"never established ({self.outcome})")
        last: Answer | None = None
        lost = 0
        for number in range(requests):
            try:
                answer = self._ask(self._sock, b"kproxy-echo %d" % number, timeout)
            except TimeoutError:
                lost += 1
                continue
            except OSError as error:
                self.close()
                return Held(False, lost=requests - number + lost, detail=str(error.strerror))
            last = answer
        if last is None:
            return Held(False, lost=lost, detail=f"no answer within {timeout:g} s")
        return Held(True, last.name, last.client, last.local, lost)

    def _ask(self, sock: socket.socket, line: bytes, timeout: float) -> Answer:
        """One request; late answers to earlier ones are read over."""
        deadline = time.monotonic() + timeout
        sock.settimeout(timeout)
        sock.sendall(line + b"\n")
        buffer = b""
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            sock.settimeout(left)
            data = sock.recv(65536)
            if not data:
                raise ConnectionResetError(errno.ECONNRESET, "closed by the other side")
            buffer += data
            while b"\n" in buffer:
                text, _, buffer = buffer.partition(b"\n")
                answer = decode_answer(text)
                if answer is not None and answer.echo.encode() == line:
                    return answer

    def close(self) -> None:
        if self._sock is not None:
            if self.probe.protocol in sockets.STREAMS:
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            self._sock.close()
            self._sock = None
