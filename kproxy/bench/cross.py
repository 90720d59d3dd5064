"""The generator beside wrk: the same requests to the same server by the same path, in turns.

    python -m kproxy.bench.cross [SUBJECT ...] [--seconds S] [--rounds N] [-o json]

The server of the pod speaks HTTP as well (:file:`generator/http.pxi`), so wrk's requests and ours
differ in their bytes and in nothing else: both have as many, both ways. Two loads: requests on kept
connections, and a connection for each request that the server closes. Shown are the medians of the
rounds and the median of the ratios within a round; status 1 when one is further from 1 than
``--within`` (0.25) allows.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import msgspec

from kproxy.bench.load import Kind, Load, Place
from kproxy.bench.path import Path
from kproxy.bench.peers import running
from kproxy.bench.subjects import SUBJECTS, made
from kproxy.core.objects import Family, Value
from kproxy.errors import CheckFailed, MachineError
from kproxy.kernel import command
from kproxy.kernel.netns import entered

#: Bytes of an answer; wrk asks for them by the path.
ANSWER = 64

#: Connections at once, where they are kept and where each has one request.
KEPT, SHORT = 64, 16

_WARMUP = 0.3

#: wrk's units of time, in microseconds.
_UNITS = {"us": 1.0, "ms": 1e3, "s": 1e6}


class Seen(Value, frozen=True):
    """What a client counted: requests a second, and latencies in microseconds."""

    rate: float
    p50: float
    p99: float
    failed: int = 0


class Turn(Value, frozen=True):
    """Both clients, one after the other, on paths of their own."""

    ours: Seen
    wrk: Seen

    @property
    def ratio(self) -> float:
        return self.ours.rate / self.wrk.rate


def request_of(place: Place, *, closes: bool) -> bytes:
    """What wrk sends."""
    host, port = place
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    fields = f"Host: {where}\r\n" + ("Connection: close\r\n" if closes else "")
    return f"GET /{ANSWER} HTTP/1.1\r\n{fields}\r\n".encode()


def by_wrk(path: Path, place: Place, seconds: int, *, closes: bool) -> Seen:
    """wrk in the client's namespace, one thread as the generator has. MachineError: no wrk."""
    host, port = place
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    argv = [command.require("wrk"), "-t1", f"-c{SHORT if closes else KEPT}", f"-d{seconds}s"]
    argv += ["--latency", *(("-H", "Connection: close") if closes else ())]
    with entered(path.fd("client")):
        done = subprocess.run(
            [*argv, f"http://{where}/{ANSWER}"], capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise CheckFailed(f"ended with {done.returncode}: {done.stderr.strip()}", where="wrk")
    return read_wrk(done.stdout)


def read_wrk(text: str) -> Seen:
    """wrk's report. CheckFailed: it is none."""
    rate = re.search(r"^Requests/sec:\s+([\d.]+)", text, re.MULTILINE)
    shares = {
        share: float(value) * _UNITS[unit]
        for share, value, unit in re.findall(r"^\s+(\d+)%\s+([\d.]+)(us|ms|s)", text, re.MULTILINE)
    }
    if rate is None or not {"50", "99"} <= shares.keys():
        raise CheckFailed("not what was expected", where="wrk", hint=text.strip())
    errors = re.search(r"Socket errors: (.*)", text)
    failed = sum(map(int, re.findall(r"\d+", errors[1]))) if errors else 0
    other = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    failed += int(other[1]) if other else 0
    return Seen(float(rate[1]), shares["50"], shares["99"], failed)


def by_us(path: Path, place: Place, seconds: int, *, closes: bool) -> Seen:
    """The generator, with requests and answers as long as wrk's."""
    load = Load(
        Kind.CRR if closes else Kind.RR,
        connections=SHORT if closes else KEPT,
        seconds=seconds,
        warmup=_WARMUP,
        closer="server" if closes else "client",
        request_bytes=len(request_of(place, closes=closes)),
        response_bytes=ANSWER,
    )
    # From one address, as wrk does.
    result = path.completed(path.client.run(load, place))
    p50, p99 = (1e6 * result.latency.percentile(share) for share in (50, 99))
    return Seen(result.rate, p50, p99, result.failed)


def turns(name: str, rounds: int, seconds: int, *, closes: bool) -> list[Turn]:
    """Each on a path of its own; who is first changes."""
    taken = []
    for number in range(rounds):
        found: dict[str, Seen] = {}
        for who in ("ours", "wrk") if number % 2 else ("wrk", "ours"):
            (subject,) = made([name]).values()
            with Path() as path, running(subject, path):
                ask = by_us if who == "ours" else by_wrk
                found[who] = ask(path, subject.place(Family.IPV4), seconds, closes=closes)
        taken.append(Turn(**found))
    return taken


def row(name: str, what: str, taken: Sequence[Turn]) -> dict[str, Any]:
    """Medians of the turns."""
    sides = {
        who: {
            field: median(getattr(getattr(turn, who), field) for turn in taken)
            for field in ("rate", "p50", "p99", "failed")
        }
        for who in ("ours", "wrk")
    }
    return {"subject": name, "load": what, **sides, "ratio": median(t.ratio for t in taken)}


_LINE = "{:10} {:22} {:>11} {:>11} {:>6}   {:>13} {:>13}  {}"


def _shown(rows: Sequence[Mapping[str, Any]]) -> str:
    head = ("subject", "load", "ours /s", "wrk /s", "ratio", "p50/99 us", "wrk's", "")
    lines = [_LINE.format(*head)]
    for each in rows:
        ours, wrk = each["ours"], each["wrk"]
        failed = {who: each[who]["failed"] for who in ("ours", "wrk") if each[who]["failed"]}
        lines.append(
            _LINE.format(
                *(each["subject"], each["load"], f"{ours['rate']:,.0f}", f"{wrk['rate']:,.0f}"),
                f"{each['ratio']:.2f}",
                *(f"{side['p50']:.0f}/{side['p99']:.0f}" for side in (ours, wrk)),
                f"FAILED {failed}" if failed else "",
            ).rstrip()
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=", ".join(SUBJECTS))
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--within", type=float, default=0.25)
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    given = parser.parse_args(arguments)
    loads = {f"{KEPT} kept": False, f"{SHORT} at once, closed": True}
    try:
        rows = [
            row(name, what, turns(name, given.rounds, given.seconds, closes=closes))
            for name in given.subjects or ["direct"]
            for what, closes in loads.items()
        ]
    except (CheckFailed, MachineError) as failed:
        sys.stderr.write(f"kproxy.bench.cross: {failed}\n")
        return failed.exit_status
    text = msgspec.json.encode(rows).decode() if given.output == "json" else _shown(rows)
    sys.stdout.write(text + "\n")
    apart = [each for each in rows if abs(each["ratio"] - 1) > given.within]
    return 1 if apart or any(each[who]["failed"] for each in rows for who in ("ours", "wrk")) else 0


if __name__ == "__main__":
    sys.exit(main())
