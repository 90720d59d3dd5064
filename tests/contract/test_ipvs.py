"""What IPVS mode promises beside every mode's promises: on the fake, and on a kernel with IPVS."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from time import monotonic

import pytest
from msgspec.structs import replace

from kproxy.backends.fake_ipvs import FakeIpvs
from kproxy.backends.ipvs import host
from kproxy.backends.ipvs.apply import IpvsBackend
from kproxy.backends.ipvs.door import Door, KernelDoor
from kproxy.backends.ipvs.drain import PERIOD
from kproxy.backends.ipvs.plan import real_keys, server_key
from kproxy.backends.syncer import Syncer
from kproxy.core.objects import Family, Protocol
from kproxy.core.servers import (
    SCHEDULER_ANNOTATION,
    Held,
    HeldReal,
    Order,
    Refused,
    Scheduling,
    Verb,
)
from kproxy.core.snapshot import Endpoint, EndpointSets, IpvsSettings, PortPlan, Snapshot
from tests.backends.iptables.plans import ADDRESSES, port, settings, snapshot, successor
from tests.contract.namespaces import scratch

MACHINE = host.Machine()


def plan(number: int, family: Family, first: int = 0, count: int = 2, **shape: object) -> PortPlan:
    """Service ``number`` with endpoints of its own, from ``first`` on."""
    made = port(f"svc{number}", family, number=8000 + number, **shape)  # type: ignore[arg-type]
    prefix = "10.180.0." if family is Family.IPV4 else "fd00:10::"
    ends = tuple(Endpoint(f"{prefix}{10 * number + first + n + 1}", 80) for n in range(count))
    sets = EndpointSets(cluster=ends, local=None, all=ends, has_any=bool(ends))
    return replace(made, endpoints=sets, node_port=made.node_port and 30000 + number)


def some(family: Family, **asked: object) -> Snapshot:
    plans = [plan(number, family, ways=ways) for number, ways in enumerate(("cn", "ce", "cl"))]
    ipvs = IpvsSettings(**asked)  # type: ignore[arg-type]
    own = (ADDRESSES[family][3],)
    its = settings(family, ipvs=ipvs, local_addresses=own)
    return snapshot(*plans, family=family, settings_=its)


def again(backend: IpvsBackend, clock: Callable[[], float] = monotonic) -> IpvsBackend:
    """Another process's backend on the same kernel."""
    return IpvsBackend(
        backend.family, backend.variant, door=backend.door, machine=backend.machine, clock=clock
    )


def key_of(plan: PortPlan) -> bytes:
    return server_key(plan.cluster_ip, plan.port, plan.protocol)


def reals_of(plan: PortPlan, family: Family) -> tuple[bytes, ...]:
    return real_keys(plan.endpoints.all, family)


def in_force(syncer: Syncer) -> None:  # type: ignore[type-arg]
    held = syncer.backend.read()
    assert held == syncer.backend.settled(syncer.desired)
    assert syncer.backend.diff(syncer.desired, held) is None


def test_a_restart_writes_nothing(ipvs: IpvsBackend) -> None:
    """A new proxy, which knows nothing of the old one, reads and finds everything in place."""
    now = some(ipvs.family)
    Syncer(ipvs).sync(now)
    applied = Syncer(again(ipvs)).sync(now)
    assert (applied.full, applied.written, applied.transactions) == (True, 0, 0)


# --- graceful termination ----------------------------------------------------------------------


def test_what_nobody_uses_goes_at_once(ipvs: IpvsBackend) -> None:
    """An endpoint that went without connections is gone when the sync has been tended."""
    syncer = Syncer(ipvs)
    now = some(ipvs.family)
    syncer.sync(now)
    syncer.sync(successor(now, plan(0, ipvs.family, count=1, ways="cn")))
    assert ipvs.tend() is None
    in_force(syncer)


@pytest.mark.parametrize("restart", [False, True])
def test_weight_0_left_behind(ipvs: IpvsBackend, restart: bool) -> None:
    """Set by a process that died, or by hand: a wanted one serves again, one that nobody wants is
    taken away."""
    syncer = Syncer(ipvs)
    now = some(ipvs.family)
    syncer.sync(now)
    server = key_of(plan(0, ipvs.family))
    wanted, left = (
        reals_of(plan(0, ipvs.family), ipvs.family)[0],
        reals_of(plan(5, ipvs.family), ipvs.family)[0],
    )
    orders = [
        Order(Verb.SET_REAL, server, wanted, weight=0),
        Order(Verb.ADD_REAL, server, left, weight=0),
    ]
    assert not ipvs.door.send(orders)
    if restart:
        ipvs = again(ipvs)
        syncer = Syncer(ipvs)
    syncer.forget()
    syncer.sync(now)
    assert ipvs.tend() is None
    in_force(syncer)


