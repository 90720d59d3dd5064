"""The report: whole, self-contained, and hard to break."""

from __future__ import annotations

import re
import subprocess
import sys
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from msgspec.structs import replace

from kproxy.bench import html, store, verdicts, words
from kproxy.bench.html.parts import Html, joined, tag
from kproxy.bench.pictures import planned
from kproxy.bench.results import Absent, Cost, Results
from kproxy.bench.verdicts import Word
from tests.bench.comparisons import (
    MEASURES,
    make_fingerprint,
    make_results,
    make_row,
    make_section,
)
from tests.conftest import ROOT

#: A whole PNG of one pixel: what is in the pictures is not what is tested here.
_PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010804000000b51c0c02"
    "0000000b4944415478da6364f80f00010501012718e3660000000049454e44ae426082"
)


def _page(results: Results, folder: Path) -> str:
    """The page of results whose pictures are dots."""
    for picture in planned(results):
        (folder / picture.file).write_bytes(_PIXEL)
    return html.write(results, folder).read_text()


def _parsed(page: str) -> ET.Element:
    doctype, _, rest = page.partition("\n")
    assert doctype == "<!DOCTYPE html>"
    return ET.fromstring(rest)


def _text(element: ET.Element) -> str:
    return "".join(element.itertext())


def _tables(root: ET.Element) -> Iterator[tuple[str, ET.Element]]:
    for table in root.iter("table"):
        caption = table.find("caption")
        assert caption is not None
        yield _text(caption), table


@pytest.fixture
def root(tmp_path: Path) -> ET.Element:
    """The page of a full comparison."""
    return _parsed(_page(make_results(), tmp_path))


def test_nothing_is_fetched_and_nothing_runs(tmp_path: Path) -> None:
    """No reference leaves the page, there is no script, and a policy says so to browsers."""
    page = _page(make_results(), tmp_path)
    root = _parsed(page)
    references = [
        value
        for element in root.iter()
        for name, value in element.attrib.items()
        if name in ("src", "href", "srcset", "data", "action", "poster")
    ]
    assert references
    assert all(each.startswith(("data:", "#")) for each in references)
    style = root.find("head/style")
    assert style is not None
    assert not re.search(r"url\(|@import|expression", _text(style))
    assert not {each.tag for each in root.iter()} & {"script", "iframe", "object", "embed", "base"}
    assert not [name for each in root.iter() for name in each.attrib if name.startswith("on")]
    assert "default-src 'none'" in page


def test_every_figure_is_there(root: ET.Element) -> None:
    """Each subject of each row of each section: its median, its ratio, its verdict; a failed one
    without its figure."""
    for section in make_results().sections:
        part = next(each for each in root.iter("section") if each.get("id") == section.name)
        tables = dict(_tables(part))
        for row in section.rows:
            measure = MEASURES[row.point.measure]
            if measure.group == "survival":
                continue
            title = words.capital(measure.title)
            table = next(table for caption, table in tables.items() if caption.startswith(title))
            bodies = table.findall("tbody")
            rows = [each for each in section.rows if each.point.measure == measure.name]
            lines = {
                _text(line.findall("th")[0]): [_text(cell) for cell in line.findall("td")]
                for line in bodies[rows.index(row)].findall("tr")
                if line.findall("td")
            }
            said = verdicts.said(row, measure)
            assert list(lines) == list(said)
            for name, about in said.items():
                figure = words.quantity(about.figure, measure.unit)
                if about.word is Word.FAILED:
                    assert figure not in lines[name]
                    assert about.text in lines[name]
                else:
                    assert figure in lines[name]
                if about.comparison is not None and about.word is not Word.FAILED:
                    assert any(
                        f"{words.number(about.comparison.ratio)} [" in cell for cell in lines[name]
                    )


def test_survival_counts_what_was_lost(root: ET.Element) -> None:
    """Failures are those of all rounds, and a cell that has some stands out."""
    table = next(table for caption, table in _tables(root) if caption.startswith("What clients"))
    restart = table.findall("tbody")[0]
    lines = {_text(line[0]): line for line in restart.findall("tr")[1:]}
    assert _text(lines["userspace"][1]) == "240 of 12,000 (2.0 %)"
    assert "failed" in str(lines["userspace"][1].get("class"))
    assert _text(lines["nftables"][1]) == "0 of 12,000"
    assert "failed" not in str(lines["nftables"][1].get("class"))
    switches = next(table for caption, table in _tables(root) if caption.startswith("Every mode"))
    assert [_text(each) for each in switches.find("thead/tr") or []][1:] == [
        "userspace",
        "nftables",
    ]
    cells = {
        _text(line[0]): [_text(cell) for cell in line[1:]] for line in switches.findall("tbody/tr")
    }
    assert re.fullmatch(r"[\d.]+ ms; both [\d.]+ ms", cells["iptables-nft"][0])


