"""What a Service offers in a family: by type, family and source ranges."""

from __future__ import annotations

from itertools import product

import pytest

from kproxy.core.objects import Family, ServiceType, TrafficPolicy
from kproxy.core.offers import RESTRICTED, offer_of
from tests.factories import make_port, make_service

V4, V6 = Family.IPV4, Family.IPV6
DUAL = ("172.30.0.41", "fd00:30::41")
LB = {
    "type": ServiceType.LOAD_BALANCER,
    "ip": DUAL,
    "load_balancer_ips": ("203.0.113.1", "2001:db8::1"),
}


@pytest.mark.parametrize(
    ("fields", "family"),
    [
        pytest.param({"type": ServiceType.EXTERNAL_NAME}, V4, id="ExternalName"),
        pytest.param({"ip": ()}, V4, id="headless"),
        pytest.param({"ignored": "another proxy's label"}, V4, id="not ours"),
        pytest.param({}, V6, id="IPv4 service, IPv6 proxy"),
        pytest.param({"ip": "fd00:30::41"}, V4, id="IPv6 service, IPv4 proxy"),
        pytest.param({"external_ips": ("2001:db8::9",)}, V6, id="external IP alone is no family"),
    ],
)
def test_nothing(fields, family):
    """What is not for this proxy or not of this family offers nothing."""
    assert offer_of(make_service(**fields), family) is None


def test_no_service():
    """No object, no offer: slices may stand alone."""
    assert offer_of(None, V4) is None


@pytest.mark.parametrize(
    ("kind", "node_port", "balancer"),
    [
        (ServiceType.CLUSTER_IP, 0, ()),
        (ServiceType.NODE_PORT, 30080, ()),
        (ServiceType.LOAD_BALANCER, 30080, ("203.0.113.1",)),
    ],
)
def test_type(kind, node_port, balancer):
    """The type decides about node ports and load-balancer addresses, never about external IPs."""
    service = make_service(
        type=kind,
        ports=(make_port(node_port=30080),),
        load_balancer_ips=("203.0.113.1",),
        external_ips=("198.51.100.1",),
    )
    offer = offer_of(service, V4)
    assert (offer.ports[0].node_port, offer.load_balancer_ips) == (node_port, balancer)
    assert offer.external_ips == ("198.51.100.1",)


@pytest.mark.parametrize(
    ("family", "cluster_ip", "external", "balancer"),
    [
        (V4, "172.30.0.41", ("198.51.100.1",), ("203.0.113.1",)),
        (V6, "fd00:30::41", ("2001:db8::9",), ("2001:db8::1",)),
    ],
)
def test_families_are_apart(family, cluster_ip, external, balancer):
    """Each family sees its own addresses only."""
    offer = offer_of(make_service(**LB, external_ips=("2001:db8::9", "198.51.100.1")), family)
    assert (offer.cluster_ip, offer.external_ips) == (cluster_ip, external)
    assert offer.load_balancer_ips == balancer


OWN, OTHER = "192.0.2.0/24", "2001:db8:7::/48"


@pytest.mark.parametrize(
    ("given", "broken", "ranges", "restricted"),
    [
        pytest.param(None, False, (), False, id="not restricted"),
        pytest.param((OWN,), False, (OWN,), True, id="own range"),
        pytest.param((OTHER, OWN), False, (OWN,), True, id="own and other"),
        pytest.param((OTHER,), False, (), False, id="all of the other family"),
        pytest.param((), False, (), True, id="nothing left of them"),
        pytest.param((), True, (), True, id="all broken"),
        pytest.param((OWN,), True, (OWN,), True, id="own and broken"),
        pytest.param((OTHER,), True, (), True, id="other and broken"),
    ],
)
def test_source_ranges(given, broken, ranges, restricted):
    """Broken ranges never open the door; ranges of the other family leave this one alone."""
    service = make_service(
        **LB,
        source_ranges=given or (),
        source_ranges_set=given is not None,
        source_ranges_broken=broken,
    )
    offer = offer_of(service, V4)
    assert (offer.source_ranges, offer.restricted) == (ranges, restricted)


def test_source_ranges_need_load_balancer_addresses():
    """Ranges filter load-balancer addresses only; without one there is nothing to say."""
    service = make_service(type=ServiceType.NODE_PORT, source_ranges=(OWN,), source_ranges_set=True)
    offer = offer_of(service, V4)
    assert (offer.source_ranges, offer.restricted) == ((), False)


@pytest.mark.parametrize(
    ("kind", "policy", "port"),
    [
        (ServiceType.LOAD_BALANCER, TrafficPolicy.LOCAL, 32000),
        (ServiceType.LOAD_BALANCER, TrafficPolicy.CLUSTER, 0),
        (ServiceType.NODE_PORT, TrafficPolicy.LOCAL, 0),
        (ServiceType.CLUSTER_IP, TrafficPolicy.LOCAL, 0),
    ],
)
def test_health_check(kind, policy, port):
    """Health checks are for load balancers with Local policy."""
    service = make_service(type=kind, external_policy=policy, health_check_node_port=32000)
    assert offer_of(service, V4).health_check_node_port == port


def test_annotations():
    """Only this proxy's own annotations reach the plan."""
    service = make_service(annotations=(("a/b", "1"), ("kproxy/weight", "2"), ("kproxyx", "3")))
    assert offer_of(service, V4).annotations == (("kproxy/weight", "2"),)


def test_table_is_whole():
    """Every mix of ranges has a row, and only sound ranges of the other family leave it open."""
    assert set(RESTRICTED) == set(product((True, False), repeat=3))
    assert [key for key, closed in RESTRICTED.items() if not closed] == [(False, True, False)]
