"""From one variant to the other: the old rules go when the new ones stand."""

from __future__ import annotations

from pathlib import Path

import pytest

from kproxy.backends import registry
from kproxy.backends.iptables.apply import IptablesBackend
from kproxy.backends.registry import Choice
from kproxy.backends.syncer import Syncer
from kproxy.backends.xtables.door import ToolDoor
from kproxy.backends.xtables.saved import parse
from kproxy.backends.xtables.variant import Variant
from kproxy.core.objects import Family
from tests.backends.iptables.plans import port, snapshot
from tests.contract.namespaces import scratch

pytestmark = pytest.mark.kernel

PAIRS = [(Variant.LEGACY, Variant.NFT), (Variant.NFT, Variant.LEGACY)]
THEIRS = "*nat\n:MINE - [0:0]\n-A MINE -j RETURN\n-A OUTPUT -j MINE\nCOMMIT\n"


def synced(family: Family, variant: Variant, records: Path) -> IptablesBackend:
    door = ToolDoor(family, variant, records=records)
    backend = IptablesBackend(family, variant, door=door)
    Syncer(backend).sync(snapshot(port("svc1", family, ways="cnel", pods=3), family=family))
    return backend


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_the_other_variant_is_swept(old: Variant, new: Variant, tmp_path: Path) -> None:
    """Ours and kube-proxy's chains of the old variant go in every family; other people's rules
    there stay, and our own are not touched. Once swept there is nothing more to sweep."""
    with scratch():
        backends = [synced(family, old, tmp_path) for family in Family]
        for backend in backends:
            backend.door.restore([THEIRS.encode()])
        standing = [synced(family, new, tmp_path) for family in Family]
        before = [parse(backend.door.save()) for backend in standing]
        assert registry.sweep(Choice("iptables", new), list(Family)) == (Choice("iptables", old),)
        for backend in backends:
            text = backend.door.save()
            assert "KUBE" not in text
            assert "-A OUTPUT -j MINE" in text
        assert [parse(backend.door.save()) for backend in standing] == before
        assert standing[0].door.sysctl("net/ipv4/conf/all/route_localnet") == "1"
        assert registry.sweep(Choice("iptables", new), list(Family)) == ()


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_families_that_are_not_served_keep_theirs(
    old: Variant, new: Variant, tmp_path: Path
) -> None:
    """Nothing stands in for them."""
    with scratch():
        kept = synced(Family.IPV6, old, tmp_path)
        before = parse(kept.door.save())
        synced(Family.IPV4, new, tmp_path)
        assert registry.sweep(Choice("iptables", new), [Family.IPV4]) == ()
        assert parse(kept.door.save()) == before
