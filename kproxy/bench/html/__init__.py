"""A comparison as one page that needs nothing else: ``report.html``.

Pictures are in it, no script is, and a policy in its head keeps browsers from fetching anything.
Verdicts are those of :mod:`kproxy.bench.verdicts`; here they are only put into words and tables.
"""

from __future__ import annotations

import os
import tempfile
from base64 import b64encode
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

from kproxy.bench import headlines, pictures, words
from kproxy.bench.html import drawing, overview, tables
from kproxy.bench.html.parts import Html, joined, table, tag
from kproxy.bench.pictures import Picture, sayings
from kproxy.bench.results import Results, Section

NAME = "report.html"

#: Nothing is fetched and nothing runs, whatever should ever get into the page.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write(results: Results, folder: Path) -> Path:
    """Write ``folder``/report.html, whole or not at all; where it is. Pictures that are not in the
    folder yet are drawn first (MachineError: matplotlib is missing)."""
    if not all((folder / each.file).exists() for each in pictures.planned(results)):
        pictures.write(results, folder)
    target = folder / NAME
    descriptor, fresh = tempfile.mkstemp(dir=folder, prefix=f".{NAME}-")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(page(results, folder))
            os.fchmod(file.fileno(), 0o644)
        os.rename(fresh, target)
    except BaseException:
        os.unlink(fresh)
        raise
    return target