@dataclass
class Draining:
    """A backend on the in-memory kernel, where service 0 has lost its second endpoint, on which
    there is a connection. Its clock stands still but for :meth:`wait`."""

    backend: IpvsBackend
    door: FakeIpvs
    syncer: Syncer  # type: ignore[type-arg]
    now: Snapshot
    server: bytes
    real: bytes
    time: list[float]

    def wait(self) -> None:
        """The pause between two looks."""
        self.time[0] += PERIOD

    def held(self) -> HeldReal | None:
        return self.door.ipvs[self.server].reals.get(self.real)


def draining(family: Family, **asked: object) -> Draining:
    door = FakeIpvs(family)
    time = [1000.0]
    backend = IpvsBackend(family, "nft", door=door, machine=MACHINE, clock=lambda: time[0])
    syncer = Syncer(backend)
    first = some(family, **asked)
    syncer.sync(first)
    server, real = key_of(plan(0, family)), reals_of(plan(0, family), family)[1]
    door.load(server, real, 1)
    now = successor(first, plan(0, family, count=1, ways="cn"))
    syncer.sync(now)
    return Draining(backend, door, syncer, now, server, real, time)


def test_connections_live_until_they_end() -> None:
    """No new ones at once; those that are there keep the real server, and nobody else's."""
    at = draining(Family.IPV4)
    assert at.held() == HeldReal(0, active=1)
    assert at.backend.tend() == PERIOD
    assert at.held() == HeldReal(0, active=1)
    at.door.load(at.server, at.real, 0)
    at.wait()
    assert at.backend.tend() is None
    assert at.held() is None
    in_force(at.syncer)


def test_syncs_leave_what_drains_alone() -> None:
    """Partial ones, full ones, those of a new process; none of them writes anything for it."""
    at = draining(Family.IPV4)
    at.syncer.forget()
    assert at.syncer.sync(at.now).written == 0
    other = Syncer(again(at.backend, clock=lambda: at.time[0]))
    assert other.sync(at.now).written == 0
    assert at.held() == HeldReal(0, active=1)
    assert other.backend.tend() == PERIOD
    at.door.load(at.server, at.real, 0)
    at.wait()
    assert other.backend.tend() is None
    assert at.held() is None


@pytest.mark.parametrize("full", [False, True])
def test_one_that_returns_takes_new_connections(full: bool) -> None:
    """Its weight is edited; the connection that it still has lives on."""
    at = draining(Family.IPV4)
    if full:
        at.syncer.forget()
    at.syncer.sync(successor(at.now, plan(0, Family.IPV4, ways="cn")))
    assert at.held() == HeldReal(1, active=1)
    assert at.backend.tend() is None
    in_force(at.syncer)


@pytest.mark.parametrize("full", [False, True])
def test_one_that_returns_alone_leaves_no_gap(full: bool) -> None:
    """It takes new connections before the one that it replaces stops to: a server on which nobody
    does refuses, if only for a moment."""
    at = draining(Family.IPV4)
    if full:
        at.syncer.forget()
    sent = at.door.send
    most: list[int] = []

    def send(orders: Iterable[Order]) -> list[Refused]:
        refused: list[Refused] = []
        for order in orders:
            refused += sent([order])
            most.append(max(held.weight for held in at.door.ipvs[at.server].reals.values()))
        return refused

    at.door.send = send  # type: ignore[method-assign]
    at.syncer.sync(successor(at.now, plan(0, Family.IPV4, first=1, count=1, ways="cn")))
    assert set(most) == {1}
    at.backend.tend()
    in_force(at.syncer)


def test_patience_has_an_end() -> None:
    """With no time granted, connections are cut."""
    at = draining(Family.IPV4, drain_seconds=0.0)
    assert at.backend.tend() is None
    assert at.held() is None


def test_a_service_that_goes_takes_all_with_it() -> None:
    """Whatever drained there is gone, and nothing waits."""
    at = draining(Family.IPV4)
    at.syncer.sync(successor(at.now, removed=(plan(0, Family.IPV4).name,)))
    assert at.server not in at.door.ipvs
    assert at.backend.tend() is None


