"""What ``lab apply`` and ``lab delete`` mean for a lab's state, before anything is done. Pure.

Services, EndpointSlices and Endpoints are kept as their user wrote them, with the time of their
creation; a Deployment becomes a workload. Other kinds are skipped with one notice each.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from kproxy.core.objects import Refusal, Value
from kproxy.errors import LabError, UsageError
from kproxy.lab import wiring, workloads
from kproxy.lab.controllers import KINDS, fill
from kproxy.lab.manifests import Raw
from kproxy.lab.state import Allocations, LabState

#: What a person may call a kind -> the kind. kubectl's names and short names.
KIND_NAMES: dict[str, str] = {
    name: kind
    for kind, names in {
        "Service": ("service", "services", "svc"),
        "EndpointSlice": ("endpointslice", "endpointslices", "eps"),
        "Endpoints": ("endpoints", "ep"),
        "Deployment": ("deployment", "deployments", "deploy", "workload", "workloads"),
        "Pod": ("pod", "pods", "po"),
        "Node": ("node", "nodes", "no"),
    }.items()
    for name in names
}

#: kind -> how it is called in "service/web created".
_CALLED = {"Deployment": "workload"}

Key = tuple[str, str, str]


class Outcome(Value, frozen=True):
    """What became of one object, in kubectl's words."""

    kind: str
    name: str
    verb: str

    def __str__(self) -> str:
        return f"{_CALLED.get(self.kind, self.kind.lower())}/{self.name} {self.verb}"


