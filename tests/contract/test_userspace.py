"""Userspace mode on the real kernel: sockets, rules in both variants, and who comes after it."""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from kproxy.backends import registry
from kproxy.backends.iptables.apply import IptablesBackend
from kproxy.backends.registry import Choice
from kproxy.backends.syncer import Syncer
from kproxy.backends.userspace import chains
from kproxy.backends.userspace.apply import UserspaceBackend
from kproxy.backends.userspace.prepare import prepare
from kproxy.backends.userspace.watch import watch
from kproxy.backends.xtables.door import ToolDoor, tool
from kproxy.backends.xtables.rules import Table
from kproxy.backends.xtables.saved import parse
from kproxy.backends.xtables.variant import Variant
from kproxy.core.objects import Family
from kproxy.kernel import command, netns, sysctl
from kproxy.kernel.xtables import Tables
from kproxy.kernel.xtables import entries as entries_of
from tests.backends.iptables.plans import port, settings, snapshot, successor
from tests.backends.userspace.relay import FakeRelay
from tests.contract.namespaces import scratch
from tests.contract.test_leftovers import Ipvs

pytestmark = pytest.mark.kernel

VARIANTS = list(Variant)
#: Of the old mode's rules and the new one's.
PAIRS = [(old, new) for old in Variant for new in Variant]
THEIRS = "*nat\n:MINE - [0:0]\n-A MINE -j RETURN\n-A OUTPUT -j MINE\nCOMMIT\n"
ROUTE_LOCALNET, TW_REUSE = "net/ipv4/conf/all/route_localnet", "net/ipv4/tcp_tw_reuse"
AF = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
#: Many times the longest period of looks.
PATIENCE = 60.0


@pytest.fixture(autouse=True)
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A namespace of the test's own, and where sysctls are recorded."""
    monkeypatch.setenv("KPROXY_RECORDS", str(tmp_path / "records"))
    with scratch(loopback=True):
        yield


def plans(family: Family) -> tuple[object, ...]:
    return (
        port("web", family, ways="cnel", number=80),
        port("empty", family, pods=0, number=81),
    )


def standing(family: Family, variant: Variant) -> UserspaceBackend:
    """In force, with the real relay."""
    backend = UserspaceBackend(family, variant)
    Syncer(backend).sync(snapshot(*plans(family), family=family))  # type: ignore[arg-type]
    return backend


def in_force(backend: UserspaceBackend) -> bool:
    desired = backend.render(snapshot(*plans(backend.family), family=backend.family), None)  # type: ignore[arg-type]
    return backend.diff(desired, backend.read()) is None


def iptables(family: Family, variant: Variant) -> IptablesBackend:
    backend = IptablesBackend(family, variant)
    Syncer(backend).sync(snapshot(*plans(family), family=family))  # type: ignore[arg-type]
    return backend


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_iptables_mode_goes_when_userspace_stands(old: Variant, new: Variant) -> None:
    """Other people's rules stay, and the sysctl that both modes need; ours is whole after it."""
    former = [iptables(family, old) for family in Family]
    for each in former:
        each.door.restore([THEIRS.encode()])
    ours = [standing(family, new) for family in Family]
    assert Choice("iptables", old) in registry.sweep(Choice("userspace", new), list(Family))
    for each in former:
        text = each.door.save()
        assert "-A OUTPUT -j MINE" in text
        assert ("KUBE-" if old is not new else "KUBE-SERVICES") not in text
    assert sysctl.read(ROUTE_LOCALNET) == "1"
    assert [in_force(each) for each in ours] == [True, True]
    assert registry.sweep(Choice("userspace", new), list(Family)) == ()
    for each in ours:
        each.relay.close()


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_userspace_mode_goes_when_iptables_stands(old: Variant, new: Variant) -> None:
    """Its rules; the sysctls that the other mode does not need are as they were."""
    before = sysctl.read(TW_REUSE)
    former = [standing(family, old) for family in Family]
    for each in former:
        each.door.restore([THEIRS.encode()])
        each.relay.close()
    assert sysctl.read(TW_REUSE) == "1"
    ours = [iptables(family, new) for family in Family]
    assert Choice("userspace", old) in registry.sweep(Choice("iptables", new), list(Family))
    for each in former:
        text = each.door.save()
        assert "-A OUTPUT -j MINE" in text
        assert not any(chain in text for _, chain in chains.PLACES)
    assert (sysctl.read(TW_REUSE), sysctl.read(ROUTE_LOCALNET)) == (before, "1")
    for each in ours:
        desired = each.render(snapshot(*plans(each.family), family=each.family), None)  # type: ignore[arg-type]
        assert each.diff(desired, each.read()) is None
    assert registry.sweep(Choice("iptables", new), list(Family)) == ()


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_userspace_mode_goes_when_ipvs_stands(old: Variant, new: Variant) -> None:
    """With every sysctl: the guard goes, so neighbours must not get in any more."""
    former = [standing(family, old) for family in Family]
    for each in former:
        each.relay.close()
    ours = [Ipvs(family, new) for family in Family]
    assert Choice("userspace", old) in registry.sweep(Choice("ipvs", new), list(Family))
    for each in former:
        text = each.door.save()
        assert not any(f":{chain} " in text for _, chain in chains.PLACES)
        assert "KUBE-FIREWALL" not in text
    assert [each.patch() for each in ours] == [None, None]
    assert sysctl.read(ROUTE_LOCALNET) == "0"


