"""What the host has: versions, features, the variant in use, sysctls and their way back."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from msgspec.structs import replace

from kproxy.backends.iptables import apply, host
from kproxy.backends.iptables.host import features, machine
from kproxy.backends.syncer import Syncer
from kproxy.backends.xtables import host as tools
from kproxy.backends.xtables.door import ToolDoor
from kproxy.backends.xtables.host import Feature, detect_variant, lacking
from kproxy.backends.xtables.rules import Table
from kproxy.backends.xtables.variant import Variant
from kproxy.core.objects import Family
from kproxy.errors import KernelError, MachineError, NetlinkError
from kproxy.kernel import netns, sysctl
from tests.backends.iptables.plans import port, snapshot
from tests.contract.namespaces import KERNEL, scratch

ROUTE_LOCALNET = "net/ipv4/conf/all/route_localnet"


@pytest.mark.kernel
@pytest.mark.parametrize(("family", "variant"), KERNEL)
def test_this_kernel_has_all_features(family: Family, variant: Variant) -> None:
    """Every feature is found, together and one by one, without a trace in the namespace."""
    with scratch():
        before = ToolDoor(family, variant).save()
        assert lacking(family, variant, features(family)) == ()
        host.probe(family, variant)
        its = ToolDoor(family, variant)
        for feature in features(family):
            with netns.fresh():
                assert tools.tried(its, (feature,)) is None, feature.name
        assert ToolDoor(family, variant).save() == before


@pytest.mark.kernel
def test_a_missing_feature_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what cannot be done, what the tool said, and which module would give it."""
    gone = Feature("teleporting", Table.NAT, "-j TELEPORT", "xt_TELEPORT", "NETFILTER_XT_TELEPORT")
    monkeypatch.setattr(host, "features", lambda family: (*features(family)[:2], gone))
    with scratch(), pytest.raises(MachineError, match="teleporting") as caught:
        host.probe(Family.IPV4, Variant.LEGACY)
    assert "modprobe -a xt_TELEPORT" in caught.value.hint
    assert "CONFIG_NETFILTER_XT_TELEPORT" in caught.value.hint


@pytest.mark.kernel
def test_machine_knows_liberal_conntrack() -> None:
    """INVALID packets are dropped unless conntrack is liberal about TCP."""
    with scratch():
        assert machine(Family.IPV4, Variant.NFT).drop_invalid
        sysctl.write("net/netfilter/nf_conntrack_tcp_be_liberal", "1")
        assert not machine(Family.IPV4, Variant.NFT).drop_invalid


@pytest.mark.kernel
@pytest.mark.parametrize("variant", list(Variant))
def test_machine_says_whether_rules_can_count(
    variant: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They can where a rule with a counter loads, and cannot where the tool refuses it, or where
    the kernel has no counters at all."""
    rule = "*filter\n:A - [0:0]\n-A A -m nfacct --nfacct-name made\nCOMMIT\n"
    with scratch():
        door = ToolDoor(Family.IPV4, variant)
        try:
            door.make_counter("made")
            door.restore([rule.encode()])
            loads = True
        except KernelError:
            loads = False
        assert machine(Family.IPV4, variant).counters is loads
        gone = replace(tools._COUNTS, row="-m teleports --far")
        monkeypatch.setattr(tools, "_COUNTS", gone)
        assert not machine(Family.IPV4, variant).counters

        def refuses(self: ToolDoor, name: str) -> None:
            raise NetlinkError("cannot make counter: Invalid argument", errno.EINVAL)

        monkeypatch.undo()
        monkeypatch.setattr(ToolDoor, "make_counter", refuses)
        assert not machine(Family.IPV4, variant).counters


RULE = "*filter\n:X - [0:0]\n-A X -j ACCEPT\nCOMMIT\n"
HINT = "*mangle\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n"


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("legacy", "nft", "expected"),
    [
        ([RULE], [], Variant.LEGACY),
        ([], [RULE], Variant.NFT),
        ([HINT], [RULE], Variant.LEGACY),
        ([RULE, RULE], [HINT], Variant.NFT),
    ],
)
def test_variant_follows_the_host(legacy: list[str], nft: list[str], expected: Variant) -> None:
    """The kubelet's hint decides, else who has more rules."""
    with scratch():
        for variant, texts in ((Variant.LEGACY, legacy), (Variant.NFT, nft)):
            for text in texts:
                ToolDoor(Family.IPV4, variant).restore([text.encode()])
        assert detect_variant() is expected


@pytest.mark.kernel
def test_looking_for_the_variant_makes_no_table() -> None:
    """Detection leaves a namespace without iptables as it was."""
    with scratch():
        detect_variant()
        assert [ToolDoor(Family.IPV4, variant).save() for variant in Variant] == ["", ""]


@pytest.mark.kernel
def test_route_localnet_is_set_back(tmp_path: Path) -> None:
    """Set with the rules, and by cleanup what it was, in whichever variant it is called."""
    records = tmp_path / "records"
    legacy, nft = (
        apply.IptablesBackend(
            Family.IPV4, variant, door=ToolDoor(Family.IPV4, variant, records=records)
        )
        for variant in Variant
    )
    with scratch():
        Syncer(legacy).sync(snapshot(port()))
        assert sysctl.read(ROUTE_LOCALNET) == "1"
        nft.cleanup()
        assert sysctl.read(ROUTE_LOCALNET) == "0"
        assert list(records.iterdir()) == []


@pytest.mark.kernel
def test_backend_cleanup_takes_the_other_variant(tmp_path: Path) -> None:
    """One backend cleans its family in both variants."""
    text = "*nat\n:KUBE-SERVICES - [0:0]\nCOMMIT\n"
    with scratch():
        doors = [ToolDoor(Family.IPV4, variant) for variant in Variant]
        for its in doors:
            its.restore([text.encode()])
        nft = ToolDoor(Family.IPV4, Variant.NFT, records=tmp_path)
        apply.IptablesBackend(Family.IPV4, "nft", door=nft).cleanup()
        assert [its.save().count("KUBE-") for its in doors] == [0, 0]


def test_a_missing_tool_is_a_machine_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tool: the error names the package."""
    monkeypatch.setattr("kproxy.kernel.command.find", lambda tool: None)
    with pytest.raises(MachineError, match="apt-get install iptables"):
        host.probe(Family.IPV4, Variant.LEGACY)


@pytest.mark.kernel
@pytest.mark.parametrize(("family", "variant"), KERNEL)
def test_whether_rules_can_ask_a_set(
    family: Family, variant: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tried without a trace; a match that the tool or kernel lacks means no."""
    with scratch():
        before = ToolDoor(family, variant).save()
        assert tools.asks_sets(family, variant)
        assert ToolDoor(family, variant).save() == before
        assert ToolDoor(family, variant).members("KP") is None
        gone = Feature("sets", Table.FILTER, "-m nosuch --match-set KP src,src", "xt_set", "NONE")
        monkeypatch.setattr(tools, "_ASKS", gone)
        assert not tools.asks_sets(family, variant)
