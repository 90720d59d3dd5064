"""Fastpath mode on the kernel: what it leaves, what it finds, and what others do to it."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from kproxy.backends.fastpath import steer
from kproxy.backends.fastpath.apply import FastpathBackend
from kproxy.backends.fastpath.door import SteerDoor
from kproxy.backends.fastpath.watch import FastpathWatch, watch
from kproxy.backends.syncer import Syncer
from kproxy.core.objects import Family
from kproxy.core.snapshot import FastpathSettings, Snapshot
from kproxy.core.steering import Part
from kproxy.kernel import command, tun
from kproxy.kernel.nftables import Listener
from kproxy.kernel.routing_notices import RoutingNotices
from tests.backends.iptables.plans import port, snapshot, successor
from tests.contract.namespaces import scratch

pytestmark = pytest.mark.kernel

#: Within this a change by others must be told.
TOLD = 60.0


def some(family: Family) -> Snapshot:
    return snapshot(port("svc0", family, ways="cn", pods=2), family=family)


def ip(family: Family, *words: str) -> str:
    return command.run(["ip", f"-{int(family)}", *words]).stdout.decode()


def everything(family: Family) -> tuple[str, ...]:
    sysctls = command.run(
        ["sysctl", "-n", *(name.replace("/", ".") for name in OF_THE_NODE)]
    ).stdout.decode()
    table = ip(family, "route", "show", "table", "all", "type", "unicast")
    # Its state is unknown as long as it never was without a carrier.
    links = [line.split(" mtu ")[0] for line in ip(family, "-o", "link").splitlines()]
    ruleset = command.run(["nft", "list", "ruleset"]).stdout.decode()
    return ip(family, "rule"), table, "\n".join(links[1:]), ruleset, sysctls


def becomes(family: Family, wanted: tuple[str, ...]) -> bool:
    """Whether everything is that, now or soon: the kernel marks devices and routes after a change
    of carrier when it gets round to it, once a second at most."""
    deadline = time.monotonic() + TOLD
    while (found := everything(family)) != wanted and time.monotonic() < deadline:
        pass
    return found == wanted


OF_THE_NODE = (
    "net/ipv4/conf/all/route_localnet",
    "net/ipv4/ip_local_reserved_ports",
    "net/netfilter/nf_conntrack_tcp_be_liberal",
)


def test_cleanup_leaves_no_trace(fastpath: FastpathBackend) -> None:
    """Rules, routes, device, table and sysctls are as they were before the mode."""
    before = everything(fastpath.family)
    Syncer(fastpath).sync(some(fastpath.family))
    assert everything(fastpath.family) != before
    fastpath.cleanup()
    assert becomes(fastpath.family, before)


def test_a_restart_finds_what_leads_to_it(fastpath: FastpathBackend) -> None:
    """A new process tells its engine everything and goes to the device: nothing else is written."""
    Syncer(fastpath).sync(some(fastpath.family))
    before = everything(fastpath.family)
    fastpath.close()
    with closing(FastpathBackend(fastpath.family, door=fastpath.door)) as again:
        applied = Syncer(again).sync(some(again.family))
        assert dict(applied.tables) == {"engine": 1, "ways": 1}
        assert applied.transactions == 0
        assert becomes(fastpath.family, before)


def test_so_many_may_begin_a_second(fastpath: FastpathBackend) -> None:
    """The limit is in the rules, survives a restart as it is, and another one replaces it."""
    Syncer(fastpath).sync(some(fastpath.family))
    fastpath.close()
    for limit, chains in ((700, 1), (700, 0), (0, 1)):
        settings = FastpathSettings(new_per_second=limit, workers=2)
        made = FastpathBackend(fastpath.family, settings=settings, door=fastpath.door)
        with closing(made) as again:
            assert Syncer(again).sync(some(again.family)).transactions == chains
        listed = command.run(["nft", "list", "chain", *table(fastpath.family), "fresh"])
        said = f"limit rate over {limit or 2 * steer.NEW_A_SECOND}/second"
        assert said in listed.stdout.decode()


def table(family: Family) -> tuple[str, str]:
    return steer.WORD[family], steer.TABLE


def test_endpoints_touch_the_engine_alone(fastpath: FastpathBackend) -> None:
    """What leads packets to a service does not depend on its endpoints."""
    syncer, now = Syncer(fastpath), some(fastpath.family)
    syncer.sync(now)
    applied = syncer.sync(successor(now, port("svc0", fastpath.family, ways="cn", pods=3)))
    assert (dict(applied.tables), applied.transactions) == ({"engine": 1}, 0)


def test_the_device_without_its_engine_is_passed_over(fastpath: FastpathBackend) -> None:
    """What is marked goes nowhere while no process is there, and all else its ordinary way."""
    family = fastpath.family
    Syncer(fastpath).sync(some(family))
    target = {Family.IPV4: "198.51.100.1", Family.IPV6: "2001:db8::1"}[family]
    argv = ["ip", f"-{int(family)}", "route", "get", target, "mark", hex(steer.STEER)]
    assert steer.DEVICES[family] in command.run(argv).stdout.decode()
    with closing(RoutingNotices()) as notices:
        fastpath.close()
        # The kernel looks after lost carriers once a second at most, and tells of it.
        while not command.run(argv, check=False).stderr:
            assert select.select([notices.fileno()], [], [], TOLD)[0]
            notices.drain()
    assert "Invalid argument" in command.run(argv, check=False).stderr.decode()


# --- others ------------------------------------------------------------------------------------

Damage = Callable[[Family], object]


def nft(*words: str) -> Damage:
    return lambda family: command.run(
        ["nft", *(word.format(word=steer.WORD[family]) for word in words)]
    )


DAMAGE: dict[str, Damage] = {
    "table deleted": nft("delete", "table", "{word}", steer.TABLE),
    "set emptied": nft("flush", "set", "{word}", steer.TABLE, steer.SERVICES),
    "chain emptied": nft("flush", "chain", "{word}", steer.TABLE, "back"),
    "rule added": nft("add", "rule", "{word}", steer.TABLE, "pre", "accept"),
    "marked rule deleted": lambda family: ip(family, "rule", "del", "pref", "20"),
    "local first again": lambda family: ip(family, "rule", "add", "pref", "0", "lookup", "local"),
    "routes flushed": lambda family: ip(family, "route", "flush", "table", "102"),
    "device set down": lambda family: ip(family, "link", "set", steer.DEVICES[family], "down"),
    "device deleted": lambda family: tun.delete(steer.DEVICES[family]),
}


@pytest.fixture
def watched(fastpath: FastpathBackend) -> Iterator[FastpathWatch]:
    with closing(watch([fastpath.family])) as made:
        yield made


def told(made: FastpathWatch) -> str:
    """What the watch says as soon as it has something to say."""
    while select.select([made.fileno()], [], [], TOLD)[0]:
        if said := made.look():
            return said
    return ""


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_told_and_mended(
    fastpath: FastpathBackend, watched: FastpathWatch, name: str
) -> None:
    """Each change by others is noticed, and the next sync that reads leaves nothing of it."""
    syncer, now = Syncer(fastpath), some(fastpath.family)
    watched.pause()
    applied = syncer.sync(now)
    assert watched.resume(applied.transactions) == ""
    DAMAGE[name](fastpath.family)
    assert told(watched)
    syncer.forget()
    assert syncer.sync(now).foreign
    assert fastpath.read() == fastpath.settled(syncer.desired)


class Disturbed(SteerDoor):
    """Somebody does more ``damage`` while some is mended, once: when the device has got its sysctls
    ("set") or its ways ("put"). ``seen``: whether table and device were there after each script."""

    def __init__(self, family: Family, records: Path) -> None:
        super().__init__(family, records=records)
        self.damage: dict[str, Damage] = {}
        self.seen: list[tuple[bool, bool]] = []

    def _done(self, what: str) -> None:
        self.damage.pop(what, lambda _: None)(self.family)

    def run(self, script: str) -> None:
        super().run(script)
        self.seen.append((self.has_table(), self.has_device()))

    def set(self, names: Iterable[str]) -> None:
        super().set(names)
        self._done("set")

    def put(self, parts: Iterable[Part]) -> None:
        super().put(parts)
        self._done("put")


@pytest.fixture(params=Family)
def disturbed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FastpathBackend]:
    with scratch():
        door = Disturbed(request.param, tmp_path / "records")
        with closing(FastpathBackend(request.param, door=door)) as made:
            yield made
            made.cleanup()


def generation() -> int:
    with closing(Listener()) as rules:
        return rules.generation()


@pytest.mark.parametrize(
    ("at", "more"), [("set", "device deleted"), ("set", "table deleted"), ("put", "table deleted")]
)
def test_damage_to_a_repair_is_mended_with_it(
    disturbed: FastpathBackend, at: str, more: str
) -> None:
    """Who deletes the device and, while that is made again, more of it finds all back after one
    sync: the next one could be too late for established connections. Its own transactions are told
    apart from others'."""
    syncer, now, door = Syncer(disturbed), some(disturbed.family), disturbed.door
    assert isinstance(door, Disturbed)
    syncer.sync(now)
    DAMAGE["device deleted"](disturbed.family)
    door.damage[at] = DAMAGE[more]
    syncer.forget()
    before = generation()
    applied = syncer.sync(now)
    assert door.damage == {}
    assert disturbed.read() == disturbed.settled(syncer.desired)
    others = more == "table deleted"
    assert applied.transactions == generation() - before - others