@pytest.mark.parametrize("protocol", [Protocol.UDP, Protocol.SCTP])
def test_others_than_tcp_go_at_once(protocol: Protocol) -> None:
    """However many there are."""
    door = FakeIpvs()
    syncer = Syncer(IpvsBackend(Family.IPV4, "nft", door=door, machine=MACHINE))
    first = plan(1, Family.IPV4, protocol=protocol)
    syncer.sync(snapshot(first))
    server, real = key_of(first), reals_of(first, Family.IPV4)[1]
    door.load(server, real, 7)
    syncer.sync(successor(snapshot(first), plan(1, Family.IPV4, count=1, protocol=protocol)))
    assert real not in door.ipvs[server].reals


# --- other programs ----------------------------------------------------------------------------

_OTHER = {Family.IPV4: "192.0.2.9", Family.IPV6: "2001:db8:9::9"}
_EXCLUDED = {Family.IPV4: "192.0.2.0/24", Family.IPV6: "2001:db8:9::/64"}


def foreign(family: Family) -> list[Order]:
    """Somebody else's virtual server with a real one."""
    server = server_key(_OTHER[family], 443, Protocol.TCP)
    return [
        Order(Verb.ADD_SERVER, server, scheduling=Scheduling("wrr")),
        Order(Verb.ADD_REAL, server, server[:-1], weight=5),
    ]


@pytest.mark.parametrize("excluded", [True, False])
def test_servers_of_others(ipvs: IpvsBackend, excluded: bool) -> None:
    """They go, as with kube-proxy, unless the operator says that they are somebody else's."""
    orders = foreign(ipvs.family)
    ranges = (_EXCLUDED[ipvs.family],) if excluded else ()
    now = some(ipvs.family, exclude_cidrs=ranges)
    assert not ipvs.door.send(orders)
    for _ in range(2):
        syncer = Syncer(ipvs)
        syncer.sync(now)
        assert ipvs.tend() is None
        assert (orders[0].server in ipvs.door.servers().servers) is excluded


DAMAGE: list[tuple[str, Callable[[Door, bytes, bytes], Iterable[Order]]]] = [
    ("server gone", lambda door, server, real: [Order(Verb.REMOVE_SERVER, server)]),
    ("real one gone", lambda door, server, real: [Order(Verb.REMOVE_REAL, server, real)]),
    ("weight", lambda door, server, real: [Order(Verb.SET_REAL, server, real, weight=9)]),
    (
        "scheduler",
        lambda door, server, real: [Order(Verb.SET_SERVER, server, scheduling=Scheduling("lc"))],
    ),
    (
        "persistence",
        lambda door, server, real: [
            Order(Verb.SET_SERVER, server, scheduling=Scheduling("rr", 1, 60))
        ],
    ),
    (
        "a real one of others",
        lambda door, server, real: [Order(Verb.ADD_REAL, server, real[:-2] + b"\x00\x09")],
    ),
]


@pytest.mark.parametrize(("about", "damage"), DAMAGE, ids=[about for about, _ in DAMAGE])
def test_foreign_edits_are_repaired(
    ipvs: IpvsBackend, about: str, damage: Callable[[Door, bytes, bytes], Iterable[Order]]
) -> None:
    """What others changed of our servers is set right by the next sync that reads the kernel."""
    syncer = Syncer(ipvs)
    now = some(ipvs.family)
    syncer.sync(now)
    first = plan(0, ipvs.family)
    orders = damage(ipvs.door, key_of(first), reals_of(first, ipvs.family)[0])
    assert not ipvs.door.send(orders)
    syncer.forget()
    assert syncer.sync(now).foreign
    assert ipvs.tend() is None
    in_force(syncer)


def test_sets_and_addresses_are_repaired(ipvs: IpvsBackend) -> None:
    """Members and addresses that others took away or added, and the device as a whole."""
    syncer = Syncer(ipvs)
    now = some(ipvs.family)
    syncer.sync(now)
    bound = ipvs.door.addresses()
    assert bound
    for harm in (
        lambda: ipvs.door.unbind(sorted(bound)[:1]),
        lambda: ipvs.door.bind([_OTHER[ipvs.family]]),
        ipvs.door.remove_device,
    ):
        harm()
        syncer.forget()
        syncer.sync(now)
        in_force(syncer)


