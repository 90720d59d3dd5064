"""How large legacy tables are is known after every sync, without reading them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from kproxy.backends.fake import FakeIptables
from kproxy.backends.iptables.apply import IptablesBackend
from kproxy.backends.iptables.host import Machine
from kproxy.backends.syncer import Syncer
from kproxy.backends.xtables.saved import entries, parse
from kproxy.backends.xtables.variant import Variant
from kproxy.core.snapshot import Snapshot
from kproxy.errors import ApplyError
from tests.backends.iptables.plans import V4, port, settings, snapshot, successor

FIRST = snapshot(*[port(f"svc{n}", ways="cnl", pods=n % 4) for n in range(8)], port("gone", pods=3))
GONE = min(FIRST.ports)


def made(variant: Variant = Variant.LEGACY) -> tuple[FakeIptables, Syncer]:  # type: ignore[type-arg]
    door = FakeIptables()
    return door, Syncer(IptablesBackend(V4, variant, door=door, machine=Machine()))


#: Name -> what happens to a cluster that is in force, and what it is then to be.
CHANGES: list[tuple[str, Callable[[FakeIptables, Snapshot], Snapshot]]] = [
    ("nothing", lambda door, now: now),
    ("an endpoint more", lambda door, now: successor(now, port("svc1", ways="cnl", pods=3))),
    ("an endpoint less", lambda door, now: successor(now, port("svc3", ways="cnl", pods=2))),
    ("the last endpoint", lambda door, now: successor(now, port("svc1", ways="cnl", pods=0))),
    ("the first endpoint", lambda door, now: successor(now, port("svc0", ways="cnl", pods=1))),
    ("a new service", lambda door, now: successor(now, port("new", ways="c", pods=2))),
    ("no service", lambda door, now: successor(now, removed=tuple(now.ports))),
    ("other settings", lambda door, now: replace(FIRST, settings=settings(detector="bridge"))),
]
HARM: list[tuple[str, tuple[str, ...]]] = [
    ("nat", ("-F KUBE-SERVICES",)),
    ("nat", ("-A KUBE-SERVICES -p icmp", "-A KUBE-MARK-MASQ -p icmp")),
    ("nat", ("-F PREROUTING",)),
    ("nat", ("-A OUTPUT -j KUBE-SERVICES",)),
    ("nat", (":KUBE-SVC-AAAAAAAAAAAAAAAA - [0:0]", "-A KUBE-SVC-AAAAAAAAAAAAAAAA -p icmp")),
    ("filter", ("-F KUBE-FIREWALL",)),
    ("filter", ("-I INPUT -p icmp -j ACCEPT", ":MINE - [0:0]")),
    ("mangle", ("-X KUBE-PROXY-CANARY",)),
]


def assert_known(door: FakeIptables, syncer: Syncer) -> None:  # type: ignore[type-arg]
    assert syncer.backend.entries == entries(parse(door.save()))


@pytest.mark.parametrize(("about", "change"), CHANGES, ids=[about for about, _ in CHANGES])
def test_after_a_change_of_ours(
    about: str, change: Callable[[FakeIptables, Snapshot], Snapshot]
) -> None:
    """Counted on from the last sync, beside rules of others; so is it when it is read."""
    door, syncer = made()
    door.run(":MINE - [0:0]", "-A MINE -p icmp", "-A INPUT -j MINE")
    syncer.sync(FIRST)
    assert_known(door, syncer)
    now = change(door, FIRST)
    for again in (False, True):
        if again:
            syncer.forget()
        syncer.sync(now)
        assert_known(door, syncer)


@pytest.mark.parametrize(("table", "rows"), HARM, ids=lambda value: str(value)[:50])
def test_after_a_repair(table: str, rows: tuple[str, ...]) -> None:
    """What others added and stays is counted, what is mended too."""
    door, syncer = made()
    syncer.sync(FIRST)
    door.run(*rows, table=table)
    syncer.forget()
    syncer.sync(successor(FIRST, port("svc1", ways="cnl", pods=2)))
    assert_known(door, syncer)


def test_a_chain_that_others_pin_is_emptied_and_counted() -> None:
    """It cannot be deleted, so that its head and end stay."""
    door, syncer = made()
    syncer.sync(FIRST)
    chain = next(c for c in syncer.desired.blocks[GONE].chains if c.startswith("KUBE-SVC-"))
    door.run(":MINE - [0:0]", f"-A MINE -j {chain}", table="nat")
    syncer.forget()
    syncer.sync(successor(FIRST, removed=(GONE,)))
    assert door.tables["nat"][chain] == []
    assert_known(door, syncer)


def test_nothing_is_known_after_a_refusal_or_in_nft() -> None:
    """Until the kernel is read again; nf_tables has other means."""
    door, syncer = made()
    syncer.sync(FIRST)
    door.failures = ["Permission denied"]
    later = successor(FIRST, port("svc1", pods=3))
    with pytest.raises(ApplyError):
        syncer.sync(later)
    assert syncer.backend.entries is None
    syncer.sync(later)
    assert_known(door, syncer)
    door, syncer = made(Variant.NFT)
    syncer.sync(FIRST)
    assert syncer.backend.entries is None
