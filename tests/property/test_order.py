"""Any order of the same events gives the same Snapshot, and each Snapshot names its changes."""

from __future__ import annotations

from hypothesis import find, given
from hypothesis import settings as budget
from hypothesis import strategies as st

from kproxy.core.diff import diff
from kproxy.core.events import Delta, Ref, ref_of
from kproxy.core.objects import Family, ObjectKey, Service, ServiceType, TrafficPolicy, family_of
from kproxy.core.planner import Planner
from kproxy.core.snapshot import NodeSettings
from kproxy.core.tracker import Tracker
from tests.property import strategies as some

refs = st.one_of(
    st.sampled_from([Ref("Service", ObjectKey("ns", name)) for name in "abc"]),
    st.sampled_from([Ref("EndpointSlice", ObjectKey("ns", name)) for name in ("s1", "s2", "s3")]),
)


@st.composite
def batches(draw):
    """A Delta: each object once, nothing both upserted and deleted."""
    upserted = draw(st.lists(some.objects, max_size=3, unique_by=ref_of))
    present = {ref_of(obj) for obj in upserted}
    deleted = draw(st.lists(refs.filter(lambda ref: ref not in present), max_size=2, unique=True))
    return Delta(tuple(upserted), tuple(deleted))


# A step is a Delta, or what the node's settings are from now on; None: time to plan.
histories = st.lists(st.one_of(batches(), batches(), st.none(), some.settings), max_size=10)


def state_after(history):
    """The objects at the end, worked out the plain way."""
    state = {}
    for step in history:
        if isinstance(step, Delta):
            for ref in step.deleted:
                state.pop(ref, None)
            state |= {ref_of(obj): obj for obj in step.upserted}
    return state


def fresh(state, node, family):
    tracker = Tracker()
    tracker.apply(Delta(tuple(state.values())))
    return Planner(family).plan(tracker, node)


def content(snapshot):
    return snapshot.ports, snapshot.endpoint_count, snapshot.conflicts


@st.composite
def detours(draw):
    """Two histories that end with the same objects, the second after any detour."""
    state = state_after(draw(histories))
    detour = draw(histories)
    astray = state_after(detour)
    ending = [Delta((obj,)) for obj in state.values()]
    ending += [Delta((), (ref,)) for ref in astray.keys() - state.keys()]
    ending = draw(st.permutations(ending))
    pauses = draw(st.lists(st.booleans(), min_size=len(ending), max_size=len(ending)))
    for delta, pause in zip(ending, pauses, strict=True):
        detour += [delta, None] if pause else [delta]
    return state, detour


@budget(max_examples=150, deadline=None)
@given(detours(), some.settings, some.families)
def test_order_does_not_matter(case, node, family):
    """However the state came about, a plan of it equals a fresh planner's."""
    state, history = case
    tracker, planner = Tracker(), Planner(family)
    now = NodeSettings(name="node1")
    for step in history:
        if isinstance(step, NodeSettings):
            now = step
        elif step is None:
            planner.plan(tracker, now, tracker.take())
        else:
            tracker.apply(step)
    last = planner.plan(tracker, node, tracker.take())
    assert content(last) == content(fresh(state, node, family))


@budget(max_examples=150, deadline=None)
@given(histories, some.families)
def test_every_snapshot_names_its_changes(history, family):
    """``changed`` and ``removed`` lead from the predecessor to the Snapshot, and nothing else."""
    tracker, planner = Tracker(), Planner(family)
    now = NodeSettings(name="node1")
    last = planner.plan(tracker, now, tracker.take())
    for number, step in enumerate(history):
        if isinstance(step, NodeSettings):
            now = step
        elif step is not None:
            tracker.apply(step)
        snapshot = planner.plan(tracker, now, tracker.take())
        assert content(snapshot) == content(fresh(state_after(history[: number + 1]), now, family))
        assert snapshot.endpoint_count == sum(
            len(plan.endpoints.all) for plan in snapshot.ports.values()
        )
        check_step(last, snapshot)
        last = snapshot


