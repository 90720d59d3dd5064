"""Who can be measured: by name, or a class of a user's own; and who cannot run here says why."""

from __future__ import annotations

from pathlib import Path as File

import pytest

from kproxy.bench.ours import MODES
from kproxy.bench.peers import Subject
from kproxy.bench.subjects import COMPARED, SUBJECTS, made, parted
from kproxy.errors import UsageError

#: A user's file: one class that serves, one that lacks something, one that is none.
OWN = """
from kproxy.bench.peers import Direct, Subject

class Mine(Direct):
    def __init__(self):
        super().__init__("mine")

class Elsewhere(Mine):
    def absent(self):
        return "not on this machine"

class Nameless(Subject):
    def start(self, path): ...
    def place(self, family): ...
    def stop(self): ...

class Idle(Subject):
    name = "idle"

other = 7
"""


@pytest.fixture
def own(tmp_path: File) -> str:
    folder = tmp_path / "a=b"
    folder.mkdir()
    file = folder / "own.py"
    file.write_text(OWN)
    return str(file)


def test_every_compared_subject_is_known_by_its_name() -> None:
    """What tables call it is what it is asked for by; every mode is among them."""
    assert {*MODES} < {*COMPARED} <= {*SUBJECTS}
    assert {name: subject.name for name, subject in made(COMPARED).items()} == {
        name: name for name in COMPARED
    }


@pytest.mark.parametrize(("prefix", "name"), [("", "mine"), ("theirs=", "theirs")])
def test_a_class_of_ones_own(own: str, prefix: str, name: str) -> None:
    """By file and class, under its own name or another."""
    found = made(["direct", f"{prefix}{own}:Mine"])
    assert list(found) == ["direct", name]
    assert isinstance(found[name], Subject)
    assert found[name].name == name


def test_a_class_of_an_installed_module() -> None:
    assert list(made(["kproxy.bench.peers:Direct"])) == ["direct"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["nobody"], "no subject nobody"),
        (["direct", "direct"], "two subjects are called direct"),
        (["direct", "kproxy.bench.peers:Direct"], "two subjects are called direct"),
        (["no.such.module:Mine"], "no module no"),
        (["/nowhere/own.py:Mine"], "no such file"),
        (["{own}:Missing"], "there is no Missing"),
        (["{own}:other"], "other is no subject"),
        (["{own}:Nameless"], "Nameless has no name"),
        (["{own}:Idle"], "Idle has no place, start, stop"),
    ],
)
def test_who_is_none(own: str, asked: list[str], said: str) -> None:
    """Each fault by its name, before anything is measured."""
    with pytest.raises(UsageError, match=said):
        made([each.format(own=own) for each in asked])


def test_who_cannot_run_says_why(own: str) -> None:
    """The others remain, in the order asked for."""
    present, lacking = parted([f"{own}:Elsewhere", "relay", f"theirs={own}:Mine", "direct"])
    assert list(present) == ["relay", "theirs", "direct"]
    assert lacking == {"mine": "not on this machine"}


@pytest.mark.kernel
def test_everybody_runs_here_or_says_what_is_missing() -> None:
    """Probes leave nothing, and whatever they find has a version."""
    present, lacking = parted(COMPARED)
    assert {*present, *lacking} == {*COMPARED}
    assert {"direct", "direct again", "relay", "userspace", "nftables"} <= {*present}
    assert all(subject.version() for subject in present.values())
    assert all(len(reason) > 10 for reason in lacking.values())
