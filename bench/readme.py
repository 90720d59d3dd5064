"""The tables of README.md that come from a report: ``python -m bench.readme [docs/report]``.

They stand between two comments in README.md and are written anew from ``results.json``, so that no
figure there was typed by a person; a test compares them with the report beside them.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser

from kproxy.bench import store, verdicts, words
from kproxy.bench.helper import ROOT
from kproxy.bench.results import Measure, Point, Results, Section
from kproxy.bench.verdicts import Said, Word
from kproxy.core.objects import Value
from kproxy.errors import KproxyError, UsageError

README, REPORT = ROOT / "README.md", ROOT / "docs/report"

#: Section -> subjects that have a column, with its head.
_COLUMNS = {
    "host": {
        "userspace": "userspace",
        "iptables-nft": "iptables (nft)",
        "iptables-legacy": "iptables (legacy)",
        "nftables": "nftables",
        "fastpath": "fastpath",
    },
    "uml": {"iptables-legacy": "iptables (legacy)", "ipvs": "ipvs", "ipvsadm": "a bare server"},
}


class Line(Value, frozen=True):
    """One line of a table: ``label`` before the figures of a point; ``ratio``: with the ratio to
    its base."""

    label: str
    point: Point
    ratio: bool = False


_TRAFFIC = (
    Line("connect, request, response, close: 16 at once", Point("crr"), ratio=True),
    Line("request and response on an open connection", Point("rr"), ratio=True),
    Line("one stream", Point("stream1"), ratio=True),
    Line("64-byte datagrams, one way", Point("udp"), ratio=True),
    Line(
        "first packet of a connection, the last of 1,000 services",
        Point("first-packet", 1000, "last"),
        ratio=True,
    ),
)

#: Section -> lines of its table; one that the report has no figure of is left out.
_LINES = {
    "host": (
        *_TRAFFIC,
        Line("… the last of 10,000 services", Point("first-packet", 10_000, "last"), ratio=True),
        Line("1,000 services × 10 endpoints in force, from nothing", Point("cold-sync", 1000)),
        Line("5,000 × 10", Point("cold-sync", 5000)),
        Line("one endpoint replaced among 1,000 services", Point("one-change", 1000)),
        Line("… among 5,000", Point("one-change", 5000)),
        Line(
            "from a file that names another endpoint to its first packet, 1,000 services",
            Point("convergence", 1000, "moved"),
        ),
        Line(
            "new connections that fail when kproxy is killed, and started a second later",
            Point("kill-failed"),
        ),
        Line("… when somebody deletes its rules", Point("wipe-failed")),
        Line("… when pods are replaced one by one", Point("rolling-failed")),
        Line("… when it is restarted", Point("restart-failed")),
        Line("… when another mode takes over", Point("switch-failed")),
        Line("time in which the rules of both stand meanwhile", Point("switch-both")),
    ),
    "uml": (
        *_TRAFFIC,
        Line("1,000 services × 10 endpoints in force, from nothing", Point("cold-sync", 1000)),
        Line("one endpoint replaced among 1,000 services", Point("one-change", 1000)),
    ),
}


def table(section: Section) -> list[str]:
    """A section's lines, in Markdown."""
    columns = _COLUMNS[section.name]
    measures = {each.name: each for each in section.measures}
    rows = {each.point: each for each in section.rows}
    level = words.percent(verdicts.VERDICT_LEVEL)
    where = "" if section.name == "host" else "user-mode Linux, "
    head = f"{where}medians; ratio to direct routing [{level} interval]"
    lines = [f"| {' | '.join((head, *columns.values()))} |", "|---" * (1 + len(columns)) + "|"]
    for line in _LINES[section.name]:
        if line.point in rows:
            measure = measures[line.point.measure]
            said = verdicts.said(rows[line.point], measure)
            cells = [_cell(line, measure, said.get(subject)) for subject in columns]
            lines.append(f"| {' | '.join((line.label, *cells))} |")
    return lines


def _cell(line: Line, measure: Measure, said: Said | None) -> str:
    if said is None:
        return "–"
    if measure.unit == "share":  # all that failed of all that were tried
        share = said.failures / said.attempts
        return words.quantity(share, "share", 2) if share else "none"
    if said.word is Word.FAILED:
        return said.text
    figure = words.quantity(said.figure, measure.unit)
    if not line.ratio or said.comparison is None:
        return figure
    found = said.comparison
    if found.level < verdicts.VERDICT_LEVEL:
        return f"{figure}, {words.number(found.ratio)} ({words.plural(found.rounds, 'round')})"
    ratio, low, high = (words.number(each) for each in (found.ratio, found.low, found.high))
    return f"{figure}, {ratio} [{low}, {high}]"


def written(results: Results, folder: str) -> str:
    """What stands between the comments."""
    lines: list[str] = []
    for section in results.sections:
        lines += [*table(section), ""]
    machine = f"{results.fingerprint.cores} cores, {results.fingerprint.cpu}"
    said = f"From [{folder}]({folder}/README.md), `{results.command}` on {results.date}, {machine}."
    if results.partial:
        said += f" It was {results.partial}."
    return "\n".join(["", *lines, said, ""])


def put(text: str, folder: str, new: str) -> str:
    """A README with its tables replaced. UsageError: it has no place for them."""
    begin, end = f"<!-- from {folder} -->\n", f"<!-- end of {folder} -->\n"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise UsageError(
            f"no place for figures from {folder}", hint=f"lines {begin.strip()} and {end.strip()}"
        )
    return before + begin + new + end + after


def main() -> int:
    """Exit status."""
    parser = ArgumentParser(prog="python -m bench.readme", description=__doc__)
    parser.parse_args()
    folder = str(REPORT.relative_to(ROOT))
    try:
        new = written(store.read(REPORT), folder)
        README.write_text(put(README.read_text(), folder, new))
    except KproxyError as failed:
        sys.stderr.write(f"kproxy: {failed}\n")
        return failed.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