def test_the_table_is_back_before_the_device(disturbed: FastpathBackend) -> None:
    """Nothing slower is done while an endpoint's answer could reach its client untranslated."""
    syncer, now, door = Syncer(disturbed), some(disturbed.family), disturbed.door
    assert isinstance(door, Disturbed)
    syncer.sync(now)
    assert door.seen == [(True, True)]
    for name in ("device deleted", "table deleted"):
        DAMAGE[name](disturbed.family)
    syncer.forget()
    syncer.sync(now)
    assert door.seen[1:] == [(True, False)]
    assert disturbed.read() == disturbed.settled(syncer.desired)


def test_own_syncs_are_not_told(fastpath: FastpathBackend, watched: FastpathWatch) -> None:
    """What we write ourselves is nobody else's doing."""
    syncer, now = Syncer(fastpath), some(fastpath.family)
    for plan in (now, successor(now, port("svc1", fastpath.family, ways="c", number=8081))):
        watched.pause()
        applied = syncer.sync(plan)
        assert watched.resume(applied.transactions) == ""
    assert not select.select([watched.fileno()], [], [], 0)[0] or watched.look() == ""


def test_other_peoples_rules_are_theirs(fastpath: FastpathBackend, watched: FastpathWatch) -> None:
    """Rules, routes and tables that are not ours are nothing to tell of, and stay."""
    syncer = Syncer(fastpath)
    watched.pause()
    watched.resume(syncer.sync(some(fastpath.family)).transactions)
    word = steer.WORD[fastpath.family]
    command.run(["nft", "add", "table", word, "theirs"])
    ip(fastpath.family, "rule", "add", "pref", "300", "lookup", "77")
    ip(fastpath.family, "link", "add", "theirs0", "type", "bridge")
    assert watched.look() == ""
    fastpath.cleanup()
    assert "theirs" in command.run(["nft", "list", "tables"]).stdout.decode()
    assert "lookup 77" in ip(fastpath.family, "rule")


@pytest.mark.parametrize("family", Family)
def test_a_device_of_somebody_else_stays(family: Family, tmp_path: Path) -> None:
    """Cleaning up takes no device of another kind that has the name."""
    with scratch():
        ip(family, "link", "add", steer.DEVICES[family], "type", "bridge")
        FastpathBackend(family, door=SteerDoor(family, records=tmp_path)).cleanup()
        assert steer.DEVICES[family] in ip(family, "-o", "link")
