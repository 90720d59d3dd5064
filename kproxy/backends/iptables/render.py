"""From a Snapshot to the chains that have to be there, as text. Pure.

A :class:`Block` is the share of one service port. Its text is made when somebody first looks at it
and kept: a first sync looks while it streams into the tool, so that making and parsing overlap, and
a later one finds the text of every unchanged service already made.

The rules of endpoints are most of all rules and differ in a few words only. They are typed and
printed once a service with stand-ins for these words, and then filled in; a test holds the result
to :func:`kproxy.backends.iptables.service.service_rules` printed rule by rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet

from kproxy.backends.iptables import chains
from kproxy.backends.iptables.endpoint_set import members as members_of
from kproxy.backends.iptables.fixed import fixed_rules, guard_rules, node_port_jumps
from kproxy.backends.iptables.overlap import overlap
from kproxy.backends.iptables.service import (
    Context,
    PortChains,
    affinity_rule,
    chain_rules,
    chances,
    choice_rule,
    dispatch_rules,
    endpoint_rules,
    service_rules,
)
from kproxy.backends.xtables.rules import Rule, Table
from kproxy.backends.xtables.text import host, line, lines
from kproxy.core.objects import PortName
from kproxy.core.snapshot import PortPlan, Snapshot
from kproxy.core.tally import Tally

Place = tuple[Table, str]

#: kube-proxy's threshold: above it endpoints' rules have no comments (40 % of all text).
LARGE_CLUSTER_ENDPOINTS = 1000

# Stand-ins in shapes: control characters, which no comment lets through.
_CHAIN, _SOURCE, _END, _CHANCE = "\x01", "\x02", "\x03", "\x04"


class Block:
    """The text of one service port: its own chains, and its lines in the dispatch chains."""

    __slots__ = ("_chains", "_dispatch", "_names", "context", "plan")

    def __init__(self, plan: PortPlan, context: Context) -> None:
        self.plan = plan
        self.context = context
        self._names: PortChains | None = None
        self._chains: dict[str, str] | None = None
        self._dispatch: dict[Place, str] | None = None

    @property
    def names(self) -> PortChains:
        if self._names is None:
            self._names = PortChains(self.plan)
        return self._names

    @property
    def has_chains(self) -> bool:
        """Whether ``chains`` has any, told without making them: only refusals have none."""
        sets = self.plan.endpoints
        return bool(sets.cluster or sets.local or (sets.has_any and self.plan.external))

    @property
    def chains(self) -> Mapping[str, str]:
        """Chain of nat -> its lines. Endpoints' chains come first: others jump to them."""
        if self._chains is None:
            self._chains = _chain_texts(self.plan, self.names, self.context)
        return self._chains

    @property
    def dispatch(self) -> Mapping[Place, str]:
        """Dispatch chain -> the lines that this service port has there."""
        if self._dispatch is None:
            texts: dict[Place, str] = {}
            for rule in dispatch_rules(self.plan, self.names, self.context):
                place = (rule.table, rule.chain)
                texts[place] = f"{texts.get(place, '')}{line(rule, self.context.family)}\n"
            self._dispatch = texts
        return self._dispatch


def _chain_texts(plan: PortPlan, names: PortChains, context: Context) -> dict[str, str]:
    sets = {names.cluster: plan.endpoints.cluster, names.local: plan.endpoints.local}
    targets: dict[str, str] = {}
    texts: dict[str, str] = {}
    if names.cluster or names.local:
        family = context.family
        shape = lines(endpoint_rules(plan, names, _CHAIN, _SOURCE, _END, context), family)
        endpoints = plan.endpoints.all
        ends = [str(endpoint) for endpoint in endpoints]
        made = chains.endpoint_chains(plan.name, ends)
        targets = dict(zip(ends, made, strict=True))
        for endpoint, end, chain in zip(endpoints, ends, made, strict=True):
            texts[chain] = (
                shape.replace(_CHAIN, chain)
                .replace(_SOURCE, host(endpoint.ip, family))
                .replace(_END, end)
            )
    for chain, head in chain_rules(plan, names, context):
        endpoints = sets.get(chain) or ()
        ends = [str(endpoint) for endpoint in endpoints]
        chosen = [(end, targets[end]) for end in ends]
        texts[chain] = lines(head, context.family) + _choice_text(
            plan, names, chain, chosen, chances(endpoints), context
        )
    return texts


def _choice_text(
    plan: PortPlan,
    names: PortChains,
    chain: str,
    targets: Sequence[tuple[str, str]],
    odds: Sequence[str],
    context: Context,
) -> str:
    """The text of service.choice_rules."""
    if not targets:
        return ""

    def shape(rule: Rule) -> str:
        return line(rule, context.family) + "\n"

    texts = []
    if plan.affinity_seconds is not None:
        sticky = shape(affinity_rule(plan, names, chain, _END, _CHAIN, context))
        texts = [sticky.replace(_END, end).replace(_CHAIN, target) for end, target in targets]
    chance = shape(choice_rule(names, chain, _END, _CHAIN, _CHANCE, context))
    for (end, target), each in zip(targets[:-1], odds):
        texts.append(chance.replace(_END, end).replace(_CHAIN, target).replace(_CHANCE, each))
    end, target = targets[-1]
    texts.append(shape(choice_rule(names, chain, end, target, "", context)))
    return "".join(texts)


