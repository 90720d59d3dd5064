"""What a lab fills in for an API server and its controllers."""

from __future__ import annotations

import ipaddress
from typing import Any

import msgspec
import pytest

from kproxy.core.objects import Family, Protocol
from kproxy.lab.controllers import Completed, fill_cluster, release
from kproxy.lab.controllers.cluster import ZONE_LABEL, Cluster, NodeFacts
from kproxy.lab.state import Allocations, Pod
from kproxy.lab.topology import Port

NODES = (
    NodeFacts("node1", ((ZONE_LABEL, "a"),), ("192.0.2.11", "2001:db8::11"), ("10.244.1.0/24",)),
    NodeFacts("node2", ((ZONE_LABEL, "b"),), ("192.0.2.12", "2001:db8::12"), ("10.244.2.0/24",)),
)


def pod(
    number: int, *, app: str = "web", port: int = 8080, node: str = "node1", **more: Any
) -> Pod:
    return Pod(
        name=f"{app}-{number}",
        node=node,
        workload=app,
        labels=(("app", app),),
        addresses=(f"10.244.1.{number}", f"fd00:10:244:1::{number}"),
        ports=(Port(port, "http"), Port(53, "dns", Protocol.UDP)),
        **more,
    )


CLUSTER = Cluster(
    seed="test",
    families=(Family.IPV4, Family.IPV6),
    service_cidrs=("10.96.0.0/16", "fd00:10:96::/112"),
    lb_cidrs=("198.51.100.0/24", "fd00:198:51:100::/112"),
    nodes=NODES,
    pods=(pod(2), pod(3, node="node2")),
)


def service(name: str = "web", **spec: Any) -> dict[str, Any]:
    spec.setdefault("selector", {"app": "web"})
    spec.setdefault("ports", [{"port": 80}])
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def run(*objects: dict[str, Any], kept: Allocations | None = None, **cluster: Any) -> Completed:
    changed = msgspec.structs.replace(CLUSTER, **cluster)
    return fill_cluster(changed, objects, kept or Allocations())


def only(done: Completed, kind: str = "Service") -> dict[str, Any]:
    assert [str(refusal) for refusal in done.refusals] == []
    (obj,) = done.of(kind)
    return obj


def faults(done: Completed) -> dict[str, str]:
    return {refusal.field: refusal.message for refusal in done.refusals}


# --- services ---------------------------------------------------------------------------------


def test_defaults_are_those_of_the_api_server() -> None:
    """The shortest Service comes out with every default written in."""
    spec = only(run(service()))["spec"]
    assert spec["type"] == "ClusterIP"
    assert spec["ports"] == [{"port": 80, "protocol": "TCP", "targetPort": 80}]
    assert spec["sessionAffinity"] == "None"
    assert spec["internalTrafficPolicy"] == "Cluster"
    assert "externalTrafficPolicy" not in spec
    assert (spec["ipFamilyPolicy"], spec["ipFamilies"]) == ("SingleStack", ["IPv4"])
    assert spec["clusterIPs"] == [spec["clusterIP"]]
    assert ipaddress.ip_address(spec["clusterIP"]) in ipaddress.ip_network("10.96.0.0/16")


