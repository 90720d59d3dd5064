"""Chains of changes to clusters, and a kernel that keeps elements as nf_tables does."""

from __future__ import annotations

import random
from collections.abc import Iterator

from msgspec.structs import replace

from kproxy.backends.nftables.elements import KINDS, Record, bare
from kproxy.backends.nftables.held import Held, Patch
from kproxy.backends.nftables.plan import CHOICE_ANNOTATION
from kproxy.backends.nftables.rules import Chain
from kproxy.core.objects import Family, PortName
from kproxy.core.snapshot import Endpoint, EndpointSets, PortPlan, Snapshot
from tests.backends.iptables.plans import LOCAL, port, settings, snapshot, successor
from tests.contract.test_backend import apart

#: Shapes of service ports that differ in how slots are used.
SHAPES: tuple[dict[str, object], ...] = (
    {"ways": "c"},
    {"ways": "cnel", "external": LOCAL},
    {"ways": "cn", "affinity": 60},
    {"ways": "ce", "internal": LOCAL, "external": LOCAL, "affinity": 600},
)
_PODS = {Family.IPV4: "10.180.1.{}", Family.IPV6: "fd00:10:1::{:x}"}
_MOST = 9


def changes(family: Family, seed: int, count: int) -> Iterator[Snapshot]:
    """A first Snapshot and ``count`` that follow, each with a service port or two that changed,
    came or went; now and then one that names no predecessor, or has other settings."""
    dice = random.Random(seed)
    plans = [some_port(family, dice, number) for number in range(6)]
    now = snapshot(*plans, family=family)
    yield now
    for _ in range(count):
        fresh = [some_port(family, dice, dice.randrange(8)) for _ in range(dice.choice((1, 1, 2)))]
        gone: tuple[PortName, ...] = ()
        if now.ports and dice.random() < 0.2:
            gone = (dice.choice(sorted(now.ports.keys() - {each.name for each in fresh})),)
        now = successor(now, *fresh, removed=gone)
        if dice.random() < 0.1:
            own = settings(family, dice.choice(("cidr", "bridge")))
            now = snapshot(
                *now.ports.values(),
                family=family,
                settings_=own,
                generation=now.generation,
            )
        yield now


def some_port(family: Family, dice: random.Random, number: int) -> PortPlan:
    """A service port with any endpoints: it has the same shape each time, but may choose
    otherwise."""
    shape = SHAPES[number % len(SHAPES)]
    plan = apart(number, port(f"svc{number}", family, pods=3, **shape))  # type: ignore[arg-type]
    pods = sorted(dice.sample(range(1, 2 * _MOST), dice.randrange(_MOST)))
    slow = dice.random() < 0.2
    ends = tuple(
        Endpoint(
            _PODS[family].format(pod),
            8080,
            local=pod % 3 == 0,
            weight=dice.choice((25, 50, 100)) if slow else 100,
        )
        for pod in pods
    )
    near = tuple(end for end in ends if end.local)
    sets = plan.endpoints
    chosen = EndpointSets(
        cluster=None if sets.cluster is None else ends,
        local=None if sets.local is None else near,
        all=ends if sets.cluster is not None else near,
        has_any=bool(ends),
    )
    asks = ((CHOICE_ANNOTATION, "hash"),) if dice.random() < 0.1 else ()
    return replace(plan, endpoints=chosen, annotations=asks)


class Kernel:
    """Elements by key, as in the kernel: one that is there is not put in once more with other
    data."""

    def __init__(self) -> None:
        self.elements: dict[str, dict[Record, Record]] = {name: {} for name in KINDS}
        self.chains: dict[str, Chain | None] = {}
        self.table = False

    def take(self, patch: Patch) -> None:
        """AssertionError where nf_tables would refuse it."""
        if patch.rebuild:
            assert not patch.gone
            self.table = True
        self.chains |= {chain.name: chain for chain in patch.chains}
        for name, records in patch.gone.items():
            for record in records:
                del self.elements[name][bare(KINDS[name], record)]
        for name, records in patch.added.items():
            for record in records:
                there = self.elements[name].setdefault(bare(KINDS[name], record), record)
                assert there == record, name
        for name in patch.spare:
            del self.chains[name]

    def held(self, family: Family) -> Held:
        members = {name: set(found.values()) for name, found in self.elements.items()}
        return Held(table=self.table, chains=self.chains, elements=members, family=family)
