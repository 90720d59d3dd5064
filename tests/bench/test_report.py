"""What processes use is seen, and results say where they were taken without saying whose it is."""

from __future__ import annotations

import getpass
import mmap
import os
import socket
from pathlib import Path

import msgspec
import pytest

from kproxy.bench import report, usage
from kproxy.bench.load import Kind, Load
from kproxy.bench.peers import Direct
from kproxy.bench.subjects import AGAIN, DIRECT, made
from kproxy.errors import UsageError
from tests.conftest import ROOT


def test_cpu_time_grows_with_work() -> None:
    """What a process computes is in its seconds, and in the machine's."""
    me = [os.getpid()]
    before, machine = usage.cpu_seconds(me), usage.machine_seconds()
    while os.times().user + os.times().system < 0.2 or usage.cpu_seconds(me) < before + 0.1:
        sum(range(10_000))
    assert usage.cpu_seconds(me) >= before + 0.1
    assert usage.machine_seconds() > machine


def test_memory_is_what_is_touched() -> None:
    """Sixteen megabytes that are written to are sixteen more, shared with nobody."""
    me = [os.getpid()]
    before = usage.memory(me)
    # Not from the heap, which may have it to spare.
    taken = mmap.mmap(-1, 16 << 20)
    taken.write(b"\1" * (16 << 20))
    after = usage.memory(me)
    assert after.pss - before.pss >= 15 << 20
    # Counted by each processor for itself, and added up now and then.
    assert after.rss - before.rss >= 12 << 20
    assert len(taken) == 16 << 20


def test_descriptors_are_counted() -> None:
    """One that is opened is one more."""
    before = usage.descriptors([os.getpid()])
    with Path(os.devnull).open():
        assert usage.descriptors([os.getpid()]) == before + 1


def test_fingerprint_names_no_one() -> None:
    """What decides about figures is there; no host name, no user, no path is."""
    found = report.fingerprint([Direct()])
    text = msgspec.json.encode(found).decode()
    assert found["cores"] == os.cpu_count()
    assert found["kernel"] in found["subjects"][DIRECT]
    assert found["sysctls"]["node (tuned): net.ipv4.tcp_tw_reuse"] == "1"
    assert found["sysctls"]["node (stock): net.ipv4.tcp_tw_reuse"] == "2"
    for name in (socket.gethostname(), getpass.getuser(), str(ROOT)):
        assert f'"{name}' not in text


def test_results_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is saved can be read again."""
    monkeypatch.setattr(report, "FOLDER", tmp_path / "results")
    load = Load(Kind.UDP, seconds=1.5)
    path = report.save("one", {"load": load})
    kept = msgspec.json.decode(path.read_bytes())
    assert msgspec.convert(kept["load"], Load) == load
    assert kept["date"].count("-") == 2


def test_subjects_are_known_by_name() -> None:
    """A name stands for one subject; another name is refused with those that there are."""
    assert [each.name for each in made([DIRECT, AGAIN, "nginx"]).values()] == [
        "direct",
        "direct again",
        "nginx",
    ]
    with pytest.raises(UsageError, match="no subject envoy; there are"):
        made(["envoy"])


@pytest.mark.parametrize(
    ("load", "words"),
    [
        (
            Load(Kind.CRR, connections=16, closer="reset"),
            "connect/request/response/close, 16 at once, 64/64 bytes, the client resets",
        ),
        (
            Load(Kind.CRR, rate=100),
            "connect/request/response/close, at 100/s, 64/64 bytes, the client closes",
        ),
        (Load(Kind.RR, connections=64), "requests on 64 kept connections, 64/64 bytes"),
        (Load(Kind.STREAM, connections=4, direction="up"), "4 streams up"),
        (
            Load(Kind.UDP, response_bytes=0),
            "64-byte datagrams from 1 sockets, one way, as fast as it goes",
        ),
    ],
)
def test_loads_say_what_they_are(load: Load, words: str) -> None:
    """Who closes first stands in the words, and the loop."""
    assert str(load) == words
