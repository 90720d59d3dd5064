"""What differs between two Snapshots, named for people and for stale flows."""

from __future__ import annotations

import pytest

from kproxy.core.diff import Address, Entrance, SnapshotDiff, addresses_of, diff
from kproxy.core.events import Delta, ref_of
from kproxy.core.objects import Family, PortName, Protocol, ServiceType
from kproxy.core.planner import Planner
from kproxy.core.tracker import Tracker
from tests.factories import (
    make_endpoint,
    make_port,
    make_service,
    make_settings,
    make_slice,
)

TCP = Protocol.TCP
BASE = (
    make_service("a", ip="172.30.0.1", external_ips=("198.51.100.1",)),
    make_slice("10.180.0.1", "10.180.0.2", service="a"),
    make_service("b", ip="172.30.0.2"),
)


def snapshots(*deltas, settings=None):
    """The Snapshots of one planner after each delta."""
    tracker, planner = Tracker(), Planner(Family.IPV4)
    found = []
    for delta in deltas:
        tracker.apply(delta)
        found.append(planner.plan(tracker, make_settings(), tracker.take()))
    if settings is not None:
        found.append(planner.plan(tracker, settings, tracker.take()))
    return found


def names(plans):
    return [plan.name.name for plan in plans]


def two(*up, down=()):
    gone = tuple(ref_of(obj) for obj in down)
    return snapshots(Delta(BASE), Delta(tuple(up), gone))


def test_first():
    """From nothing, everything is added."""
    (snapshot,) = snapshots(Delta(BASE))
    found = diff(None, snapshot)
    assert names(found.added) == ["a", "b"]
    assert (found.removed, found.changed, found.settings) == ((), (), False)
    assert str(found) == "2 ports added, 2 endpoints added"


def test_nothing():
    """A Snapshot does not differ from itself or from an equal one."""
    (one,), (other,) = snapshots(Delta(BASE)), snapshots(Delta(BASE))
    for found in (diff(one, one), diff(one, other)):
        assert found == SnapshotDiff()
        assert not found
        assert str(found) == "nothing changed"


def test_added_and_removed_ports():
    """Whole ports come and go with their plans."""
    old, new = two(make_service("c", ip="172.30.0.3"), down=(BASE[0],))
    found = diff(old, new)
    assert (names(found.added), names(found.removed), found.changed) == (["c"], ["a"], ())
    assert str(found) == "1 port added, 1 port removed, 2 endpoints removed"


def test_endpoints():
    """Endpoints are told apart by address and port."""
    old, new = two(make_slice("10.180.0.2", "10.180.0.3", service="a"))
    (port,) = diff(old, new).changed
    assert port.name == PortName("ns1", "a", "http", TCP)
    assert [str(it) for it in port.added_endpoints] == ["10.180.0.3:8080"]
    assert [str(it) for it in port.removed_endpoints] == ["10.180.0.1:8080"]
    assert port.fields == ("endpoints",)
    assert (port.added_addresses, port.removed_addresses) == ((), ())


def test_condition_is_no_endpoint():
    """An endpoint that is draining now is the same endpoint, in a changed port."""
    draining = (
        make_endpoint(ip, ready=False, serving=True, terminating=True)
        for ip in ("10.180.0.1", "10.180.0.2")
    )
    old, new = two(make_slice(*draining, service="a"))
    (port,) = diff(old, new).changed
    assert (port.added_endpoints, port.removed_endpoints, port.fields) == ((), (), ("endpoints",))


def test_addresses():
    """Ways in are compared one by one; a moved port number is every address anew."""
    old, new = two(
        make_service(
            "a",
            ip="172.30.0.1",
            type=ServiceType.NODE_PORT,
            ports=(make_port(node_port=30080),),
            external_ips=("198.51.100.2",),
        )
    )
    (port,) = diff(old, new).changed
    assert port.added_addresses == (
        Address(Entrance.EXTERNAL_IP, "198.51.100.2", TCP, 80),
        Address(Entrance.NODE_PORT, "", TCP, 30080),
    )
    assert port.removed_addresses == (Address(Entrance.EXTERNAL_IP, "198.51.100.1", TCP, 80),)
    assert port.fields == ("node_port", "external_ips")
    old, new = two(make_service("b", ip="172.30.0.2", ports=(make_port(port=81),)))
    (port,) = diff(old, new).changed
    assert [str(it) for it in port.added_addresses] == ["172.30.0.2:81/TCP"]
    assert [str(it) for it in port.removed_addresses] == ["172.30.0.2:80/TCP"]


def test_other_fields():
    """A policy or affinity that differs is named by its field."""
    old, new = two(make_service("b", ip="172.30.0.2", affinity_seconds=60))
    (port,) = diff(old, new).changed
    assert port.fields == ("affinity_seconds",)


def test_settings():
    """Settings that differ are said to, whether or not a port does."""
    old, new = snapshots(Delta(BASE), settings=make_settings(masquerade_all=True))
    found = diff(old, new)
    assert found == SnapshotDiff(settings=True)
    assert str(found) == "node settings changed"


def test_skipping_generations():
    """Two Snapshots that do not follow each other are compared as wholes."""
    more = make_service("c", ip="172.30.0.3")
    old, _, new = snapshots(Delta(BASE), Delta((more,)), Delta((), (ref_of(BASE[2]),)))
    found = diff(old, new)
    assert (names(found.added), names(found.removed)) == (["c"], ["b"])


def test_backwards():
    """The difference the other way round is the mirror image."""
    old, new = two(make_slice("10.180.0.3", service="a"), down=(BASE[2],))
    there, back = diff(old, new), diff(new, old)
    assert (there.added, there.removed) == (back.removed, back.added)
    assert there.changed[0].added_endpoints == back.changed[0].removed_endpoints


@pytest.mark.parametrize(
    ("ip", "text"),
    [("192.0.2.1", "192.0.2.1:80/TCP"), ("2001:db8::1", "[2001:db8::1]:80/TCP"), ("", ":80/TCP")],
)
def test_address_text(ip, text):
    """An address reads as people write it."""
    assert str(Address(Entrance.EXTERNAL_IP, ip, TCP, 80)) == text


def test_addresses_of():
    """All ways in, cluster IP first."""
    service = make_service(
        type=ServiceType.LOAD_BALANCER,
        ports=(make_port(node_port=30080),),
        external_ips=("198.51.100.1",),
        load_balancer_ips=("203.0.113.1",),
    )
    (snapshot,) = snapshots(Delta((service,)))
    (plan,) = snapshot.ports.values()
    assert [str(address) for address in addresses_of(plan)] == [
        "172.30.0.41:80/TCP",
        "203.0.113.1:80/TCP",
        "198.51.100.1:80/TCP",
        ":30080/TCP",
    ]