def page(results: Results, folder: Path) -> str:
    """All of it; ``folder`` has the pictures."""
    title = f"kproxy bench, {results.date}"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        # Without it browsers ask the server for one.
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("style", Html(files(__package__).joinpath("report.css").read_text())),
    )
    drawn: dict[tuple[str, str], list[Picture]] = {}
    for picture in pictures.planned(results):
        drawn.setdefault((picture.section.name, picture.chart.group), []).append(picture)
    body = tag(
        "body",
        _top(results),
        _contents(results),
        tag("main", _how(results), [_section(each, drawn, folder) for each in results.sections]),
        _machine(results),
        _glossary(),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


# --- before the figures -------------------------------------------------------------------------


def _top(results: Results) -> Html:
    machine = results.fingerprint
    memory = words.quantity(machine.memory, "B", 2)
    partial = (
        tag(
            "p",
            f"This run is not whole: {results.partial}. What follows are the rounds that were.",
            class_="warning",
        )
        if results.partial
        else ""
    )
    return tag(
        "header",
        tag("h1", "How a Service's packets arrive: every mode, side by side"),
        tag(
            "p",
            f"{results.date} · kproxy {results.kproxy} · {machine.cpu}, "
            f"{words.plural(machine.cores, 'core')}, {memory} · Linux {machine.kernel} · ",
            tag("code", results.command),
            class_="meta",
        ),
        partial,
    )


def _contents(results: Results) -> Html:
    links = [("how", "What was measured, and how")]
    for section in results.sections:
        links.append((section.name, _section_title(section)))
        links += [(f"{section.name}-{group}", words.GROUPS[group][0]) for group in _groups(section)]
    links += [("machine", "The machine"), ("glossary", "How to read it")]
    entries = [tag("li", tag("a", text, href=f"#{name}")) for name, text in links]
    return tag("nav", tag("ul", entries), aria_label="contents")


def _how(results: Results) -> Html:
    return tag(
        "section",
        tag("h2", "What was measured, and how"),
        drawing.path(),
        tag(
            "p",
            "A client, a node and a pod are three network namespaces of one kernel, joined by two "
            "virtual links. Each subject has a set of its own. What the client sends to a "
            "service's address the subject leads to the pod; direct routing, where the client "
            "speaks to the pod's own address, is the floor that nobody can be much faster than.",
        ),
        tag(
            "p",
            "All subjects are measured in every round, one right after the other and in changing "
            "order, so that a machine that warms up or has other work is no advantage to any. "
            "What is compared is the ratio to the base within each round. A difference is said "
            "only when the 99.9 % interval of these ratios shows one and it is beyond the noise "
            "floor. What has failed is called failed and is no figure of speed.",
        ),
        id="how",
    )


# --- a section ----------------------------------------------------------------------------------


def _section_title(section: Section) -> str:
    kernel = words.kernel_name(section)
    return f"A kernel of its own: {kernel}" if section.name == "uml" else f"This host: {kernel}"


def _groups(section: Section) -> list[str]:
    with_rows = {row.point.measure for row in section.rows}
    return list(dict.fromkeys(each.group for each in section.measures if each.name in with_rows))


def _section(section: Section, drawn: dict[tuple[str, str], list[Picture]], folder: Path) -> Html:
    """Of one kernel, with nothing of another."""
    notes = [*section.notes]
    if section.name == "uml":
        notes.insert(0, "No figure of this section may be compared with one of another section.")
    return tag(
        "section",
        tag("h2", _section_title(section)),
        tag("p", f"Measured in {words.duration(section.seconds)}.", class_="meta"),
        tag("p", busy, class_="warning") if (busy := sayings.disturbed(section)) else "",
        tag("ul", [tag("li", note) for note in notes], class_="note") if notes else "",
        _short(section),
        overview.subjects(section) if section.subjects else "",
        overview.absent(section) or "",
        [
            _group(section, group, drawn.get((section.name, group), []), folder)
            for group in _groups(section)
        ],
        overview.noise(section) or "",
        id=section.name,
        class_=section.name,
    )


def _short(section: Section) -> Html:
    """What each measure shows, in words; then all of them in one table."""
    found = headlines.headlines(section)
    if not found:
        return tag("p", "Nothing was measured.", class_="warning")
    entries = [
        tag("li", tag("strong", f"{each.title}."), " ", " ".join(each.sentences)) for each in found
    ]
    return joined(
        tag("h3", "In short"),
        tag("ul", entries, class_="headlines"),
        overview.glance(section) or "",
    )


def _group(section: Section, group: str, drawn: Iterable[Picture], folder: Path) -> Html:
    title, asks = words.GROUPS[group]
    measures = [each for each in section.measures if each.group == group]
    return tag(
        "section",
        tag("h3", title),
        tag("p", asks),
        [_figure(picture, folder) for picture in drawn],
        tables.survived(section)
        if group == "survival"
        else [tables.measured(section, each) for each in measures if tables.rows_of(section, each)],
        id=f"{section.name}-{group}",
    )


def _figure(picture: Picture, folder: Path) -> Html:
    data = b64encode((folder / picture.file).read_bytes()).decode()
    image = tag("img", src=f"data:image/png;base64,{data}", alt=picture.alt)
    return tag("figure", image)


# --- after them ---------------------------------------------------------------------------------


def _machine(results: Results) -> Html:
    machine = results.fingerprint
    known = {
        "processor": machine.cpu,
        "cores": words.count(machine.cores),
        "memory": words.quantity(machine.memory, "B", 3),
        "kernel": machine.kernel,
        "Python": machine.python,
        "kproxy": results.kproxy,
        "load before it began": f"{machine.load:.2f}",
        "command": results.command,
        "profile": results.profile,
        **machine.tools,
    }
    settings = tag("code", "sysctl")
    return tag(
        "section",
        tag("h2", "The machine"),
        table("Fingerprint", ("what", ""), [_pairs(known)]),
        table(joined("Settings (", settings, ")"), ("name", "value"), [_pairs(machine.sysctls)])
        if machine.sysctls
        else "",
        id="machine",
    )


def _pairs(known: dict[str, str]) -> Html:
    return tag(
        "tbody",
        [
            tag("tr", tag("th", name, scope="row"), tag("td", value))
            for name, value in known.items()
        ],
    )


def _glossary() -> Html:
    terms = [joined(tag("dt", term), tag("dd", said)) for term, said in words.GLOSSARY.items()]
    return tag("section", tag("h2", "How to read it"), tag("dl", terms), id="glossary")
