"""What checks have found, kept over a restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from kproxy.core.health.values import Check, Checked, Ejected, Grpc, Http, Pace, Target, Tcp, Udp
from kproxy.core.objects import PortName, Protocol
from kproxy.health.memory import BELIEVED, FILE, Memory

PROBES = (Tcp(), Http(headers=(("A", "b"),)), Udp(send=b"\x00\xff", expect=b"x"), Grpc(service="s"))
NAME = PortName("ns1", "web", "http", Protocol.TCP)
KNOWN = (
    *[
        Checked(Target(Check(probe, Pace(rise=5)), ip, 80), up, "because", 17.25)
        for probe in PROBES
        for ip, up in (("10.0.0.1", True), ("2001:db8::1", False))
    ],
    Ejected(NAME, "10.0.0.2", 80, True, "3 resets", 18.5),
)


def test_what_was_kept_is_recalled(tmp_path: Path) -> None:
    """All of it, by a file for its owner alone; the last one counts."""
    Memory(tmp_path).keep(KNOWN[:1], now=99.0)
    Memory(tmp_path).keep(KNOWN, now=100.0)
    assert Memory(tmp_path).recall(now=101.0) == KNOWN
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


@pytest.mark.parametrize("now", [1000.0 + BELIEVED + 1, 1000.0 - BELIEVED - 1])
def test_old_knowledge_is_none(tmp_path: Path, now: float) -> None:
    """Nor is what comes from the future."""
    Memory(tmp_path).keep(KNOWN, now=1000.0)
    assert Memory(tmp_path).recall(now=now) == ()
    assert Memory(tmp_path).recall(now=1000.0 + BELIEVED - 1) == KNOWN


@pytest.mark.parametrize(
    "content", [b"", b"\xff{", b"{}", b'{"saved":1,"checks":[],"opinions":[[3,"a",1,true,"",0]]}']
)
def test_a_broken_file_is_told(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """The daemon starts without it."""
    (tmp_path / FILE).write_bytes(content)
    assert Memory(tmp_path).recall(now=1.0) == ()
    assert "is lost" in caplog.text


def test_no_file_is_nothing_to_tell(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The first start."""
    assert Memory(tmp_path).recall() == ()
    assert caplog.text == ""


def test_a_lack_of_room_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And ends nothing."""
    memory = Memory(tmp_path / "gone")
    memory.keep(KNOWN)
    memory.keep(KNOWN)
    assert caplog.text.count("a restart would forget") == 1
