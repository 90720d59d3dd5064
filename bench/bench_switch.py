"""What a live switch of modes costs those who are connected, and those who connect meanwhile.

    python -m pytest bench/bench_switch.py -s

For each ordered pair of the modes of this kernel: a lab of one node in the first mode, a client
that opens ``RATE`` new connections a second whatever becomes of the earlier ones (an open loop),
and ``HELD`` connections that are asked every 20 ms. In the middle ``kproxy lab switch`` puts the
node into the second mode. ``KPROXY_SWITCH_ROUNDS`` (3) rounds; the worst of them is told. Writes
``build/bench/switch.json``.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import permutations

import pytest

from kproxy.backends import registry
from kproxy.bench import report
from kproxy.bench.agent import Agent
from kproxy.bench.held import Held, Outcome
from kproxy.bench.load import Kind, Load, Result
from kproxy.core.objects import Value
from kproxy.errors import MachineError
from kproxy.kernel import netns
from kproxy.lab import catalogue, changes, lifecycle, state, switching
from kproxy.lab.manifests import Raw
from kproxy.lab.model import LabState

ROUNDS = int(os.environ.get("KPROXY_SWITCH_ROUNDS", "3"))

#: New connections a second, and those that are held.
RATE, HELD = 500, 20

#: Seconds before and after the switch, which takes about one itself.
_BEFORE, _AFTER = 1.0, 1.0
_SECONDS = 4.0

LAB, PORT = "kpswitch", 7777

_SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "measured", "namespace": "default"},
    "spec": {"selector": {"app": "web"}, "ports": [{"port": PORT, "targetPort": PORT}]},
}


class Row(Value, frozen=True):
    """One switch. ``seconds`` it took; ``failed`` of ``started`` new connections; ``quiet``: the
    longest time (seconds) in which no request ended well, at 2 ms between two; ``slowest``: the
    longest that one took."""

    old: str
    new: str
    seconds: float
    started: int
    failed: int
    quiet: float
    slowest: float
    held: Outcome


class Stand:
    """A lab with our servers in its pods and a client in another one."""

    def __init__(self, first: str, stack: ExitStack) -> None:
        lifecycle.down(LAB)
        stack.callback(lifecycle.down, LAB)
        lab = lifecycle.up(LAB, catalogue.load("single"), lifecycle.mode_of(first)).lab
        changes.apply(LAB, [Raw(_SERVICE, "bench")])
        for pod in lab.pods:
            if pod.workload.endswith("web"):
                stack.enter_context(self._agent(lab, pod.name)).serve([("0.0.0.0", PORT)])
        self.client = stack.enter_context(self._agent(lab, "echo-0"))
        self.namespace = lab.network.namespace("echo-0")
        (service,) = [
            obj for obj in lifecycle.objects_of(LAB)
            if (obj["kind"], obj["metadata"]["name"]) == ("Service", "measured")
        ]  # fmt: skip
        self.target = (str(service["spec"]["clusterIP"]), PORT)

    def _agent(self, lab: LabState, host: str) -> Agent:
        return Agent(netns.open_fd(lab.network.namespace(host)))

    def measure(self, old: str, new: str) -> Row:
        """From one mode, which stands, to another."""
        done: list[switching.Switched] = []

        def switch() -> None:
            done.extend(switching.switch(LAB, lifecycle.mode_of(new)))

        load = Load(Kind.CRR, connections=400, rate=RATE, seconds=_SECONDS, timeout=5.0)
        timer = threading.Timer(_BEFORE, switch)
        with Held(self.namespace, self.target, HELD, ask) as held:
            self.client.begin(load, [self.target])
            timer.start()
            result: Result = self.client.result()
            timer.join()
            threading.Event().wait(_AFTER)
            outcome = held.end()
        return Row(
            old, new, done[0].seconds, result.started, result.failed, result.quiet / 1e9,
            result.latency.percentile(100.0), outcome,
        )  # fmt: skip


def ask(connection: socket.socket) -> None:
    """One question of the generator's protocol, and its answer."""
    from kproxy.bench.agent import _ASK, _take

    connection.sendall(_ASK)
    _take(connection, len(_ASK))


def modes() -> list[str]:
    """Those that this kernel runs."""
    found = []
    for choice in registry.choices():
        try:
            with netns.fresh():
                for family in (4, 6):
                    registry.create(choice, registry.Family(family)).probe()
        except MachineError:
            continue
        found.append(str(choice))
    return found


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened
        opened.close()
        state.forget_allocations(LAB)


def test_switches(stack: ExitStack) -> None:
    names = modes()
    stand = Stand(names[0], stack)
    rows: list[Row] = []
    for _ in range(ROUNDS):
        now = names[0]
        for old, new in permutations(names, 2):
            if old != now:
                switching.switch(LAB, lifecycle.mode_of(old))
            rows.append(stand.measure(old, new))
            now = new
        switching.switch(LAB, lifecycle.mode_of(names[0]))
    report.save("switch", {**report.fingerprint(), "rate": RATE, "held": HELD, "rows": rows})
    sys.stdout.write(table(names, rows))


def table(names: list[str], rows: list[Row]) -> str:
    """A line for each pair: the worst of its rounds, and all failures."""
    heads = ("took", "failed", "quiet", "slowest", "survive", "silence")
    lines = ["", f"{'from':16}{'to':16}" + "".join(f"{head:>9}" for head in heads)]
    for old, new in permutations(names, 2):
        these = [row for row in rows if (row.old, row.new) == (old, new)]
        cells = (
            f"{max(row.seconds for row in these):.2f} s",
            f"{sum(row.failed for row in these)}",
            f"{max(row.quiet for row in these) * 1e3:.0f} ms",
            f"{max(row.slowest for row in these) * 1e3:.0f} ms",
            f"{min(row.held.survived for row in these)}/{HELD}",
            f"{max(row.held.silence for row in these) * 1e3:.0f} ms",
        )
        lines.append(f"{old:16}{new:16}" + "".join(f"{cell:>9}" for cell in cells))
    return "\n".join(lines) + "\n"
