"""What waits for a sync: kept in order, counted once, handed over whole."""

from __future__ import annotations

import msgspec

from kproxy.core.events import Delta
from kproxy.core.health.values import Check, Checked, Target, Tcp
from kproxy.core.tracker import Counts
from kproxy.inbox import Batch, Inbox
from kproxy.look import Look
from kproxy.status import FileStatus
from tests.factories import make_node, make_service

ONE = Delta((make_service("one"),))
TWO = Delta((make_service("one"), make_service("two"), make_node()))
TARGET = Target(Check(Tcp()), "10.180.0.1", 8080)
SEEN = tuple(Checked(TARGET, up, "told", float(at)) for at, up in enumerate((True, False, True)))
FILES = {"web.yaml": FileStatus("1", "read")}


def test_a_sync_gets_all_that_came() -> None:
    """Deltas in order, the files and refusals of the last look; then nothing waits."""
    inbox = Inbox()
    inbox.put(Look(ONE, refusals=("a",), known=True))
    inbox.put(Look(TWO, FILES, ("b",), known=True))
    inbox.addresses_moved()
    assert inbox.take() == Batch((ONE, TWO), True, FILES, ("b",))
    assert inbox.take() == Batch((), False, FILES, ("b",))


def test_pending_objects_are_counted_once() -> None:
    """By object and not by change; Nodes are no kind that is counted."""
    inbox = Inbox()
    inbox.put(Look(ONE))
    inbox.put(Look(TWO))
    assert inbox.pending == Counts(2, 0)
    assert inbox.take_deltas() == (ONE, TWO)
    assert inbox.pending == Counts(0, 0)


def test_a_look_that_says_nothing_new() -> None:
    """Told as such, but for a change of a file that changed no object."""
    inbox = Inbox()
    look = Look(ONE, FILES, known=True)
    assert not inbox.known
    assert inbox.put(look) == []
    assert inbox.known
    assert inbox.put(msgspec.structs.replace(look, delta=Delta())) is None
    broken = msgspec.structs.replace(look, delta=Delta(), files={})
    assert inbox.put(broken) == []


def test_notices_are_new_once() -> None:
    """What the last look said already is not said again; what was gone is."""
    inbox = Inbox()
    told = [inbox.put(Look(ONE, notices=notices)) for notices in (("a",), ("a", "b"), (), ("a",))]
    assert told == [["a"], ["b"], [], ["a"]]


def test_observations_wait_for_one_sync() -> None:
    """In order, and they are no objects that are pending."""
    inbox = Inbox()
    inbox.put(Look(ONE, known=True))
    inbox.take()
    inbox.observe(SEEN[:1])
    inbox.observe(SEEN[1:])
    assert inbox.pending == Counts(0, 0)
    assert inbox.take() == Batch((), False, {}, (), SEEN)
    assert inbox.take().observations == ()
