"""Services: every rule of the API about what a node makes of one."""

from __future__ import annotations

from typing import Any

import pytest

from kproxy.core.decode import decode_value
from kproxy.core.objects import (
    ObjectKey,
    Protocol,
    Service,
    ServicePort,
    ServiceType,
    TrafficPolicy,
)

PORT = {"port": 80}


def manifest(meta: dict[str, Any] | None = None, status: Any = None, **spec: Any) -> dict[str, Any]:
    spec = {"clusterIP": "10.96.0.10", "ports": [PORT], **spec}
    document = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web", "namespace": "shop", **(meta or {})},
        "spec": {name: value for name, value in spec.items() if value is not ...},
    }
    return {**document, "status": status} if status is not None else document


def read(document: dict[str, Any]) -> tuple[Service, list[str]]:
    decoded = decode_value(document)
    (service,) = decoded.objects
    assert isinstance(service, Service)
    assert not any(refusal.whole for refusal in decoded.refusals)
    return service, [refusal.field for refusal in decoded.refusals]


def balanced(**spec: Any) -> dict[str, Any]:
    ingress = [{"ip": "192.0.2.1"}]
    return manifest(status={"loadBalancer": {"ingress": ingress}}, type="LoadBalancer", **spec)


def test_defaults() -> None:
    """What a manifest leaves out has the API's default."""
    document = manifest()
    del document["metadata"]["namespace"]
    service, refused = read(document)
    assert refused == []
    assert service == Service(
        namespace="default",
        name="web",
        type=ServiceType.CLUSTER_IP,
        cluster_ips=("10.96.0.10",),
        ports=(ServicePort("", Protocol.TCP, 80, 0),),
    )


def test_null_is_absent() -> None:
    """A null field means what an absent one means."""
    nulls = dict.fromkeys(
        ("type", "clusterIPs", "externalIPs", "sessionAffinity", "loadBalancerSourceRanges"), None
    )
    service, refused = read(manifest({"labels": None, "annotations": None}, **nulls))
    plain, _ = read(manifest())
    assert (service, refused) == (plain, [])


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"clusterIP": "10.96.0.10"}, ("10.96.0.10",)),
        ({"clusterIP": "010.096.0.010"}, ("10.96.0.10",)),
        ({"clusterIPs": ["10.96.0.11"]}, ("10.96.0.11",)),
        ({"clusterIP": ..., "clusterIPs": ["fd00::0:1", "10.96.0.11"]}, ("fd00::1", "10.96.0.11")),
        ({"clusterIPs": []}, ("10.96.0.10",)),
        ({"clusterIP": "::ffff:10.96.0.10"}, ("10.96.0.10",)),
    ],
)
def test_cluster_ips(spec: dict[str, Any], expected: tuple[str, ...]) -> None:
    """clusterIPs counts when it is there, else clusterIP; each in canonical text."""
    assert read(manifest(**spec))[0].cluster_ips == expected


