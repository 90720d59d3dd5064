"""Survival measured on this kernel: events happen, clients see what they do, nothing is left."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path as File

import pytest

from kproxy.bench import events
from kproxy.bench.events import Node
from kproxy.bench.held import Outcome
from kproxy.bench.measures.survival import Survival, _readings
from kproxy.bench.ours import PODS, Mode
from kproxy.bench.path import Path
from kproxy.bench.results import Point
from kproxy.bench.window import AFTER, BEFORE, Clients, Seen, watched
from kproxy.core.objects import Family
from kproxy.errors import CheckFailed
from kproxy.kernel import command, netns

#: A second, so that a busy machine can do it.
RATE, HELD = 50.0, 4


@contextmanager
def node(mode: str) -> Iterator[Node]:
    with Node(Mode.named(mode, *PODS), rate=RATE, held=HELD, rolled=1) as made:
        yield made


def children() -> list[str]:
    """Command lines of this process's children."""
    found = []
    for task in File("/proc/self/task").iterdir():
        # A thread or a child may end while they are listed.
        with suppress(FileNotFoundError, ProcessLookupError):
            pids = (task / "children").read_text().split()
            found.extend(File(f"/proc/{pid}/cmdline").read_text() for pid in pids)
    return [each.replace("\0", " ") for each in found]


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("mode", "event"),
    [
        ("iptables-nft", "restart"),
        ("userspace", "restart"),
        ("nftables", "rolling"),
    ],
)
def test_what_nobody_notices(mode: str, event: str) -> None:
    """Every connection is answered, those that are held live on."""
    with node(mode) as made:
        seen = made.seen(event)
    assert seen.started > RATE * (BEFORE + AFTER)
    assert seen.failed == 0
    # A window that was too short counts as well as the longer one after it.
    assert seen.held.survived == seen.held.connections >= HELD


@pytest.mark.kernel
def test_a_relay_that_is_killed_is_missed() -> None:
    """Its connections end with it, and for a second nobody listens; a new process serves."""
    with node("userspace") as made:
        seen = made.seen("kill")
    assert seen.gap > events.AWAY
    assert seen.failed >= RATE * events.AWAY / 2
    assert seen.held.survived == 0


