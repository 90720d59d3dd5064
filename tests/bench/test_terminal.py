"""The tables: everything that decides is in them, nothing is wider than a terminal, and what there
is no figure of says why."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from msgspec.structs import replace

from kproxy.bench import terminal, terminal_compare, verdicts
from kproxy.bench.compare import compared
from kproxy.bench.lines import WIDTH, Line
from kproxy.bench.measures import survival, traffic
from kproxy.bench.results import Absent, Cost, Measure, Point, Results, Row, Section
from kproxy.bench.rounds import Figure
from tests.bench.machines import MACHINE, RATE, TIME, results, row, simulated

CRR = traffic.MEASURES["crr"]
SPEEDS = {
    "direct": 52_000.0,
    "direct again": 52_000.0,
    "iptables-legacy": 51_000.0,
    "userspace": 26_000.0,
    "nginx": 60_000.0,
}


def text(lines: Iterable[Line]) -> str:
    return "\n".join(line.text for line in lines)


def found(rounds: int = 11, slower: float = 1.0) -> Results:
    """Speed, a time without a base, an event; somebody who fails and somebody who is not there."""
    speeds = {**SPEEDS, "userspace": SPEEDS["userspace"] * slower}
    taken = simulated("normal", 3, rounds, speeds)
    taken[0] = {**taken[0], "nginx": Figure(60_000.0, 1000, 3)}
    costs = {"userspace": Cost(seconds=2.0, proxy=1.0, kernel=0.5, memory=45e6, kernel_memory=5e6)}
    speed = Row(Point("crr"), "direct", tuple(map(dict, taken)), costs=costs)
    times = [{"nftables": Figure(0.2 + 0.001 * at)} for at in range(rounds)]
    last = [
        {"direct": Figure(0.0, 500), "userspace": Figure(0.004 * (at == 1), 500, 2 * (at == 1))}
        for at in range(3)
    ]
    silence = [{"direct": Figure(0.01), "userspace": Figure(0.02 + at / 100)} for at in range(3)]
    slowest = [{"userspace": Figure(1.024)}] * 3
    held = [{"userspace": Figure(1.0, 20)}] * 3
    both = [{"userspace": Figure(0.031)}, {"nftables": Figure(0.012)}]
    measures = (CRR, TIME, *survival._measures("restart"), *survival._measures("switch"))
    rows = (
        speed,
        Row(Point("time", 10_000.0, "last"), "", tuple(times)),
        Row(Point("restart-failed"), "", tuple(last)),
        Row(Point("restart-gap"), "", tuple(silence)),
        Row(Point("restart-slowest"), "", tuple(slowest)),
        Row(Point("restart-held"), "", tuple(held)),
        Row(Point("switch-gap"), "", tuple(silence)),
        Row(Point("switch-both"), "", tuple(both)),
    )
    absent = (
        Absent("ipvs", "", "this kernel has no IPVS"),
        Absent("ipvsadm", "crr", "this kernel has no IPVS"),
        Absent("haproxy", "restart-gap", "it has no daemon"),
    )
    host = Section("host", "6.18.1", {}, measures, rows, absent, 75.0, notes=("A note.",))
    return results([host])


SHOWN = text(terminal.shown(found()))


@pytest.mark.parametrize(
    "line",
    [
        "Linux 6.18.1 · measured in 1 min 15 s",
        "A note.",
        "Traffic: 11 rounds, intervals hold 99.9 %",
        "– ipvs, ipvsadm: this kernel has no IPVS",
        "– haproxy (restart-gap): it has no daemon",
        "A Processor, 2 cores, 8.6 GB, Linux 6.18; load 0.10 before",
        "failed: 3 of 11,000",
        "time, 10,000 services, last: until it is done; lower is better",
        "restart: restart, as an upgrade does",
        "Rules of both modes stood, from: userspace 31 ms, nftables 12 ms",
    ],
)
def test_what_decides_is_there(line: str) -> None:
    assert line in SHOWN


def cells(subject: str, shown: str, after: str = "") -> list[str]:
    """A subject's line in pieces, of the first table after a heading."""
    lines = shown[shown.index(after) :].splitlines()
    return next(each.split() for each in lines if each.startswith(f"{subject} "))


def test_a_line_is_a_subject() -> None:
    """Figure, unit, ratio with its interval, verdict, costs."""
    row = found().sections[0].rows[0]
    said = verdicts.said(row, CRR)["userspace"]
    assert said.comparison is not None
    assert cells("userspace", SHOWN) == [
        "userspace",
        f"{said.figure / 1000:.1f}",
        "k/s",
        f"{said.comparison.ratio:.3f}",
        f"[{said.comparison.low:.3f},",
        f"{said.comparison.high:.3f}]",
        "worse",
        *("0.50", "0.25", "50", "MB"),
    ]
    assert cells("iptables-legacy", SHOWN)[-3:] == ["no", "difference", "shown"]
    # No figure of speed: it failed.
    assert cells("nginx", SHOWN)[:3] == ["nginx", "–", "failed:"]


