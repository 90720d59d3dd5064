"""The backend's own decisions, on the in-memory kernel: refusals, sysctls, memory, metrics."""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterable, Mapping

import pytest

from kproxy.backends import registry
from kproxy.backends.fake_ipvs import FakeIpvs
from kproxy.backends.ipvs import chains
from kproxy.backends.ipvs.apply import IpvsBackend
from kproxy.backends.ipvs.counts import rules_by_table
from kproxy.backends.ipvs.drain import PERIOD, pause
from kproxy.backends.ipvs.former import former
from kproxy.backends.ipvs.host import Machine, kernel_version
from kproxy.backends.ipvs.knobs import Told
from kproxy.backends.ipvs.plan import server_key
from kproxy.backends.ipvs.prepare import prepare
from kproxy.backends.ipvs.sysctls import wanted
from kproxy.backends.syncer import Syncer
from kproxy.backends.userspace import chains as userspace_chains
from kproxy.core.objects import Family, Protocol
from kproxy.core.servers import HeldReal, Order, Refused, Timeouts
from kproxy.core.snapshot import IpvsSettings, PortPlan, Snapshot
from kproxy.errors import ApplyError, CommandError, ContentError, KernelError, MachineError
from kproxy.kernel.dummy import RefusedAddress
from tests.backends.iptables.plans import V4, V6, port, settings, snapshot, successor

UDP = Protocol.UDP


def made(door: FakeIpvs) -> Syncer:  # type: ignore[type-arg]
    return Syncer(IpvsBackend(door.family, "nft", door=door, machine=Machine()))


def plan(number: int, **shape: object) -> PortPlan:
    return port(f"svc{number}", number=8000 + number, **shape)  # type: ignore[arg-type]


def some(**asked: object) -> Snapshot:
    its = settings(ipvs=IpvsSettings(**asked))  # type: ignore[arg-type]
    return snapshot(*(plan(number) for number in range(4)), settings_=its)


def key(number: int) -> bytes:
    return server_key(plan(number).cluster_ip, 8000 + number, Protocol.TCP)


# --- beside another mode -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("others", "last"),
    [
        ("", False),
        (":KUBE-PORTALS-CONTAINER - [0:0]\n-A KUBE-PORTALS-CONTAINER -j RETURN\n", True),
        (":KUBE-SERVICES - [0:0]\n-A KUBE-SERVICES -j RETURN\n", True),
        (":KUBE-SERVICES - [0:0]\n", False),
    ],
    ids=["nobody", "userspace", "iptables", "empty chain"],
)
def test_rules_hide_nobody_who_serves(others: str, last: bool) -> None:
    """They accept what is for a service, so that rules of another mode in the same table do not
    see it: not before its address is here. Alone they stand before anybody is let in."""
    door = FakeIpvs()
    door.restore([f"*nat\n{others}COMMIT\n".encode()])
    seen: list[bool] = []
    restore = door.restore

    def noted(chunks: Iterable[bytes]) -> None:
        seen.append(bool(door.addresses()))
        restore(chunks)

    door.restore = noted  # type: ignore[method-assign]
    made(door).sync(some())
    assert seen == [last]


def test_userspace_modes_chain_is_known_by_its_name() -> None:
    """The modes do not know each other."""
    assert chains.PORTALS == userspace_chains.PORTALS_CONTAINER


# --- refusals ----------------------------------------------------------------------------------


def test_a_refused_server_is_its_services_fault() -> None:
    """It is named with the reason, in words; the others serve."""
    door = FakeIpvs()
    door.spoilt[key(2)] = errno.EINVAL
    applied = made(door).sync(some())
    assert [name for name, _ in applied.refused] == [plan(2).name]
    assert "172.30.0.41:8002" in applied.refused[0][1]
    assert set(door.ipvs) == {key(0), key(1), key(3)}


def test_a_refused_member_is_its_services_fault() -> None:
    """Nothing of it is in force, neither set nor server."""
    door = FakeIpvs()
    door.spoilt_members[key(1)] = errno.EINVAL
    assert [name for name, _ in made(door).sync(some()).refused] == [plan(1).name]
    assert set(door.ipvs) == {key(0), key(2), key(3)}
    assert key(1) not in door.sets["KUBE-CLUSTER-IP"]
    assert key(0) in door.sets["KUBE-CLUSTER-IP"]