@pytest.mark.kernel
@pytest.mark.parametrize("mode", ["iptables-legacy", "fastpath"])
def test_rules_that_are_deleted_come_back(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It serves afterwards, or there would be no reading; what was deleted was there."""
    monkeypatch.setattr(events, "_REPAIRED", 4.0)  # the daemon may have to wait for a processor
    with node(mode) as made:
        standing = rules(made)
        seen = made.seen("wipe")
        assert standing
        # It may serve one family before the other.
        deadline = time.monotonic() + 30
        while (there := rules(made)) != standing:
            assert time.monotonic() < deadline, there
            time.sleep(0.1)
    assert seen.started > 0


def rules(made: Node) -> int:
    """How many lines of rules there are in the node, the kernel's own aside."""
    with netns.entered(made.path.fd("node")):
        said = [
            command.run(argv).stdout.decode().splitlines()
            for argv in (["iptables-legacy-save", "-t", "nat"], ["nft", "-s", "list", "ruleset"])
        ]
    return sum(not line.startswith(("#", ":")) for lines in said for line in lines)


@pytest.mark.kernel
def test_a_window_that_was_too_short_is_made_again() -> None:
    """What happens longer than there is load would be seen in part only."""
    happened = []

    def happens() -> None:
        happened.append(True)
        if len(happened) == 1:
            threading.Event().wait(1.0)

    with Path() as path:
        target = path.pod_place(Family.IPV4)
        clients = Clients(path.client, path.fd("client"), target, rate=RATE, held=HELD)
        seen = watched(clients, happens, within=0.1)
    assert len(happened) == 2
    assert seen.seconds < 1.0
    assert seen.failed == 0


@pytest.mark.kernel
def test_who_waited_for_a_second_syn_is_the_slowest() -> None:
    """A hole that is shorter than a retransmission fails nobody, and others are answered all the
    while: the silence does not show it, the slowest does."""
    dropped = (
        "table ip hole {\n chain c {\n type filter hook prerouting priority raw\n"
        "tcp flags & (syn | ack) == syn numgen random mod 4 0 counter drop\n }\n}\n"
    )

    def happens() -> None:
        argv = ["nft", "-f", "-"]
        command.run(argv, stdin=dropped.encode(), namespace=path.fd("node"))
        # A client that has no turn in all that time loses nothing: it is waited for.
        for _ in range(100):
            threading.Event().wait(0.2)
            said = command.run(["nft", "list", "ruleset"], namespace=path.fd("node")).stdout
            if b"counter packets 0 " not in said:
                break
        command.run(["nft", "flush", "ruleset"], namespace=path.fd("node"))

    with Path() as path:
        target = path.pod_place(Family.IPV4)
        clients = Clients(path.client, path.fd("client"), target, rate=200.0, held=HELD)
        seen = watched(clients, happens, within=1.5)
    assert seen.slowest > 1.0
    assert seen.failed < seen.started / 10


@pytest.mark.kernel
def test_where_nobody_answers_there_is_no_reading() -> None:
    """Neither before nor after: that is no event's doing."""
    with Path() as path:
        target = path.pod_place(Family.IPV4)
        clients = Clients(path.client, path.fd("client"), (target[0], 9), rate=RATE, held=0)
        with pytest.raises(CheckFailed, match="nothing was answered"):
            watched(clients, lambda: None, within=0.1)


@pytest.mark.kernel
def test_nothing_is_left_after_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of an event: no namespace, no process of the turn is there afterwards."""
    monkeypatch.setattr(secrets, "token_hex", lambda count: "c0ffee")

    def interrupted(node: Node) -> Seen:
        assert any("kproxy run" in each for each in children())
        raise KeyboardInterrupt

    before = set(children())  # the suite's machine with IPVS
    monkeypatch.setattr(events, "EVENTS", {"kill": interrupted})
    with Survival(["userspace"], events=["kill"]) as group, pytest.raises(KeyboardInterrupt):
        group.turn("userspace")
    assert [each for each in os.listdir(netns.RUN_DIR) if "c0ffee" in each] == []
    assert [each for each in children() if "kproxy" in each and each not in before] == []


@pytest.mark.kernel
def test_a_switch_is_read_as_a_whole_and_by_its_target() -> None:
    """With two modes there is one other; the lab is gone with the group."""
    modes = ["iptables-nft", "nftables"]
    with Survival(modes, events=["switch"], rate=RATE, held=HELD) as group:
        found = group.turn("iptables-nft")
    whole = {Point(f"switch-{name}") for name in ("failed", "gap", "slowest", "held", "both")}
    assert set(found) == whole | {Point(each.measure, where="nftables") for each in whole}
    assert found[Point("switch-failed")].figure.failures == 0
    assert found[Point("switch-held")].figure.value == 1.0
    assert found[Point("switch-both")].figure.value > 0


@pytest.mark.kernel
def test_who_has_no_figure_is_told_why() -> None:
    """Each subject and measure has either a turn or a reason."""
    wanted = ["direct", "iptables-nft", "haproxy", "nft-dnat"]
    group = Survival(wanted, events=["kill", "wipe", "switch"])
    without = {(each.subject, each.measure) for each in group.absent}
    assert all(each.reason for each in group.absent)
    assert "direct" in group.subjects
    assert ("nft-dnat", "kill-gap") in without
    assert ("haproxy", "wipe-failed") in without
    # The only mode there is cannot be switched to another one.
    assert ("iptables-nft", "switch-held") in without
    assert ("iptables-nft", "kill-gap") not in without
    # Nothing is translated by direct routing, before or after.
    assert ("direct", "switch-both") in without
    assert ("direct", "switch-slowest") not in without


def test_what_is_read_of_a_window() -> None:
    """Shares with what they were counted from, times as they are."""
    seen = Seen(1.0, 400, 4, 0.5, 1.2, Outcome(40, 35, 0.0), both=0.03)
    found = {point.measure: reading.figure for point, reading in _readings("kill", seen).items()}
    assert (found["kill-failed"].value, found["kill-failed"].failures) == (0.01, 4)
    assert found["kill-gap"].value == 0.5
    assert found["kill-slowest"].value == 1.2
    assert found["kill-both"].value == 0.03
    assert (found["kill-held"].value, found["kill-held"].failures) == (0.875, 5)