def check_step(last, snapshot):
    if content(snapshot) == content(last) and snapshot.settings == last.settings:
        assert snapshot is last
        return
    assert snapshot.generation == last.generation + 1
    assert (snapshot.base is None) == (snapshot.settings != last.settings)
    assert snapshot.removed == last.ports.keys() - snapshot.ports.keys()
    differing = {n for n, plan in snapshot.ports.items() if last.ports.get(n) != plan}
    assert snapshot.changed == (set(snapshot.ports) if snapshot.base is None else differing)
    for name in snapshot.ports.keys() - differing:
        assert snapshot.ports[name] is last.ports[name]
    stepped = {n: plan for n, plan in last.ports.items() if n not in snapshot.removed}
    assert stepped | {n: snapshot.ports[n] for n in snapshot.changed} == snapshot.ports
    found = diff(last, snapshot)
    assert {plan.name for plan in found.removed} == snapshot.removed
    assert {it.name for it in (*found.added, *found.changed)} == differing


def owners(services, family):
    """Who holds each spot, the plain way: every claim of every service, the best of each spot."""
    claims = {}
    for service in services:
        own = [ip for ip in service.cluster_ips if family_of(ip) is family]
        if service.ignored or service.type is ServiceType.EXTERNAL_NAME or not own:
            continue
        balancer = service.type is ServiceType.LOAD_BALANCER
        age = service.created or float("inf")
        for number, port in enumerate(service.ports):
            mine = [(0, "cluster_ip", ip, port.port) for ip in own]
            mine += [(1, "load_balancer_ips", ip, port.port) for ip in service.load_balancer_ips]
            mine = mine if balancer else mine[:1]
            mine += [(2, "external_ips", ip, port.port) for ip in service.external_ips]
            if port.node_port and service.type is not ServiceType.CLUSTER_IP:
                mine.append((3, "node_port", "", port.node_port))
            for rank, field, ip, port_number in mine:
                if ip and family_of(ip) is not family:
                    continue
                order = (rank, age, service.name, field != "node_port", number)
                spot = (ip, port.protocol, port_number)
                claims.setdefault(spot, []).append((order, service.name, number, field))
        check = service.health_check_node_port
        if check and balancer and service.external_policy is TrafficPolicy.LOCAL:
            order = (3, age, service.name, True, -1)
            claim = (order, service.name, -1, "health_check_node_port")
            claims.setdefault(("", "TCP", check), []).append(claim)
    return {spot: min(rivals)[1:] for spot, rivals in claims.items()}


@budget(max_examples=200, deadline=None)
@given(st.lists(some.services, max_size=3, unique_by=lambda it: it.name), some.families)
def test_every_spot_has_its_one_owner(services, family):
    """The plans hold exactly what the plain model gives each service, and nothing twice."""
    snapshot = fresh({ref_of(it): it for it in services}, NodeSettings(name="node1"), family)
    held = {}
    by_name: dict[str, Service] = {service.name: service for service in services}
    for name, plan in snapshot.ports.items():
        ports = by_name[name.name].ports
        number = next(
            i for i, it in enumerate(ports) if (it.name, it.protocol) == (name.port, name.protocol)
        )
        spots = [("cluster_ip", plan.cluster_ip, plan.port)] if plan.cluster_ip else []
        spots += [("load_balancer_ips", ip, plan.port) for ip in plan.load_balancer_ips]
        spots += [("external_ips", ip, plan.port) for ip in plan.external_ips]
        if plan.node_port:
            spots.append(("node_port", "", plan.node_port))
        for field, ip, port_number in spots:
            spot = (ip, name.protocol, port_number)
            assert spot not in held
            held[spot] = (name.name, number, field)
    checks = {
        (plan.health_check_node_port, name.name)
        for name, plan in snapshot.ports.items()
        if plan.health_check_node_port
    }
    held |= {("", "TCP", port): (name, -1, "health_check_node_port") for port, name in checks}
    assert held == owners(services, family)


def test_the_strategies_reach_conflicts():
    """The clusters that are drawn do collide, also three services at once."""
    clusters = st.lists(some.services, min_size=3, max_size=3, unique_by=lambda it: it.name)

    def collide(services):
        snapshot = fresh({ref_of(it): it for it in services}, NodeSettings(name="n"), Family.IPV4)
        return len({refusal.key for refusal in snapshot.conflicts}) == 2

    assert find(clusters, collide)
