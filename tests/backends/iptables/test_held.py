"""What is read from save text, and the smallest change from it."""

from __future__ import annotations

import pytest

from kproxy.backends.fake import FakeIptables
from kproxy.backends.iptables import chains
from kproxy.backends.iptables.apply import IptablesBackend
from kproxy.backends.iptables.diff import Patch
from kproxy.backends.iptables.held import Held
from kproxy.backends.iptables.host import Machine
from kproxy.backends.iptables.script import NFT_SERVICES_PER_CALL
from kproxy.backends.syncer import Syncer
from kproxy.backends.xtables.rules import Table
from kproxy.backends.xtables.saved import parse, target_of
from kproxy.backends.xtables.script import NFT_CHAINS_PER_CALL
from kproxy.backends.xtables.variant import Variant
from kproxy.core.snapshot import Snapshot
from kproxy.errors import ApplyError
from tests.backends.iptables.plans import (
    NO_LOCALHOST,
    V4,
    V6,
    port,
    settings,
    snapshot,
    successor,
)

ROUTE_LOCALNET = "net/ipv4/conf/all/route_localnet"


def made(variant: Variant = Variant.LEGACY) -> tuple[IptablesBackend, FakeIptables, Syncer]:
    door = FakeIptables()
    backend = IptablesBackend(V4, variant, door=door, machine=Machine())
    return backend, door, Syncer(backend)


def test_parse_keeps_the_tables_that_matter() -> None:
    """Foreign tables and comments are skipped, chains without rules are kept."""
    text = (
        "# Generated\n*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -j ACCEPT\nCOMMIT\n"
        "*nat\n:PREROUTING ACCEPT [5:300]\n:EMPTY - [0:0]\n:A - [0:0]\n-A A\n"
        "-A PREROUTING -j A\nCOMMIT\n"
    )
    assert parse(text) == {
        Table.NAT: {"PREROUTING": ["-A PREROUTING -j A"], "EMPTY": [], "A": ["-A A"]}
    }


@pytest.mark.parametrize(
    ("row", "target"),
    [
        ("-A A -j B", "B"),
        ("-A A -g B", "B"),
        ('-A A -m comment --comment "x -j C" -j B', "B"),
        ("-A A -j REJECT --reject-with icmp-port-unreachable", "REJECT"),
        ("-A A", ""),
    ],
)
def test_target_of_a_printed_rule(row: str, target: str) -> None:
    """The target is the last one named: a comment may look like one."""
    assert target_of(row) == target


def test_read_takes_only_what_is_ours() -> None:
    """Foreign chains and rules are no part of what is held, whatever they are called."""
    backend, door, _ = made()
    door.run(":FOREIGN - [0:0]", "-A FOREIGN -j ACCEPT", "-A INPUT -j FOREIGN")
    door.run(":KUBE-KUBELET-CANARY - [0:0]", table="mangle")
    assert backend.read() == Held(tables={table: {} for table in Table})


def written(patch: Patch | None, variant: Variant = Variant.LEGACY) -> list[str]:
    backend = IptablesBackend(V4, variant, door=FakeIptables(), machine=Machine())
    return [] if patch is None else ["".join(call) for call in backend.script(patch)]


def step(before: Snapshot, after: Snapshot, variant: Variant = Variant.LEGACY) -> list[str]:
    """The calls that lead from one Snapshot to the next."""
    _, door, syncer = made(variant)
    syncer.sync(before)
    done = len(door.texts)
    syncer.sync(after)
    return door.texts[done:]


def named(text: str) -> set[str]:
    """The chains that a call declares, which empties them."""
    return {row.split()[0][1:] for row in text.splitlines() if row.startswith(":")}


@pytest.mark.parametrize("variant", list(Variant))
def test_an_endpoint_change_leaves_dispatch_alone(variant: Variant) -> None:
    """One endpoint more: its chain is new, the choice is written again, nothing else is named."""
    before = snapshot(port("svc1", pods=2), port("svc2", pods=2))
    (text,) = step(before, successor(before, port("svc1", pods=3)), variant)
    kinds = sorted(chain[:9] for chain in named(text))
    assert kinds == [chains.ENDPOINT, chains.CLUSTER]
    assert "*filter" not in text


@pytest.mark.parametrize("variant", list(Variant))
def test_an_endpoint_that_goes_is_deleted(variant: Variant) -> None:
    """One endpoint less: the choice is written again, its chain is emptied and deleted."""
    before = snapshot(port("svc1", pods=3))
    (text,) = step(before, successor(before, port("svc1", pods=2)), variant)
    gone = [row[3:] for row in text.splitlines() if row.startswith("-X ")]
    assert [chain[:9] for chain in gone] == [chains.ENDPOINT]
    assert {chain[:9] for chain in named(text)} == {chains.ENDPOINT, chains.CLUSTER}


