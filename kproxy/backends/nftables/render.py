"""From a Snapshot to elements and chains. Pure; work follows what changed."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Mapping
from typing import TypeVar

from kproxy.backends.nftables import elements
from kproxy.backends.nftables.elements import NODE_ADDRESSES, Record
from kproxy.backends.nftables.plan import Block, Elements, block
from kproxy.backends.nftables.rules import Chain, Frame, Spec, Treat, base, chain_of
from kproxy.core.objects import PortName
from kproxy.core.snapshot import NodeSettings, Snapshot

Key = TypeVar("Key", bound=Hashable)

#: An element that several service ports may have -> how many of them do.
Owned = Mapping[tuple[str, Record], int]


class Desired:
    """All that has to stand for one Snapshot. Not edited after it is made.

    ``own`` is the number of elements that belong to one service port each. ``shared`` counts the
    owners of elements that may have several, ``specs`` the users of chains; ``common`` are elements
    that belong to no service port.
    """

    __slots__ = ("_chains", "blocks", "common", "frame", "own", "shared", "snapshot", "specs")

    def __init__(
        self,
        snapshot: Snapshot,
        frame: Frame,
        blocks: Mapping[PortName, Block],
        own: int,
        shared: Owned,
        specs: Mapping[Spec, int],
        common: Elements,
    ) -> None:
        self.snapshot = snapshot
        self.frame = frame
        self.blocks = blocks
        self.own = own
        self.shared = shared
        self.specs = specs
        self.common = common
        self._chains: dict[str, Chain] | None = None

    @property
    def chains(self) -> dict[str, Chain]:
        """All chains by name, those that others go to first."""
        if self._chains is None:
            fixed = {chain.name: chain for chain in base(self.frame)}
            specs = sorted(self.specs, key=lambda spec: (isinstance(spec, Treat), spec.name))
            self._chains = fixed | {spec.name: chain_of(spec, self.frame) for spec in specs}
        return self._chains

    def elements(self) -> dict[str, set[Record]]:
        """Everything, by set."""
        whole: dict[str, set[Record]] = {name: set() for name in elements.KINDS}
        for one in self.blocks.values():
            for name, records in one.own.items():
                whole[name].update(records)
        for name, record in self.shared:
            whole[name].add(record)
        for name, records in self.common.items():
            whole[name].update(records)
        return whole


def frame_of(snapshot: Snapshot) -> Frame:
    settings = snapshot.settings
    # All nodes of a cluster have other seeds, and a node has the same one in each of its lives.
    seed = hashlib.blake2b(settings.name.encode(), digest_size=4).digest()
    return Frame(
        family=snapshot.family,
        settings=_of_rules(settings),
        every_address=settings.node_port_targets.all,
        mark=settings.masquerade_mark,
        detector=settings.detector,
        masquerade_all=settings.masquerade_all,
        ranges=settings.service_cidrs,
        seed=int.from_bytes(seed),
    )


def _of_rules(settings: NodeSettings) -> NodeSettings:
    """What of the settings the table of treatments looks at."""
    return NodeSettings(name="", detector=settings.detector, masquerade_all=settings.masquerade_all)


def render(snapshot: Snapshot, previous: Desired | None, choice: str = "random") -> Desired:
    """``previous`` is the last result of the same backend, or None."""
    settings = snapshot.settings
    if previous is None or snapshot.base != previous.snapshot.generation:
        fresh = {name: block(plan, settings, choice) for name, plan in snapshot.ports.items()}
        common = _common(settings)
        shared, specs = _counted(fresh.values())
        own = _size(fresh.values())
        return Desired(snapshot, frame_of(snapshot), fresh, own, shared, specs, common)
    gone = [
        old
        for name in snapshot.changed | snapshot.removed
        if (old := previous.blocks.get(name)) is not None
    ]
    fresh = {name: block(snapshot.ports[name], settings, choice) for name in snapshot.changed}
    blocks = dict(previous.blocks)
    for name in snapshot.removed:
        blocks.pop(name, None)
    blocks |= fresh
    owned, used = _moved(previous, gone, fresh.values())
    own = previous.own + _size(fresh.values()) - _size(gone)
    return Desired(snapshot, previous.frame, blocks, own, owned, used, previous.common)


def _size(blocks: Iterable[Block]) -> int:
    return sum(len(records) for one in blocks for records in one.own.values())


def _common(settings: NodeSettings) -> Elements:
    targets = settings.node_port_targets
    if targets.all:
        return {}
    addresses = (elements.address(text) for text in targets.addresses)
    return {NODE_ADDRESSES.name: tuple(map(elements.member, addresses))}


def _counted(blocks: Iterable[Block]) -> tuple[dict[tuple[str, Record], int], dict[Spec, int]]:
    shared: dict[tuple[str, Record], int] = {}
    specs: dict[Spec, int] = {}
    for one in blocks:
        for name, records in one.shared.items():
            for record in records:
                key = name, record
                shared[key] = shared.get(key, 0) + 1
        for spec in one.specs:
            specs[spec] = specs.get(spec, 0) + 1
    return shared, specs


def _moved(
    previous: Desired, gone: Iterable[Block], fresh: Iterable[Block]
) -> tuple[Owned, Mapping[Spec, int]]:
    """The counts after some blocks went and others came; the old ones where nothing moved."""
    less, fewer = _counted(gone)
    more, further = _counted(fresh)
    return _added(previous.shared, more, less), _added(previous.specs, further, fewer)


def _added(
    counts: Mapping[Key, int], more: Mapping[Key, int], less: Mapping[Key, int]
) -> Mapping[Key, int]:
    moved = {key: more.get(key, 0) - less.get(key, 0) for key in more.keys() | less.keys()}
    moved = {key: by for key, by in moved.items() if by}
    if not moved:
        return counts
    made = dict(counts)
    for key, by in moved.items():
        count = made.get(key, 0) + by
        if count:
            made[key] = count
        else:
            del made[key]
    return made
