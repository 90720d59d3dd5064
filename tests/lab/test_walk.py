"""netns-lab/README.md, walked: every command in it is run, and prints what is written there."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kproxy.lab import catalogue, lifecycle, state
from tests.conftest import ROOT
from tests.lab import walk
from tests.lab.walk import Broken, Section, Shell, Step, Untrue

#: As long as the name that a lab has by default, so that tables look as in the text.
LAB = "fwk"

README = ROOT / "netns-lab" / "README.md"
SECTIONS = walk.read(README.read_text())

#: Commands whose options say that they are for a kernel that this machine may lack.
_MARKS = {"--mode ipvs": pytest.mark.ipvs}


def environment() -> dict[str, str]:
    """A user's, after `source .venv/bin/activate`, but for which lab is meant."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "KPROXY_LAB": LAB}


@pytest.fixture
def shell(section: Section) -> Iterator[Shell]:
    """In the clone; the lab that is brought up in it goes with it."""
    lifecycle.down(LAB)
    if section.steps[0].command == "netns-lab/up --down":
        # As `netns-lab/up` leaves it.
        lifecycle.up(LAB, catalogue.load("standard"), lifecycle.mode_of("iptables"))
    with Shell(ROOT, environment()) as made:
        yield made
    lifecycle.down(LAB)
    state.forget_allocations(LAB)


def of_section(section: Section) -> object:
    marks = {
        mark.name: mark
        for step in section.steps
        for option, mark in _MARKS.items()
        if option in step.command
    }
    name = "-".join(re.findall(r"\w+", section.title)).lower()
    return pytest.param(section, id=name, marks=list(marks.values()) or [pytest.mark.kernel])


@pytest.mark.parametrize("section", [of_section(section) for section in SECTIONS])
def test_what_is_written_is_so(section: Section, shell: Shell) -> None:
    """Every command of a section, in order, in a lab of the test's own; and each word of what is
    expected counts: with another one in its place the output does not fit."""
    idle = []
    for done in walk.walk(section.steps, shell):
        for word, other in walk.falsified(done.step.expected):
            if walk.fits(other, done.lines):
                idle.append(f"line {done.step.line}: {word}")
    assert idle == []


# --- what the text may hold ---------------------------------------------------------------------


def test_every_mode_has_its_section() -> None:
    """Each with a lab of its own that is taken down again."""
    commands = {section.title: [step.command for step in section.steps] for section in SECTIONS}
    ups = [line for lines in commands.values() for line in lines if " lab up " in line]
    modes = {shlex.split(line)[-1] for line in ups}
    assert modes == {
        "userspace", "iptables-nft", "iptables-legacy", "ipvs", "nftables", "fastpath",
    }  # fmt: skip
    for lines in commands.values():
        assert lines[-1] == "kproxy lab down"


#: What stands at the beginning of a line that is typed, and reaches nothing but the lab and files
#: of its own; and what may read its output.
_HARMLESS = (
    r"kproxy (lab|render|events|fastpath replay) .*",
    r"kproxy events",
    r"netns-lab/up --down",
    r"wait|kill \$!",
    r"(answers|folder)=\$\(mktemp( -d)?\)",
    r"grep -c \S+ \$answers|rm \$answers|rm -r \$folder",
)
_FILTERS = {"grep", "sort", "uniq"}


def test_only_the_lab_is_touched() -> None:
    """Whatever is not kproxy is run inside, or reads what kproxy printed."""
    for section in SECTIONS:
        for step in section.steps:
            first, *others = re.split(r"\s\|\s", step.command.partition("\n")[0])
            assert any(re.fullmatch(form, first) for form in _HARMLESS), step
            assert {other.split()[0] for other in others} <= _FILTERS, step


def test_code_in_sentences_is_run_too() -> None:
    """What a sentence or a table calls by a whole command is part of one that is run."""
    run = [step.command for section in SECTIONS for step in section.steps]
    programs = {word for line in run for word in re.findall(r"(?:^|\s)([a-z][\w-]+)(?=\s)", line)}
    claimed = [
        code
        for code in walk.inline(README.read_text())
        if " " in code and code.split()[0] in programs
    ]
    assert claimed
    assert [code for code in claimed if not any(code in line for line in run)] == []