@pytest.mark.parametrize(
    ("spec", "families"),
    [
        ({}, ["IPv4"]),
        ({"ipFamilies": ["IPv6"]}, ["IPv6"]),
        ({"ipFamilyPolicy": "PreferDualStack"}, ["IPv4", "IPv6"]),
        ({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6"]}, ["IPv6", "IPv4"]),
        ({"clusterIP": "fd00:10:96::7"}, ["IPv6"]),
        (
            {"clusterIPs": ["10.96.0.9", "fd00:10:96::9"], "ipFamilyPolicy": "PreferDualStack"},
            ["IPv4", "IPv6"],
        ),
        ({"clusterIP": "None", "selector": {}}, ["IPv4", "IPv6"]),
    ],
)
def test_families(spec: dict[str, Any], families: list[str]) -> None:
    """Families follow policy, list and addresses, and each one gets an address of its own."""
    filled = only(run(service(**spec)))["spec"]
    assert filled["ipFamilies"] == families
    if filled["clusterIP"] != "None":
        kinds = ["IPv6" if ":" in address else "IPv4" for address in filled["clusterIPs"]]
        assert kinds == families


def test_single_family_lab_prefers_what_it_has() -> None:
    """PreferDualStack is content with one family, RequireDualStack is not."""
    one = {"families": (Family.IPV4,), "service_cidrs": ("10.96.0.0/16",), "lb_cidrs": ()}
    spec = only(run(service(ipFamilyPolicy="PreferDualStack"), **one))["spec"]
    assert spec["ipFamilies"] == ["IPv4"]
    assert "spec.ipFamilyPolicy" in faults(run(service(ipFamilyPolicy="RequireDualStack"), **one))


def test_allocations_are_kept() -> None:
    """The same service has the same address and ports, with the record and without it."""
    services = [service(f"s{number}", type="NodePort") for number in range(200)]
    first = run(*services)
    again = run(*reversed(services), kept=first.allocations)
    lost = run(*services)
    assert again.allocations == first.allocations
    assert lost.allocations == first.allocations
    addresses = [obj["spec"]["clusterIP"] for obj in first.of("Service")]
    ports = [obj["spec"]["ports"][0]["nodePort"] for obj in first.of("Service")]
    assert len(set(addresses)) == len(set(ports)) == 200
    assert all(30000 <= port <= 32767 for port in ports)
    # 10.96.0.0 to .255 are left to people who choose their own address.
    assert all(ipaddress.ip_address(a) >= ipaddress.ip_address("10.96.1.0") for a in addresses)


def test_release_frees_one_service_only() -> None:
    """A deleted service's address and ports are anybody's; the others' stay."""
    before = run(service("a", type="NodePort"), service("b", type="LoadBalancer")).allocations
    after = release(before, ["default/b"])
    assert set(after.cluster_ips) == {"default/a"}
    assert all(entry.startswith("default/a/") for entry in after.node_ports)
    assert after.load_balancer_ips == {}


def test_holder_keeps_its_address_against_a_newcomer() -> None:
    """A service that has an address keeps it, whoever asks for it by name."""
    first = run(service("zz"))
    address = first.allocations.cluster_ips["default/zz"][0]
    done = run(service("aa", clusterIP=address), service("zz"), kept=first.allocations)
    assert [obj["metadata"]["name"] for obj in done.of("Service")] == ["zz"]
    (refusal,) = done.refusals
    assert (refusal.key, refusal.field) == ("default/aa", "spec.clusterIPs[0]")
    assert "default/zz" in refusal.message


def test_lucky_draw_never_takes_what_is_asked_for() -> None:
    """Who asks for an address gets it, also when others would draw it first."""
    drawn = run(service("aa")).allocations.cluster_ips["default/aa"][0]
    done = run(service("aa"), service("zz", clusterIP=drawn))
    assert done.refusals == ()
    assert done.allocations.cluster_ips["default/zz"] == (drawn,)
    assert done.allocations.cluster_ips["default/aa"] != (drawn,)


def test_one_number_shares_its_node_port_over_protocols() -> None:
    """DNS over TCP and UDP has one node port, asked for or drawn."""
    ports = [
        {"name": "udp", "port": 53, "protocol": "UDP"},
        {"name": "tcp", "port": 53, "nodePort": 30053},
        {"name": "web", "port": 80},
    ]
    spec = only(run(service(type="NodePort", ports=ports)))["spec"]
    numbers = [port["nodePort"] for port in spec["ports"]]
    assert numbers[:2] == [30053, 30053]
    assert numbers[2] != 30053


def test_load_balancer() -> None:
    """An address a family, a health check port under Local policy, no node ports if not wanted."""
    spec = {
        "type": "LoadBalancer",
        "ipFamilyPolicy": "PreferDualStack",
        "externalTrafficPolicy": "Local",
        "allocateLoadBalancerNodePorts": False,
    }
    obj = only(run(service(**spec)))
    ingress = obj["status"]["loadBalancer"]["ingress"]
    assert [":" in entry["ip"] for entry in ingress] == [False, True]
    assert "nodePort" not in obj["spec"]["ports"][0]
    assert 30000 <= obj["spec"]["healthCheckNodePort"] <= 32767


@pytest.mark.parametrize(
    ("spec", "ingress"),
    [
        ({"loadBalancerIP": "203.0.113.7"}, [{"ip": "203.0.113.7", "ipMode": "VIP"}]),
        ({"loadBalancerClass": "example.com/other"}, None),
    ],
)
def test_load_balancer_asked_for(spec: dict[str, Any], ingress: object) -> None:
    """An address that is asked for is given; another controller's class is left alone."""
    obj = only(run(service(type="LoadBalancer", **spec)))
    assert obj["status"]["loadBalancer"].get("ingress") == ingress


@pytest.mark.parametrize(
    ("spec", "field", "words"),
    [
        ({"ports": []}, "spec.ports", "Required"),
        ({"ports": [{"port": 0}]}, "spec.ports[0].port", "65535"),
        ({"ports": [{"port": "80"}]}, "spec.ports[0].port", "number"),
        ({"ports": [{"name": "x"}]}, "spec.ports[0].port", "Required"),
        ({"ports": [{"port": 80, "protocol": "tcp"}]}, "spec.ports[0].protocol", '"TCP"'),
        ({"ports": [{"port": 80}, {"port": 81}]}, "spec.ports[0].name", "Required"),
        (
            {"ports": [{"name": "a", "port": 80}, {"name": "a", "port": 81}]},
            "spec.ports[1].name",
            "Duplicate",
        ),
        (
            {"ports": [{"name": "a", "port": 80}, {"name": "b", "port": 80}]},
            "spec.ports[1]",
            "Duplicate",
        ),
        ({"ports": [{"port": 80, "targetPort": "no_good"}]}, "spec.ports[0].targetPort", "name"),
        ({"ports": [{"port": 80, "nodePort": 30080}]}, "spec.ports[0].nodePort", "NodePort"),
        (
            {"type": "NodePort", "ports": [{"port": 80, "nodePort": 80}]},
            "spec.ports[0].nodePort",
            "30000",
        ),
        ({"type": "Clusterip"}, "spec.type", '"ClusterIP"'),
        ({"clusterIP": "1.2.3.4"}, "spec.clusterIPs[0]", "10.96.0.0/16"),
        ({"clusterIP": "10.96.0"}, "spec.clusterIPs[0]", "IP address"),
        (
            {"clusterIPs": ["10.96.0.9", "fd00:10:96::9"]},
            "spec.ipFamilyPolicy",
            "PreferDualStack",
        ),
        ({"type": "NodePort", "clusterIP": "None"}, "spec.clusterIPs[0]", "cluster IP"),
        ({"externalIPs": ["127.0.0.1"]}, "spec.externalIPs[0]", "loopback"),
        ({"sessionAffinity": "yes"}, "spec.sessionAffinity", '"ClientIP"'),
        (
            {
                "sessionAffinity": "ClientIP",
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}},
            },
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            "86400",
        ),
        ({"selector": {"app": 1}}, "spec.selector.app", "quotes"),
        ({"type": "ExternalName", "ports": []}, "spec.externalName", "Required"),
        ({"loadBalancerSourceRanges": ["10.0.0.0/8"]}, "spec.loadBalancerSourceRanges", "LoadB"),
        ({"externalTrafficPolicy": "Local"}, "spec.externalTrafficPolicy", "node ports"),
    ],
)
def test_refused_by_field(spec: dict[str, Any], field: str, words: str) -> None:
    """A bad object is refused by its field, and the good one beside it is served."""
    done = run(service("bad", **spec), service("good"))
    assert [obj["metadata"]["name"] for obj in done.of("Service")] == ["good"]
    found = faults(done)
    assert field in found
    assert words in found[field]
    assert {refusal.key for refusal in done.refusals} == {"default/bad"}


