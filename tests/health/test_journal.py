"""The journal of events: written by one, read by many, bounded, and whole after any end."""

from __future__ import annotations

import errno
import json
import os
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kproxy.core.objects import Family, PortName, Protocol
from kproxy.health.journal import FILE, ROTATED, Event, Journal, Kind
from kproxy.health.tail import Tail

WEB = PortName("shop", "web", "http", Protocol.TCP)


def event(number: int = 0, **fields: Any) -> Event:
    given: dict[str, Any] = {
        "node": "node1",
        "at": 1_700_000_000.5 + number,
        "endpoint": f"e{number}",
    }
    return Event.of(Kind.DOWN, WEB, Family.IPV4, "connection refused", **given | fields)


def read(folder: Path) -> list[str]:
    tail = Tail(folder)
    found = [each.endpoint for each in tail.read()]
    assert not tail.unreadable
    tail.close()
    return found


def names(first: int, last: int) -> list[str]:
    return [f"e{number}" for number in range(first, last)]


def size_of(number: int = 0) -> int:
    """Of one line, whose length these tests keep equal."""
    return len(msgspec.json.encode(event(number))) + 1


def test_a_line_is_one_object(tmp_path: Path) -> None:
    """What scripts read: these names, the time in UTC, and nobody else may read it."""
    journal = Journal(tmp_path)
    journal.add([event(endpoint="10.180.0.1:8080")])
    (line,) = (tmp_path / FILE).read_text().splitlines()
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.500000Z",
        "node": "node1",
        "family": 4,
        "kind": "down",
        "service": "shop/web",
        "port": "http",
        "protocol": "TCP",
        "endpoint": "10.180.0.1:8080",
        "reason": "connection refused",
    }
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600
    (seen,) = Tail(tmp_path).read()
    assert seen.time == datetime(2023, 11, 14, 22, 13, 20, 500_000, UTC)
    journal.close()


def test_a_long_reason_is_cut() -> None:
    """It may quote a page of a stranger's server."""
    assert len(Event.of(Kind.DOWN, WEB, Family.IPV4, "x" * 10_000, node="n", at=0.0).reason) == 300


def test_it_survives_a_restart(tmp_path: Path) -> None:
    """A new journal goes on where the last one ended."""
    for number in range(3):
        journal = Journal(tmp_path)
        journal.add([event(number)])
        journal.close()
    assert read(tmp_path) == names(0, 3)


def test_two_files_are_all(tmp_path: Path) -> None:
    """However much is written, at once or bit by bit, the newest is kept and the files bounded."""
    limit = 10 * size_of(100)
    journal = Journal(tmp_path, limit=limit)
    for start in range(100, 200, 5):
        journal.add(map(event, range(start, start + 5)))
    journal.add(map(event, range(200, 245)))
    assert sorted(path.name for path in tmp_path.iterdir()) == [FILE, ROTATED]
    assert all(path.stat().st_size <= limit for path in tmp_path.iterdir())
    assert read(tmp_path) == names(230, 245)


@pytest.mark.parametrize("torn", [b'{"time":"2023', b"x" * 1000])
def test_a_torn_line_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    """A writer that was killed in the middle of a line: the next one begins a line of its own."""
    journal = Journal(tmp_path)
    journal.add([event(0)])
    journal.close()
    with (tmp_path / FILE).open("ab") as file:
        file.write(torn)
    assert read(tmp_path) == names(0, 1)
    after = Journal(tmp_path)
    after.add([event(1)])
    assert read(tmp_path) == names(0, 2)


def test_a_removed_file_is_made_again(tmp_path: Path) -> None:
    """Somebody tidies up: what happens from then on is kept."""
    journal = Journal(tmp_path)
    journal.add([event(0)])
    (tmp_path / FILE).unlink()
    journal.add([event(1)])
    assert read(tmp_path) == names(1, 2)


def test_a_full_disk_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What does not fit is left out as a whole, nothing is raised, and it goes on afterwards."""
    journal = Journal(tmp_path)
    journal.add([event(0)])
    whole = os.write

    def some(file: int, data: bytes) -> int:
        return whole(file, data[: len(data) // 2])

    monkeypatch.setattr(os, "write", some)
    for number in range(1, 4):
        journal.add([event(number)])
    monkeypatch.undo()
    (told,) = caplog.records
    assert told.getMessage() == "events are not kept"
    assert os.strerror(errno.ENOSPC) in told.fields["why"]  # type: ignore[attr-defined]
    journal.add([event(4)])
    assert read(tmp_path) == ["e0", "e4"]


def test_a_folder_that_is_gone_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It ends no proxy; when the folder is there again, events are kept."""
    folder = tmp_path / "state"
    journal = Journal(folder)
    journal.add([event(0)])
    assert len(caplog.records) == 1
    folder.mkdir()
    journal.add([event(1)])
    assert read(folder) == names(1, 2)