class Edit(Value, frozen=True):
    """``state``: what the lab shall be, pods not yet placed. ``gone``: deleted Services' keys."""

    state: LabState
    outcomes: tuple[Outcome, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    notices: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()


def key_of(obj: Mapping[str, Any]) -> Key:
    """Kind, namespace, name, as text even where the object has something else there; the name is
    "" when it has none."""
    meta = obj.get("metadata")
    meta = meta if isinstance(meta, Mapping) else {}
    namespace, name = meta.get("namespace") or "default", meta.get("name") or ""
    return str(obj.get("kind")), str(namespace), str(name)


def keys_of(raws: Iterable[Raw]) -> tuple[Key, ...]:
    """Keys of the objects among ``raws`` that a lab takes; others were never taken."""
    return tuple(key_of(raw.obj) for raw in raws if raw.obj["kind"] in (*KINDS, workloads.KIND))


def take(state: LabState, raws: Iterable[Raw], allocations: Allocations, *, now: str) -> Edit:
    """Create or replace objects. ``now`` is a creationTimestamp (RFC 3339).

    A refused object leaves what was there before in force, and stops no other one.
    """
    before = state
    places: dict[Key, Raw] = {}
    skipped: Counter[str] = Counter()
    refusals: list[Refusal] = []
    for raw in raws:
        kind = raw.obj["kind"]
        if kind in KINDS:
            places[key_of(raw.obj)] = raw
            state = _with_object(state, raw.obj, now)
        elif kind == workloads.KIND:
            places[key_of(raw.obj)] = raw
            load, faults = workloads.from_deployment(raw.obj, state.nodes)
            refusals += faults.found
            if load is not None:
                state = workloads.replaced(state, load)
        else:
            skipped[kind] += 1
    found = fill(_with_pods_to_come(state), allocations).refusals
    refusals += [refusal for refusal in found if _key(refusal) in places]
    refused = {_key(refusal) for refusal in refusals if refusal.whole}
    state = _restored(state, before, refused)
    return Edit(
        state,
        tuple(_outcome(before, state, key) for key in places if key not in refused),
        tuple(_located(refusal, places.get(_key(refusal))) for refusal in refusals),
        tuple(
            f"skipped {count} of kind {kind}: a lab takes {', '.join((*KINDS, workloads.KIND))}"
            for kind, count in skipped.items()
        ),
    )


def _key(refusal: Refusal) -> Key:
    namespace, _, name = refusal.key.partition("/")
    return refusal.kind, namespace, name


def _located(refusal: Refusal, raw: Raw | None) -> Refusal:
    if raw is None:
        return refusal
    return msgspec.structs.replace(refusal, file=raw.file, line=raw.line)


def _with_pods_to_come(state: LabState) -> LabState:
    """Pods of workloads that grow may be named in the same file as the workload itself."""
    return wiring.place(state)


def _with_object(state: LabState, obj: dict[str, Any], now: str) -> LabState:
    key = key_of(obj)
    there = next((other for other in state.manifests if key_of(other) == key), None)
    made = copy.deepcopy(obj)
    if isinstance(made.get("metadata"), dict):
        created = there["metadata"].get("creationTimestamp") if there else None
        made["metadata"].setdefault("creationTimestamp", created or now)
    if there is None:
        return msgspec.structs.replace(state, manifests=(*state.manifests, made))
    return msgspec.structs.replace(
        state,
        manifests=tuple(made if other is there else other for other in state.manifests),
    )


def _restored(state: LabState, before: LabState, keys: set[Key]) -> LabState:
    """``state`` with the objects of ``keys`` as they were ``before``, or absent."""
    old = {key_of(obj): obj for obj in before.manifests}
    manifests = []
    for obj in state.manifests:
        key = key_of(obj)
        if key not in keys:
            manifests.append(obj)
        elif key in old:
            manifests.append(old[key])
    return msgspec.structs.replace(state, manifests=tuple(manifests))


def _outcome(before: LabState, after: LabState, key: Key) -> Outcome:
    was, is_ = _look_up(before, key), _look_up(after, key)
    verb = "created" if was is None else "unchanged" if was == is_ else "configured"
    return Outcome(key[0], key[2], verb)


def _look_up(state: LabState, key: Key) -> object:
    kind, namespace, name = key
    if kind == workloads.KIND:
        found = (load for load in state.workloads if workloads.key_of(load) == (namespace, name))
        return next(found, None)
    return next((obj for obj in state.manifests if key_of(obj) == key), None)


def drop(state: LabState, keys: Iterable[Key], *, ignore_missing: bool = False) -> Edit:
    """Delete objects. A key that is not there is a refusal, unless missing ones are ignored."""
    outcomes: list[Outcome] = []
    refusals: list[Refusal] = []
    gone: list[str] = []
    for key in dict.fromkeys(keys):
        kind, namespace, name = key
        if _look_up(state, key) is None:
            if not ignore_missing:
                refusals.append(
                    Refusal(
                        f"not found in lab {state.name}; see: kproxy lab get {kind.lower()}",
                        kind=kind,
                        key=f"{namespace}/{name}",
                    )
                )
            continue
        if kind == workloads.KIND:
            state = workloads.without(state, (namespace, name))
        else:
            kept = tuple(obj for obj in state.manifests if key_of(obj) != key)
            state = msgspec.structs.replace(state, manifests=kept)
        if kind == "Service":
            gone.append(f"{namespace}/{name}")
        outcomes.append(Outcome(kind, name, "deleted"))
    return Edit(state, tuple(outcomes), tuple(refusals), gone=tuple(gone))


def parse_names(words: Iterable[str], namespace: str) -> tuple[Key, ...]:
    """``svc web db`` or ``svc/web pod/web-1`` as keys, as kubectl reads them."""
    listed = list(words)
    if not listed:
        return ()
    if all("/" in word for word in listed):
        pairs = [tuple(word.split("/", 1)) for word in listed]
    elif any("/" in word for word in listed) or len(listed) < 2:
        raise UsageError(
            f"cannot tell kind and name in: {' '.join(listed)}",
            hint="write KIND NAME… or KIND/NAME…",
        )
    else:
        pairs = [(listed[0], name) for name in listed[1:]]
    keys: list[Key] = []
    for kind, name in pairs:
        if kind.lower() not in KIND_NAMES or KIND_NAMES[kind.lower()] == "Node":
            raise UsageError(
                f"cannot delete kind {kind}",
                hint="kinds: service, endpointslice, endpoints, workload, pod",
            )
        keys.append((KIND_NAMES[kind.lower()], namespace, name))
    return tuple(keys)


def scaled(state: LabState, name: str, replicas: int) -> tuple[LabState, Outcome]:
    """A workload with another number of pods, not yet placed."""
    load = workloads.find(state, name)
    if replicas < 0:
        raise UsageError(f"{name}={replicas}: a number of pods, 0 or more")
    outcome = Outcome(workloads.KIND, load.name, f"scaled to {replicas}")
    return workloads.replaced(state, msgspec.structs.replace(load, replicas=replicas)), outcome


def pods_named(state: LabState, keys: Iterable[Key]) -> tuple[str, ...]:
    """Names of the pods among ``keys``; LabError for one that is not there."""
    names: list[str] = []
    for kind, _, name in keys:
        if kind != "Pod":
            continue
        if state.pod(name) is None:
            raise LabError(f"lab {state.name} has no pod {name}", hint="see: kproxy lab get pods")
        names.append(name)
    return tuple(names)
