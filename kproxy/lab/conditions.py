"""How the pods of a lab are now: their faults, their restarts, what their probes say.

``conditions.json`` in the lab's folder, beside the state that says what the lab is: faults come and
probes fail while somebody holds the lab's lock for a long change, so this file has a lock of its
own, held for as long as one file takes to write. :func:`kproxy.lab.state.find` puts it into the
pods of the state that it reads.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec

from kproxy.core.objects import Value
from kproxy.kernel.files import replace_file
from kproxy.lab.faults import Fault
from kproxy.lab.model import LabState, Pod

_FILE, _LOCK = "conditions.json", "conditions.lock"


class Condition(Value, frozen=True, omit_defaults=True):
    """One pod. ``ready`` is what its readinessProbe says, None before it has said anything;
    ``why`` the reason of it, or of the last restart."""

    faults: tuple[Fault, ...] = ()
    restarts: int = 0
    ready: bool | None = None
    why: str = ""


#: By name of the pod; who is not there has the default.
Conditions = Mapping[str, Condition]

FINE = Condition()


def read(folder: Path) -> Conditions:
    """The conditions of a lab, by its folder."""
    try:
        return msgspec.json.decode((folder / _FILE).read_bytes(), type=dict[str, Condition])
    except FileNotFoundError:
        return {}


def change(folder: Path, how: Callable[[Conditions], Conditions]) -> Conditions:
    """Replace what is there by ``how`` of it; one at a time. The new conditions."""
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = read(folder)
        after = {name: one for name, one in how(before).items() if one != FINE}
        if after != before:
            replace_file(folder / _FILE, msgspec.json.encode(after))
        return after
    finally:
        os.close(lock)


def keep(folder: Path, pods: Iterable[Pod]) -> None:
    """Forget all pods but these."""
    names = {pod.name for pod in pods}
    if read(folder).keys() - names:
        change(folder, lambda there: {name: one for name, one in there.items() if name in names})


def applied(state: LabState, conditions: Conditions) -> LabState:
    """``state`` with its pods as they are now."""
    pods = tuple(_applied(pod, conditions.get(pod.name, FINE)) for pod in state.pods)
    return state if pods == state.pods else msgspec.structs.replace(state, pods=pods)


def _applied(pod: Pod, condition: Condition) -> Pod:
    # Without a readinessProbe a pod is ready whatever becomes of it, as in Kubernetes; one whose
    # probe has not succeeded yet is not.
    ready = pod.ready if pod.probes.readiness is None else condition.ready is True
    return msgspec.structs.replace(
        pod,
        ready=ready and not pod.terminating,
        faults=condition.faults,
        restarts=condition.restarts,
        why=condition.why,
    )