def test_a_refused_address_is_told_of_all_that_have_it() -> None:
    """The kernel says which one; every service port of that VIP is suspected."""
    door = FakeIpvs()

    def bind(addresses: Iterable[str]) -> list[RefusedAddress]:
        return [RefusedAddress(text, errno.EINVAL) for text in sorted(addresses)]

    door.bind = bind  # type: ignore[assignment, method-assign]
    backend = made(door).backend
    now = some()
    patch = backend.diff(backend.render(now, None), backend.read())
    with pytest.raises(ContentError) as refused:
        backend.apply(patch)
    assert set(refused.value.suspects) == set(now.ports)


@pytest.mark.parametrize("code", [errno.ENOMEM, errno.EPERM, errno.ENOBUFS])
def test_the_surroundings_fault_is_nobodys(code: int) -> None:
    """Memory, a right: no service port is blamed, and the next sync does all."""
    door = FakeIpvs()
    door.spoilt[key(2)] = code
    syncer = made(door)
    with pytest.raises(ApplyError) as refused:
        syncer.sync(some())
    assert not isinstance(refused.value, ContentError)
    door.spoilt.clear()
    assert syncer.sync(some()).refused == ()


def test_refused_rules_are_nobodys_fault() -> None:
    """They are the same for all services."""
    door = FakeIpvs()
    door.failures = ["line 3 failed"]
    syncer = made(door)
    with pytest.raises(ApplyError, match="line 3 failed") as refused:
        syncer.sync(some())
    assert not isinstance(refused.value, ContentError)
    assert door.ipvs == {}


def test_what_others_did_already_is_fine() -> None:
    """Removed under our hands: nothing is left to remove, and nothing has to be read for that."""
    door = FakeIpvs()
    syncer = made(door)
    now = some()
    syncer.sync(now)
    door.ipvs.pop(key(0))
    applied = syncer.sync(successor(now, removed=(plan(0).name,)))
    assert (applied.full, applied.refused) == (False, ())


def test_a_belief_that_was_wrong_is_looked_up() -> None:
    """An order about a server that others took away: the kernel is read, and all is mended in the
    same sync; nobody is blamed."""
    door = FakeIpvs()
    syncer = made(door)
    now = some()
    syncer.sync(now)
    door.ipvs.pop(key(0))
    applied = syncer.sync(successor(now, plan(0, pods=3)))
    assert (applied.full, applied.refused) == (True, ())
    assert len(door.ipvs[key(0)].reals) == 3


# --- sysctls -----------------------------------------------------------------------------------

#: kernel -> whether conn_reuse_mode is set to 0: it came with 4.1, and 5.9 mended what it is for.
REUSE = [((4, 0), False), ((4, 1), True), ((5, 8), True), ((5, 9), False), ((6, 1), False)]


@pytest.mark.parametrize(("kernel", "set_"), REUSE)
def test_sysctls_follow_the_kernel(kernel: tuple[int, int], set_: bool) -> None:
    assert (("net/ipv4/vs/conn_reuse_mode", "0") in wanted(IpvsSettings(), kernel)) is set_


def test_strict_arp_is_asked_for() -> None:
    """Nothing of ARP is touched otherwise."""
    more = wanted(IpvsSettings(strict_arp=True), (6, 1)) - wanted(IpvsSettings(), (6, 1))
    assert more == {
        ("net/ipv4/conf/all/arp_ignore", "1"),
        ("net/ipv4/conf/all/arp_announce", "2"),
    }


@pytest.mark.parametrize(
    ("release", "version"),
    [("6.1.176", (6, 1)), ("4.19.0-25-amd64", (4, 19)), ("6.18-rc1", (6, 18))],
)
def test_the_kernels_version(release: str, version: tuple[int, int]) -> None:
    assert kernel_version(release) == version


def test_a_kernel_without_a_version() -> None:
    with pytest.raises(MachineError, match="version"):
        kernel_version("next")


