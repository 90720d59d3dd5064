"""Status file, notifications and logs, without a daemon."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from pathlib import Path

import pytest

from kproxy import logs, status
from kproxy.errors import CheckFailed, KernelError, UsageError
from kproxy.sources.files import identity_of


def told(path: Path, word: str = "read") -> status.FileStatus:
    return status.FileStatus(status.identity_text(identity_of(path.stat())), word)


def publish(folder: Path, files: dict[str, status.FileStatus], *, ready: bool = True) -> None:
    state = status.StateDir(folder)
    try:
        state.write(status.Status(1, "n", "iptables", "nft", 0.0, ready=ready, files=files))
    finally:
        state.close()


@pytest.mark.parametrize(
    ("word", "ready", "expected"),
    [
        ("read", True, True),
        ("kept last good", True, True),
        ("settling", True, False),
        ("missing", True, False),
        ("read", False, False),
    ],
)
def test_in_force_by_the_sources_word(
    tmp_path: Path, word: str, ready: bool, expected: bool
) -> None:
    """Only a file that is wholly taken over counts, and only after the first good sync."""
    file = tmp_path / "a.yaml"
    file.write_text("a")
    publish(tmp_path / "state", {str(file): told(file, word)}, ready=ready)
    assert status.in_force(tmp_path / "state", [file]) is expected


def test_in_force_follows_the_disk(tmp_path: Path) -> None:
    """Written anew: not yet. Gone from disk: only when the daemon forgot it. Unknown: no."""
    file, state = tmp_path / "a.yaml", tmp_path / "state"
    assert not status.in_force(state, [])
    file.write_text("a")
    publish(state, {str(file): told(file)})
    assert status.in_force(state, [str(file)])
    file.write_text("longer")
    assert not status.in_force(state, [file])
    file.unlink()
    assert not status.in_force(state, [file])
    publish(state, {})
    assert status.in_force(state, [file])
    file.write_text("b")
    assert not status.in_force(state, [file])


def test_a_directory_that_others_may_write_is_refused(tmp_path: Path) -> None:
    """Somebody who can write there could lead us astray."""
    tmp_path.chmod(0o777)
    with pytest.raises(UsageError, match="written by others"):
        status.StateDir(tmp_path)


def test_the_lock_is_free_after_close(tmp_path: Path) -> None:
    """One holder at a time."""
    first = status.StateDir(tmp_path / "s")
    with pytest.raises(UsageError, match=str(os.getpid())):
        status.StateDir(tmp_path / "s")
    first.close()
    status.StateDir(tmp_path / "s").close()


def test_a_lock_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    """The directory is there, but its lock may not be opened: wrong use, with the path."""
    (tmp_path / "s" / "lock").mkdir(parents=True)
    (tmp_path / "s").chmod(0o700)
    with pytest.raises(UsageError, match=f"{tmp_path}/s: cannot be written"):
        status.StateDir(tmp_path / "s")


def test_a_status_that_cannot_be_written_is_an_error_of_ours(tmp_path: Path) -> None:
    """The directory went away: the file is named."""
    state = status.StateDir(tmp_path / "s")
    (tmp_path / "s").rename(tmp_path / "gone")
    with pytest.raises(KernelError, match="cannot be written"):
        state.write(status.Status(pid=1, node="n", mode="iptables", variant="nft", started_at=0.0))
    state.close()


def test_notifications_reach_the_receiver(tmp_path: Path) -> None:
    """Values arrive as sent; silence is an error that says how long it lasted."""
    notifier = status.Notifier(str(tmp_path / "n"))
    with status.Notifications(tmp_path / "n") as notices:
        notifier.send(READY="1", STATUS="a=b c")
        assert asyncio.run(notices.wait(5)) == {"READY": "1", "STATUS": "a=b c"}
        notifier.send(X="1")
        reached = iter([False, True])
        asyncio.run(notices.until(lambda: next(reached), 5))
        assert notices.receive() is None
        with pytest.raises(CheckFailed, match="0 s"):
            notices.until_sync(lambda: False, 0)
    assert not (tmp_path / "n").exists()
    notifier.send(X="2")  # nobody listens: no harm
    notifier.close()


@pytest.mark.parametrize(
    ("form", "read"),
    [
        ("text", lambda line: line.split("WARNING ")[1]),
        ("json", lambda line: {k: v for k, v in json.loads(line).items() if k != "ts"}),
    ],
)
def test_log_forms(form: str, read: object, capsys: pytest.CaptureFixture[str]) -> None:
    """One entry is one line, whatever is in a field."""
    kept = logging.getLogger().handlers[:], logging.getLogger().level
    try:
        logs.setup(form)
        logs.get("part").warning("said no", why="a b\nc", n=3, empty="")
        logs.get("part").detail("not shown")
    finally:
        logging.getLogger().handlers[:], level = kept
        logging.getLogger().setLevel(level)
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    expected = {
        "text": 'part: said no why="a b\\nc" n=3 empty=""\n',
        "json": {"level": "warning", "logger": "part", "msg": "said no", "why": "a b\nc", "n": 3,
                 "empty": ""},
    }  # fmt: skip
    assert callable(read)
    assert read(line) == expected[form]