def test_times_of_survival_have_a_column_where_there_are_any(
    root: ET.Element, tmp_path: Path
) -> None:
    """The slowest of each event, the rules of both modes of switches only; results of versions that
    read neither have the other columns."""
    heads = ["slowest answered, median", "rules of both modes, median"]
    table = next(table for caption, table in _tables(root) if caption.startswith("What clients"))
    shown = [_text(each) for each in table.find("thead/tr") or []]
    assert [each for each in shown if each in heads] == heads
    at = shown.index(heads[1])
    filled = [
        [bool(_text(line[at])) for line in body.findall("tr")[1:]]
        for body in table.findall("tbody")
    ]
    assert [set(each) for each in filled] == [{False}] * 4 + [{True}]
    section = make_section()
    rows = tuple(r for r in section.rows if not r.point.measure.endswith(("-slowest", "-both")))
    (tmp_path / "old").mkdir()
    old = _parsed(_page(make_results(make_section(rows=rows)), tmp_path / "old"))
    table = next(table for caption, table in _tables(old) if caption.startswith("What clients"))
    assert not set(heads) & {_text(each) for each in table.find("thead/tr") or []}


def test_who_lacks_one_reading_of_an_event_lacks_no_event(tmp_path: Path) -> None:
    """An event's name stands for all that is read of it."""
    event = [name for name in MEASURES if name.startswith("kill-")]
    absent = (
        Absent("direct", "switch-both", "it has no rules"),
        *(Absent("relay", name, "it has no daemon") for name in event),
    )
    page = _parsed(_page(make_results(make_section(absent=absent)), tmp_path))
    table = next(table for caption, table in _tables(page) if caption.startswith("What was not"))
    lines = [[_text(cell) for cell in line] for line in table.findall("tbody/tr")]
    assert lines == [
        ["direct", "switch-both", "it has no rules"],
        ["relay", "kill", "it has no daemon"],
    ]


def test_sections_are_not_mixed(root: ET.Element) -> None:
    """User-mode Linux has its own section, warns, and names nobody and no picture of the host's."""
    uml = next(each for each in root.iter("section") if each.get("id") == "uml")
    assert "No figure of this section may be compared" in _text(uml)
    assert "userspace" not in {_text(each) for each in uml.iter("th")}
    assert all("User-mode Linux" in str(each.get("alt")) for each in uml.iter("img"))
    host = next(each for each in root.iter("section") if each.get("id") == "host")
    assert all("ser-mode" not in str(each.get("alt")) for each in host.iter("img"))
    assert list(uml.iter("img"))


def test_it_can_be_read_without_eyes(root: ET.Element) -> None:
    """Pictures have words, tables have captions and heads of a scope, the page a language, and
    every link of the contents leads somewhere."""
    assert root.get("lang") == "en"
    assert all(len(str(each.get("alt"))) > 60 for each in root.iter("img"))
    assert all(each.get("scope") for each in root.iter("th"))
    assert all(table.find("caption") is not None for table in root.iter("table"))
    names = {each.get("id") for each in root.iter()}
    links = [str(each.get("href")) for each in root.iter("a")]
    assert links
    assert all(link.removeprefix("#") in names for link in links)


_EVIL = "<script>alert('1')</script>"
_QUOTED = "\"><img src=x onerror=alert(1)> & 'x'"