def test_what_cannot_be_set_is_told_and_serving_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Once, until it changes; everything else is in force."""
    door = FakeIpvs()

    def refuse(name: str, value: str) -> None:
        raise KernelError(f"cannot set {name}={value}: Read-only file system")

    door.set_sysctl = refuse  # type: ignore[method-assign]
    syncer = made(door)
    for _ in range(3):
        syncer.forget()
        syncer.sync(some())
    assert set(door.ipvs) == {key(number) for number in range(4)}
    assert [record.message for record in caplog.records] == ["left as it is"]


def test_what_cannot_be_set_is_not_asked_for_again() -> None:
    """Nor taken for a change by others, however often the kernel is read; once somebody sets it to
    another value it is tried anew."""
    door = FakeIpvs()
    name, asked = "net/ipv4/vs/conntrack", []

    def refuse(name: str, value: str) -> None:
        asked.append(name)
        raise KernelError(f"cannot set {name}={value}: Read-only file system")

    def refuse_time_outs(timeouts: Timeouts) -> None:
        asked.append("time-outs")
        raise KernelError("cannot set the time-outs")

    door.set_sysctl, door.set_timeouts = refuse, refuse_time_outs  # type: ignore[method-assign]
    syncer = made(door)
    now = some(tcp_timeout=77)
    syncer.sync(now)
    assert name in asked
    assert "time-outs" in asked
    asked.clear()
    for _ in range(3):
        syncer.forget()
        applied = syncer.sync(now)
        assert (applied.written, applied.foreign) == (0, False)
    assert asked == []
    door.sysctls[name], door.idle = "7", Timeouts(tcp=5)
    syncer.forget()
    assert syncer.sync(now).foreign
    assert asked == [name, "time-outs"]


def test_both_families_warn_once(caplog: pytest.LogCaptureFixture) -> None:
    """They need the same sysctls; what only one of them lacks is told as well."""
    lacking = ["net/ipv4/vs/conntrack"]

    def refuse(name: str, value: str) -> None:
        if name in lacking:
            raise KernelError(f"cannot set {name}")

    told = Told()
    for family in (V4, V6):
        door = FakeIpvs(family)
        door.set_sysctl = refuse  # type: ignore[method-assign]
        backend = IpvsBackend(family, "nft", door=door, machine=Machine(), told=told)
        Syncer(backend).sync(snapshot(port("web", family), family=family))
        lacking.append("net/ipv4/ip_forward")
    said = [record.fields["why"] for record in caplog.records]  # type: ignore[attr-defined]
    assert said == [f"cannot set {name}" for name in lacking[:2]]


def test_a_look_before_its_time_is_at_what_is_new() -> None:
    """Many servers drain: a sync that lets go of one more asks for that one only."""
    door = FakeIpvs()
    looked: list[int] = []
    reals = door.reals

    def count(servers: Collection[bytes]) -> Mapping[bytes, Mapping[bytes, HeldReal]]:
        looked.append(len(servers))
        return reals(servers)

    door.reals = count  # type: ignore[method-assign]
    time = [1000.0]
    backend = IpvsBackend(V4, "nft", door=door, machine=Machine(), clock=lambda: time[0])
    syncer = Syncer(backend)
    plans = [plan(number, pods=3) for number in range(4)]
    now = snapshot(*plans)
    syncer.sync(now)
    for server, held in list(door.ipvs.items()):
        for real in held.reals:
            door.load(server, real, 1)
    tend = backend.tend
    assert tend() is None
    for few in ([0, 1, 2], [3], []):
        now = successor(now, *(plan(number, pods=1) for number in few))
        syncer.sync(now)
        assert tend() == PERIOD
    assert looked == [3, 1]
    time[0] += PERIOD
    assert tend() == PERIOD
    assert looked == [3, 1, 4]


def test_time_outs_are_set_when_they_are_asked_for() -> None:
    """Those that are not are left alone; a second sync has nothing to do."""
    door = FakeIpvs()
    door.idle = door.idle._replace(tcp=900, tcp_fin=120, udp=300)
    syncer = made(door)
    syncer.sync(some(udp_timeout=17))
    assert door.idle.udp == 17
    syncer.forget()
    assert syncer.sync(some(udp_timeout=17)).written == 0


def test_prepare_sets_sysctls_alone() -> None:
    """For a daemon with fewer rights; what is set already is not told again."""
    door = FakeIpvs()
    backend = made(door).backend
    done = dict(prepare(backend, some()))
    assert done["net/ipv4/vs/conntrack"] == "1"
    assert (door.ipvs, door.device, door.sets) == ({}, None, {})
    assert prepare(backend, some()) == ()


# --- memory and metrics ------------------------------------------------------------------------


@pytest.mark.parametrize("family", [V4, V6])
def test_servers_are_the_memory_of_a_former_life(family: Family) -> None:
    """Ways in and endpoints of UDP, by VIP and by node port; none of TCP, none of others'."""
    door = FakeIpvs(family)
    one, tcp = (
        port("dns", family, ways="cn", protocol=UDP, number=53),
        port("web", family, ways="ce", number=80),
    )
    own = "192.0.2.7" if family is V4 else "2001:db8::7"
    other = "192.0.2.9" if family is V4 else "2001:db8::9"
    spared = IpvsSettings(exclude_cidrs=(f"{other}/{32 if family is V4 else 128}",))
    its = settings(family, local_addresses=(own,), ipvs=spared)
    foreign = server_key(other, 53, UDP)
    door.send([Order(1, foreign), Order(5, foreign, foreign[:-1])])  # type: ignore[arg-type]
    syncer = made(door)
    syncer.sync(snapshot(one, tcp, family=family, settings_=its))
    found = former(syncer.backend.read())
    assert found.vips == {(one.cluster_ip, 53), (own, 30080)}
    assert found.endpoints == {(end.ip, end.port) for end in one.endpoints.all}
    assert former(made(FakeIpvs(family)).backend.read()).vips == frozenset()