@pytest.mark.parametrize("meta", [None, {}, {"name": ""}, {"name": "Web"}, {"name": 7}, "web"])
def test_refused_by_name(meta: object) -> None:
    """An object without a fit name is refused, whatever stands in its place."""
    done = run({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {}})
    assert "metadata.name" in faults(done)
    assert done.of("Service") == ()


def test_input_is_left_as_it_was() -> None:
    """The user's object is not written into."""
    raw = service(type="LoadBalancer")
    before = msgspec.json.encode(raw)
    run(raw)
    assert msgspec.json.encode(raw) == before


# --- slices -----------------------------------------------------------------------------------


def test_slice_of_selected_pods() -> None:
    """Pods with the labels, of the namespace; node, zone and conditions are theirs."""
    pods = (
        pod(2),
        pod(3, node="node2", ready=False),
        pod(4, terminating=True),
        pod(5, app="db"),
        pod(6, namespace="other"),
    )
    obj = only(run(service(), pods=pods), "EndpointSlice")
    assert obj["metadata"]["labels"]["kubernetes.io/service-name"] == "web"
    assert obj["addressType"] == "IPv4"
    assert [entry["addresses"] for entry in obj["endpoints"]] == [
        ["10.244.1.2"],
        ["10.244.1.3"],
        ["10.244.1.4"],
    ]
    assert [tuple(entry["conditions"].values()) for entry in obj["endpoints"]] == [
        (True, True, False),
        (False, False, False),
        (False, True, True),
    ]
    assert obj["endpoints"][1]["nodeName"] == "node2"
    assert obj["endpoints"][1]["zone"] == "b"