@pytest.mark.parametrize(
    ("meta", "spec", "word"),
    [
        ({}, {"clusterIP": "None"}, "headless"),
        ({}, {"clusterIP": "None", "clusterIPs": ["None"]}, "headless"),
        ({}, {"clusterIP": "", "clusterIPs": ["None"]}, "headless"),
        ({}, {"clusterIP": "None", "clusterIPs": ["10.96.0.10"]}, "headless"),
        ({}, {"clusterIP": ""}, "headless"),
        ({}, {"clusterIP": ...}, "headless"),
        ({}, {"type": "ExternalName", "clusterIP": ..., "ports": ...}, "ExternalName"),
        ({"labels": {"service.kubernetes.io/service-proxy-name": "other"}}, {}, "another proxy"),
        ({"labels": {"service.kubernetes.io/service-proxy-name": ""}}, {}, "another proxy"),
        ({"labels": {"service.kubernetes.io/headless": ""}}, {}, "headless"),
    ],
)
def test_ignored(meta: dict[str, Any], spec: dict[str, Any], word: str) -> None:
    """What this proxy must not serve is kept, and says why."""
    service, refused = read(manifest(meta, **spec))
    assert word in service.ignored
    assert refused == []


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"clusterIP": "10.96.0"}, "spec.clusterIP"),
        ({"clusterIP": "127.0.0.1"}, "spec.clusterIP"),
        ({"clusterIP": 10}, "spec.clusterIP"),
        ({"clusterIPs": ["10.96.0.10", "10.96.0.11"]}, "spec.clusterIPs[1]"),
        ({"clusterIPs": ["10.96.0.10", "x"]}, "spec.clusterIPs[1]"),
        ({"clusterIPs": [None]}, "spec.clusterIPs[0]"),
        ({"type": "Cluster"}, "spec.type"),
        ({"ports": [PORT, {"port": 0}]}, "spec.ports[1].port"),
        ({"ports": [{"port": 65536}]}, "spec.ports[0].port"),
        ({"ports": [{"port": 10**40}]}, "spec.ports[0].port"),
        ({"ports": [{"port": True}]}, "spec.ports[0].port"),
        ({"ports": [{"port": "80"}]}, "spec.ports[0].port"),
        ({"ports": [{"name": "a"}]}, "spec.ports[0].port"),
        ({"ports": ["80"]}, "spec.ports[0]"),
        ({"ports": 80}, "spec.ports"),
        ({"ports": [{"port": 80, "protocol": "tcp"}]}, "spec.ports[0].protocol"),
        ({"ports": [{"port": 80, "name": "-j ACCEPT"}]}, "spec.ports[0].name"),
        ({"ports": [{"port": 80, "name": "a"}, {"port": 81, "name": "a"}]}, "spec.ports[1].name"),
        ({"ports": [{"port": 80, "name": "a"}, {"port": 80, "name": "b"}]}, "spec.ports[1].port"),
        (
            {"type": "NodePort", "ports": [{"port": 80, "nodePort": 70000}]},
            "spec.ports[0].nodePort",
        ),
    ],
)
def test_bad_key_field_condemns(spec: dict[str, Any], field: str) -> None:
    """A broken key field leaves the whole object out, and is named."""
    decoded = decode_value(manifest(**spec))
    assert decoded.objects == []
    refusal = decoded.refusals[0]
    assert (refusal.field, refusal.whole, refusal.key) == (field, True, "shop/web")
    assert decoded.items[0].ref == ("Service", ObjectKey("shop", "web"))
    assert ";" in refusal.message, "says what to do"


@pytest.mark.parametrize(
    ("meta", "field"),
    [
        ({"name": None}, "metadata.name"),
        ({"name": ""}, "metadata.name"),
        ({"name": 'x" -j DROP'}, "metadata.name"),
        ({"name": "web\n"}, "metadata.name"),
        ({"name": "a" * 300}, "metadata.name"),
        ({"name": True}, "metadata.name"),
        ({"namespace": "a/b"}, "metadata.namespace"),
        ({"namespace": "x" * 64}, "metadata.namespace"),
    ],
)
def test_bad_name_condemns(meta: dict[str, Any], field: str) -> None:
    """A name that cannot be one leaves the object out; nothing tells which object it was."""
    (item,) = decode_value(manifest(meta)).items
    assert (item.ref, item.objects, item.refused) == (None, (), True)
    assert item.refusals[0].field == field


def test_all_faults_of_an_object_are_named() -> None:
    """One look names every broken key field, not the first only."""
    decoded = decode_value(
        manifest(clusterIP="x", ports=[{"port": 0}, {"port": 1, "protocol": "X"}])
    )
    assert [refusal.field for refusal in decoded.refusals] == [
        "spec.clusterIP",
        "spec.ports[0].port",
        "spec.ports[1].protocol",
    ]