def test_rules_are_counted_by_table() -> None:
    """As many as the kernel holds."""
    door = FakeIpvs()
    syncer = made(door)
    syncer.sync(some())
    held = {table: sum(map(len, chains.values())) for table, chains in door.tables.items()}
    assert rules_by_table(syncer.desired) == held


def test_looks_cost_little() -> None:
    """One that takes long is not made each second."""
    assert pause(0.001) == PERIOD
    assert pause(0.2) == 10.0


def test_a_deletion_that_is_refused_is_tried_again() -> None:
    """What drains stays known; the refusal is the caller's to tell."""
    door = FakeIpvs()
    syncer = made(door)
    now = some()
    syncer.sync(now)
    syncer.sync(successor(now, plan(0, pods=1)))
    send = door.send

    def refuse(orders: Iterable[Order]) -> list[Refused]:
        return [Refused(order, errno.ENOMEM) for order in orders]

    door.send = refuse  # type: ignore[assignment, method-assign]
    with pytest.raises(ApplyError):
        syncer.backend.tend()  # type: ignore[attr-defined]
    door.send = send  # type: ignore[method-assign]
    assert syncer.backend.tend() is None  # type: ignore[attr-defined]
    assert len(door.ipvs[key(0)].reals) == 1


def test_the_mode_has_no_variants_of_its_own() -> None:
    """Whose tools write its rules is no choice of a person, but may be said."""
    assert registry.parse("ipvs") == registry.Choice("ipvs", registry.AUTO)
    assert registry.variants("ipvs") == ()
    assert "ipvs" in registry.names()
    assert not any(name.startswith("ipvs-") for name in registry.names())
    chosen = registry.named("ipvs", "legacy")
    assert (chosen.variant, str(chosen)) == ("legacy", "ipvs")


def test_a_lock_that_is_held_is_waited_for() -> None:
    """The tools' own words are told, and nobody is blamed."""
    door = FakeIpvs()

    def locked(chunks: Iterable[bytes]) -> None:
        raise CommandError(["iptables-restore"], 4, "Another app is holding the xtables lock.")

    door.restore = locked  # type: ignore[method-assign]
    with pytest.raises(ApplyError, match="xtables lock"):
        made(door).sync(some())
