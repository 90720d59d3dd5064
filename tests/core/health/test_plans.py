"""Health in plans: from observations to Snapshots."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from kproxy.core.events import Delta, ref_of
from kproxy.core.health.book import Book
from kproxy.core.health.values import (
    Check,
    Checked,
    Ejected,
    Exec,
    HealthSettings,
    Pace,
    Passive,
    Policy,
    Ramped,
    Tcp,
    Udp,
    target_of,
)
from kproxy.core.objects import Family, PortName, Protocol, SlicePort, TrafficPolicy
from kproxy.core.planner import Planner
from kproxy.core.tracker import Changes, Tracker
from tests.factories import (
    make_endpoint,
    make_port,
    make_service,
    make_settings,
    make_slice,
)

V4, V6 = Family.IPV4, Family.IPV6
TCP, UDP = Protocol.TCP, Protocol.UDP
CHECK = Check(Tcp())
POLICY = Policy(CHECK, Passive())
PODS = ("10.180.0.1", "10.180.0.2", "10.180.0.3")


def name_of(service="svc1", port="http", protocol=TCP):
    return PortName("ns1", service, port, protocol)


def checked(ip, up, at=1.0, check=CHECK):
    return Checked(target_of(check, ip, 8080), up, "told", at)


class Stage:
    """A tracker, a Book and a planner that are told things one after the other."""

    def __init__(self, *objects, settings=None, family=V4):
        self.tracker, self.book = Tracker(), Book()
        self.planner = Planner(family)
        self.settings = settings or make_settings()
        self.up(*objects)

    def up(self, *objects):
        return self.plan(Delta(upserted=objects))

    def down(self, *objects):
        return self.plan(Delta(deleted=tuple(ref_of(obj) for obj in objects)))

    def hear(self, *observations):
        return self.plan(None, observations)

    def plan(self, delta=None, observations=()):
        if delta is not None:
            self.tracker.apply(delta)
        changes = self.tracker.take()
        services = changes.services | self.book.hear(observations)
        changes = Changes(frozenset(services), changes.nodes, changes.counts)
        self.snapshot = self.planner.plan(self.tracker, self.settings, changes, self.book)
        return self.snapshot

    def ips(self, name=None):
        return [each.ip for each in self.snapshot.ports[name or name_of()].endpoints.all]


def stage_of(policy=POLICY, pods=PODS, **settings):
    service = make_service(health=policy)
    return Stage(service, make_slice(*pods), settings=make_settings(**settings))


def test_a_verdict_changes_the_plan():
    """An endpoint that is down leaves every set, and comes back."""
    stage = stage_of()
    assert stage.ips() == list(PODS)
    first = stage.snapshot
    second = stage.hear(checked(PODS[0], False))
    assert stage.ips() == list(PODS[1:])
    assert (second.base, second.changed) == (first.generation, {name_of()})
    assert not second.health[name_of()].judged[0].up
    stage.hear(checked(PODS[0], True, 2.0))
    assert stage.snapshot.ports == first.ports


def test_a_verdict_without_effect_changes_health_alone():
    """A first result, and panic, are seen in ``health`` while all plans are shared."""
    stage = stage_of()
    first = stage.snapshot
    second = stage.hear(checked(PODS[0], True))
    assert second.ports is first.ports
    assert (second.base, second.changed) == (first.generation, frozenset())
    assert second.health != first.health
    assert stage.hear(*[checked(ip, False, 2.0) for ip in PODS]).health[name_of()].panic
    assert stage.snapshot.ports is first.ports


def test_what_is_known_already_is_no_new_snapshot():
    """The last Snapshot itself comes back, and unchanged verdicts are shared by each."""
    other = make_service("svc2", ip="172.30.0.42", health=POLICY)
    stage = stage_of()
    stage.up(other, make_slice("10.180.0.9", service="svc2"))
    first = stage.hear(checked(PODS[0], False))
    assert stage.hear(checked(PODS[0], False)) is first
    second = stage.hear(checked(PODS[1], False))
    assert second.health[name_of("svc2")] is first.health[name_of("svc2")]
    third = stage.planner.plan(stage.tracker, stage.settings, None, stage.book)
    assert third.health is second.health


@pytest.mark.parametrize(
    ("own", "default", "judged"),
    [
        (None, None, False),
        (None, POLICY, True),
        (Policy(), POLICY, False),
        (POLICY, None, True),
        (POLICY, Policy(), True),
        (Policy(Check(Udp(send=b"x"))), POLICY, False),
        (Policy(Check(Udp(send=b"x"), Pace()), Passive()), None, True),
    ],
)
def test_whose_policy_holds(own, default, judged):
    """The service's own, else the node's; one that cannot judge a port leaves no verdict."""
    stage = stage_of(own, health=HealthSettings(default))
    assert (name_of() in stage.snapshot.health) is judged


def test_without_a_book_the_api_decides():
    """Somebody who only renders plans needs no Book."""
    tracker = Tracker()
    tracker.apply(Delta((make_service(health=POLICY), make_slice(*PODS))))
    snapshot = Planner(V4).plan(tracker, make_settings())
    assert snapshot.health == {}
    assert len(snapshot.ports[name_of()].endpoints.all) == 3


def test_a_check_holds_for_ports_that_it_can_speak_to():
    """Of a service with TCP and UDP ports a TCP check judges the TCP one."""
    ports = (make_port("dns", 53, protocol=UDP), make_port("dns-tcp", 53))
    slices = make_slice(*PODS, ports=(SlicePort("dns", UDP, 53), SlicePort("dns-tcp", TCP, 53)))
    stage = Stage(make_service(ports=ports, health=Policy(CHECK)), slices)
    assert set(stage.snapshot.health) == {name_of(port="dns-tcp")}


@pytest.mark.parametrize("how", ["service", "policy", "port"])
def test_what_has_no_policy_any_more_is_forgotten(how):
    """With the service, its policy or its port the verdict goes, and what the Book has of it."""
    stage = stage_of()
    stage.hear(checked(PODS[0], False))
    match how:
        case "service":
            stage.down(make_service())
        case "policy":
            stage.up(make_service(health=Policy()))
            assert stage.ips() == list(PODS)
        case "port":
            stage.up(make_service(health=POLICY, ports=(make_port("other", 81),)))
    assert name_of() not in stage.snapshot.health
    assert stage.book.known() == ()


def test_endpoints_go_and_come_unknown():
    """An address that was down and comes again is assumed to be up."""
    stage = stage_of()
    stage.hear(checked(PODS[0], False))
    stage.up(make_slice(*PODS[1:]))
    stage.up(make_slice(*PODS))
    assert stage.ips() == list(PODS)


def test_settings_that_change_keep_what_is_known():
    """Everything is planned anew with the opinions there are; a default that comes judges."""
    stage = stage_of(None, health=HealthSettings(POLICY))
    stage.hear(checked(PODS[0], False))
    stage.settings = make_settings(zone="a", health=HealthSettings(POLICY))
    assert stage.plan().base is None
    assert stage.ips() == list(PODS[1:])
    stage.settings = make_settings(zone="a")
    stage.plan()
    assert stage.ips() == list(PODS)
    assert (stage.snapshot.health, stage.book.known()) == ({}, ())


def test_families_are_judged_apart():
    """An observation of one family changes nothing in the other."""
    service = make_service(ip=("172.30.0.41", "fd00:30::41"), health=POLICY)
    slices = make_slice("fd00:10::1", "fd00:10::2", name="six")
    stage = Stage(service, make_slice(*PODS), slices, family=V6)
    six = stage.snapshot
    assert stage.hear(checked(PODS[0], False)) is six
    stage.hear(checked("fd00:10::1", False))
    assert stage.ips() == ["fd00:10::2"]


def test_local_sets_lose_who_is_down():
    """A node whose endpoints are all down has none for Local policy: a balancer goes elsewhere."""
    service = make_service(internal_policy=TrafficPolicy.LOCAL, health=POLICY)
    here, there = make_endpoint(PODS[0], "node1"), make_endpoint(PODS[1], "node2")
    stage = Stage(service, make_slice(here, there))
    stage.hear(checked(PODS[0], False))
    assert stage.snapshot.ports[name_of()].endpoints.local == ()


def test_draining_endpoints_stand_in():
    """When all ready ones are down, one that drains and is up is used, as without ready ones."""
    draining = make_endpoint(PODS[1], ready=False, terminating=True)
    stage = stage_of(pods=(PODS[0], draining))
    stage.hear(checked(PODS[0], False))
    assert stage.ips() == [PODS[1]]


def test_udp_flows_leave_who_is_down():
    """An endpoint that is down is not spared either: its flows have to go."""
    ports, slice_ports = (make_port("dns", 53, protocol=UDP),), (SlicePort("dns", UDP, 8080),)
    check = Check(Udp(send=b"x"))
    draining = make_endpoint(PODS[1], ready=False, terminating=True)
    stage = Stage(
        make_service(ports=ports, health=Policy(check)),
        make_slice(PODS[0], draining, ports=slice_ports),
    )
    name = name_of(port="dns", protocol=UDP)
    assert [each.ip for each in stage.snapshot.ports[name].endpoints.spared] == [PODS[1]]
    stage.hear(checked(PODS[1], False, check=check))
    assert stage.snapshot.ports[name].endpoints.spared == ()


def test_a_newcomer_starts_slowly():
    """It joins with the least weight beside the others, from its first plan on."""
    stage = stage_of(Policy(CHECK, slow_start=30.0), pods=PODS[:2])
    stage.up(make_slice(*PODS))
    weights = [each.weight for each in stage.snapshot.ports[name_of()].endpoints.all]
    assert weights == [100, 100, 5]
    stage.hear(Ramped(name_of(), PODS[2], 8080, 100, 9.0))
    weights = [each.weight for each in stage.snapshot.ports[name_of()].endpoints.all]
    assert weights == [100, 100, 100]


def test_programs_run_only_where_the_operator_says():
    """An exec check is refused by name and left out; with the operator's leave it judges."""
    policy = Policy(Check(Exec(command=("true",))))
    stage = stage_of(policy)
    (refusal,) = stage.snapshot.conflicts
    assert "health.allowExec" in refusal.message
    assert refusal.key == "ns1/svc1"
    assert stage.snapshot.health == {}
    other = make_service("svc2", ip="172.30.0.42")
    assert stage.up(other).conflicts == (refusal,)
    assert stage.up(make_service(health=POLICY)).conflicts == ()
    stage.up(make_service(health=policy))
    assert stage.down(make_service()).conflicts == ()
    stage.up(make_service(health=policy))
    stage.settings = make_settings(health=HealthSettings(allow_exec=True))
    assert stage.plan().conflicts == ()
    assert set(stage.snapshot.health) == {name_of()}