def test_events_are_read_side_by_side() -> None:
    """Medians, and what they hide; the range of the silence; who waited longest."""
    assert cells("userspace", SHOWN, "restart: ") == (
        [
            "userspace",
            "0",
            "%",
            "(2",
            "of",
            "1,500)",
            "30",
            "ms",
            "[20",
            "ms",
            "–",
            "40",
            "ms]",
            "1.0",
            "s",
            "100",
            "%",
        ]
    )


@pytest.mark.parametrize(
    ("rounds", "said"),
    [
        (1, "1 round, too few for intervals; verdicts take 11"),
        (5, "5 rounds, too few for intervals; verdicts take 11"),
        (7, "7 rounds, intervals hold 98.4 %; verdicts take 11"),
        (11, "11 rounds, intervals hold 99.9 %"),
        (40, "40 rounds, intervals hold 99.9 %"),
    ],
)
def test_rounds_that_were_afforded_are_said(rounds: int, said: str) -> None:
    """With what they are good for: no interval that is none, no verdict that is none."""
    shown = text(terminal.shown(found(rounds)))
    assert f"Traffic: {said}" in shown
    assert ("[" in " ".join(cells("userspace", shown))) == (rounds > 5)
    assert ("too few rounds" in shown) == (rounds < 11)


def test_no_round_at_all_is_said() -> None:
    """Everybody's reason stands where the figures would."""
    empty = Section("host", "6.18", {}, (CRR,), (), (Absent("direct", "crr", "no veth here"),))
    shown = text(terminal.shown(results([empty])))
    assert "Traffic: no round" in shown
    assert "– direct: no veth here" in shown


@pytest.mark.parametrize(("kernel", "said"), [(0.2, False), (1.5, True)])
def test_a_machine_that_was_busy_is_told(kernel: float, said: bool) -> None:
    """With other work than what was measured."""
    of = found().sections[0]
    busy = replace(of.rows[0], costs={"direct": Cost(seconds=2.0, kernel=2 * kernel)})
    shown = text(terminal.shown(results([replace(of, rows=(busy,))])))
    assert ("Other work kept 1.5 processors busy" in shown) == said


def test_what_is_partial_says_so_first() -> None:
    shown = text(terminal.shown(replace(found(), partial="interrupted")))
    assert shown.startswith("Partial: interrupted.")


@pytest.mark.parametrize("slower", [1.0, 0.5])
@pytest.mark.parametrize("rounds", [1, 7, 25])
def test_nothing_is_wider_than_a_terminal(rounds: int, slower: float) -> None:
    """Both tables."""
    both = compared(found(rounds), found(rounds, slower))
    for lines in (terminal.shown(found(rounds, slower)), terminal_compare.shown(both)):
        assert max(len(line.text) for line in lines) <= WIDTH


# --- two results --------------------------------------------------------------------------------


def test_differences_of_the_runs_come_first() -> None:
    """Before any figure."""
    after = replace(found(), kproxy="1.1", fingerprint=replace(MACHINE, cores=4))
    lines = text(terminal_compare.shown(compared(found(), after))).splitlines()
    assert lines[:4] == ["The runs differ:", "  kproxy: 1.0 → 1.1", "  cores: 2 → 4", ""]


def test_a_change_is_a_line() -> None:
    """Both ratios to the base, their change with its interval, the verdict; the sum at the end."""
    shown = text(terminal_compare.shown(compared(found(), found(slower=0.5))))
    line = cells("userspace", shown)
    assert line[-1] == "slower"
    assert float(line[3]) == pytest.approx(0.5, abs=0.02)
    assert float(line[2]) == pytest.approx(float(line[1]) / 2, abs=0.03)
    assert "of the attempts failed" in shown
    assert "1 slower or worse and 0 faster or better of " in shown


def test_styles_are_for_what_matters() -> None:
    """What is slower is seen."""
    lines = list(terminal_compare.shown(compared(found(), found(slower=0.5))))
    (slower,) = [line for line in lines if line.text.endswith("slower")]
    assert slower.style == "bold red"


def test_shares_and_times_in_a_row_of_their_own() -> None:
    """A measure without a base shows the interval of the figure itself."""
    lost = Measure("lost", "share that was lost", "share", "lower", "traffic")
    taken = [{"ours": Figure(0.01 * at, 100, at)} for at in range(11)]
    section = Section("host", "6", {}, (lost, RATE), (row(taken, base="", measure=lost),), (), 1.0)
    assert "5.00 %" in text(terminal.shown(results([section])))
    assert "[0 %, 10.0 %]" in text(terminal.shown(results([section])))
