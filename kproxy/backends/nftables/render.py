"""From a Snapshot to elements and chains. Pure; work follows what changed."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Hashable, Iterable, Mapping
from functools import cache
from typing import TypeVar

from msgspec.structs import replace

from kproxy.backends.nftables import elements
from kproxy.backends.nftables.elements import NODE_ADDRESSES, Record
from kproxy.backends.nftables.plan import CHOICES, Block, Elements, block
from kproxy.backends.nftables.rules import (
    ALWAYS,
    Chain,
    Frame,
    Pick,
    Spec,
    Treat,
    Way,
    base,
    chain_of,
)
from kproxy.backends.nftables.seats import NO_PAST, Past
from kproxy.core.objects import PortName
from kproxy.core.snapshot import NodeSettings, Snapshot

Key = TypeVar("Key", bound=Hashable)

#: An element that several service ports may have -> how many of them do.
Owned = Mapping[tuple[str, Record], int]


class Desired:
    """All that has to stand for one Snapshot. Not edited after it is made.

    ``choice`` is that of service ports that say nothing of it. ``own`` is the number of elements
    that belong to one service port each. ``shared`` counts the owners of elements that may have
    several, ``specs`` the users of chains; ``common`` are elements that belong to no service port.
    ``notices`` are annotations that make no sense.
    """

    __slots__ = (
        *("_chains", "blocks", "choice", "common", "frame", "notices", "own", "shared"),
        *("snapshot", "specs"),
    )

    def __init__(
        self,
        snapshot: Snapshot,
        frame: Frame,
        choice: str,
        blocks: Mapping[PortName, Block],
        own: int,
        shared: Owned,
        specs: Mapping[Spec, int],
        common: Elements,
        notices: Mapping[PortName, str],
    ) -> None:
        self.snapshot = snapshot
        self.frame = frame
        self.choice = choice
        self.blocks = blocks
        self.own = own
        self.shared = shared
        self.specs = specs
        self.common = common
        self.notices = notices
        self._chains: dict[str, Chain] | None = None

    @property
    def chains(self) -> dict[str, Chain]:
        """All chains by name, those that others go to first."""
        if self._chains is None:
            fixed = {chain.name: chain for chain in base(self.frame)}
            specs = sorted(self.specs, key=lambda spec: (isinstance(spec, Treat), spec.name))
            self._chains = fixed | {spec.name: chain_of(spec, self.frame) for spec in specs}
        return self._chains

    @property
    def idle(self) -> set[str]:
        """Names of chains that no service port has use for."""
        return {spec.name for spec in always(self.choice) if self.specs[spec] == 1}

    def listed(self) -> dict[str, list[Record]]:
        """Every element, by set; those without any are left out."""
        whole: dict[str, list[Record]] = {name: [] for name in elements.KINDS}
        for one in self.blocks.values():
            for name, records in one.own.items():
                whole[name].extend(records)
        for name, record in self.shared:
            whole[name].append(record)
        for name, records in self.common.items():
            whole[name].extend(records)
        return {name: records for name, records in whole.items() if records}

    def elements(self) -> dict[str, set[Record]]:
        """The same of all sets, to be compared."""
        listed = self.listed()
        return {name: set(listed.get(name, ())) for name in elements.KINDS}

    def with_blocks(self, blocks: Mapping[PortName, Block]) -> Desired:
        """The same plan with some service ports' endpoints in other slots."""
        return Desired(
            self.snapshot,
            self.frame,
            self.choice,
            {**self.blocks, **blocks},
            self.own,
            self.shared,
            self.specs,
            self.common,
            self.notices,
        )


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
    """``previous`` is the last result of the same backend, or None: endpoints keep the slots that
    they have there."""
    if previous is None or snapshot.base != previous.snapshot.generation:
        return _whole(snapshot, previous, choice)
    before, plans = previous.blocks, previous.snapshot.ports
    pairs: list[tuple[Block | None, Block | None]] = []
    fresh: dict[PortName, Block] = {}
    for name in snapshot.changed:
        old = before.get(name)
        past = NO_PAST if old is None else Past(old.seats, plans.get(name))
        new = fresh[name] = block(snapshot.ports[name], snapshot.settings, choice, past)
        pairs.append((old, new))
    blocks = dict(before)
    pairs += [(blocks.pop(name, None), None) for name in snapshot.removed]
    blocks |= fresh
    return Desired(
        snapshot,
        previous.frame,
        choice,
        blocks,
        previous.own + sum(_size(new) - _size(old) for old, new in pairs),
        *_moved(previous, pairs),
        previous.common,
        _noticed(previous.notices, fresh, snapshot.removed),
    )


def _noticed(
    before: Mapping[PortName, str], fresh: Mapping[PortName, Block], removed: Collection[PortName]
) -> Mapping[PortName, str]:
    """The notices after some blocks have changed or gone."""
    now = {name: one.notice for name, one in fresh.items() if one.notice}
    if not now and before.keys().isdisjoint((*fresh, *removed)):
        return before
    kept = {name: said for name, said in before.items() if name not in fresh}
    return {name: said for name, said in (kept | now).items() if name not in removed}


def _whole(snapshot: Snapshot, previous: Desired | None, choice: str) -> Desired:
    """All of it is looked at; what is the same for sure is taken over."""
    settings = snapshot.settings
    before: Mapping[PortName, Block] = {} if previous is None else previous.blocks
    plans = {} if previous is None else previous.snapshot.ports
    known = None if previous is None else (previous.snapshot.settings, previous.choice)
    alike = known == (settings, choice)
    blocks: dict[PortName, Block] = {}
    for name, plan in snapshot.ports.items():
        old, past = before.get(name), NO_PAST
        if old is not None:
            if alike and plan is plans.get(name):
                blocks[name] = old
                continue
            past = Past(old.seats, plans.get(name))
        blocks[name] = block(plan, settings, choice, past)
    shared, specs = _counted(blocks.values())
    for spec in always(choice):
        specs[spec] = specs.get(spec, 0) + 1
    own = sum(map(_size, blocks.values()))
    common = _common(settings)
    notices = _noticed({}, blocks, ())
    frame = frame_of(snapshot)
    return Desired(snapshot, frame, choice, blocks, own, shared, specs, common, notices)


@cache
def always(choice: str) -> tuple[Spec, ...]:
    """What leads to chains that always stand, see
    :data:`~kproxy.backends.nftables.rules.ALWAYS`."""
    picks = [Pick(size, by_client=CHOICES[choice]) for size in range(ALWAYS + 1)]
    of_node_ports = [replace(pick, node=True) for pick in picks[1:]]
    return (*(Treat(Way.INSIDE, pick) for pick in picks), *picks[1:], *of_node_ports)


def _size(one: Block | None) -> int:
    return 0 if one is None else sum(map(len, one.own.values()))


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
    previous: Desired, pairs: Iterable[tuple[Block | None, Block | None]]
) -> tuple[Owned, Mapping[Spec, int]]:
    """The counts after some blocks gave way to others; the old ones where nothing moved."""
    differ = [
        (old, new)
        for old, new in pairs
        if old is None or new is None or old.shared != new.shared or old.specs is not new.specs
    ]
    less, fewer = _counted(old for old, _ in differ if old is not None)
    more, further = _counted(new for _, new in differ if new is not None)
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