def test_names_are_text_and_nothing_else(tmp_path: Path) -> None:
    """Whatever peers, versions, tools, kernels, reasons and commands are called."""
    section = make_section(
        kernel=_EVIL,
        subjects={"direct": _QUOTED, _EVIL: _EVIL},
        rows=(make_row("crr", {"direct": 100.0, _EVIL: 90.0}),),
        absent=(Absent(_QUOTED, "crr", _EVIL), Absent(_EVIL, "udp", _QUOTED)),
        notes=(_EVIL,),
    )
    results = make_results(
        section,
        command=_QUOTED,
        kproxy=_EVIL,
        partial=_EVIL,
        fingerprint=make_fingerprint(cpu=_EVIL, tools={_EVIL: _QUOTED}, sysctls={_QUOTED: _EVIL}),
    )
    root = _parsed(_page(results, tmp_path))
    assert not list(root.iter("script"))
    assert all(str(each.get("src")).startswith("data:") for each in root.iter("img"))
    assert not [name for each in root.iter() for name in each.attrib if name.startswith("on")]
    assert _text(root).count(_EVIL) >= 10
    assert _QUOTED in _text(root)


def test_it_tells_nothing_of_the_machine_but_the_fingerprint(tmp_path: Path) -> None:
    """No path of this tree or of the folder; all else that it could tell is not given to it."""
    page = _page(make_results(), tmp_path)
    assert str(tmp_path) not in page
    assert str(ROOT) not in page


@pytest.mark.parametrize("rounds", [1, 2, 6, 11])
def test_few_rounds_make_a_page_as_well(rounds: int, tmp_path: Path) -> None:
    """One round has no interval, and no verdict is made up for it."""
    root = _parsed(_page(make_results(make_section(rounds=rounds)), tmp_path))
    host = next(each for each in root.iter("section") if each.get("id") == "host")
    verdicts_ = [_text(each) for each in host.iter("td") if "word" in str(each.get("class"))]
    assert ("too few rounds" in verdicts_) == (rounds < 11)
    assert ("slower" in verdicts_) == (rounds >= 11)


def test_nothing_measured_makes_a_page_as_well(tmp_path: Path) -> None:
    """A run that was broken off says so, and why there is nothing."""
    empty = make_section(rows=(), absent=(Absent("direct", "", "it broke"),), subjects={})
    root = _parsed(_page(make_results(empty, partial="interrupted"), tmp_path))
    assert "interrupted" in _text(root)
    assert "Nothing was measured." in _text(root)
    assert "it broke" in _text(root)


@pytest.mark.parametrize(("busy", "warned"), [(0.1, False), (1.7, True)])
def test_a_disturbed_run_warns(busy: float, warned: bool, tmp_path: Path) -> None:
    """What other work kept busy while nothing but direct routing was measured is said."""
    row = make_row("crr", {"direct": 100.0, "nftables": 80.0})
    row = replace(row, costs={"direct": Cost(seconds=2.0, kernel=2.0 * busy)})
    root = _parsed(_page(make_results(make_section(rows=(row,))), tmp_path))
    warnings = [_text(each) for each in root.iter("p") if each.get("class") == "warning"]
    assert warned == any("Other work kept 1.7 processors busy" in each for each in warnings)
    assert warned == bool(warnings)


def test_markup_is_escaped_unless_it_is_ours() -> None:
    """Text in elements and in attributes; markup of ours passes once."""
    inner = tag("b", "<&>", title='"<')
    assert inner == "<b title='\"&lt;'>&lt;&amp;&gt;</b>"
    assert tag("p", inner, ["a<", tag("br_x")]) == f"<p>{inner}a&lt;<br_x></br_x></p>"
    assert isinstance(joined("x"), Html)
    assert tag("img", alt="a & b") == '<img alt="a &amp; b"/>'


def test_a_report_can_be_made_again_from_its_figures(tmp_path: Path) -> None:
    """``python -m kproxy.bench.html`` draws what results.json says; a folder without one is 2."""
    only = make_section(rows=(make_row("crr", {"direct": 100.0, "nftables": 80.0}),))
    store.write(make_results(only), tmp_path)
    command = [sys.executable, "-m", "kproxy.bench.html"]
    subprocess.run([*command, str(tmp_path)], check=True, timeout=120)
    assert {path.name for path in tmp_path.iterdir()} == {
        "results.json",
        "report.html",
        "requests.png",
    }
    image = next(_parsed((tmp_path / html.NAME).read_text()).iter("img"))
    encoded = str(image.get("src")).removeprefix("data:image/png;base64,")
    assert b64decode(encoded) == (tmp_path / "requests.png").read_bytes()
    empty = tmp_path / "empty"
    empty.mkdir()
    refused = subprocess.run(
        [*command, str(empty)], capture_output=True, text=True, check=False, timeout=120
    )
    assert refused.returncode == 2
    assert "results.json" in refused.stderr