@pytest.mark.parametrize(("old", "new"), [(Variant.NFT, Variant.LEGACY)])
def test_ipvs_mode_goes_when_userspace_stands(old: Variant, new: Variant) -> None:
    """Rules and sets."""
    former = [Ipvs(family, old) for family in Family]
    ours = [standing(family, new) for family in Family]
    assert Choice("ipvs", old) in registry.sweep(Choice("userspace", new), list(Family))
    assert all("KUBE-" not in each.door.save() for each in former)
    for each in ours:
        assert in_force(each)
        each.relay.close()


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_other_variant_is_swept(variant: Variant) -> None:
    """After a change of the host's tools."""
    other = Variant.LEGACY if variant is Variant.NFT else Variant.NFT
    former = standing(Family.IPV4, other)
    former.relay.close()
    ours = standing(Family.IPV4, variant)
    swept = registry.sweep(Choice("userspace", variant), [Family.IPV4])
    assert swept == (Choice("userspace", other),)
    assert "KUBE-PORTALS" not in former.door.save()
    assert in_force(ours)
    ours.relay.close()


@pytest.mark.parametrize("variant", VARIANTS)
def test_cleanup_sets_everything_back(variant: Variant) -> None:
    """Rules of the tables, sysctls, sockets; other people's rules stay."""
    door = ToolDoor(Family.IPV4, variant)
    door.restore([THEIRS.encode(), b"*filter\n:MINE - [0:0]\n-A FORWARD -j MINE\nCOMMIT\n"])
    before, reuse = parse(door.save()), sysctl.read(TW_REUSE)
    backend = standing(Family.IPV4, variant)
    backend.cleanup()
    assert parse(door.save()) == before
    assert (sysctl.read(ROUTE_LOCALNET), sysctl.read(TW_REUSE)) == ("0", reuse)
    with socket.create_server(("", 30080)):
        pass


@pytest.mark.parametrize("family", list(Family))
def test_a_start_after_a_crash_changes_no_rule(family: Family) -> None:
    """The relay that is gone left its ports in the rules: the next one takes them again."""
    first = standing(family, Variant.NFT)
    before = {name: dict(each.ports) for name, each in first.relay.running().items()}
    first.relay.close()
    second = UserspaceBackend(family, Variant.NFT)
    with closing(second.relay):
        applied = Syncer(second).sync(snapshot(*plans(family), family=family))  # type: ignore[arg-type]
        after = {name: dict(each.ports) for name, each in second.relay.running().items()}
        assert (applied.transactions, after) == (0, before)