def test_cleanup_leaves_others_alone(ipvs: IpvsBackend) -> None:
    """All of ours goes; somebody else's virtual server stays. A second cleanup is fine."""
    now = some(ipvs.family, exclude_cidrs=(_EXCLUDED[ipvs.family],))
    before = ipvs.door.save()
    assert not ipvs.door.send(foreign(ipvs.family))
    Syncer(ipvs).sync(now)
    for _ in range(2):
        ipvs.cleanup()
        held = ipvs.door.servers().servers
        assert set(held) == {foreign(ipvs.family)[0].server}
        assert ipvs.door.addresses() is None
        assert rules_of(ipvs.door.save()) == rules_of(before)
        assert not any(members is not None for members in ipvs.read().sets.values())


def rules_of(text: str) -> list[str]:
    return [row for row in text.splitlines() if row.startswith("-A")]


# --- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [0, 2])
def test_one_that_the_kernel_refuses_is_left_out(ipvs: IpvsBackend, bad: int) -> None:
    """A scheduler that the kernel does not have: that port is told, all others serve; cured,
    it serves again."""
    now = some(ipvs.family)
    wrong = replace(plan(bad, ipvs.family), annotations=((SCHEDULER_ANNOTATION, "nope"),))
    spoilt = successor(now, wrong)
    syncer = Syncer(ipvs)
    applied = syncer.sync(spoilt)
    assert [name for name, _ in applied.refused] == [wrong.name]
    assert "no scheduler nope" in applied.refused[0][1]
    in_force(syncer)
    assert key_of(wrong) not in ipvs.door.servers().servers
    assert syncer.sync(successor(spoilt, plan(bad, ipvs.family))).refused == ()
    in_force(syncer)


# --- ended at any moment -----------------------------------------------------------------------


class _Killed(Exception):
    """kill -9."""


class Cut:
    """A door that lets so many steps pass, each order and address one by one, and no more."""

    def __init__(self, door: Door, steps: int) -> None:
        self._door = door
        self.left = steps

    def __getattr__(self, name: str) -> object:
        return getattr(self._door, name)

    def _step(self) -> None:
        if self.left == 0:
            raise _Killed
        self.left -= 1

    def restore(self, chunks: Iterable[bytes]) -> None:
        text = b"".join(chunks).decode()
        for part in text.split("COMMIT\n"):
            if part:
                self._step()
                self._door.restore([f"{part}COMMIT\n".encode()])

    def send(self, orders: Iterable[Order]) -> list[Refused]:
        refused: list[Refused] = []
        for order in orders:
            self._step()
            refused += self._door.send([order])
        return refused

    def bind(self, addresses: Iterable[str]) -> list[object]:
        return self._one_by_one(self._door.bind, addresses)

    def unbind(self, addresses: Iterable[str]) -> list[object]:
        return self._one_by_one(self._door.unbind, addresses)

    def _one_by_one(
        self, act: Callable[..., Iterable[object]], items: Iterable[str]
    ) -> list[object]:
        found: list[object] = []
        for item in sorted(items):
            self._step()
            found += act([item])
        return found


def moved(family: Family) -> Snapshot:
    """Every endpoint of service 0 is another one, half of those of 1; 2 is gone, 3 is new."""
    now = some(family)
    changed = [plan(0, family, 4, ways="cn"), plan(1, family, 1, ways="ce"), plan(3, family)]
    return successor(now, *changed, removed=(plan(2, family).name,))


def serving(held: Held, server: bytes) -> frozenset[bytes] | None:
    """Real ones that new connections are sent to; None when nothing stands there."""
    found = held.servers.get(server)
    return None if found is None else frozenset(r for r, one in found.reals.items() if one.weight)


def cuts(backend: IpvsBackend) -> Iterator[int]:
    """So many steps that the change needs, and every number below."""
    door = Cut(backend.door, 10_000)
    syncer = Syncer(
        IpvsBackend(backend.family, backend.variant, door=door, machine=backend.machine)
    )  # type: ignore[arg-type]
    syncer.sync(some(backend.family))
    door.left = 10_000
    syncer.sync(moved(backend.family))
    return iter(range(10_000 - door.left))