def test_a_service_that_loses_its_endpoints_is_refused() -> None:
    """Its chains go from nat, its refusal comes into filter; node ports are not touched."""
    before = snapshot(port("svc1", pods=2), port("svc2", pods=2, ways="cn"))
    (text,) = step(before, successor(before, port("svc1", pods=0)))
    assert "KUBE-NODEPORTS" not in named(text)
    assert named(text) >= {chains.SERVICES}
    assert '"ns1/svc1:p80 has no endpoints"' in text


def test_nothing_to_do_is_nothing_sent() -> None:
    """A Snapshot that changes nothing starts no tool, also when the kernel is read again."""
    _, door, syncer = made()
    whole = snapshot(port("svc1"), port("svc2", pods=0))
    syncer.sync(whole)
    done = len(door.texts)
    syncer.sync(whole)
    syncer.forget()
    assert syncer.sync(whole).full
    assert len(door.texts) == done


@pytest.mark.parametrize(
    ("services", "calls"),
    [(NFT_SERVICES_PER_CALL, 1), (NFT_SERVICES_PER_CALL + 1, 4)],
)
def test_nft_sends_large_changes_in_calls(services: int, calls: int) -> None:
    """Up to a hundred services one call; above: fixed chains, services by hundreds, and the way
    to them last."""
    _, door, syncer = made(Variant.NFT)
    syncer.sync(snapshot(*[port(f"svc{number:03}", ways="cn") for number in range(services)]))
    assert len(door.texts) == calls
    leading = [f"-A {chains.SERVICES}" in text for text in door.texts]
    assert leading == [False] * (calls - 1) + [True]
    assert ["-I PREROUTING" in text for text in door.texts] == leading


def test_nft_mends_an_emptied_nat_like_a_first_sync() -> None:
    """Nothing leads to any rule then, and smaller calls are the faster ones: by hundreds, the way
    to them last. One emptied chain among full ones is one call."""
    _, door, syncer = made(Variant.NFT)
    whole = snapshot(*[port(f"svc{n:03}", ways="cn") for n in range(NFT_SERVICES_PER_CALL + 1)])
    syncer.sync(whole)
    before = door.save()
    for emptied, calls in ((list(door.tables["nat"]), 4), (["KUBE-MARK-MASQ"], 1)):
        door.run(*[f"-F {chain}" for chain in emptied], table="nat")
        done = len(door.texts)
        syncer.forget()
        syncer.sync(whole)
        leading = [f"-A {chains.SERVICES}" in text for text in door.texts[done:]]
        assert len(leading) == calls
        assert leading[-1] is (calls > 1)
        assert not any(leading[:-1])
        assert parse(door.save()) == parse(before)


def test_legacy_sends_one_call() -> None:
    """Each call of the legacy tool replaces its whole table, so there is only one."""
    _, door, syncer = made()
    plans = [port(f"svc{number:03}") for number in range(NFT_SERVICES_PER_CALL + 1)]
    syncer.sync(snapshot(*plans))
    assert len(door.texts) == 1


def test_nft_removes_the_way_before_the_chains() -> None:
    """Removal of many services: the dispatch chains first, then all chains emptied, then deleted
    in calls of bounded size."""
    count = NFT_CHAINS_PER_CALL // 4 + 1
    plans = [port(f"svc{number:04}", pods=3) for number in range(count)]
    before = snapshot(*plans)
    texts = step(before, successor(before, removed=tuple(before.ports)), Variant.NFT)
    first = next(at for at, text in enumerate(texts) if chains.SERVICES in named(text))
    emptied = [
        at for at, text in enumerate(texts) if any(chains.is_service_chain(c) for c in named(text))
    ]
    deleted = [at for at, text in enumerate(texts) if "-X " in text]
    assert first < min(emptied) <= max(emptied) < min(deleted)
    assert max(text.count("-X ") for text in texts) <= NFT_CHAINS_PER_CALL


