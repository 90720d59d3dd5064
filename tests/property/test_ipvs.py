"""IPVS mode's plan: increments equal a fresh start, and clients get what core/policy says."""

from __future__ import annotations

from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st
from msgspec.structs import replace

from kproxy.backends.ipvs.diff import diff, leaving
from kproxy.backends.ipvs.fixed import Context
from kproxy.backends.ipvs.held import settled
from kproxy.backends.ipvs.render import render
from kproxy.core.events import Delta
from kproxy.core.objects import Family, family_of
from kproxy.core.planner import Planner
from kproxy.core.snapshot import NodeSettings
from kproxy.core.tracker import Tracker
from tests.backends.ipvs.kernel_model import Model
from tests.property.strategies import VIPS, VIPS6
from tests.property.test_order import histories

KERNEL = (6, 1)

#: What the node may have itself: a VIP of some service, or addresses of its own, which node ports
#: are then served at.
LOCAL = st.sampled_from(
    [(), ("192.168.0.2", "2001:db8::1"), (*VIPS, "192.168.0.2"), (*VIPS6, "2001:db8::1")]
)


def on(node, family, local):
    """The node's settings with addresses of its own, in one family."""
    return replace(node, local_addresses=tuple(ip for ip in local if family_of(ip) is family))


def wanted(snapshot, previous=None):
    context = Context(snapshot.family, snapshot.settings)
    return render(snapshot, context, KERNEL, previous)


def content(desired):
    """All that a Desired asks for, as plain values."""
    return settled(desired)._ours(), desired.sysctls


@given(histories, st.sampled_from(Family), st.data())
@budget(max_examples=150, deadline=None)
def test_increments_equal_a_fresh_start(history, family, data) -> None:
    """However many changes: rendering follows, applying follows, and what is held at the end is
    what a first sync gives, with no real server, address or member left over."""
    tracker, planner, node = Tracker(), Planner(family), NodeSettings(name="node1")
    model, desired = Model(family), None
    for step in [*history, None]:
        if isinstance(step, Delta):
            tracker.apply(step)
            continue
        if isinstance(step, NodeSettings):
            node = on(step, family, data.draw(LOCAL))
        snapshot = planner.plan(tracker, node, tracker.take())
        after = wanted(snapshot, desired)
        assert content(after) == content(wanted(snapshot))
        reads = desired is None or data.draw(st.booleans())
        patch = diff(after, model.held() if reads else settled(desired))
        if patch is not None:
            model.apply(patch)
        desired = after
        assert diff(after, settled(after)) is None
        assert model.held() == settled(after)
        assert diff(after, model.held()) is None


@given(histories, st.sampled_from(Family), LOCAL)
@budget(max_examples=100, deadline=None)
def test_what_drains_is_tcp_and_is_told(history, family, local) -> None:
    """With connections everywhere, only real servers of TCP stay, at weight 0; a reader of the
    kernel finds exactly these."""
    tracker, planner, node = Tracker(), Planner(family), NodeSettings(name="node1")
    model, desired = Model(family), None
    for step in [*history, None]:
        if isinstance(step, Delta):
            tracker.apply(step)
            continue
        node = on(step if isinstance(step, NodeSettings) else node, family, local)
        desired = wanted(planner.plan(tracker, node, tracker.take()), desired)
        patch = diff(desired, model.held())
        if patch is not None:
            model.apply(patch)
        model.connections = {
            (server, real): 1 for server, (_, reals) in model.servers.items() for real in reals
        }
        found = set(leaving(desired, model.held()))
        left = {
            (server, real)
            for server, (_, reals) in model.servers.items()
            for real in reals.keys() - desired.servers[server][0].reals
        }
        assert found == left
        assert all(server[-1] == 6 for server, _ in left)
        assert all(model.servers[server][1][real].weight == 0 for server, real in left)
