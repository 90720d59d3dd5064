"""From a Snapshot to what the relay serves and the rules that lead there, ports left open. Pure.

Work follows what changed: blocks of service ports that did not change are the predecessor's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache

from kproxy.backends.userspace.chains import LAYOUT
from kproxy.backends.userspace.plan import OFFERED, NodePort, Service, service_of
from kproxy.backends.userspace.rules import Context, Draft, Found, drafts_of, finished
from kproxy.backends.userspace.sources import sources_of
from kproxy.backends.xtables.localnet import ROUTE_LOCALNET
from kproxy.backends.xtables.saved import Line
from kproxy.backends.xtables.text import line
from kproxy.core.objects import Family, PortName
from kproxy.core.snapshot import PortPlan, Snapshot

#: Sysctls of the mode. A relay's own connections come from one address, and to one endpoint that
#: has 28,000 ports: a closed one may be used again after a second instead of a minute. The other
#: one is for node ports on loopback, and set together with its guard only.
SYSCTLS = (("net/ipv4/tcp_tw_reuse", "1"), ROUTE_LOCALNET)


class Block:
    """The share of one service port. Each part is made when somebody first looks at it.

    ``service`` is None when the relay has nothing to do for it.
    """

    __slots__ = ("_drafts", "_lines", "_service", "context", "plan")

    def __init__(self, plan: PortPlan, context: Context) -> None:
        self.plan = plan
        self.context = context
        self._service: tuple[Service | None] | None = None
        self._drafts: tuple[Draft, ...] | None = None
        self._lines: tuple[Found, tuple[Line, ...]] | None = None

    @property
    def name(self) -> PortName:
        return self.plan.name

    @property
    def service(self) -> Service | None:
        if self._service is None:
            self._service = (service_of(self.plan, self.context.settings),)
        return self._service[0]

    @property
    def node_port(self) -> NodePort | None:
        return self.service.node_port if self.service is not None else None

    @property
    def drafts(self) -> tuple[Draft, ...]:
        if self._drafts is None:
            self._drafts = drafts_of(self.plan, self.context)
        return self._drafts

    def lines(self, found: Found) -> tuple[Line, ...]:
        """The rules as text, now that it is known what they wait for. The last answer is kept."""
        if self._lines is None or self._lines[0] != found:
            rules = [finished(draft, found) for draft in self.drafts]
            texts = [(r.table, line(r, self.context.family)) for r in rules if r is not None]
            self._lines = found, tuple(dict.fromkeys(texts))
        return self._lines[1]

    def same_rules(self, other: Block) -> bool:
        """Whether both have the same rules, given the same ports; cheap when only endpoints
        differ."""
        return self.context == other.context and (
            _shape(self.plan) == _shape(other.plan) or self.drafts == other.drafts
        )


def _shape(plan: PortPlan) -> tuple[object, ...]:
    """All of a plan that rules are made of."""
    sets = plan.endpoints
    return (
        *(plan.port, plan.cluster_ip, plan.node_port, plan.external_ips, plan.load_balancer_ips),
        *(plan.source_ranges, plan.restricted, plan.internal_policy, plan.external_policy),
        *(plan.health_check_node_port, sets.has_any, bool(sets.cluster), bool(sets.local)),
    )


class Desired:
    """All that has to stand for one Snapshot. Not edited after it is made.

    ``blocks`` are in the order of their names. ``unoffered``: service ports that the relay cannot
    carry.
    """

    __slots__ = ("blocks", "context", "snapshot", "unoffered")

    def __init__(
        self,
        snapshot: Snapshot,
        context: Context,
        blocks: dict[PortName, Block],
        unoffered: frozenset[PortName],
    ) -> None:
        self.snapshot = snapshot
        self.context = context
        self.blocks = blocks
        self.unoffered = unoffered

    @property
    def jumps(self) -> tuple[Line, ...]:
        """Lines for the top of base chains."""
        return _jumps(self.context.family)

    @property
    def guard(self) -> tuple[str, ...]:
        """Lines for the chain that is shared with the kubelet."""
        return tuple([line(rule, self.context.family) for rule in self.context.guard])

    @property
    def sysctls(self) -> frozenset[tuple[str, str]]:
        """(name, value) of the sysctls that must be set."""
        return frozenset(SYSCTLS if self.context.serves_localhost else SYSCTLS[:1])

    @property
    def sources(self) -> tuple[str, ...]:
        """Addresses of the node from which the relay may connect to endpoints."""
        return sources_of(self.context.settings)

    def follows(self, other: Desired) -> bool:
        """Whether only the service ports that the Snapshot names can differ from ``other``."""
        return self.context == other.context and self.snapshot.base == other.snapshot.generation


@cache
def _jumps(family: Family) -> tuple[Line, ...]:
    return tuple([(rule.table, line(rule, family)) for rule in LAYOUT.jumps])


def render(snapshot: Snapshot, previous: Desired | None) -> Desired:
    """For a Snapshot; blocks whose plan did not change are ``previous``'s own."""
    context = Context(snapshot.family, snapshot.settings)
    old: Mapping[PortName, Block] = {}
    if previous is not None and previous.context == context:
        if previous.snapshot is snapshot:
            return previous
        old = previous.blocks
        if snapshot.base is not None and snapshot.base == previous.snapshot.generation:
            return _render_changes(snapshot, previous)
    blocks = {
        name: _block(snapshot.ports[name], context, old.get(name))
        for name in sorted(snapshot.ports)
    }
    return Desired(snapshot, context, blocks, _unoffered(blocks))


def _render_changes(snapshot: Snapshot, previous: Desired) -> Desired:
    """Work for what the Snapshot names, and none for the rest."""
    context, old = previous.context, previous.blocks
    made = {name: Block(snapshot.ports[name], context) for name in snapshot.changed}
    if made.keys() <= old.keys() and not snapshot.removed:
        blocks = {**old, **made}
    else:
        stay = (old.keys() | made.keys()) - snapshot.removed
        blocks = {name: made.get(name) or old[name] for name in sorted(stay)}
    unoffered = (previous.unoffered - snapshot.removed) | _unoffered(made)
    return Desired(snapshot, context, blocks, unoffered)


def _unoffered(names: Iterable[PortName]) -> frozenset[PortName]:
    return frozenset([name for name in names if name.protocol not in OFFERED])


def _block(plan: PortPlan, context: Context, old: Block | None) -> Block:
    if old is not None and (old.plan is plan or old.plan == plan):
        return old
    return Block(plan, context)