def test_a_refused_call_of_many_leaves_services_whole() -> None:
    """nft, large change, refused half-way: what is reachable is as before, and the next sync ends
    where it should."""
    _, door, syncer = made(Variant.NFT)
    plans = [port(f"svc{number:03}") for number in range(2 * NFT_SERVICES_PER_CALL + 1)]
    restore, left = door.restore, 2

    def failing(chunks: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            door.failures.append("Cannot allocate memory")
        restore(chunks)  # type: ignore[arg-type]

    door.restore = failing  # type: ignore[method-assign]
    with pytest.raises(ApplyError, match="Cannot allocate memory"):
        syncer.sync(snapshot(*plans))
    assert chains.SERVICES not in door.tables["nat"]
    syncer.sync(snapshot(*plans))
    backend = syncer.backend
    assert backend.read() == backend.settled(syncer.desired)


def test_missing_jumps_come_back_and_repeats_go() -> None:
    """A jump that somebody deleted is put at the top again, one that is there twice is there once
    afterwards; other people's rules stay."""
    backend, door, syncer = made()
    whole = snapshot(port())
    syncer.sync(whole)
    jump = '-m comment --comment "kubernetes service portals" -j KUBE-SERVICES'
    door.run(
        f"-D PREROUTING {jump}", "-A PREROUTING -p tcp -j ACCEPT", f"-A OUTPUT {jump}", table="nat"
    )
    syncer.forget()
    syncer.sync(whole)
    nat = door.tables["nat"]
    assert nat["PREROUTING"] == [f"-A PREROUTING {jump}", "-A PREROUTING -p tcp -j ACCEPT"]
    assert nat["OUTPUT"] == [f"-A OUTPUT {jump}"]
    assert backend.read() == backend.settled(syncer.desired)


def test_a_foreign_rule_keeps_a_stale_chain() -> None:
    """A chain to which somebody else's rule goes cannot be deleted: it is emptied and left, and
    the rest of the sync is not held up."""
    _, door, syncer = made()
    before = snapshot(port("svc1"), port("svc2"))
    syncer.sync(before)
    chain = next(
        c for c in syncer.desired.blocks[min(before.ports)].chains if c.startswith(chains.CLUSTER)
    )
    door.run(":MINE - [0:0]", f"-A MINE -j {chain}", table="nat")
    after = successor(before, removed=(min(before.ports),))
    assert syncer.sync(after).full
    assert door.tables["nat"][chain] == []
    syncer.forget()
    done = len(door.texts)
    syncer.sync(after)
    assert len(door.texts) == done


def test_the_kubelets_chain_is_added_to_and_never_emptied() -> None:
    """KUBE-FIREWALL keeps the kubelet's rules; our guard is added once."""
    _, door, syncer = made()
    theirs = "-m mark --mark 0x8000/0x8000 -j DROP"
    door.run(f":{chains.KUBELET_FIREWALL} - [0:0]", f"-A {chains.KUBELET_FIREWALL} {theirs}")
    for _ in range(2):
        syncer.sync(snapshot(port()))
        syncer.forget()
    rows = door.tables["filter"][chains.KUBELET_FIREWALL]
    assert rows[0] == f"-A {chains.KUBELET_FIREWALL} {theirs}"
    assert len(rows) == 2


def test_route_localnet_follows_the_guard() -> None:
    """Set after the rules are in force, only when localhost is served, and set back by cleanup."""
    backend, door, syncer = made()
    syncer.sync(snapshot(port(), settings_=settings(V4, node_port_targets=NO_LOCALHOST)))
    assert door.sysctls[ROUTE_LOCALNET] == "0"
    door.failures = ["Permission denied"]
    with pytest.raises(ApplyError):
        syncer.sync(snapshot(port(), generation=2))
    assert door.sysctls[ROUTE_LOCALNET] == "0"
    syncer.sync(snapshot(port(), generation=3))
    assert door.sysctls[ROUTE_LOCALNET] == "1"
    door.sysctls[ROUTE_LOCALNET] = "0"
    syncer.forget()
    syncer.sync(snapshot(port(), generation=3))
    assert door.sysctls[ROUTE_LOCALNET] == "1"
    backend.cleanup()
    assert door.sysctls[ROUTE_LOCALNET] == "0"


def test_ipv6_needs_no_sysctl() -> None:
    """There is no route_localnet in IPv6, and no guard."""
    door = FakeIptables()
    Syncer(IptablesBackend(V6, "legacy", door=door, machine=Machine())).sync(
        snapshot(port(family=V6), family=V6)
    )
    assert door.sysctls[ROUTE_LOCALNET] == "0"
    assert door.tables["filter"][chains.KUBELET_FIREWALL] == []


def test_a_refusal_names_the_line() -> None:
    """The error gives the tool's words and the line that they speak of."""
    _, door, syncer = made()
    door.failures = ["line 1 failed"] * 3
    with pytest.raises(ApplyError, match=r"line 1 failed: \*nat; see what this kernel lacks"):
        syncer.sync(snapshot(port()))


def test_written_counts_the_rules_sent() -> None:
    """``written`` is the number of rules in the text, jumps included."""
    _, door, syncer = made()
    applied = syncer.sync(snapshot(*[port(f"svc{number:03}", ways="cnel") for number in range(50)]))
    rows = [row for text in door.texts for row in text.splitlines()]
    assert applied.written == sum(row.startswith(("-A ", "-I ")) for row in rows)
    assert applied.full


def test_render_text_is_what_a_first_sync_sends() -> None:
    """The rules as text, without a kernel."""
    backend, door, syncer = made()
    whole = snapshot(port("svc1", ways="cn"), port("svc2", pods=0))
    syncer.sync(whole)
    assert door.texts == ["".join(backend.text(whole))]
