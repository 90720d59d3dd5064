"""From one mode or variant to the other: the old rules go when the new ones stand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kproxy.backends import registry
from kproxy.backends.iptables.apply import IptablesBackend
from kproxy.backends.ipvs import chains as ipvs_chains
from kproxy.backends.ipvs import fixed, sets
from kproxy.backends.registry import Choice
from kproxy.backends.syncer import Syncer
from kproxy.backends.xtables import ruleset
from kproxy.backends.xtables.door import ToolDoor
from kproxy.backends.xtables.rules import Table
from kproxy.backends.xtables.saved import Saved, parse
from kproxy.backends.xtables.variant import Variant
from kproxy.core.objects import Family
from kproxy.kernel import command, sysctl
from kproxy.kernel.ipset import IpSets
from tests.backends.iptables.plans import port, settings, snapshot
from tests.contract.namespaces import scratch

PAIRS = [(Variant.LEGACY, Variant.NFT), (Variant.NFT, Variant.LEGACY)]
#: Of the old mode's rules and the new one's.
ANY_PAIR = [*PAIRS, (Variant.LEGACY, Variant.LEGACY), (Variant.NFT, Variant.NFT)]
THEIRS = "*nat\n:MINE - [0:0]\n-A MINE -j RETURN\n-A OUTPUT -j MINE\nCOMMIT\n"
ROUTE_LOCALNET = "net/ipv4/conf/all/route_localnet"
FAMILIES = list(Family)


@pytest.fixture(autouse=True)
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where sysctls are recorded: sweeps look there too."""
    monkeypatch.setenv("KPROXY_RECORDS", str(tmp_path / "records"))
    return sysctl.RECORDS


def synced(family: Family, variant: Variant, records: Path) -> IptablesBackend:
    door = ToolDoor(family, variant, records=records)
    backend = IptablesBackend(family, variant, door=door)
    Syncer(backend).sync(snapshot(port("svc1", family, ways="cnel", pods=3), family=family))
    return backend


class Ipvs:
    """The part of IPVS mode that any kernel has: sets, and the rules that ask them."""

    def __init__(self, family: Family, variant: Variant) -> None:
        self.family = family
        self.door = ToolDoor(family, variant)
        self.wanted = fixed.wanted(fixed.Context(family, settings(family)))
        with IpSets(family) as door:
            for name, kind in sets.kinds(family).items():
                door.create(name, kind)
        patch = self.patch()
        if patch is not None:
            self.door.restore([piece.encode() for piece in ruleset.call(patch)])

    def saved(self) -> Saved:
        return parse(self.door.save())

    def patch(self) -> ruleset.RulesPatch | None:
        held = ruleset.read(self.saved(), ipvs_chains.LAYOUT, self.family)
        return ruleset.diff(self.wanted, held)


@pytest.fixture
def namespace() -> Iterator[None]:
    with scratch():
        yield


pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("namespace")]


def names(saved: Saved) -> set[tuple[Table, str]]:
    """Chains that a proxy made."""
    return {
        (table, chain)
        for table, content in saved.items()
        for chain in content
        if chain.startswith("KUBE-")
    }


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_the_other_variant_is_swept(old: Variant, new: Variant, records: Path) -> None:
    """Ours and kube-proxy's chains of the old variant go in every family; other people's rules
    there stay, and our own are not touched. Once swept there is nothing more to sweep."""
    backends = [synced(family, old, records) for family in Family]
    for backend in backends:
        backend.door.restore([THEIRS.encode()])
    standing = [synced(family, new, records) for family in Family]
    before = [parse(backend.door.save()) for backend in standing]
    assert registry.sweep(Choice("iptables", new), FAMILIES) == (Choice("iptables", old),)
    for backend in backends:
        text = backend.door.save()
        assert "KUBE" not in text
        assert "-A OUTPUT -j MINE" in text
    assert [parse(backend.door.save()) for backend in standing] == before
    assert standing[0].door.sysctl(ROUTE_LOCALNET) == "1"
    assert registry.sweep(Choice("iptables", new), FAMILIES) == ()


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_families_that_are_not_served_keep_theirs(
    old: Variant, new: Variant, records: Path
) -> None:
    """Nothing stands in for them."""
    kept = synced(Family.IPV6, old, records)
    before = parse(kept.door.save())
    synced(Family.IPV4, new, records)
    assert registry.sweep(Choice("iptables", new), [Family.IPV4]) == ()
    assert parse(kept.door.save()) == before