def test_publish_not_ready_addresses() -> None:
    """A service may want its pods before they are ready."""
    obj = only(
        run(service(publishNotReadyAddresses=True), pods=(pod(2, ready=False),)), "EndpointSlice"
    )
    assert obj["endpoints"][0]["conditions"]["ready"] is True


def test_named_ports_of_different_numbers_get_slices_of_their_own() -> None:
    """One slice a port set; a port that a pod does not have is left out of its slice."""
    ports = [{"name": "a", "port": 80, "targetPort": "http"}, {"name": "b", "port": 9}]
    pods = (pod(2), pod(3, port=9090), pod(4))
    done = run(service(ports=ports), pods=pods)
    found = {
        tuple(port["port"] for port in obj["ports"]): [
            entry["addresses"][0] for entry in obj["endpoints"]
        ]
        for obj in done.of("EndpointSlice")
    }
    assert found == {(8080, 9): ["10.244.1.2", "10.244.1.4"], (9090, 9): ["10.244.1.3"]}
    wrong = only(
        run(service(ports=[{"port": 80, "targetPort": "dns"}]), pods=pods), "EndpointSlice"
    )
    assert wrong["ports"] == []


def test_slices_of_both_families_and_full_slices() -> None:
    """One set of slices a family, at most 100 endpoints each, names unique and steady."""
    pods = tuple(
        msgspec.structs.replace(pod(2), name=f"web-{n}", addresses=(f"10.1.{n}.2", f"fd00::{n}"))
        for n in range(1, 251)
    )
    done = run(service(ipFamilyPolicy="PreferDualStack"), pods=pods)
    slices = done.of("EndpointSlice")
    assert [len(obj["endpoints"]) for obj in slices] == [100, 100, 50] * 2
    names = [obj["metadata"]["name"] for obj in slices]
    assert len(set(names)) == 6
    fewer = run(service(ipFamilyPolicy="PreferDualStack"), pods=pods[:-1])
    assert [obj["metadata"]["name"] for obj in fewer.of("EndpointSlice")] == names


