"""Changes to a lab while traffic flows: apply, delete, scale, roll.

One order for all of them, so that no connection is sent to a pod that does not answer:

1. new pods are built and answer, and are ready as far as they have a readinessProbe;
2. the new objects are in force on every node: new pods are in, leaving ones out;
3. a moment of grace, for packets that were on their way when the rules changed;
4. leaving pods go, and with them their endpoints.

The lab's lock is held throughout: two changes never mix.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

import msgspec

from kproxy.core.objects import Value
from kproxy.lab import edits, lifecycle, state, wiring, workloads
from kproxy.lab.controllers import release
from kproxy.lab.edits import Edit, Key, Outcome
from kproxy.lab.manifests import Raw
from kproxy.lab.state import LabState, Pod
from kproxy.lab.topology import Workload

#: Seconds between "no new connection comes here" and the end of a pod: a packet that was
#: translated under the old rules must still arrive. Far more than a lab's round trip.
GRACE = 0.1


class Roll(Value, frozen=True):
    """One pod replaced by another."""

    old: str
    new: str

    def __str__(self) -> str:
        return f"pod/{self.old} replaced by pod/{self.new}"


def apply(lab: str, raws: Iterable[Raw], grace: float = GRACE) -> Edit:
    """Create or replace objects; in force on every node when it returns."""
    with state.lock(lab):
        old = lifecycle.opened(lab)
        edit = edits.take(old, raws, state.load_allocations(lab), now=_now())
        _settle(old, edit.state, grace)
    return edit


def delete(
    lab: str, keys: Iterable[Key], *, ignore_missing: bool = False, grace: float = GRACE
) -> Edit:
    """Delete objects; out of force on every node when it returns. A pod gets a successor."""
    with state.lock(lab):
        old = lifecycle.opened(lab)
        wanted = list(keys)
        pods = edits.pods_named(old, wanted)
        edit = edits.drop(
            old, [key for key in wanted if key[0] != "Pod"], ignore_missing=ignore_missing
        )
        if edit.gone:
            state.save_allocations(lab, release(state.load_allocations(lab), edit.gone))
        now = _settle(old, edit.state, grace)
        outcomes = list(edit.outcomes)
        for name in pods:
            now = _replace(now, name, grace)[0]
            outcomes.append(Outcome("Pod", name, "deleted"))
        if pods:
            lifecycle.publish(now)
    return msgspec.structs.replace(edit, outcomes=tuple(outcomes))


def scale(
    lab: str, replicas: Iterable[tuple[str, int]], grace: float = GRACE
) -> tuple[Outcome, ...]:
    """Give workloads other numbers of pods."""
    outcomes: list[Outcome] = []
    with state.lock(lab):
        old = wanted = lifecycle.opened(lab)
        for name, number in replicas:
            wanted, outcome = edits.scaled(wanted, name, number)
            outcomes.append(outcome)
        _settle(old, wanted, grace)
    return tuple(outcomes)


def roll(
    lab: str, name: str, grace: float = GRACE, say: Callable[[Roll], None] | None = None
) -> int:
    """Replace a workload's pods one by one; ``say`` hears of each. Returns how many there were."""
    with state.lock(lab):
        now = lifecycle.opened(lab)
        now = _settle(now, now, grace)
        pods = wiring.pods_of(now, workloads.find(now, name))
        for pod in pods:
            now, successor = _replace(now, pod.name, grace)
            if say is not None:
                say(Roll(pod.name, successor))
        if pods:
            lifecycle.publish(now)
    return len(pods)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# --- from one state to another ----------------------------------------------------------------


def _settle(old: LabState, wanted: LabState, grace: float) -> LabState:
    """Bring the lab from ``old`` to ``wanted``, whose pods are not placed yet.

    Pods of another template than their workload now has are replaced one by one afterwards.
    """
    stale = [pod.name for pod in old.pods if _is_stale(wanted, pod)]
    final = wiring.place(wanted)
    if final == old and not stale:
        return old
    stale = [name for name in stale if final.pod(name) is not None]
    now = _move(old, final, grace)
    for name in stale:
        now = _replace(now, name, grace)[0]
    if stale:
        lifecycle.publish(now)
    return now


def _is_stale(wanted: LabState, pod: Pod) -> bool:
    load = _workload(wanted, pod)
    return load is not None and workloads.outdated(load, pod)


def _workload(lab: LabState, pod: Pod) -> Workload | None:
    key = (pod.namespace, pod.workload)
    return next((load for load in lab.workloads if workloads.key_of(load) == key), None)


def _move(old: LabState, final: LabState, grace: float) -> LabState:
    """The four steps. ``final`` has all its pods; returns it with its network."""
    staying = {pod.name for pod in final.pods}
    leaving = tuple(pod for pod in old.pods if pod.name not in staying)
    both = lifecycle.change(old, msgspec.structs.replace(final, pods=(*final.pods, *leaving)))
    new = staying - {pod.name for pod in old.pods}
    if any(pod.name in new and pod.probes.readiness is not None for pod in both.pods):
        # All else is in force meanwhile, and stays so if they do not get ready.
        lifecycle.publish(both)
        lifecycle.await_ready(both, new)
    if not leaving:
        lifecycle.publish(both)
        return both
    lifecycle.publish(_marked(both, {pod.name for pod in leaving}))
    time.sleep(grace)
    done = lifecycle.change(both, final)
    lifecycle.publish(done)
    return done


def _replace(old: LabState, name: str, grace: float) -> tuple[LabState, str]:
    """A successor for one pod, in force before it goes. Its own endpoint, out of use, is left in
    its slice for the next :func:`lifecycle.publish` to take away."""
    leaving = old.pod(name)
    assert leaving is not None
    load = _workload(old, leaving)
    assert load is not None
    node = leaving.node if not load.nodes or leaving.node in load.nodes else ""
    grown = wiring.add_pod(old, load, node)
    successor = grown.pods[-1]
    both = lifecycle.change(old, grown)
    lifecycle.await_ready(both, [successor.name])
    lifecycle.publish(_marked(both, {name}))
    time.sleep(grace)
    pods = tuple(pod for pod in both.pods if pod.name != name)
    return lifecycle.change(both, msgspec.structs.replace(both, pods=pods)), successor.name


def _marked(lab: LabState, leaving: set[str]) -> LabState:
    """``lab`` with some pods terminating and not ready: no proxy sends anything to them."""
    return msgspec.structs.replace(
        lab,
        pods=tuple(
            msgspec.structs.replace(pod, ready=False, terminating=True)
            if pod.name in leaving
            else pod
            for pod in lab.pods
        ),
    )