@pytest.mark.parametrize(
    ("document", "attribute", "value", "refused"),
    [
        (
            manifest(
                externalIPs=["198.51.100.1", "x", "198.51.100.01", 5, "127.0.0.1", None, "fd00::0"]
            ),
            "external_ips",
            ("198.51.100.1", "fd00::"),
            [
                "spec.externalIPs[3]",
                "spec.externalIPs[1]",
                "spec.externalIPs[4]",
                "spec.externalIPs[5]",
            ],
        ),
        (manifest(externalIPs="198.51.100.1"), "external_ips", (), ["spec.externalIPs"]),
        (
            balanced(loadBalancerSourceRanges=[" 10.0.0.1/8 ", "x", "fd00::/8", "10.0.0.0/08", 7]),
            "source_ranges",
            ("10.0.0.0/8", "fd00::/8"),
            ["spec.loadBalancerSourceRanges[4]", "spec.loadBalancerSourceRanges[1]"],
        ),
        (
            balanced(loadBalancerSourceRanges=["x"]),
            "source_ranges_set",
            True,
            ["spec.loadBalancerSourceRanges[0]"],
        ),
        (balanced(), "source_ranges_set", False, []),
        (manifest(loadBalancerSourceRanges=["10.0.0.0/8"]), "source_ranges_set", False, []),
        (
            manifest(
                {
                    "annotations": {
                        "service.beta.kubernetes.io/load-balancer-source-ranges": "10.0.0.0/8"
                    }
                },
                type="LoadBalancer",
            ),
            "source_ranges_set",
            False,
            [],
        ),
        (balanced(sessionAffinity="ClientIP"), "affinity_seconds", 10800, []),
        (
            balanced(
                sessionAffinity="ClientIP",
                sessionAffinityConfig={"clientIP": {"timeoutSeconds": 60}},
            ),
            "affinity_seconds",
            60,
            [],
        ),
        (
            balanced(
                sessionAffinity="ClientIP",
                sessionAffinityConfig={"clientIP": {"timeoutSeconds": 86401}},
            ),
            "affinity_seconds",
            10800,
            ["spec.sessionAffinityConfig.clientIP.timeoutSeconds"],
        ),
        (
            balanced(sessionAffinity="ClientIP", sessionAffinityConfig={"clientIP": 7}),
            "affinity_seconds",
            10800,
            ["spec.sessionAffinityConfig.clientIP"],
        ),
        (balanced(sessionAffinity="None"), "affinity_seconds", None, []),
        (balanced(sessionAffinity="Client"), "affinity_seconds", None, ["spec.sessionAffinity"]),
        (
            balanced(internalTrafficPolicy="Local"),
            "internal_policy",
            TrafficPolicy.LOCAL,
            [],
        ),
        (
            balanced(externalTrafficPolicy="local"),
            "external_policy",
            TrafficPolicy.CLUSTER,
            ["spec.externalTrafficPolicy"],
        ),
        (balanced(externalTrafficPolicy="Local"), "external_policy", TrafficPolicy.LOCAL, []),
        (manifest(externalTrafficPolicy="Local"), "external_policy", TrafficPolicy.CLUSTER, []),
        (
            manifest(externalTrafficPolicy="Local", externalIPs=["198.51.100.1"]),
            "external_policy",
            TrafficPolicy.LOCAL,
            [],
        ),
        (
            balanced(externalTrafficPolicy="Local", healthCheckNodePort=30100),
            "health_check_node_port",
            30100,
            [],
        ),
        (balanced(healthCheckNodePort=30100), "health_check_node_port", 0, []),
        (
            manifest(type="NodePort", externalTrafficPolicy="Local", healthCheckNodePort=30100),
            "health_check_node_port",
            0,
            [],
        ),
        (
            balanced(externalTrafficPolicy="Local", healthCheckNodePort=99999),
            "health_check_node_port",
            0,
            ["spec.healthCheckNodePort"],
        ),
        (
            manifest(type="NodePort", ports=[{"port": 80, "nodePort": 30080}]),
            "ports",
            (ServicePort("", Protocol.TCP, 80, 30080),),
            [],
        ),
        (
            manifest(ports=[{"port": 80, "nodePort": 30080}]),
            "ports",
            (ServicePort("", Protocol.TCP, 80, 0),),
            ["spec.ports[0].nodePort"],
        ),
        (
            manifest(
                ports=[{"port": 53, "name": "a"}, {"port": 53, "protocol": "UDP", "name": "a"}]
            ),
            "ports",
            (ServicePort("a", Protocol.TCP, 53), ServicePort("a", Protocol.UDP, 53)),
            [],
        ),
        (
            manifest({"annotations": {"service.kubernetes.io/topology-mode": "Auto"}}),
            "topology_mode",
            "Auto",
            [],
        ),
        (
            manifest(
                {
                    "annotations": {
                        "service.kubernetes.io/topology-mode": "Auto",
                        "service.kubernetes.io/topology-aware-hints": "disabled",
                    }
                }
            ),
            "topology_mode",
            "disabled",
            [],
        ),
        (
            manifest({"annotations": {"kproxy/b": "2", "kproxy/a": "1", "x": "3"}}),
            "annotations",
            (("kproxy/a", "1"), ("kproxy/b", "2")),
            [],
        ),
        (
            manifest({"annotations": {"kproxy/a": 1, "kproxy/b": "2"}}),
            "annotations",
            (("kproxy/b", "2"),),
            ["metadata.annotations.kproxy/a"],
        ),
        (
            manifest({"annotations": {"kproxy/ipvs-scheduler": "mh"}}),
            "annotations",
            (("kproxy/ipvs-scheduler", "mh"),),
            [],
        ),
        (
            manifest({"annotations": {"kproxy/ipvs-scheduler": "quickest", "kproxy/b": "2"}}),
            "annotations",
            (("kproxy/b", "2"),),
            ["metadata.annotations.kproxy/ipvs-scheduler"],
        ),
        (manifest({"creationTimestamp": "1970-01-02T00:00:00Z"}), "created", 86400.0, []),
        (manifest({"creationTimestamp": "1970-01-01T02:00:00+01:00"}), "created", 3600.0, []),
        (manifest({"creationTimestamp": "soon"}), "created", 0.0, ["metadata.creationTimestamp"]),
        (manifest({"creationTimestamp": 12}), "created", 0.0, ["metadata.creationTimestamp"]),
    ],
)
def test_members(
    document: dict[str, Any], attribute: str, value: object, refused: list[str]
) -> None:
    """A broken member or optional field is left out alone and named; the rest is read."""
    service, fields = read(document)
    assert getattr(service, attribute) == value
    assert fields == refused


