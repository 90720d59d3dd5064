"""Clients that make the same load: the generator, and wrk or iperf3 beside it.

The server of the pod speaks HTTP as well (:file:`generator/http.pxi`), so wrk's requests and ours
differ in their bytes and in nothing else: both have as many, both ways, and short connections are
closed by both ends at once, which is what wrk and a server that was told ``Connection: close`` do.
iperf3 has a server of its own in the pod; its first second is not counted, as it would not be.
"""

from __future__ import annotations

import re
import resource
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import msgspec
from msgspec.structs import replace

from kproxy.bench.load import Kind, Load, Place, Result
from kproxy.bench.path import PORT, Path
from kproxy.bench.peers import await_listener
from kproxy.core.objects import Value
from kproxy.errors import CheckFailed
from kproxy.kernel import command
from kproxy.kernel.netns import entered

#: Bytes of an answer; wrk asks for them by the path.
ANSWER = 64

#: Connections at once, where they are kept and where each has one request.
KEPT, SHORT = 64, 16

#: Seconds of ours that are not counted; iperf3 takes whole ones.
_WARMUP, _OMITTED = 0.3, 1

#: How many of wrk's units of time are a second.
_UNITS = {"us": 1e6, "ms": 1e3, "s": 1.0}


class Seen(Value, frozen=True):
    """What a client counted: requests or bits a second; latencies in seconds (streams: 0). ``cost``
    is the client's own CPU time in seconds for a request or a bit, 0 where it is not known."""

    rate: float
    p50: float = 0.0
    p99: float = 0.0
    failed: int = 0
    cost: float = 0.0


# --- wrk ----------------------------------------------------------------------------------------


def request_of(place: Place, *, closes: bool) -> bytes:
    """What wrk sends."""
    fields = f"Host: {_where(place)}\r\n" + ("Connection: close\r\n" if closes else "")
    return f"GET /{ANSWER} HTTP/1.1\r\n{fields}\r\n".encode()


def by_wrk(path: Path, place: Place, seconds: int, *, closes: bool) -> Seen:
    """wrk in the client's namespace, one thread as the generator has. MachineError: no wrk."""
    argv = [command.require("wrk"), "-t1", f"-c{SHORT if closes else KEPT}", f"-d{seconds}s"]
    argv += ["--latency", *(("-H", "Connection: close") if closes else ())]
    said, cpu = _said(path, [*argv, f"http://{_where(place)}/{ANSWER}"])
    return _costing(read_wrk(said), cpu, seconds)


def read_wrk(text: str) -> Seen:
    """wrk's report. CheckFailed: it is none."""
    rate = re.search(r"^Requests/sec:\s+([\d.]+)", text, re.MULTILINE)
    shares = {
        share: float(value) / _UNITS[unit]
        for share, value, unit in re.findall(r"^\s+(\d+)%\s+([\d.]+)(us|ms|s)", text, re.MULTILINE)
    }
    if rate is None or not {"50", "99"} <= shares.keys():
        raise CheckFailed("not what was expected", where="wrk", hint=text.strip())
    errors = re.search(r"Socket errors: (.*)", text)
    failed = sum(map(int, re.findall(r"\d+", errors[1]))) if errors else 0
    other = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    failed += int(other[1]) if other else 0
    return Seen(float(rate[1]), shares["50"], shares["99"], failed)


def by_requests(path: Path, place: Place, seconds: int, *, closes: bool) -> Seen:
    """The generator, with requests and answers as long as wrk's."""
    result = _ours(
        path,
        place,
        Load(
            Kind.CRR if closes else Kind.RR,
            connections=SHORT if closes else KEPT,
            seconds=seconds,
            warmup=_WARMUP,
            closer="both" if closes else "client",
            request_bytes=len(request_of(place, closes=closes)),
            response_bytes=ANSWER,
        ),
    )
    p50, p99 = (result.latency.percentile(share) for share in (50, 99))
    seen = Seen(result.rate, p50, p99, result.failed)
    return _costing(seen, result.cpu, seconds + _WARMUP)


# --- iperf3 -------------------------------------------------------------------------------------


def by_iperf3(path: Path, place: Place, seconds: int, *, streams: int) -> Seen:
    """iperf3 in the client's namespace, its server in the pod's; what comes down counts.
    MachineError: no iperf3."""
    host, port = place
    argv = [command.require("iperf3"), "-c", host, "-p", str(port), "-t", str(seconds)]
    argv += ["-O", str(_OMITTED), "-P", str(streams), "--reverse", "--json", "-i", "0"]
    with _iperf3_server(path):
        said, cpu = _said(path, argv)
    return _costing(read_iperf3(said), cpu, seconds + _OMITTED)


def read_iperf3(text: str) -> Seen:
    """iperf3's report. CheckFailed: it is none, or says that it failed."""
    try:
        said = msgspec.json.decode(text)
        return Seen(float(said["end"]["sum_received"]["bits_per_second"]))
    except (msgspec.DecodeError, KeyError, TypeError):
        raise CheckFailed("not what was expected", where="iperf3", hint=text.strip()) from None


@contextmanager
def _iperf3_server(path: Path) -> Iterator[None]:
    with entered(path.fd("pod")):
        server = subprocess.Popen(
            [command.require("iperf3"), "-s", "-p", str(PORT)], stdout=subprocess.DEVNULL
        )
    try:
        await_listener(path, path.pod_place(), server, host="pod")
        yield
    finally:
        server.kill()  # asked to end, it says on stderr that somebody asked
        server.wait()


def by_streams(path: Path, place: Place, seconds: int, *, streams: int) -> Seen:
    """The generator, as many streams down."""
    load = Load(Kind.STREAM, connections=streams, seconds=seconds, warmup=_WARMUP)
    result = _ours(path, place, load)
    return _costing(Seen(result.bits, failed=result.failed), result.cpu, seconds + _WARMUP)


def _ours(path: Path, place: Place, load: Load) -> Result:
    # From one address, as others do.
    return path.completed(path.client.run(load, place))


def _costing(seen: Seen, cpu: float, seconds: float) -> Seen:
    """With what the client used in all that time, what is not counted included."""
    return replace(seen, cost=cpu / (seen.rate * seconds) if seen.rate else 0.0)


def _said(path: Path, argv: Sequence[str]) -> tuple[str, float]:
    """Run a tool in the client's namespace; its output and its CPU seconds. CheckFailed: it ended
    badly."""
    before = _children_seconds()
    with entered(path.fd("client")):
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        words = (done.stderr.strip() or done.stdout.strip())[-500:]
        raise CheckFailed(f"ended with {done.returncode}: {words}", where=argv[0])
    return done.stdout, _children_seconds() - before


def _children_seconds() -> float:
    """CPU seconds of all children that have ended: nobody else's ends while a tool runs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _where(place: Place) -> str:
    host, port = place
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