@pytest.mark.parametrize(("old", "new"), ANY_PAIR)
def test_iptables_mode_goes_when_ipvs_stands(old: Variant, new: Variant, records: Path) -> None:
    """All but the chains and jumps that ipvs mode has as well, its set, and the sysctl that lets
    neighbours in once the guard is gone; other people's rules stay."""
    former = [synced(family, old, records) for family in Family]
    for backend in former:
        backend.door.restore([THEIRS.encode()])
    standing = [Ipvs(family, new) for family in Family]
    assert registry.sweep(Choice("ipvs", new), FAMILIES) == (Choice("iptables", old),)
    for backend in former:
        text = backend.door.save()
        assert "-A OUTPUT -j MINE" in text
        assert old is new or "KUBE" not in text
        assert backend.door.members(f"KPROXY-{'6-' * (backend.family == 6)}ENDPOINTS") is None
    for each in standing:
        assert each.patch() is None
        assert names(each.saved()) == set(each.wanted.chains)
    assert sysctl.read(ROUTE_LOCALNET) == "0"
    assert registry.sweep(Choice("ipvs", new), FAMILIES) == ()


@pytest.mark.parametrize("variant", list(Variant))
def test_the_guard_stays_while_neighbours_could_get_in(variant: Variant, records: Path) -> None:
    """Somebody else has set route_localnet: the rule that keeps neighbours off 127.0.0.1 is left
    alone, with the jumps to it."""
    sysctl.write(ROUTE_LOCALNET, "1")
    backend = synced(Family.IPV4, variant, records)
    Ipvs(Family.IPV4, variant)
    registry.sweep(Choice("ipvs", variant), [Family.IPV4])
    saved = parse(backend.door.save())
    assert len(saved[Table.FILTER]["KUBE-FIREWALL"]) == 1
    assert "-A INPUT -j KUBE-FIREWALL" in saved[Table.FILTER]["INPUT"]
    assert sysctl.read(ROUTE_LOCALNET) == "1"


@pytest.mark.parametrize(("old", "new"), ANY_PAIR)
def test_ipvs_mode_goes_when_iptables_stands(old: Variant, new: Variant, records: Path) -> None:
    """Rules and sets; what other people made stays, and so does all of iptables mode."""
    former = [Ipvs(family, old) for family in Family]
    for each in former:
        each.door.restore([THEIRS.encode()])
    command.run(["ipset", "create", "MINE", "hash:ip"])
    standing = [synced(family, new, records) for family in Family]
    assert "ipvs" in {each.mode for each in registry.sweep(Choice("iptables", new), FAMILIES)}
    for each in former:
        text = each.door.save()
        assert "-A OUTPUT -j MINE" in text
        assert old is new or "KUBE" not in text
        with IpSets(each.family) as door:
            there = door.heads()
        assert "MINE" in there
        assert there.keys().isdisjoint(sets.kinds(each.family))
    for backend in standing:
        fresh = synced(backend.family, new, records)
        desired = fresh.render(snapshot(port("svc1", backend.family, ways="cnel", pods=3),
                                        family=backend.family), None)  # fmt: skip
        assert fresh.diff(desired, fresh.read()) is None
        only_ipvs = set(ipvs_chains.PLACES) - {
            (table, chain) for table, chains in _iptables_own().items() for chain in chains
        }
        assert names(parse(backend.door.save())).isdisjoint(only_ipvs)
    assert registry.sweep(Choice("iptables", new), FAMILIES) == ()


def _iptables_own() -> dict[Table, frozenset[str]]:
    from kproxy.backends.iptables.layout import LAYOUT

    return dict(LAYOUT.own)


def test_kube_proxys_ipvs_mode_is_swept_as_well(records: Path) -> None:
    """Its sets are of other sizes, and one of its chains stands where we have none."""
    command.run(["ipset", "create", "KUBE-CLUSTER-IP", "hash:ip,port", "maxelem", "65536"])
    command.run(["ipset", "create", "KUBE-NODE-PORT-TCP", "bitmap:port", "range", "0-65535"])
    text = (
        "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-NODE-PORT - [0:0]\n"
        "-A PREROUTING -j KUBE-SERVICES\n"
        "-A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT\n"
        "-A KUBE-SERVICES -j KUBE-NODE-PORT\nCOMMIT\n"
        "*filter\n:KUBE-IPVS-OUT-FILTER - [0:0]\n-A OUTPUT -j KUBE-IPVS-OUT-FILTER\nCOMMIT\n"
    )
    door = ToolDoor(Family.IPV4, Variant.LEGACY)
    door.restore([text.encode()])
    synced(Family.IPV4, Variant.NFT, records)
    assert registry.sweep(Choice("iptables", Variant.NFT), [Family.IPV4])
    assert "KUBE" not in door.save()
    with IpSets(Family.IPV4) as sets_:
        assert sets_.heads().keys().isdisjoint(sets.kinds(Family.IPV4))