def test_an_end_at_any_step_leaves_nothing_wrong(ipvs: IpvsBackend) -> None:
    """A service whose address is bound is served by endpoints that it had or is to have, never by
    nobody and by no other's; a new proxy ends where it should."""
    family = ipvs.family
    old, new = some(family), moved(family)
    for steps in cuts(ipvs):
        Syncer(ipvs).sync(old)
        ipvs.tend()
        door = Cut(ipvs.door, 10_000)
        cut = IpvsBackend(family, ipvs.variant, door=door, machine=ipvs.machine)  # type: ignore[arg-type]
        syncer = Syncer(cut)
        syncer.sync(old)
        door.left = steps
        with pytest.raises(_Killed):
            syncer.sync(new)
        held, bound = ipvs.door.servers(), ipvs.door.addresses() or frozenset()
        for one in (*old.ports.values(), *new.ports.values()):
            if one.cluster_ip in bound and one.name in old.ports and one.name in new.ports:
                seen = serving(held, key_of(one))
                before = set(reals_of(old.ports[one.name], family))
                after = set(reals_of(new.ports[one.name], family))
                assert seen
                assert before & after <= seen <= before | after
        late = Syncer(again(ipvs))
        late.sync(new)
        late.backend.tend()
        in_force(late)


# --- the fake is true --------------------------------------------------------------------------

_A = server_key("10.9.0.1", 80, Protocol.TCP)
_B = server_key("10.9.0.2", 80, Protocol.UDP)
_R = _A[:4] + b"\x1f\x90"

#: (about, orders, errno of each that is refused)
SCRIPTS: list[tuple[str, list[Order], list[int]]] = [
    ("add", [Order(Verb.ADD_SERVER, _A)], []),
    ("add twice", [Order(Verb.ADD_SERVER, _A), Order(Verb.ADD_SERVER, _A)], [errno.EEXIST]),
    (
        "no such scheduler",
        [Order(Verb.ADD_SERVER, _A, scheduling=Scheduling("nope"))],
        [errno.ENOENT],
    ),
    ("set what is not there", [Order(Verb.SET_SERVER, _A)], [errno.ESRCH]),
    ("remove what is not there", [Order(Verb.REMOVE_SERVER, _A)], [errno.ESRCH]),
    (
        "edit",
        [Order(Verb.ADD_SERVER, _A), Order(Verb.SET_SERVER, _A, scheduling=Scheduling("lc", 1, 9))],
        [],
    ),
    ("real one without server", [Order(Verb.ADD_REAL, _A, _R)], [errno.ESRCH]),
    ("real one", [Order(Verb.ADD_SERVER, _A), Order(Verb.ADD_REAL, _A, _R)], []),
    (
        "real one twice",
        [Order(Verb.ADD_SERVER, _A), *[Order(Verb.ADD_REAL, _A, _R)] * 2],
        [errno.EEXIST],
    ),
    (
        "edit a real one that is not there",
        [Order(Verb.ADD_SERVER, _A), Order(Verb.SET_REAL, _A, _R)],
        [errno.ENOENT],
    ),
    (
        "remove a real one that is not there",
        [Order(Verb.ADD_SERVER, _A), Order(Verb.REMOVE_REAL, _A, _R)],
        [errno.ENOENT],
    ),
    (
        "goes on past refusals",
        [Order(Verb.SET_SERVER, _A), Order(Verb.ADD_SERVER, _B), Order(Verb.ADD_REAL, _B, _R, 3)],
        [errno.ESRCH],
    ),
    (
        "a server takes its real ones with it",
        [
            Order(Verb.ADD_SERVER, _A),
            Order(Verb.ADD_REAL, _A, _R),
            Order(Verb.REMOVE_SERVER, _A),
            Order(Verb.ADD_SERVER, _A),
        ],
        [],
    ),
]


def ended(door: Door, orders: list[Order]) -> tuple[list[int], dict[bytes, object]]:
    refused = [each.errno for each in door.send(orders)]
    held = door.servers().servers
    return refused, {
        key: (one.scheduling, one.prefix, {real: each.weight for real, each in one.reals.items()})
        for key, one in held.items()
    }


@pytest.mark.parametrize(("about", "orders", "codes"), SCRIPTS, ids=[row[0] for row in SCRIPTS])
def test_fake_takes_and_refuses(about: str, orders: list[Order], codes: list[int]) -> None:
    """The in-memory kernel refuses as written in the table."""
    assert ended(FakeIpvs(), orders)[0] == codes


@pytest.mark.ipvs
def test_kernel_ends_every_script_as_the_fake_does() -> None:
    """Both refuse the same orders, and hold the same servers afterwards."""
    for about, orders, _ in SCRIPTS:
        with scratch(loopback=True):
            real = ended(KernelDoor(Family.IPV4, host.working_variant()), orders)
        assert real == ended(FakeIpvs(), orders), about