@pytest.mark.parametrize(
    ("ranges", "kept", "is_set", "broken"),
    [
        (["10.0.0.0/8"], ("10.0.0.0/8",), True, False),
        (["10.0.0.0/8", "x"], ("10.0.0.0/8",), True, True),
        (["x"], (), True, True),
        ([7], (), True, True),
        ([""], (), True, True),
        ("10.0.0.0/8", (), True, True),
        ([], (), False, False),
        (None, (), False, False),
    ],
)
def test_broken_ranges_never_open_a_service(
    ranges: Any, kept: tuple[str, ...], is_set: bool, broken: bool
) -> None:
    """A restriction that cannot be read is known to be one, whatever is wrong with it."""
    service, _ = read(balanced(loadBalancerSourceRanges=ranges))
    found = (service.source_ranges, service.source_ranges_set, service.source_ranges_broken)
    assert found == (kept, is_set, broken)


@pytest.mark.parametrize(
    ("kind", "ingress", "expected", "refused"),
    [
        ("LoadBalancer", [{"ip": "192.0.2.1"}], ("192.0.2.1",), []),
        ("LoadBalancer", [{"ip": "192.0.2.1", "ipMode": "VIP"}], ("192.0.2.1",), []),
        ("LoadBalancer", [{"ip": "192.0.2.1", "ipMode": "Proxy"}], (), []),
        ("LoadBalancer", [{"hostname": "lb.example.com"}], (), []),
        ("LoadBalancer", [{"ip": "x"}, {"ip": "fd00::01"}], ("fd00::1",), ["[0].ip"]),
        ("LoadBalancer", [{"ip": "192.0.2.1", "ipMode": "?"}], (), ["[0].ipMode"]),
        (
            "LoadBalancer",
            [{"ip": 3}, None, {"ip": "192.0.2.1"}],
            ("192.0.2.1",),
            ["[0].ip", "[0]", "[1]"],
        ),
        ("NodePort", [{"ip": "192.0.2.1"}], (), []),
    ],
)
def test_ingress(
    kind: str, ingress: list[Any], expected: tuple[str, ...], refused: list[str]
) -> None:
    """Only ingress addresses that nodes must capture count, and only of a LoadBalancer."""
    service, fields = read(manifest(status={"loadBalancer": {"ingress": ingress}}, type=kind))
    assert service.load_balancer_ips == expected
    assert fields == [f"status.loadBalancer.ingress{field}" for field in refused]


@pytest.mark.parametrize("status", ["x", {"loadBalancer": 3}, {"loadBalancer": {"ingress": "x"}}])
def test_broken_status_leaves_the_cluster_ip(status: object) -> None:
    """A status of a wrong shape costs the load balancer, not the service."""
    service, fields = read(manifest(status=status, type="LoadBalancer"))
    assert service.cluster_ips == ("10.96.0.10",)
    (field,) = fields
    assert field.startswith("status")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"ports": [{"port": "80"}]}, "remove the quotes"),
        ({"clusterIP": 10}, "put it in quotes"),
        ({"ports": {}}, "must be a list, not a mapping"),
    ],
)
def test_type_errors_say_what_to_do(spec: dict[str, Any], words: str) -> None:
    """A wrong type is explained in the words of the file's author."""
    assert words in decode_value(manifest(**spec)).refusals[0].message
