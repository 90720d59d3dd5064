"""What of fastpath mode is there, and the smallest change to what is wanted. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kproxy.backends.fastpath import steer
from kproxy.backends.fastpath.plan import differences
from kproxy.backends.fastpath.render import Desired, changed_names, check_members, sets_of
from kproxy.backends.fastpath.steer import CHECKS, HOSTS, Frame, Member, minus
from kproxy.core.objects import PortName, Value
from kproxy.core.steering import Part, wanted
from kproxy.core.twin.values import NodeTable, ServiceTable

Members = Mapping[str, frozenset[Member]]


class Held:
    """``running``: the engine is at the device's queues. ``parts`` of the way there are in place;
    ``sysctls`` are names of
    those that are as the mode wants them. ``frame``: for it the chains stand, None:
    for none, or somebody has changed them. ``services`` and ``node`` are what the engine was told,
    ``node`` without the pods of interfaces; ``pods_moved``: these are others by now.
    """

    def __init__(
        self,
        *,
        running: bool,
        parts: frozenset[Part],
        sysctls: frozenset[str],
        frame: Frame | None,
        sets: Members,
        services: Mapping[PortName, ServiceTable],
        node: NodeTable | None,
        pods_moved: bool = False,
    ) -> None:
        self.running = running
        self.parts = parts
        self.sysctls = sysctls
        self.frame = frame
        self.node = node
        self.pods_moved = pods_moved
        self.believed: Desired | None = None
        self._sets = sets
        self._services = services

    @property
    def sets(self) -> Members:
        return self._sets if self.believed is None else self.believed.sets

    @property
    def services(self) -> Mapping[PortName, ServiceTable]:
        return self._services if self.believed is None else self.believed.tables.services

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Held) and self._key() == other._key()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Held{self._key()}"

    def _key(self) -> tuple[object, ...]:
        return (
            *(self.running, self.parts, self.sysctls, self.frame, self.node, self.pods_moved),
            *({name: members for name, members in self.sets.items() if members}, self.services),
        )


def settled(desired: Desired, parts: frozenset[Part]) -> Held:
    """What is there once ``desired`` is in force; its parts are made when somebody looks."""
    held = Held(
        running=True,
        parts=parts,
        sysctls=frozenset(steer.sysctls(desired.frame)),
        frame=desired.frame,
        sets={},
        services={},
        node=desired.node,
    )
    held.believed = desired
    return held


class Patch(Value, frozen=True, eq=False):
    """``full``: everything was compared. ``start``: the engine has to be brought to the device;
    ``chains``: these have to be made; ``unset`` are names of sysctls. ``node`` None: it is as it
    was."""

    desired: Desired
    full: bool
    start: bool
    parts: frozenset[Part]
    unset: frozenset[str]
    chains: bool
    added: Members
    gone: Members
    changed: Mapping[PortName, ServiceTable]
    removed: frozenset[PortName]
    node: NodeTable | None

    def names(self) -> Iterator[PortName]:
        """Service ports of which something is written."""
        for name, places in self.desired.places.items():
            if name in self.changed or any(
                not members.isdisjoint(places.get(which, ()))
                for which, members in self.added.items()
            ):
                yield name
        yield from self.removed

    def __bool__(self) -> bool:
        return bool(
            self.start
            or self.parts
            or self.unset
            or self.chains
            or self.added
            or self.gone
            or self.changed
            or self.removed
            or self.node is not None
        )


def diff(desired: Desired, actual: Held) -> Patch | None:
    """None when there is nothing to do."""
    before = actual.believed
    added: Members
    gone: Members
    changed: Mapping[PortName, ServiceTable]
    if before is None:
        added, gone = minus(desired.sets, actual.sets), minus(actual.sets, desired.sets)
        changed, removed = differences(actual.services, desired.tables)
    else:
        added, gone = _set_changes(before, desired)
        changed, removed = _service_changes(before, desired)
    moved = actual.pods_moved or actual.node != desired.node
    if before is not None and before.detector != desired.detector:
        moved = True
    patch = Patch(
        desired=desired,
        full=before is None,
        start=not actual.running,
        parts=wanted(steer.plan(desired.frame.family)) - actual.parts,
        unset=frozenset(steer.sysctls(desired.frame)) - actual.sysctls,
        chains=actual.frame != desired.frame,
        added=added,
        gone=gone,
        changed=changed,
        removed=frozenset(removed),
        node=desired.node if moved else None,
    )
    return patch or None


def _set_changes(old: Desired, new: Desired) -> tuple[Members, Members]:
    if old is new:
        return {}, {}
    names = changed_names(old.places, new.places)
    before, after = sets_of(old.places, names), sets_of(new.places, names)
    before[HOSTS], after[HOSTS] = old.hosts, new.hosts
    before[CHECKS], after[CHECKS] = check_members(old.checks), check_members(new.checks)
    return minus(after, before), minus(before, after)


def _service_changes(
    old: Desired, new: Desired
) -> tuple[Mapping[PortName, ServiceTable], set[PortName]]:
    return ({}, set()) if old is new else differences(old.tables.services, new.tables)