def test_a_plan_that_broke_off_leaves_nothing_behind(monkeypatch):
    """After an exception everything is planned anew, and equals a fresh planner's."""
    stage = stage_of()
    with monkeypatch.context() as patch:
        patch.setattr("kproxy.core.planner.categorize", lambda *a, **k: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            stage.hear(checked(PODS[0], False))
    last = stage.planner.plan(stage.tracker, stage.settings, None, stage.book)
    assert content(last) == content(fresh(stage))


# --- properties ----------------------------------------------------------------------------------


def fresh(stage):
    return Planner(V4).plan(stage.tracker, stage.settings, None, stage.book)


def content(snapshot):
    return snapshot.ports, snapshot.conflicts, snapshot.endpoint_count, dict(snapshot.health)


names = st.sampled_from(["svc1", "svc2", "svc3"])
policies = st.sampled_from(
    [
        None,
        Policy(),
        Policy(CHECK),
        POLICY,
        Policy(Check(Tcp(port=8080)), panic=0.6),
        Policy(Check(Tcp(), Pace(initial=False)), Passive(), slow_start=10.0),
        Policy(None, Passive(), slow_start=10.0),
        Policy(Check(Exec(command=("x",)))),
    ]
)
entries = st.builds(
    make_endpoint,
    st.sampled_from(PODS),
    st.sampled_from(["node1", "node2"]),
    ready=st.booleans(),
    terminating=st.booleans(),
)


@st.composite
def services(draw):
    name = draw(names)
    internal = draw(st.sampled_from(TrafficPolicy))
    return make_service(
        name, ip=f"172.30.0.{name[-1]}", health=draw(policies), internal_policy=internal
    )


@st.composite
def slices(draw):
    found = draw(st.lists(entries, max_size=3, unique_by=lambda each: each.address))
    return make_slice(*found, service=draw(names), family=V4)


@st.composite
def observations(draw, at):
    """One that may or may not speak of something that is there."""
    ip, up = draw(st.sampled_from(PODS)), draw(st.booleans())
    match draw(st.integers(0, 2)):
        case 0:
            check = draw(st.sampled_from([CHECK, Check(Tcp(), Pace(initial=False))]))
            return checked(ip, up, at, check)
        case 1:
            return Ejected(name_of(draw(names)), ip, 8080, up, "told", at)
    return Ramped(name_of(draw(names)), ip, 8080, draw(st.integers(1, 100)), at)


@st.composite
def steps(draw):
    """Deltas, deletions and batches of observations, in any mixture."""
    history = []
    for at in range(draw(st.integers(0, 12))):
        kind = draw(st.integers(0, 3))
        if kind == 0:
            history.append(Delta((draw(services()),)))
        elif kind == 1:
            history.append(Delta((draw(slices()),)))
        elif kind == 2:
            gone = draw(st.one_of(services(), slices()))
            history.append(Delta((), (ref_of(gone),)))
        else:
            late = st.integers(-3, 0).flatmap(lambda off, at=at: observations(float(at + off)))
            history.append(tuple(draw(st.lists(late, max_size=5))))
    return history


settings = st.sampled_from(
    [
        make_settings(),
        make_settings(health=HealthSettings(POLICY)),
        make_settings(health=HealthSettings(POLICY, allow_exec=True)),
    ]
)


@budget(max_examples=300, deadline=None)
@given(steps(), settings, settings)
def test_increments_equal_a_full_plan(history, before, after):
    """Whatever came, a planner that went along has what a new one makes of the same Book; every
    plan names its changes, and leaves at least one endpoint that the API allows."""
    stage = Stage(settings=before)
    for number, step in enumerate(history):
        if number == len(history) // 2:
            stage.settings = after
        last = stage.snapshot
        snapshot = stage.plan(step) if isinstance(step, Delta) else stage.plan(None, step)
        assert content(snapshot) == content(fresh(stage))
        differing = {n for n, plan in snapshot.ports.items() if last.ports.get(n) != plan}
        if snapshot.base is not None and snapshot is not last:
            assert snapshot.changed == differing
        for name, health in snapshot.health.items():
            assert health.panic or not health.judged or any(each.up for each in health.judged)
            plan = snapshot.ports[name]
            assert plan.endpoints.has_any is bool(health.judged)


@st.composite
def two_orders(draw):
    """Observations of distinct moments, and the same ones in another order."""
    count = draw(st.integers(1, 12))
    told = [draw(observations(float(at))) for at in range(1, count + 1)]
    return told, draw(st.permutations(told)), draw(st.sets(st.integers(1, count)))


@budget(max_examples=300, deadline=None)
@given(two_orders(), st.booleans())
def test_the_order_of_observations_does_not_matter(case, passive):
    """However they come, and in however many batches: the latest of each subject counts."""
    told, shuffled, cuts = case
    policy = Policy(CHECK, Passive() if passive else None)
    objects = [make_service(f"svc{n}", ip=f"172.30.0.{n}", health=policy) for n in (1, 2, 3)]
    objects += [make_slice(*PODS, service=f"svc{n}") for n in (1, 2, 3)]
    one, two = Stage(*objects), Stage(*objects)
    one.hear(*told)
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(shuffled)]):
        two.hear(*shuffled[start:end])
    assert content(one.snapshot) == content(two.snapshot)


def subject(observation):
    match observation:
        case Checked(target=target):
            return target
        case Ejected(name=name, ip=ip):
            return "ejected", name, ip
    return "ramped", observation.name, observation.ip


@budget(max_examples=300, deadline=None)
@given(two_orders())
def test_nor_between_subjects_with_slow_start(case):
    """With slow start each subject's own order counts, since coming up is an event; the order
    between subjects does not."""
    told, shuffled, _ = case
    policy = Policy(CHECK, Passive(), slow_start=10.0)
    objects = [make_service(f"svc{n}", ip=f"172.30.0.{n}", health=policy) for n in (1, 2, 3)]
    objects += [make_slice(*PODS, service=f"svc{n}") for n in (1, 2, 3)]
    queues = {}
    for each in told:
        queues.setdefault(subject(each), []).append(each)
    mixed = [queues[subject(each)].pop(0) for each in shuffled]
    one, two = Stage(*objects), Stage(*objects)
    one.hear(*told)
    for each in mixed:
        two.hear(each)
    assert content(one.snapshot) == content(two.snapshot)
