"""Which pictures a comparison has: their files, titles, and words for who does not see them. Pure.

A picture belongs to one section, so figures of two kernels never meet in one.
"""

from __future__ import annotations

from kproxy.bench import words
from kproxy.bench.pictures import sayings
from kproxy.bench.results import Fingerprint, Results, Row, Section
from kproxy.core.objects import Value


class Chart(Value, frozen=True):
    """``measures`` are those whose rows it draws; ``shape`` names who draws it; ``reads`` says what
    is where, for the picture's alternative text."""

    name: str
    group: str
    shape: str
    title: str
    reads: str
    measures: tuple[str, ...]


#: What happens to proxies under load.
EVENTS = ("restart", "kill", "wipe", "rolling", "switch")

CHARTS: tuple[Chart, ...] = (
    Chart(
        "requests",
        "traffic",
        "bars",
        "Requests and datagrams beside direct routing – longer is better",
        "A bar for each subject and measure, as long as its ratio to direct routing",
        ("crr", "rr", "udp"),
    ),
    Chart(
        "throughput",
        "traffic",
        "bars",
        "Throughput beside direct routing – longer is better",
        "A bar for each subject and number of streams, as long as its ratio to direct routing",
        ("stream1", "stream4"),
    ),
    Chart(
        "short-connections",
        "traffic",
        "curves",
        "How long a short connection takes – further left is better",
        "Left the share of connections that took no longer than so many seconds, right the share "
        "that took longer, a line for each subject",
        ("crr-p50", "crr-p99"),
    ),
    Chart(
        "connecting",
        "traffic",
        "curves",
        "How long connecting takes – further left is better",
        "Left the share of connections that were open after so many seconds, right the share that "
        "took longer, a line for each subject",
        ("connect-p50",),
    ),
    Chart(
        "costs",
        "traffic",
        "costs",
        "What the same work costs – shorter is better",
        "For each subject a bar of CPU seconds, its own and the kernel's, and one of memory",
        ("crr", "stream1"),
    ),
    Chart(
        "first-packet",
        "first-packet",
        "places",
        "First packet, by number of services – lower is better",
        "Lines over the number of services, left to the first of them, right to the last",
        ("first-packet",),
    ),
    Chart(
        "programming",
        "programming",
        "programming",
        "Time until services are in force – lower is better",
        "Lines over the number of services, a panel for each kind of change",
        ("cold-sync", "one-change", "burst"),
    ),
    Chart(
        "convergence",
        "programming",
        "places",
        "From a changed file to the first good packet – lower is better",
        "Lines over the number of services, left when an endpoint moves, right when a service is "
        "new",
        ("convergence",),
    ),
    Chart(
        "survival",
        "survival",
        "survival",
        "What clients notice when the proxy is disturbed – shorter is better",
        "For each mode and event a bar as long as the longest silence, with the share of new "
        "connections that failed",
        tuple(f"{event}-{part}" for event in EVENTS for part in words.SURVIVAL),
    ),
)


class Picture(Value, frozen=True):
    """``file`` is the name of the PNG, ``alt`` what it shows in words."""

    file: str
    chart: Chart
    section: Section
    title: str
    subtitle: str
    alt: str


def files() -> list[str]:
    """Names of all pictures that there may be."""
    return [file_of(chart, section) for section in ("host", "uml") for chart in CHARTS]


def file_of(chart: Chart, section: str) -> str:
    return f"uml-{chart.name}.png" if section == "uml" else f"{chart.name}.png"


def planned(results: Results) -> list[Picture]:
    """All pictures that these results have figures for."""
    return [
        picture_of(chart, section, results.fingerprint)
        for section in results.sections
        for chart in CHARTS
        if drawable(chart, section)
    ]


def rows_of(chart: Chart, section: Section) -> list[Row]:
    """The chart's rows, in the order of its measures."""
    return [
        row
        for measure in chart.measures
        for row in section.rows
        if row.point.measure == measure
        and row.rounds
        # The worst of all switches is one row, each of them another: tables have those.
        and not (chart.shape == "survival" and row.point.where)
    ]


def drawable(chart: Chart, section: Section) -> bool:
    """Curves need distributions, bars of cost a cost, lines a number of services."""
    rows = rows_of(chart, section)
    if chart.shape == "curves":
        return any(row.distributions for row in rows)
    if chart.shape == "costs":
        return any(row.costs for row in rows)
    if chart.shape in ("places", "programming"):
        return any(row.point.at is not None for row in rows)
    return bool(rows)


def picture_of(chart: Chart, section: Section, machine: Fingerprint) -> Picture:
    kernel = words.kernel_name(section)
    uml = section.name == "uml"
    title = chart.title
    if uml:
        title = f"{words.capital(kernel)}: {title[0].lower()}{title[1:]}"
    rows = rows_of(chart, section)
    # User-mode Linux has one processor, whatever the host has.
    cores = "1 core" if uml else words.plural(machine.cores, "core")
    rounds = sayings.round_counts(rows)
    subtitle = " · ".join((kernel, f"{cores}, {machine.cpu}", rounds))
    names = words.listed(words.ordered(sayings.subjects(rows)))
    alt = f"{title}. {chart.reads}. Subjects: {names}; {rounds}. The tables hold the figures."
    file = file_of(chart, section.name)
    return Picture(file, chart, section, title, subtitle, alt)
