"""From a Snapshot to all that IPVS mode wants in the kernel. Pure.

Work follows what changed: blocks of service ports that did not change are the predecessor's own,
and what several of them share is counted (:mod:`kproxy.core.tally`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from kproxy.backends.ipvs import fixed, sysctls
from kproxy.backends.ipvs.fixed import Context
from kproxy.backends.ipvs.plan import (
    Block,
    Virtual,
    at_node_ports,
    node_port_addresses,
    port_key,
)
from kproxy.backends.ipvs.sysctls import KernelVersion
from kproxy.backends.xtables.ruleset import Ruleset
from kproxy.core.objects import PortName
from kproxy.core.snapshot import NodeSettings, PortPlan, Snapshot
from kproxy.core.tally import Tally

#: (set, member); sets by their names without the family's prefix.
Member = tuple[str, bytes]

#: A virtual server and the service port whose it is.
Owned = tuple[Virtual, PortName]

#: Server keys at which node ports would answer, had not a service port an address there for itself.
Taken = Mapping[bytes, PortName]


class Desired:
    """All that has to be in the kernel for one Snapshot. Not edited after it is made.

    ``blocks`` are in the order of their names. ``servers``: server key -> what stands there and
    whose it is. ``members`` of all sets, ``addresses`` on the dummy device, ``rules``, ``sysctls``
    as (name, value).
    """

    __slots__ = (
        "_servers", "addresses", "blocks", "context", "kernel", "members", "rules", "snapshot",
        "sysctls", "taken",
    )  # fmt: skip

    def __init__(
        self,
        snapshot: Snapshot,
        context: Context,
        kernel: KernelVersion,
        blocks: dict[PortName, Block],
        taken: Taken,
        before: tuple[Desired, Collection[PortName]] | None = None,
    ) -> None:
        """``before``: a predecessor of the same context, and the service ports whose blocks
        differ from its own."""
        self.snapshot = snapshot
        self.context = context
        self.kernel = kernel
        self.blocks = blocks
        self.taken = taken
        self._servers: dict[bytes, Owned] | None = None
        if before is None:
            self.members: Tally[Member] = Tally(blocks, _members)
            self.addresses: Tally[str] = Tally(blocks, _addresses)
            self.rules: Ruleset = fixed.wanted(context)
            self.sysctls = sysctls.wanted(snapshot.settings.ipvs, kernel)
            return
        previous, names = before
        self._servers = _following(previous, blocks, names)
        self.members = previous.members.following(blocks, names)
        self.addresses = previous.addresses.following(blocks, names)
        self.rules, self.sysctls = previous.rules, previous.sysctls

    @property
    def servers(self) -> Mapping[bytes, Owned]:
        if self._servers is None:
            self._servers = {
                key: (virtual, name)
                for name, block in self.blocks.items()
                for key, virtual in block.servers.items()
            }
        return self._servers

    def follows(self, other: Desired) -> bool:
        """Whether only the service ports that the Snapshot names can differ from ``other``."""
        mine = (self.context, self.kernel, self.taken)
        if mine != (other.context, other.kernel, other.taken):
            return False
        return self.snapshot.base == other.snapshot.generation


def _members(block: Block) -> Iterator[Member]:
    for name, members in block.members.items():
        for member in members:
            yield name, member


def _addresses(block: Block) -> Iterable[str]:
    return block.addresses


def _following(
    previous: Desired, blocks: Mapping[PortName, Block], names: Iterable[PortName]
) -> dict[bytes, Owned]:
    """The servers after a change of the blocks that are named."""
    servers = dict(previous.servers)
    for name in names:
        if name in previous.blocks:
            for key in previous.blocks[name].servers:
                servers.pop(key, None)
    for name in names:
        if name in blocks:
            servers.update((key, (one, name)) for key, one in blocks[name].servers.items())
    return servers


def _taken(plans: Iterable[PortPlan], settings: NodeSettings) -> dict[bytes, PortName]:
    places = frozenset(node_port_addresses(settings))
    return {key: plan.name for plan in plans for key in at_node_ports(plan, places)}


def render(
    snapshot: Snapshot, context: Context, kernel: KernelVersion, previous: Desired | None
) -> Desired:
    """For a Snapshot; blocks whose plan did not change are ``previous``'s own."""
    if previous is not None and (previous.context, previous.kernel) == (context, kernel):
        if previous.snapshot is snapshot:
            return previous
        if snapshot.base is not None and snapshot.base == previous.snapshot.generation:
            return _render_changes(snapshot, previous)
        old: Mapping[PortName, Block] = previous.blocks
    else:
        old = {}
    taken = _taken(snapshot.ports.values(), snapshot.settings)
    return Desired(snapshot, context, kernel, _blocks(snapshot, taken, old), taken)


def _render_changes(snapshot: Snapshot, previous: Desired) -> Desired:
    """Work for what the Snapshot names as changed, and none for the rest."""
    old, names = previous.blocks, snapshot.changed | snapshot.removed
    taken = _taken_since(snapshot, previous)
    if taken is not previous.taken:
        # Rare: whose node ports that touches is found by looking at all.
        blocks = _blocks(snapshot, taken, old)
        names = frozenset(
            name for name in old.keys() | blocks.keys() if old.get(name) is not blocks.get(name)
        )
    else:
        changed = {name: _block(snapshot, name, taken) for name in snapshot.changed}
        if changed.keys() <= old.keys() and not snapshot.removed:
            blocks = {**old, **changed}
        else:
            stay = (old.keys() | changed.keys()) - snapshot.removed
            blocks = {name: changed.get(name) or old[name] for name in sorted(stay)}
    before = previous, names
    return Desired(snapshot, previous.context, previous.kernel, blocks, taken, before)


def _taken_since(snapshot: Snapshot, previous: Desired) -> Taken:
    """``previous``'s own when it is the same."""
    names = snapshot.changed | snapshot.removed
    gone = [key for key, name in previous.taken.items() if name in names]
    come = _taken((snapshot.ports[name] for name in snapshot.changed), snapshot.settings)
    if come.keys() == set(gone) and all(previous.taken[key] == come[key] for key in gone):
        return previous.taken
    return {key: name for key, name in previous.taken.items() if name not in names} | come


def _blocks(
    snapshot: Snapshot, taken: Taken, old: Mapping[PortName, Block]
) -> dict[PortName, Block]:
    blocks = {}
    for name in sorted(snapshot.ports):
        plan, block = snapshot.ports[name], old.get(name)
        if (
            block is None
            or (block.plan is not plan and block.plan != plan)
            or block.taken != _from_others(plan, taken)
            or block.ramps != _ramps(snapshot, name)
        ):
            block = _block(snapshot, name, taken)
        blocks[name] = block
    return blocks


def _block(snapshot: Snapshot, name: PortName, taken: Taken) -> Block:
    plan = snapshot.ports[name]
    return Block(
        plan,
        snapshot.family,
        snapshot.settings,
        _from_others(plan, taken),
        ramps=_ramps(snapshot, name),
    )


def _ramps(snapshot: Snapshot, name: PortName) -> bool:
    """Whether its endpoints start slowly: the annotation or the settings say, and with either all
    of the service port is planned anew."""
    health = snapshot.health.get(name)
    return health is not None and health.policy.slow_start > 0


_NOTHING: frozenset[bytes] = frozenset()


def _from_others(plan: PortPlan, taken: Taken) -> frozenset[bytes]:
    """The keys of its node port that others have."""
    if not (taken and plan.node_port):
        return _NOTHING
    end = port_key(plan.node_port, plan.protocol)
    return frozenset(key for key, name in taken.items() if name != plan.name and key.endswith(end))
