"""Changes are accumulated per object and forgotten when they cancel out."""

from __future__ import annotations

import pytest

from kproxy.core.events import Delta, ref_of
from kproxy.core.tracker import Changes, Counts, Tracker
from tests.factories import make_node, make_service, make_slice, service_key

A, B, C = (service_key(name) for name in ("a", "b", "c"))
SERVICE_A = make_service("a")
SLICE_A = make_slice("10.180.0.1", service="a", name="s")
SLICE_A2 = make_slice("10.180.0.2", service="a", name="s")
SLICE_B = make_slice("10.180.0.1", service="b", name="s")
SLICE_C = make_slice("10.180.0.1", service="c", name="s")


def up(*objects):
    return Delta(upserted=objects)


def down(*objects):
    return Delta(deleted=tuple(ref_of(obj) for obj in objects))


@pytest.mark.parametrize(
    ("before", "steps", "services", "counts"),
    [
        pytest.param([], [up(SERVICE_A)], {A}, (1, 0), id="new service"),
        pytest.param([], [up(SLICE_A)], {A}, (0, 1), id="slice before its service"),
        pytest.param([up(SERVICE_A)], [up(SERVICE_A)], set(), (0, 0), id="same again"),
        pytest.param([up(SERVICE_A)], [down(SERVICE_A)], {A}, (1, 0), id="deleted"),
        pytest.param([], [down(SERVICE_A)], set(), (0, 0), id="unknown deleted"),
        pytest.param([], [up(SERVICE_A), down(SERVICE_A)], set(), (0, 0), id="came and went"),
        pytest.param(
            [up(SERVICE_A)], [down(SERVICE_A), up(SERVICE_A)], set(), (0, 0), id="went and came"
        ),
        pytest.param(
            [up(SLICE_A)], [up(SLICE_A2), up(SLICE_A)], set(), (0, 0), id="there and back"
        ),
        pytest.param([up(SLICE_A)], [up(SLICE_A2), up(SLICE_A2)], {A}, (0, 1), id="changed twice"),
        pytest.param([up(SLICE_A)], [up(SLICE_B)], {A, B}, (0, 1), id="slice moves to a service"),
        pytest.param(
            [up(SLICE_A)], [up(SLICE_B), up(SLICE_C)], {A, C}, (0, 1), id="moves on, b never saw it"
        ),
        pytest.param(
            [up(SLICE_A)], [up(SLICE_B), up(SLICE_A)], set(), (0, 0), id="moves and comes back"
        ),
        pytest.param(
            [up(SLICE_A)], [up(SLICE_B), down(SLICE_B)], {A}, (0, 1), id="moves and is deleted"
        ),
        pytest.param([], [up(SERVICE_A, SLICE_A)], {A}, (1, 1), id="both in one batch"),
    ],
)
def test_changes(before, steps, services, counts):
    """Exactly the services that differ from the previous take are named, however they got there."""
    tracker = Tracker()
    for delta in before:
        tracker.apply(delta)
    tracker.take()
    for delta in steps:
        tracker.apply(delta)
    assert tracker.pending == Counts(*counts)
    assert tracker.take() == Changes(frozenset(services), frozenset(), Counts(*counts))
    assert not tracker.take()


def test_nodes_are_named_and_kept():
    """A changed Node is a change of its own, touching no service."""
    tracker = Tracker()
    tracker.apply(up(make_node("n", zone="a")))
    assert tracker.take() == Changes(nodes=frozenset({"n"}))
    tracker.apply(up(make_node("n", zone="b")))
    assert tracker.node("n").label("topology.kubernetes.io/zone") == "b"
    assert tracker.take().nodes == {"n"}
    tracker.apply(down(make_node("n")))
    assert tracker.node("n") is None
    assert list(tracker.nodes()) == []


def test_read_access_follows_every_step():
    """What can be read is the present state, taken or not."""
    tracker = Tracker()
    other = make_slice("10.180.0.9", service="a", name="t")
    tracker.apply(up(SERVICE_A, SLICE_A, other))
    assert tracker.service(A) == SERVICE_A
    assert sorted(tracker.slices_of(A), key=lambda it: it.name) == [SLICE_A, other]
    tracker.apply(up(SLICE_B))
    assert list(tracker.slices_of(A)) == [other]
    assert list(tracker.slices_of(B)) == [SLICE_B]
    assert len(list(tracker.slices())) == 2
    tracker.apply(down(SERVICE_A, SLICE_B, other))
    assert tracker.service(A) is None
    assert list(tracker.services()) == []
    assert list(tracker.slices_of(A)) == list(tracker.slices_of(B)) == list(tracker.slices()) == []


def test_equal_names_of_different_kinds_are_different_objects():
    """A slice may be named as its service is."""
    tracker = Tracker()
    piece = make_slice("10.180.0.1", service="a", name="a")
    tracker.apply(up(SERVICE_A, piece))
    tracker.apply(down(piece))
    assert tracker.service(A) == SERVICE_A


def test_totals_only_grow():
    """A change that cancels out was a change all the same; a repetition was not."""
    tracker = Tracker()
    for delta in (up(SERVICE_A), up(SERVICE_A), down(SERVICE_A), up(SLICE_A), up(SLICE_A2)):
        tracker.apply(delta)
    tracker.take()
    assert tracker.total == Counts(2, 2)
