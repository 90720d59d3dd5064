"""The set of endpoints: what is in it, what a change does to it, and when the kernel is told."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterable

import pytest

from kproxy.backends.fake import FakeIptables
from kproxy.backends.iptables import apply
from kproxy.backends.iptables.apply import IptablesBackend
from kproxy.backends.iptables.endpoint_set import NAMES, SetChange, change, sources
from kproxy.backends.iptables.endpoint_set import members as members_of
from kproxy.backends.iptables.host import Machine
from kproxy.backends.iptables.prepare import prepare
from kproxy.backends.syncer import Syncer
from kproxy.core.objects import Family, Protocol
from kproxy.core.snapshot import Endpoint, EndpointSets, PortPlan, Snapshot
from kproxy.errors import NetlinkError
from tests.backends.iptables.plans import LOCAL, V4, V6, port, settings, snapshot, successor

NUMBERS = {Protocol.TCP: 6, Protocol.UDP: 17, Protocol.SCTP: 132}


def packed(ip: str, number: int, protocol: Protocol = Protocol.TCP) -> bytes:
    code = socket.AF_INET6 if ":" in ip else socket.AF_INET
    return socket.inet_pton(code, ip) + number.to_bytes(2, "big") + bytes((NUMBERS[protocol],))


def wanted(now: Snapshot) -> set[bytes]:
    """From scratch, by the values."""
    return {packed(ip, number, protocol) for ip, protocol, number in sources(now)}


def plan(name: str, *ips: str) -> PortPlan:
    ends = tuple(Endpoint(ip, 80) for ip in sorted(ips))
    made = port(name, number=8000 + int(name[3:]))
    values = {field: getattr(made, field) for field in made.__struct_fields__}
    sets = EndpointSets(cluster=ends, local=None, all=ends, has_any=bool(ends))
    return PortPlan(**{**values, "endpoints": sets})


def backend(family: Family = V4, **machine: bool) -> tuple[IptablesBackend, FakeIptables]:
    door = FakeIptables()
    return IptablesBackend(family, "legacy", door=door, machine=Machine(**machine)), door


@pytest.mark.parametrize("family", list(Family))
def test_members_are_all_endpoints_that_rules_may_choose(family: Family) -> None:
    """Address, port and protocol of each, once; nobody's address is no member."""
    plans = [
        port("svc0", family, ways="c", pods=3),
        port("svc1", family, ways="cn", pods=3, external=LOCAL, internal=LOCAL),
        port("svc2", family, ways="c", pods=0),
    ]
    members = members_of(snapshot(*plans, family=family).ports)
    assert members.all == {packed(end.ip, end.port) for end in plans[0].endpoints.all}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (None, None, SetChange()),
        (None, {b"a"}, SetChange(create=True, added={b"a"})),
        (None, set(), SetChange(create=True)),
        ({b"a"}, None, SetChange(destroy=True)),
        ({b"a", b"b"}, {b"b", b"c"}, SetChange(added={b"c"}, gone={b"a"})),
        ({b"a"}, {b"a"}, SetChange()),
    ],
)
def test_change(old: set[bytes] | None, new: set[bytes] | None, expected: SetChange) -> None:
    """From any state to any other; nothing is said when nothing is to be done."""
    got = change(new, old)
    fields = SetChange.__struct_fields__
    assert [getattr(got, name) for name in fields] == [getattr(expected, name) for name in fields]
    assert bool(got) == (old != new)


def test_a_shared_endpoint_stays_until_the_last_one_goes() -> None:
    """Two service ports have it: the first one to lose it changes nothing."""
    both = snapshot(plan("svc0", "10.0.0.1"), plan("svc1", "10.0.0.1", "10.0.0.2"))
    one = successor(both, plan("svc0"))
    none = successor(one, plan("svc1", "10.0.0.2"))
    members = [members_of(both.ports)]
    for now in (one, none):
        members.append(members[-1].following(now.ports, [*now.changed, *now.removed]))
    assert members[1].since(members[0]) == (set(), set())
    assert members[2].since(members[1]) == (set(), {packed("10.0.0.1", 80)})


def test_any_sequence_of_changes_ends_where_a_fresh_count_does() -> None:
    """Services come, go and change; each step says exactly what came and went, also over several
    steps, and a predecessor can still be asked."""
    rng = random.Random(7)
    ips = [f"10.0.0.{n}" for n in range(1, 9)]
    now = snapshot(*[plan(f"svc{n}", *rng.sample(ips, 2)) for n in range(4)])
    members = first = members_of(now.ports)
    start = set(wanted(now))
    for _ in range(200):
        before, held = members, wanted(now)
        names = {name.name: name for name in now.ports}
        picked = f"svc{rng.randrange(6)}"
        if picked in names and rng.random() < 0.3:
            now = successor(now, removed=(names[picked],))
        else:
            now = successor(now, plan(picked, *rng.sample(ips, rng.randrange(4))))
        members = members.following(now.ports, [*now.changed, *now.removed])
        assert members.since(before) == (wanted(now) - held, held - wanted(now))
        assert members.all == wanted(now)
    assert members.since(first) == (wanted(now) - start, start - wanted(now))
    assert first.all == start