class Desired:
    """All that has to be in the kernel for one Snapshot. Not edited after it is made.

    ``blocks`` are in the order of their names, so that equal plans give equal text. ``fixed`` holds
    the chains of :data:`chains.FIXED`, ``guard`` our lines in the chain shared with the kubelet,
    ``jumps`` the lines of base chains, in the order in which they are put at the top, ``members``
    the set of endpoints that a rule asks for, None when none does.
    """

    __slots__ = ("_dispatch", "blocks", "context", "fixed", "guard", "jumps", "members", "snapshot")

    def __init__(
        self,
        snapshot: Snapshot,
        context: Context,
        blocks: dict[PortName, Block],
        dispatch: Mapping[Place, str] | None = None,
        members: Tally[bytes] | None = None,
    ) -> None:
        self.snapshot = snapshot
        self.context = context
        self.blocks = blocks
        self._dispatch = dispatch
        self.members = (members or members_of(snapshot.ports)) if context.uses_set else None
        family = context.family
        self.fixed = {place: lines(rules, family) for place, rules in fixed_rules(context).items()}
        self.guard = tuple(line(rule, family) for rule in guard_rules(context))
        self.jumps = tuple((rule.table, line(rule, family)) for rule in chains.JUMPS)

    @property
    def endpoints(self) -> AbstractSet[bytes] | None:
        """What the set has to hold; None: there has to be none."""
        return None if self.members is None else self.members.all

    @property
    def dispatch(self) -> Mapping[Place, str]:
        """The dispatch chains, whole."""
        if self._dispatch is None:
            blocks = [block.dispatch for block in self.blocks.values()]
            shared = overlap([block.plan for block in self.blocks.values()], self.context)
            texts = {
                place: "".join(
                    [
                        self._lines_at(place, shared.head),
                        *[block[place] for block in blocks if place in block],
                        self._lines_at(place, shared.tail),
                    ]
                )
                for place in chains.DISPATCH
            }
            tail = lines(node_port_jumps(self.context), self.context.family)
            texts[Table.NAT, chains.SERVICES] += tail
            self._dispatch = texts
        return self._dispatch

    def _lines_at(self, place: Place, rules: Iterable[Rule]) -> str:
        mine = [rule for rule in rules if (rule.table, rule.chain) == place]
        return lines(mine, self.context.family)

    def text_of(self, place: Place) -> str:
        """The lines of a fixed or dispatch chain."""
        fixed = self.fixed.get(place)
        return self.dispatch[place] if fixed is None else fixed

    def rules(self) -> list[Rule]:
        """Every rule, typed: what the text says."""
        return render_rules(self.snapshot, self.context)


def context_of(
    snapshot: Snapshot,
    *,
    random_fully: bool = True,
    drop_invalid: bool = True,
    endpoint_set: bool = True,
    counters: bool = False,
) -> Context:
    """What every service's rules depend on, for one Snapshot."""
    return Context(
        family=snapshot.family,
        settings=snapshot.settings,
        brief=snapshot.endpoint_count > LARGE_CLUSTER_ENDPOINTS,
        random_fully=random_fully,
        drop_invalid=drop_invalid,
        endpoint_set=endpoint_set,
        counters=counters,
    )


def render(snapshot: Snapshot, context: Context, previous: Desired | None) -> Desired:
    """The chains for a Snapshot; blocks whose plan did not change are ``previous``'s own."""
    if previous is None or previous.context != context:
        return Desired(snapshot, context, _blocks(snapshot, context, {}))
    if previous.snapshot is snapshot:
        return previous
    if snapshot.base is None or snapshot.base != previous.snapshot.generation:
        return Desired(snapshot, context, _blocks(snapshot, context, previous.blocks))
    return _render_changes(snapshot, context, previous)


def _blocks(
    snapshot: Snapshot, context: Context, old: Mapping[PortName, Block]
) -> dict[PortName, Block]:
    blocks = {}
    for name in sorted(snapshot.ports):
        plan, block = snapshot.ports[name], old.get(name)
        keep = block is not None and (block.plan is plan or block.plan == plan)
        blocks[name] = block if block is not None and keep else Block(plan, context)
    return blocks


def _render_changes(snapshot: Snapshot, context: Context, previous: Desired) -> Desired:
    """Work for what the Snapshot names as changed, and none for the rest."""
    old = previous.blocks
    changed = {name: Block(snapshot.ports[name], context) for name in snapshot.changed}
    members = previous.members and previous.members.following(
        snapshot.ports, [*snapshot.changed, *snapshot.removed]
    )
    if changed.keys() <= old.keys() and not snapshot.removed:
        blocks = {**old, **changed}
        # An endpoint comes or goes: the dispatch chains, longest of all, stay as they are.
        same = all(block.dispatch == old[name].dispatch for name, block in changed.items())
        return Desired(snapshot, context, blocks, previous.dispatch if same else None, members)
    names: Iterable[PortName] = (old.keys() | changed.keys()) - snapshot.removed
    merged = {name: changed[name] if name in changed else old[name] for name in sorted(names)}
    return Desired(snapshot, context, merged, members=members)


def render_rules(snapshot: Snapshot, context: Context) -> list[Rule]:
    """Every rule of a Snapshot, typed: jumps, fixed chains, services in the order of their names,
    and the end of KUBE-SERVICES. Within a chain, rules stand in the order of the kernel."""
    rules = [*reversed(chains.JUMPS), *guard_rules(context)]
    for content in fixed_rules(context).values():
        rules += content
    plans = [snapshot.ports[name] for name in sorted(snapshot.ports)]
    shared = overlap(plans, context)
    rules += shared.head
    for plan in plans:
        rules += service_rules(plan, context)
    return [*rules, *shared.tail, *node_port_jumps(context)]