def test_a_link_in_the_way_is_not_followed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is ever appended to a file of somebody else's choice."""
    victim = tmp_path / "victim"
    victim.write_text("kept")
    (tmp_path / FILE).symlink_to(victim)
    Journal(tmp_path).add([event(0)])
    assert victim.read_text() == "kept"
    assert len(caplog.records) == 1


# --- reading while it is written -----------------------------------------------------------------


def test_a_reader_follows(tmp_path: Path) -> None:
    """It may begin before there is a journal; each event comes once, in order."""
    tail, journal = Tail(tmp_path), Journal(tmp_path)
    assert tail.read() == []
    seen = []
    for number in range(5):
        journal.add([event(number)])
        seen += [each.endpoint for each in tail.read()]
    assert tail.read() == []
    assert seen == names(0, 5)


@pytest.mark.parametrize("every", [1, 3, 7, 10])
def test_a_reader_follows_through_rotations(tmp_path: Path, every: int) -> None:
    """Nothing is missed or told twice as long as it looks once a rotation."""
    tail, journal = Tail(tmp_path), Journal(tmp_path, limit=10 * size_of(100))
    seen = []
    for number in range(100, 200):
        journal.add([event(number)])
        if number % every == 0:
            seen += [each.endpoint for each in tail.read()]
    seen += [each.endpoint for each in tail.read()]
    assert seen == names(100, 200)


def test_a_late_reader_misses_the_middle_only(tmp_path: Path) -> None:
    """Two rotations between two looks: what is left of all files, each once and in order."""
    tail, journal = Tail(tmp_path), Journal(tmp_path, limit=10 * size_of(100))
    journal.add(map(event, range(100, 105)))
    assert [each.endpoint for each in tail.read()] == names(100, 105)
    for number in range(105, 145):
        journal.add([event(number)])
    # Ours was rotated when it was full, and is held open: it can be read to its end.
    assert [each.endpoint for each in tail.read()] == names(105, 110) + names(130, 145)


def test_a_reader_outlives_a_tidy_admin(tmp_path: Path) -> None:
    """Files removed or emptied under it: it goes on with what comes."""
    tail, journal = Tail(tmp_path), Journal(tmp_path)
    journal.add([event(0)])
    tail.read()
    (tmp_path / FILE).unlink()
    journal.add([event(1)])
    assert [each.endpoint for each in tail.read()] == names(1, 2)
    os.truncate(tmp_path / FILE, 0)
    assert tail.read() == []
    journal.add([event(2)])
    assert [each.endpoint for each in tail.read()] == names(2, 3)


def test_half_a_line_waits_for_its_end(tmp_path: Path) -> None:
    """A reader that looks in the middle of a write reads the line when it is whole."""
    Journal(tmp_path).add([event(0), event(1)])
    whole = (tmp_path / FILE).read_bytes()
    tail = Tail(tmp_path)
    (tmp_path / FILE).write_bytes(whole[:-10])
    assert [each.endpoint for each in tail.read()] == names(0, 1)
    with (tmp_path / FILE).open("ab") as file:
        file.write(whole[-10:])
    assert [each.endpoint for each in tail.read()] == names(1, 2)


def test_a_line_of_another_version_is_counted(tmp_path: Path) -> None:
    """It is left out and stops nothing; members that are not known are no fault."""
    Journal(tmp_path).add([event(0)])
    line = json.loads((tmp_path / FILE).read_text())
    with (tmp_path / FILE).open("a") as file:
        for changed in ({"kind": "exploded"}, {"kind": "up", "colour": "red"}):
            file.write(json.dumps(line | changed) + "\n")
    tail = Tail(tmp_path)
    assert [each.kind for each in tail.read()] == [Kind.DOWN, Kind.UP]
    assert tail.unreadable == 1


def test_a_directory_in_its_place_is_named(tmp_path: Path) -> None:
    """An error without a path helps nobody."""
    (tmp_path / FILE).mkdir()
    with pytest.raises(IsADirectoryError) as failed:
        Tail(tmp_path).read()
    assert failed.value.filename == str(tmp_path / FILE)
