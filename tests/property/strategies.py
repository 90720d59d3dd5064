"""Small clusters for hypothesis: few names, few addresses, so that everything collides."""

from __future__ import annotations

from hypothesis import strategies as st

from kproxy.core.objects import (
    EndpointSlice,
    Family,
    ObjectKey,
    Protocol,
    Service,
    ServicePort,
    ServiceType,
    SliceEndpoint,
    SlicePort,
    TrafficPolicy,
)
from kproxy.core.snapshot import NodeSettings

TCP, UDP = Protocol.TCP, Protocol.UDP
VIPS = ("172.30.0.1", "172.30.0.2")
VIPS6 = ("fd00:30::1",)
PODS = ("10.180.0.1", "10.180.0.2", "10.180.0.3")
PODS6 = ("fd00:10::1", "fd00:10::2")
NODES = ("", "node1", "node2")
ZONES = ("", "a", "b")

policies = st.sampled_from(TrafficPolicy)
names = st.sampled_from(("", "http", "dns"))
protocols = st.sampled_from((TCP, UDP))


def some(values, most=2):
    return st.lists(st.sampled_from(values), max_size=most, unique=True).map(tuple)


service_ports = st.lists(
    st.builds(
        ServicePort,
        name=names,
        protocol=protocols,
        port=st.sampled_from((80, 81)),
        node_port=st.sampled_from((0, 30080, 30081)),
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda port: (port.name, port.protocol),
).map(tuple)

cluster_ips = st.one_of(
    st.just(()),
    st.tuples(st.sampled_from(VIPS)),
    st.tuples(st.sampled_from(VIPS6)),
    st.tuples(st.sampled_from(VIPS), st.sampled_from(VIPS6)),
)

services = st.builds(
    Service,
    namespace=st.just("ns"),
    name=st.sampled_from(("a", "b", "c")),
    type=st.sampled_from(ServiceType),
    cluster_ips=cluster_ips,
    ports=service_ports,
    external_ips=some((*VIPS, "198.51.100.1", *VIPS6)),
    load_balancer_ips=some((*VIPS, "203.0.113.1", "198.51.100.1")),
    source_ranges=some(("192.0.2.0/24", "2001:db8::/32")),
    source_ranges_set=st.booleans(),
    internal_policy=policies,
    external_policy=policies,
    health_check_node_port=st.sampled_from((0, 30080, 32000)),
    created=st.sampled_from((0.0, 1.0, 2.0)),
    ignored=st.sampled_from(("", "", "", "another proxy's label")),
)

slice_ports = st.lists(
    st.builds(SlicePort, name=names, protocol=protocols, port=st.sampled_from((8080, 8081))),
    max_size=3,
).map(tuple)


def entries(addresses):
    return st.lists(
        st.builds(
            SliceEndpoint,
            address=st.sampled_from(addresses),
            ready=st.booleans(),
            serving=st.booleans(),
            terminating=st.booleans(),
            node=st.sampled_from(NODES),
            zone_hints=some(("a", "b")),
            node_hints=some(("node1", "node2")),
        ),
        max_size=4,
    ).map(tuple)


def slices_of_family(family, addresses):
    return st.builds(
        EndpointSlice,
        namespace=st.just("ns"),
        name=st.sampled_from(("s1", "s2", "s3")),
        service=st.sampled_from(("a", "b", "c", "d")),
        family=st.just(family),
        ports=slice_ports,
        endpoints=entries(addresses),
    )


slices = st.one_of(slices_of_family(Family.IPV4, PODS), slices_of_family(Family.IPV6, PODS6))
objects = st.one_of(services, slices)
settings = st.builds(
    NodeSettings, name=st.sampled_from(("node1", "node2")), zone=st.sampled_from(ZONES)
)
families = st.sampled_from(Family)
service_keys = st.sampled_from([ObjectKey("ns", name) for name in "abcd"])