def test_a_relay_port_that_was_taken_meanwhile_is_another_one() -> None:
    """The rules follow."""
    first = standing(Family.IPV4, Variant.NFT)
    (port_,) = [each for one in first.relay.running().values() for each in one.ports.values()]
    first.relay.close()
    with socket.create_server(("", port_)):
        second = standing(Family.IPV4, Variant.NFT)
        with closing(second.relay):
            (other,) = [p for one in second.relay.running().values() for p in one.ports.values()]
            assert other != port_
            assert in_force(second)


@pytest.mark.parametrize("family", list(Family))
def test_a_node_port_that_a_daemon_has(family: Family) -> None:
    """It is left to him and told of; taken when he has gone, at the next look."""
    backend = UserspaceBackend(family, Variant.NFT)
    syncer, now = Syncer(backend), snapshot(*plans(family), family=family)  # type: ignore[arg-type]
    with closing(backend.relay):
        with socket.create_server(("", 30080), family=AF[family]):
            ((name, why),) = syncer.sync(now).refused
            assert (name.name, "30080" in why) == ("web", True)
            assert "--dport 30080" not in backend.door.save()
        syncer.forget()
        assert syncer.sync(now).refused == ()
        assert "--dport 30080" in backend.door.save()
        with pytest.raises(OSError, match="in use"):
            socket.create_server(("", 30080), family=AF[family])


CHANGES: list[tuple[str, Callable[[Callable[..., None]], None]]] = [
    ("portals emptied", lambda run: run("-t", "nat", "-F", chains.PORTALS_CONTAINER)),
    ("a line deleted", lambda run: run("-t", "nat", "-D", chains.PORTALS_HOST, "1")),
    ("a line added", lambda run: run("-A", chains.RELAY_GUARD, "-j", "RETURN")),
    ("a jump deleted", lambda run: run("-t", "nat", "-D", "OUTPUT", "1")),
    ("filter flushed", lambda run: run("-F")),
]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("about", "change"), CHANGES, ids=[about for about, _ in CHANGES])
def test_a_change_by_others_is_noticed_and_mended(
    about: str, change: Callable[[Callable[..., None]], None], variant: Variant
) -> None:
    """Line by line; our own changes are no news."""
    family = Family.IPV4
    backend = UserspaceBackend(family, variant)
    syncer, now = Syncer(backend), snapshot(*plans(family), family=family)  # type: ignore[arg-type]

    def run(*words: str) -> None:
        command.run([tool(family, variant), *words])

    def noticed() -> str:
        # A transaction may be told of in several parts, and only the last one says whose it was.
        deadline = time.monotonic() + PATIENCE
        while (left := deadline - time.monotonic()) > 0:
            if select.select([looking], [], [], left)[0] and (what := looking.look()):
                return what
        return ""

    with closing(backend.relay), closing(watch(variant, [family])) as looking:
        looking.pause()
        assert looking.resume(syncer.sync(now).transactions) == ""
        looking.pause()
        more = successor(now, port("more", family, number=82))
        assert looking.resume(syncer.sync(more).transactions) == ""
        looking.pause()
        gone = (port("more", family, number=82).name,)
        more = successor(more, removed=gone)
        assert looking.resume(syncer.sync(more).transactions) == ""
        change(run)
        assert noticed()
        looking.pause()
        syncer.forget()
        applied = syncer.sync(more)
        looking.resume(applied.transactions)
        assert applied.foreign
        syncer.forget()
        assert syncer.sync(more).written == 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_set_up_ahead_writes_only_the_guard(variant: Variant) -> None:
    """With the rights that the daemon may lack: sysctls, behind the rule that they need."""
    backend = UserspaceBackend(Family.IPV4, variant)
    done = prepare(backend, snapshot())
    assert dict(done) == {ROUTE_LOCALNET: "1", TW_REUSE: "1"}
    saved = parse(backend.door.save())
    assert len(saved[Table.FILTER]["KUBE-FIREWALL"]) == 1
    assert not any(chain in content for content in saved.values() for _, chain in chains.PLACES)
    assert prepare(backend, snapshot()) == ()
    backend.cleanup()