def anchors(file: Path) -> set[str]:
    """What a link may name after #: GitHub's form of the headings."""
    titles = re.findall(r"(?m)^#+ (.*)$", file.read_text())
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", ["netns-lab/README.md", "docs/lab.md", "docs/scenarios.md"])
def test_links_lead_somewhere(name: str) -> None:
    """To a file that is there, and to a heading in it."""
    here = ROOT / name
    targets = re.findall(r"\]\(([^)\s]+)\)", here.read_text())
    assert targets
    for target in targets:
        path, _, anchor = target.partition("#")
        file = (here.parent / path).resolve() if path else here
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


# --- that a text which is not so fails ----------------------------------------------------------


def text(*lines: str, info: str = "console") -> str:
    return "\n".join(["## It", f"```{info}", *lines, "```"])


@pytest.fixture
def plain() -> Iterator[Shell]:
    with Shell(ROOT, environment()) as made:
        yield made


@pytest.mark.parametrize(
    "lines",
    [
        ["$ echo one"],
        ["$ echo one", "two"],
        ["$ echo one", "one", "two"],
        ["$ echo one; echo two", "one"],
        ["$ echo one; echo two", "two", "one"],
        ["$ echo one; echo two; echo three", "one", "…", "four"],
        ["$ echo one two three", "one … four"],
        ["$ true", "one"],
        ["$ echo one; false", "one"],
        ["$ echo one >&2"],
        ["$ (exit 3)"],
    ],
)
def test_a_falsehood_is_found(lines: list[str], plain: Shell) -> None:
    """Another word, a line too many, one too few, another order, another status."""
    (section,) = walk.read(text(*lines))
    with pytest.raises(Untrue, match="line 3"):
        list(walk.walk(section.steps, plain))


@pytest.mark.parametrize(
    "lines",
    [
        ["$ true"],
        ["$ echo one", "one"],
        ["$ echo 'one   two'; echo three >&2", "one two", "three"],
        ["$ echo one; echo two; echo three", "one", "…"],
        ["$ echo one", "…", "one", "…"],
        ["$ echo one 2 three", "one … three"],
        ["$ cat <<'EOF'", "> one", ">   two", "> EOF", "one", "two"],
        ["$ x=1", "$ echo $x", "1"],
        ["$ cat"],
        ["$ sleep 60 & echo $(jobs -r | wc -l)", "1"],
    ],
)
def test_the_truth_is_believed(lines: list[str], plain: Shell) -> None:
    """Elided words and lines, blanks, several lines, what an earlier command set; nobody waits for
    input or for what runs in the background."""
    (section,) = walk.read(text(*lines))
    assert len(list(walk.walk(section.steps, plain))) == len(section.steps)


def test_what_comes_by_itself_is_awaited(plain: Shell) -> None:
    """Typed again until it is as written, and not for ever."""
    (section,) = walk.read(text("$ x=$((x + 1)); echo $x", "3", info="console until"))
    (done,) = walk.walk(section.steps, plain)
    assert done.lines == ("3",)


def test_falsified() -> None:
    """One for each word with a letter or a digit."""
    found = list(walk.falsified(("a-9 … x", "…", "->")))
    assert found == [("a-9", ("x-9 … x", "…", "->")), ("x", ("a-9 … y", "…", "->"))]


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (["```sh", "$ ls", "```"], "a block of sh"),
        (["```", "ls", "```"], "a block of no kind"),
        (["```console", "$ ls"], "has no end"),
        (["```console", "ls", "```"], "does not begin with a command"),
        (["```console", "$ ls", "…", "```"], "has no word"),
        (["    ls"], "indented"),
    ],
)
def test_no_command_hides(lines: list[str], why: str) -> None:
    """A block that is not run is an error, and so is an expectation that anything meets."""
    with pytest.raises(Broken, match=why):
        walk.read("\n".join(["## It", *lines]))


def test_a_step_knows_its_line() -> None:
    """Counted from 1 in the whole text, so that an editor finds it."""
    (section,) = walk.read("\n".join(["", text("$ a", "$ b", "c")]))
    assert section.steps == (Step(4, "a"), Step(5, "b", ("c",)))
