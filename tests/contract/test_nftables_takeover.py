"""nftables mode on the kernel: what it takes away, and from whom it takes over."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from kproxy.backends import registry
from kproxy.backends.nftables import sweep
from kproxy.backends.nftables.apply import NftablesBackend
from kproxy.backends.nftables.rules import TABLE, WORD
from kproxy.backends.syncer import Syncer
from kproxy.backends.xtables.door import ToolDoor
from kproxy.backends.xtables.variant import Variant
from kproxy.cli.cleanup import clean
from kproxy.core.objects import Family
from kproxy.kernel import command
from tests.contract.test_backend import some

pytestmark = pytest.mark.kernel


def nft(*words: str) -> str:
    return command.run(["nft", *words]).stdout.decode()


@pytest.fixture(autouse=True)
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where sysctls are recorded: modes that are swept look there."""
    monkeypatch.setenv("KPROXY_RECORDS", str(tmp_path / "records"))


def test_cleanup_and_sweep_leave_others_alone(nftables: NftablesBackend) -> None:
    """Nothing of ours is left, and all of theirs."""
    family = nftables.family
    nft("add", "table", WORD[family], "theirs")
    before = nft("list", "ruleset")
    Syncer(nftables).sync(some(family))
    nftables.cleanup()
    assert nft("list", "ruleset") == before
    assert not sweep.sweep(family, "iptables")
    Syncer(nftables).sync(some(family))
    kube_proxys(family)
    assert sweep.sweep(family, "iptables")
    assert nft("list", "ruleset") == before
    nft("add", "table", WORD[family], TABLE)
    assert sweep.sweep(family, "iptables")
    assert nft("list", "ruleset") == before


def test_the_command_says_what_it_removed(
    nftables: NftablesBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    """kproxy cleanup names the mode and the family; of another table it says nothing."""
    family = nftables.family
    nft("add", "table", WORD[family], "theirs")
    Syncer(nftables).sync(some(family))
    clean(force=True)
    assert capsys.readouterr().out == f"removed: nftables IPv{family:d}\n"
    clean(force=True)
    assert capsys.readouterr().out == "nothing of kproxy was here\n"


def kube_proxys(family: Family) -> None:
    """What kube-proxy's mode of this name leaves, as far as it matters."""
    nft(f"add table {WORD[family]} kube-proxy; add chain {WORD[family]} kube-proxy services")


def test_kube_proxys_table_goes_when_ours_stands(nftables: NftablesBackend) -> None:
    """It is no part of ours, and would serve beside it."""
    family, syncer = nftables.family, Syncer(nftables)
    syncer.sync(some(family))
    before = nft("list", "ruleset")
    kube_proxys(family)
    choice = registry.Choice("nftables")
    assert registry.sweep(choice, [family]) == (choice,)
    assert nft("list", "ruleset") == before
    assert registry.sweep(choice, [family]) == ()


@pytest.mark.parametrize("variant", Variant)
def test_it_takes_over_from_iptables_and_back(nftables: NftablesBackend, variant: Variant) -> None:
    """Of the mode that served before nothing is left, in either direction."""
    family, now = nftables.family, some(nftables.family)
    other = registry.Choice("iptables", variant)
    Syncer(registry.create(other, family)).sync(now)
    Syncer(nftables).sync(now)
    mine = registry.Choice("nftables")
    assert registry.sweep(mine, [family]) == (other,)
    assert "KUBE" not in saved(family, variant)
    with closing(NftablesBackend(family)) as again:
        assert Syncer(again).sync(now).written == 0
    Syncer(registry.create(other, family)).sync(now)
    before = saved(family, variant)
    assert registry.sweep(other, [family]) == (mine,)
    assert not nftables.door.stands()
    assert saved(family, variant) == before


def saved(family: Family, variant: Variant) -> str:
    """iptables-save without its counters and comments, which hold the time."""
    text = ToolDoor(family, variant).save()
    return "\n".join(line for line in text.splitlines() if line.startswith("-A"))
