"""Reading a part: what others changed there is found, and nothing else is looked at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kproxy.backends.base import Harm, Rereading, Scope, worse
from kproxy.backends.fake import FakeIptables
from kproxy.backends.iptables import chains
from kproxy.backends.iptables.apply import FEW_CHAINS, IptablesBackend
from kproxy.backends.iptables.host import Machine
from kproxy.backends.syncer import Syncer
from kproxy.backends.xtables.door import Door, ToolDoor
from kproxy.backends.xtables.variant import Variant
from tests.backends.iptables.plans import V4, V6, port, snapshot, successor
from tests.contract.namespaces import scratch

NOW = snapshot(port("svc1", ways="cnl"), port("svc2", pods=0), port("svc3", pods=3))

#: A chain of one service.
SERVICE = chains.CLUSTER + chains.port_hash(min(NOW.ports))


class Counted(FakeIptables):
    """Tells listings apart."""

    def __init__(self) -> None:
        super().__init__()
        self.saves: list[tuple[str, ...]] = []
        self.lists: list[tuple[str, str]] = []

    def save(self, tables: object = ()) -> str:
        self.saves.append(tuple(tables))  # type: ignore[arg-type]
        return super().save(self.saves[-1])

    def chain(self, table: str, chain: str) -> str | None:
        self.lists.append((table, chain))
        return super().chain(table, chain)


def served(door: Door, variant: Variant) -> Syncer:  # type: ignore[type-arg]
    syncer = Syncer(IptablesBackend(V4, variant, door=door, machine=Machine()))
    syncer.sync(NOW)
    return syncer


#: What others do in a table, and in which chains that is.
HARM = [
    ("nat", [f"-F {SERVICE}"], [SERVICE]),
    ("nat", ["-F KUBE-SERVICES", "-F KUBE-NODEPORTS"], ["KUBE-SERVICES", "KUBE-NODEPORTS"]),
    ("nat", ["-A KUBE-MARK-MASQ -p icmp"], ["KUBE-MARK-MASQ"]),
    ("nat", ["-F OUTPUT"], ["OUTPUT"]),
    ("nat", [":KUBE-SVC-AAAAAAAAAAAAAAAA - [0:0]"], ["KUBE-SVC-AAAAAAAAAAAAAAAA"]),
    ("filter", ["-I INPUT -p icmp -j ACCEPT", "-F FORWARD"], ["INPUT", "FORWARD"]),
    ("filter", ["-F KUBE-FIREWALL"], ["KUBE-FIREWALL"]),
    ("filter", ["-F OUTPUT", "-F KUBE-FIREWALL"], ["OUTPUT", "KUBE-FIREWALL"]),
    ("mangle", ["-X KUBE-PROXY-CANARY"], ["KUBE-PROXY-CANARY"]),
    ("mangle", [], ["KUBE-PROXY-CANARY"]),
]


@pytest.fixture(params=["fake", pytest.param("kernel", marks=pytest.mark.kernel)])
def doors(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[Variant, Door]]:
    if request.param == "fake":
        yield {variant: FakeIptables() for variant in Variant}
        return
    with scratch():
        yield {variant: ToolDoor(V4, variant, records=tmp_path) for variant in Variant}


@pytest.mark.parametrize("whole", [False, True], ids=["chains", "table"])
@pytest.mark.parametrize("variant", list(Variant))
@pytest.mark.parametrize(("table", "rows", "at"), HARM, ids=lambda value: str(value)[:40])
def test_a_part_read_is_as_good_as_all(
    doors: dict[Variant, Door], variant: Variant, table: str, rows: list[str], at: list[str],
    whole: bool,
) -> None:  # fmt: skip
    """Whoever reads where the change was knows as much as whoever reads everything, and the sync
    that follows mends it."""
    syncer = served(doors[variant], variant)
    backend = syncer.backend
    text = "".join(f"{row}\n" for row in (f"*{table}", *rows, "COMMIT"))
    backend.door.restore([text.encode()])
    places = frozenset((table, chain) for chain in at)
    scope = Scope(tables=frozenset({table})) if whole else Scope(chains=places)
    assert isinstance(backend, Rereading)
    held = backend.reread(syncer.desired, scope)
    counted = backend.entries
    everything = backend.read()
    assert held == everything
    assert (counted, held.sysctls) == (backend.entries, everything.sysctls)
    syncer.forget(scope)
    applied = syncer.sync(NOW)
    assert (applied.full, bool(rows)) == (False, applied.foreign)
    assert backend.read() == backend.settled(syncer.desired)


@pytest.mark.parametrize(
    ("variant", "scope", "saves", "lists"),
    [
        (Variant.LEGACY, Scope(), [], []),
        (Variant.LEGACY, Scope(tables=frozenset({"filter"})), [("filter",)], []),
        (Variant.LEGACY, Scope(chains=frozenset({("filter", "INPUT")})), [("filter",)], []),
        (Variant.NFT, Scope(), [], []),
        (Variant.NFT, Scope(chains=frozenset({("nat", SERVICE)})), [], [("nat", SERVICE)]),
        (Variant.NFT, Scope(tables=frozenset({"filter"})), [()], []),
        (Variant.NFT, Scope(chains=frozenset({("nat", "GONE")})), [()], [("nat", "GONE")]),
        (
            Variant.NFT,
            Scope(chains=frozenset(("nat", f"KUBE-SEP-{n}") for n in range(FEW_CHAINS + 1))),
            [()],
            [],
        ),
    ],
    ids=repr,
)
def test_no_more_is_read_than_it_takes(
    variant: Variant, scope: Scope, saves: list[tuple[str, ...]], lists: list[tuple[str, str]]
) -> None:
    """The cheapest listing of the variant; all of it where there is no cheaper one, or where a
    chain is gone."""
    door = Counted()
    syncer = served(door, variant)
    door.saves.clear()
    syncer.forget(scope)
    syncer.sync(NOW)
    assert (door.saves, door.lists) == (saves, lists)
    syncer.sync(successor(NOW, port("svc3", pods=2)))
    assert (door.saves, door.lists) == (saves, lists)


@pytest.mark.parametrize("variant", list(Variant))
def test_a_part_says_nothing_after_a_failure(variant: Variant) -> None:
    """What is in force is not known then: everything is read, whatever part was asked for."""
    door = Counted()
    syncer = served(door, variant)
    door.failures = ["Permission denied"]
    later = successor(NOW, port("svc3", pods=2))
    with pytest.raises(Exception, match="Permission denied"):
        syncer.sync(later)
    door.saves.clear()
    syncer.forget(Scope(chains=frozenset({("nat", SERVICE)})))
    assert syncer.sync(later).full
    assert door.saves == [()]


@pytest.mark.parametrize("variant", list(Variant))
def test_a_full_sync_is_full_whatever_part_was_asked_for(variant: Variant) -> None:
    """In either order of asking."""
    part = Scope(chains=frozenset({("nat", SERVICE)}))
    for first, then in ((part, None), (None, part)):
        door = Counted()
        syncer = served(door, variant)
        door.run("-F KUBE-FORWARD")
        syncer.forget(first)
        syncer.forget(then)
        applied = syncer.sync(NOW)
        assert (applied.full, applied.foreign) == (True, True)


NAT, INPUT = Scope(tables=frozenset({"nat"})), Scope(chains=frozenset({("filter", "INPUT")}))
BOTH = Scope(NAT.tables, INPUT.chains)


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        ({}, {}, {}),
        ({V4: NAT}, {}, {V4: NAT}),
        ({V4: NAT}, {V4: INPUT}, {V4: BOTH}),
        ({V4: NAT}, {V6: INPUT}, {V4: NAT, V6: INPUT}),
        ({V4: NAT}, None, None),
        (None, {}, None),
    ],
)
def test_harm_adds_up(one: Harm, other: Harm, both: Harm) -> None:
    """By family; what may be anywhere stays so."""
    assert worse(one, other) == worse(other, one) == both