@pytest.mark.parametrize("family", list(Family))
def test_the_set_follows_the_plan(family: Family) -> None:
    """After each sync it holds the endpoints of the plan, partial syncs included."""
    its, door = backend(family)
    syncer = Syncer(its)
    now = snapshot(port("svc0", family, pods=3), family=family)
    steps = [
        now,
        now := successor(now, port("svc0", family, pods=1)),
        now := successor(now, port("svc1", family, pods=2, number=81)),
        successor(now, removed=tuple(now.ports)),
    ]
    for number, step in enumerate(steps):
        assert syncer.sync(step).full == (number == 0)
        assert door.sets == {NAMES[family]: wanted(step)}


def test_members_come_before_the_rules_and_go_after_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """At each call of the tool the set holds the old endpoints and the new ones."""
    its, door = backend()
    seen = []
    restore = door.restore

    def watching(chunks: Iterable[bytes]) -> None:
        # Of a first sync all but the last table may be on its way before the set is full.
        whole = b"".join(chunks)
        seen.append(set(door.sets[NAMES[V4]]))
        restore([whole])

    monkeypatch.setattr(door, "restore", watching)
    syncer = Syncer(its)
    first = snapshot(plan("svc0", "10.0.0.1"))
    second = successor(first, plan("svc0", "10.0.0.2"))
    syncer.sync(first)
    syncer.sync(second)
    one, two = packed("10.0.0.1", 80), packed("10.0.0.2", 80)
    assert seen == [{one}, {one, two}]
    assert door.sets[NAMES[V4]] == {two}


def test_a_full_sync_mends_the_set() -> None:
    """Members that others took out or put in; it is said that somebody did."""
    its, door = backend()
    syncer = Syncer(its)
    now = snapshot(plan("svc0", "10.0.0.1", "10.0.0.2"))
    syncer.sync(now)
    door.sets[NAMES[V4]] ^= {packed("10.0.0.1", 80), packed("192.0.2.1", 80)}
    syncer.forget()
    assert syncer.sync(now).foreign
    assert door.sets[NAMES[V4]] == wanted(now)


def test_a_refused_set_leaves_the_rules_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sent to the tool, and the next sync reads and puts all right."""
    its, door = backend()
    syncer = Syncer(its)
    now = snapshot(plan("svc0", "10.0.0.1"))
    syncer.sync(now)
    sent = len(door.texts)
    after = successor(now, plan("svc0", "10.0.0.2"))
    with monkeypatch.context() as broken:

        def refusing(*args: object, **more: object) -> None:
            raise NetlinkError("the set is full", 4352)

        broken.setattr(door, "fill", refusing)
        with pytest.raises(NetlinkError, match="full"):
            syncer.sync(after)
    assert len(door.texts) == sent
    assert syncer.sync(after).full
    assert door.sets[NAMES[V4]] == wanted(after)


def test_what_the_kernel_refuses_is_no_member() -> None:
    """The endpoints of a service port that is left out come and go with it."""
    its, door = backend()
    syncer = Syncer(its)
    good, bad = plan("svc0", "10.0.0.1"), plan("svc1", "10.0.0.2")
    restore = door.restore

    def picky(chunks: object) -> None:
        text = b"".join(chunks).decode()  # type: ignore[arg-type]
        if "10.0.0.2" in text:
            door.failures.append("no")
        restore([text.encode()])

    door.restore = picky  # type: ignore[method-assign, assignment]
    applied = syncer.sync(snapshot(good, bad))
    assert [name for name, _ in applied.refused] == [bad.name]
    assert door.sets[NAMES[V4]] == {packed("10.0.0.1", 80)}


@pytest.mark.parametrize("flag", ["drop_invalid", "endpoint_set"])
def test_without_a_rule_that_asks_there_is_no_set(flag: str) -> None:
    """One that was left from before goes, once no rule asks it any more."""
    its, door = backend()
    now = snapshot(plan("svc0", "10.0.0.1"))
    Syncer(its).sync(now)
    other = IptablesBackend(V4, "legacy", door=door, machine=Machine(**{flag: False}))
    syncer = Syncer(other)
    syncer.sync(now)
    assert door.sets == {}
    assert other.read() == other.settled(syncer.desired)
    assert "--match-set" not in door.save()


def test_cleanup_takes_the_set_or_leaves_it_empty() -> None:
    """A rule of somebody else keeps it, but it says no to everybody."""
    its, door = backend()
    now = snapshot(plan("svc0", "10.0.0.1"))
    Syncer(its).sync(now)
    its.cleanup()
    assert door.sets == {}
    Syncer(its).sync(now)
    door.run(f"-A INPUT -m set --match-set {NAMES[V4]} src,src -j DROP")
    its.cleanup()
    assert door.sets == {NAMES[V4]: set()}


def test_preparing_makes_no_set() -> None:
    """What is done ahead is the guard and its sysctl only."""
    its, door = backend()
    assert prepare(its, snapshot(plan("svc0", "10.0.0.1")))
    assert door.sets == {}


def test_a_kernel_without_sets_is_told_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The rule drops INVALID packets of anybody, as kube-proxy's does, and the log says so."""
    monkeypatch.setattr(apply.host, "machine", lambda family, variant: Machine(endpoint_set=False))
    door = FakeIptables()
    syncer = Syncer(IptablesBackend(V6, "nft", door=door))
    with caplog.at_level("WARNING", logger="kproxy"):
        for _ in range(2):
            syncer.sync(snapshot(port("svc0", V6), family=V6, settings_=settings(V6)))
    assert sum("INVALID" in record.message for record in caplog.records) == 1
    assert "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP" in door.save()
