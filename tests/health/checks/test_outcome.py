"""Whose fault an error is, and how it reads."""

from __future__ import annotations

import errno

import pytest

from kproxy.health.checks.outcome import Outcome, bad, no_answer, of_errno, own
from kproxy.health.checks.text import quoted


@pytest.mark.parametrize(
    ("code", "at_once", "outcome"),
    [
        (errno.ECONNREFUSED, False, bad("connection refused")),
        (errno.ECONNRESET, False, bad("connection reset")),
        (errno.EHOSTUNREACH, False, bad("no route to host")),
        (errno.EHOSTUNREACH, True, bad("no route to host")),
        (errno.EINVAL, True, bad("no route to host")),
        (errno.ENETUNREACH, False, bad("network unreachable")),
        (errno.ENETUNREACH, True, own("this node has no route there")),
        (errno.EMFILE, True, own("this process has no descriptor left")),
        (errno.ENFILE, False, own("this node has no open file left")),
        (errno.EADDRNOTAVAIL, True, own("this node has no local port or address left")),
        (errno.EPERM, True, own("this node's own rules forbid it")),
        (errno.EISDIR, False, bad("is a directory")),
        (None, False, bad("connection failed")),
        (0, False, bad("connection failed")),
    ],
)
def test_errors(code: int | None, at_once: bool, outcome: Outcome) -> None:
    """An error of this node's own is never the endpoint's."""
    assert of_errno(code, at_once=at_once) == outcome


@pytest.mark.parametrize(("seconds", "text"), [(1.0, "1s"), (0.25, "0.25s"), (90, "90s")])
def test_running_out_of_time(seconds: float, text: str) -> None:
    """Times read as they are written in annotations."""
    assert no_answer(seconds).reason == f"no answer in {text}"


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"PONG", '"PONG"'),
        (b"\x1b[31m\r\n\xff", '"\\x1b[31m\\r\\n\\xff"'),
        ("ä b", '"ä b"'),
        (b"x" * 81, f'"{"x" * 80}…"'),
        (b"\xe2\x82\xac" * 81, f'"{"€" * 80}…"'),
        (b"", '""'),
    ],
)
def test_what_others_sent_is_shown_harmlessly(raw: bytes | str, text: str) -> None:
    """One short line that no terminal obeys."""
    assert quoted(raw) == text
