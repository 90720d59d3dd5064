"""What a live switch of modes costs those who are connected, and those who connect meanwhile.

    python -m pytest bench/bench_switch.py -s

For each ordered pair of the modes of this kernel: a lab of one node in the first mode, a client
that opens ``RATE`` new connections a second whatever becomes of the earlier ones (an open loop),
and ``HELD`` connections that are asked every 20 ms. In the middle ``kproxy lab switch`` puts the
node into the second mode (:mod:`kproxy.bench.modeswitch`). ``KPROXY_SWITCH_ROUNDS`` (3) rounds; the
worst of them is told. Writes ``build/bench/switch.json``.
"""

from __future__ import annotations

import os
import sys
from itertools import permutations

import pytest

from kproxy.bench import report
from kproxy.bench.modeswitch import Stand
from kproxy.bench.ours import MODES
from kproxy.bench.subjects import parted
from kproxy.bench.window import Seen
from kproxy.core.objects import Value

ROUNDS = int(os.environ.get("KPROXY_SWITCH_ROUNDS", "3"))

#: New connections a second, and those that are held.
RATE, HELD = 500.0, 20


class Row(Value, frozen=True):
    """One switch."""

    old: str
    new: str
    seen: Seen


def bench_switches(capsys: pytest.CaptureFixture[str]) -> None:
    names = list(parted(list(MODES))[0])
    rows: list[Row] = []
    with Stand(names[0], rate=RATE, held=HELD) as stand:
        for _ in range(ROUNDS):
            rows += [Row(old, new, stand.seen(old, new)) for old, new in permutations(names, 2)]
    report.save("switch", {**report.fingerprint(), "rate": RATE, "held": HELD, "rows": rows})
    with capsys.disabled():
        sys.stdout.write(table(names, rows))


def table(names: list[str], rows: list[Row]) -> str:
    """A line for each pair: the worst of its rounds, and all failures."""
    heads = ("took", "both", "failed", "quiet", "slowest", "survive", "silence")
    lines = ["", f"{'from':16}{'to':16}" + "".join(f"{head:>9}" for head in heads)]
    for old, new in permutations(names, 2):
        these = [row.seen for row in rows if (row.old, row.new) == (old, new)]
        cells = (
            f"{max(seen.seconds for seen in these):.2f} s",
            f"{max(seen.both or 0.0 for seen in these):.2f} s",
            f"{sum(seen.failed for seen in these)}",
            f"{max(seen.gap for seen in these) * 1e3:.0f} ms",
            f"{max(seen.slowest for seen in these) * 1e3:.0f} ms",
            f"{min(seen.held.survived for seen in these)}/{HELD}",
            f"{max(seen.held.silence for seen in these) * 1e3:.0f} ms",
        )
        lines.append(f"{old:16}{new:16}" + "".join(f"{cell:>9}" for cell in cells))
    return "\n".join(lines) + "\n"
