"""The group of traffic, with real subjects on real paths: every figure is there, what does not
serve is left out with its reason, and nothing stands longer than it should."""

from __future__ import annotations

from pathlib import Path as File

import pytest
from msgspec.structs import replace

from kproxy.bench import measure
from kproxy.bench.load import Load
from kproxy.bench.measure import Taken
from kproxy.bench.measures import traffic
from kproxy.bench.measures.traffic import LOADS, MEASURES, Traffic
from kproxy.bench.path import Path
from kproxy.bench.peers import Subject
from kproxy.bench.results import Point
from kproxy.errors import CheckFailed

#: Long enough for whole hundredths of a second; a busy machine makes loads longer itself.
SECONDS = 0.1

#: Subjects of a user's own: one that tells what is done with it, and two that fail.
OWN = """
from pathlib import Path
from kproxy.bench.peers import Direct

class Telling(Direct):
    def __init__(self):
        super().__init__("telling")
    def _tell(self, what):
        with Path(__file__).with_suffix(".told").open("a") as told:
            told.write(what)
    def start(self, path):
        super().start(path)
        self._tell("+")
    def stop(self):
        super().stop()
        self._tell("-")

class Closed(Direct):
    def __init__(self):
        super().__init__("closed")
    def place(self, family):
        return super().place(family)[0], 9

class Ending(Direct):
    asked = 0
    def __init__(self):
        super().__init__("ending")
    def place(self, family):
        self.asked += 1
        host, port = super().place(family)
        return host, port if self.asked == 1 else 9
"""


@pytest.fixture
def own(tmp_path: File) -> str:
    file = tmp_path / "own.py"
    file.write_text(OWN)
    return str(file)


def points(*names: str) -> set[Point]:
    return {Point(name) for name in names or MEASURES}


def test_each_measure_is_of_one_load() -> None:
    """And each load is there for some."""
    shown = [each.measure.name for _, of in LOADS.values() for each in of]
    assert sorted(shown) == sorted(MEASURES)
    assert {each.better for each in MEASURES.values() if each.unit == "s"} == {"lower"}
    assert {each.better for each in MEASURES.values() if each.unit != "s"} == {"higher"}


@pytest.mark.kernel
def test_every_figure_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """In each round, for each who serves: without failures, with what it cost, and with the
    distribution of whatever is a wait."""
    # That nothing fails is of the path; a machine that stands still for a second is another matter.
    patient = {name: (replace(load, timeout=30.0), shown) for name, (load, shown) in LOADS.items()}
    monkeypatch.setattr(traffic, "LOADS", patient)
    with Traffic(["relay", "nftables"], seconds=SECONDS) as group:
        assert list(group.subjects) == ["direct", "relay", "nftables"]
        assert not group.absent
        rounds = [{name: group.turn(name) for name in group.subjects} for _ in range(2)]
    for name in group.subjects:
        assert all(set(found[name]) == points() for found in rounds)
        for point in points():
            readings = [found[name][point] for found in rounds]
            assert all(each.figure.value > 0 for each in readings)
            assert not any(each.figure.failures for each in readings)
            waits = point.measure not in ("stream1", "stream4", "udp")
            assert all(bool(each.histogram) is waits for each in readings)
    for found in rounds:
        costs = {name: reading[Point("crr")].cost for name, reading in found.items()}
        assert costs["direct"].proxy == costs["direct"].memory == 0
        assert costs["relay"].proxy > 0
        assert costs["nftables"].memory > costs["relay"].memory > 0


@pytest.mark.kernel
def test_who_carries_no_datagrams_has_no_such_figure() -> None:
    """It is said, and the other figures are there."""
    with Traffic(["haproxy"], seconds=SECONDS, measures=["udp", "rr"]) as group:
        assert [(each.subject, each.measure) for each in group.absent] == [("haproxy", "udp")]
        assert set(group.turn("direct")) == points("udp", "rr")
        assert set(group.turn("haproxy")) == points("rr")


@pytest.mark.kernel
@pytest.mark.parametrize(("fresh", "told"), [(False, "+-"), (True, "+-+-")])
def test_what_stands_how_long(own: str, fresh: bool, told: str) -> None:
    """From the first round to the last, or for one turn; and it is ended either way."""
    with Traffic([f"{own}:Telling"], seconds=SECONDS, fresh=fresh, measures=["rr"]) as group:
        for _ in range(2):
            assert set(group.turn("telling")) == points("rr")
    assert File(own).with_suffix(".told").read_text() == told


@pytest.mark.kernel
def test_who_does_not_serve_is_left_out(own: str) -> None:
    """With the reason, for every measure; the others go on."""
    with Traffic([f"{own}:Closed"], seconds=SECONDS, measures=["rr", "crr"]) as group:
        assert list(group.subjects) == ["direct"]
        assert {(each.subject, each.measure) for each in group.absent} == {
            ("closed", "rr"),
            ("closed", "crr"),
        }
        assert all("does not serve: " in each.reason for each in group.absent)
        assert group.turn("direct")


@pytest.mark.kernel
def test_a_load_that_is_not_answered_is_no_figure(own: str) -> None:
    """It is an error with what failed."""
    with (
        Traffic([f"{own}:Ending"], seconds=SECONDS, measures=["crr"]) as group,
        pytest.raises(CheckFailed, match=r"nothing was answered \(\d+ refused"),
    ):
        group.turn("ending")


@pytest.mark.kernel
def test_a_moment_of_the_machine_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A load in which nothing happened at all is made again, longer, which the reading tells; and
    not for ever."""
    asked: list[float] = []
    on = measure.on

    def nothing(path: Path, subject: Subject, load: Load) -> Taken:
        asked.append(load.seconds)
        taken = on(path, subject, Load(load.kind, operations=10, seconds=60))
        if len(asked) == 3:
            return taken
        return replace(taken, result=replace(taken.result, completed=0, failures={}))

    monkeypatch.setattr(measure, "on", nothing)
    with Traffic(["direct"], seconds=1.0, measures=["crr"]) as group:
        assert {each.again for each in group.turn("direct").values()} == {2}
        assert asked == [1.0, 4.0, 16.0]
        with pytest.raises(CheckFailed, match="and nothing failed"):
            group.turn("direct")
        assert asked[3:] == [1.0, 4.0, 16.0, 64.0]