def test_nobody_selected_is_an_empty_slice() -> None:
    """No pod: one slice without endpoints; no selector: no slice."""
    obj = only(run(service(), pods=()), "EndpointSlice")
    assert obj["endpoints"] == []
    assert run(service(selector=None)).of("EndpointSlice") == ()


@pytest.mark.parametrize(
    ("distribution", "hints"),
    [
        ("PreferClose", {"forZones": [{"name": "a"}]}),
        ("PreferSameZone", {"forZones": [{"name": "a"}]}),
        ("PreferSameNode", {"forZones": [{"name": "a"}], "forNodes": [{"name": "node1"}]}),
    ],
)
def test_hints(distribution: str, hints: dict[str, Any]) -> None:
    """trafficDistribution becomes hints on ready endpoints."""
    pods = (pod(2), pod(3, ready=False))
    obj = only(run(service(trafficDistribution=distribution), pods=pods), "EndpointSlice")
    assert obj["endpoints"][0]["hints"] == hints
    assert "hints" not in obj["endpoints"][1]


# --- endpoints by name, nodes -----------------------------------------------------------------


def hand_slice(*endpoints: dict[str, Any], kind: str = "IPv4") -> dict[str, Any]:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "mine", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": kind,
        "ports": [{"port": 80}],
        "endpoints": list(endpoints),
    }


@pytest.mark.parametrize(
    ("kind", "endpoint", "address"),
    [
        ("IPv4", {"addresses": ["web-3"]}, "10.244.1.3"),
        ("IPv6", {"addresses": ["web-3"]}, "fd00:10:244:1::3"),
        ("IPv6", {"targetRef": {"kind": "Pod", "name": "web-3"}}, "fd00:10:244:1::3"),
    ],
)
def test_pod_named_in_a_slice(kind: str, endpoint: dict[str, Any], address: str) -> None:
    """A pod's name stands for its address of the slice's family, on its node."""
    obj = only(run(hand_slice(endpoint, kind=kind)), "EndpointSlice")
    (entry,) = obj["endpoints"]
    assert entry["addresses"] == [address]
    assert (entry["nodeName"], entry["zone"]) == ("node2", "b")


def test_address_in_a_slice_stays() -> None:
    """What is an address is not touched, and nothing is invented about it."""
    obj = only(run(hand_slice({"addresses": ["192.0.2.77"]})), "EndpointSlice")
    assert obj["endpoints"] == [{"addresses": ["192.0.2.77"]}]


def test_unknown_pod_is_refused_with_the_known_ones() -> None:
    """A name that is no pod of the lab is refused; the message names those that are."""
    found = faults(run(hand_slice({"addresses": ["web-9"]})))
    assert "web-2, web-3" in found["endpoints[0].addresses[0]"]


def test_pod_named_in_endpoints() -> None:
    """In Endpoints a pod's name stands for its addresses of all families."""
    raw = {
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {"name": "web"},
        "subsets": [{"addresses": [{"ip": "web-2"}, {"ip": "192.0.2.7"}], "ports": [{"port": 1}]}],
    }
    obj = only(run(service(selector=None), raw), "Endpoints")
    addresses = obj["subsets"][0]["addresses"]
    assert [entry["ip"] for entry in addresses] == [
        "10.244.1.2",
        "fd00:10:244:1::2",
        "192.0.2.7",
    ]
    assert addresses[0]["nodeName"] == "node1"
    refused = run(service(), raw)
    assert "selector" in faults(refused)["metadata.name"]


def test_nodes() -> None:
    """Every node has its object, with addresses of both families."""
    nodes = run().of("Node")
    assert [obj["metadata"]["name"] for obj in nodes] == ["node1", "node2"]
    assert nodes[0]["metadata"]["labels"]["kubernetes.io/hostname"] == "node1"
    assert [entry["address"] for entry in nodes[0]["status"]["addresses"]][:2] == [
        "192.0.2.11",
        "2001:db8::11",
    ]