@pytest.fixture
def pod() -> Iterator[str]:
    """A pod's namespace, by name; its node has a route to it and no address on the device."""
    name = f"kp-M-{os.getpid()}"
    netns.create(name)
    try:
        for words in (
            f"link add cali1 address 02:00:00:00:00:01 type veth peer name eth0 netns {name}",
            "address add 192.168.0.2/32 dev lo",
            "address add 10.180.0.1/32 dev lo",
            "link set cali1 up",
            "route add 10.180.0.9/32 dev cali1",
            f"-n {name} address add 10.180.0.9/32 dev eth0",
            f"-n {name} link set eth0 up",
            f"-n {name} route add 169.254.1.1/32 dev eth0",
            f"-n {name} route add default via 169.254.1.1",
            f"-n {name} neighbour add 169.254.1.1 lladdr 02:00:00:00:00:01 dev eth0",
        ):
            command.run(["ip", *words.split()])
        yield name
    finally:
        netns.remove(name)


def test_pods_behind_a_device_without_an_address_are_served(pod: str) -> None:
    """As many networks have them: REDIRECT would drop what they send."""
    backend = UserspaceBackend(Family.IPV4, Variant.NFT)
    its = settings(Family.IPV4, local_addresses=("192.168.0.2",))
    plan = port("web", pods=1)
    with closing(backend.relay), socket.create_server(("10.180.0.1", 80)) as endpoint:
        Syncer(backend).sync(snapshot(plan, settings_=its))
        with netns.entered(pod):
            client = socket.create_connection((plan.cluster_ip, 80), PATIENCE)
        with client:
            endpoint.settimeout(PATIENCE)
            served, _ = endpoint.accept()
            with served:
                served.sendall(b"served")
                assert client.recv(6, socket.MSG_WAITALL) == b"served"


# --- what the kernel counts ----------------------------------------------------------------------


@pytest.mark.parametrize("family", list(Family))
def test_we_count_entries_as_the_kernel_does(family: Family, tmp_path: Path) -> None:
    """legacy: beside a firewall, after changes, after more deletions from a chain than are made
    one by one, and after a full sync that finds chains emptied; so that a change that somebody
    makes while we write is noticed by the numbers."""
    rules = "-A INPUT -p icmp -j ACCEPT\n-A MINE -j DROP\n-A INPUT -j MINE\n"
    text = f"*filter\n:MINE - [0:0]\n{rules}COMMIT\n*nat\n:EMPTY - [0:0]\nCOMMIT\n"
    legacy = Variant.LEGACY
    command.run([tool(family, legacy, "restore"), "--noflush"], stdin=text.encode())
    door = ToolDoor(family, legacy, records=tmp_path)
    backend = UserspaceBackend(family, legacy, door=door, relay=FakeRelay())
    syncer = Syncer(backend)
    plans = [port(f"svc{n:03}", family, ways="cnel", number=8000 + n) for n in range(300)]
    now = snapshot(*plans, family=family)
    others = [port(f"svc{n:03}", family, ways="c", pods=n % 3, number=8000 + n)
              for n in range(40)]  # fmt: skip
    gone = tuple(plan.name for plan in plans[40:290])
    for step in ("all", "changes", "many go", "found emptied", "nothing"):
        if step == "changes":
            now = successor(now, *others)
        elif step == "many go":
            now = successor(now, removed=gone)
        elif step == "found emptied":
            command.run([tool(family, legacy), "-t", "nat", "-F", chains.PORTALS_HOST])
            command.run([tool(family, legacy), "-F", chains.RELAY_GUARD])
            syncer.forget()
        elif step == "nothing":
            now = successor(now, removed=tuple(now.ports))
        syncer.sync(now)
        counted = Tables(family)
        entries = {str(table): entries_of(counted.info(str(table))) for table in Table}
        counted.close()
        assert {**entries, **(backend.entries or {})} == entries, step
        assert backend.entries is not None
        assert {"nat", "filter"} <= backend.entries.keys()
