"""EndpointSlices and Nodes."""

from __future__ import annotations

from typing import Any

import pytest

from kproxy.core.decode import decode_value
from kproxy.core.objects import (
    EndpointSlice,
    Family,
    Node,
    ObjectKey,
    Protocol,
    SliceEndpoint,
    SlicePort,
)


def slice_of(**fields: Any) -> dict[str, Any]:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "web-1",
            "namespace": "shop",
            "labels": {"kubernetes.io/service-name": "web"},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": [{"addresses": ["10.0.0.1"]}],
        **fields,
    }


def node_of(spec: Any = None, status: Any = None, **meta: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "n1", **meta},
        "spec": spec or {},
        "status": status or {},
    }


def test_defaults() -> None:
    """Absent conditions mean ready and serving and not terminating; protocol is TCP."""
    decoded = decode_value(slice_of())
    assert decoded.refusals == []
    assert decoded.objects == [
        EndpointSlice(
            "shop",
            "web-1",
            "web",
            Family.IPV4,
            (SlicePort("http", Protocol.TCP, 8080),),
            (SliceEndpoint("10.0.0.1"),),
        )
    ]


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (None, (True, True, False)),
        ({}, (True, True, False)),
        ({"ready": None, "serving": None, "terminating": None}, (True, True, False)),
        ({"ready": False}, (False, True, False)),
        ({"ready": False, "serving": True, "terminating": True}, (False, True, True)),
        ({"ready": True, "serving": False, "terminating": False}, (True, False, False)),
    ],
)
def test_conditions(conditions: Any, expected: tuple[bool, bool, bool]) -> None:
    """Each condition that is nil has its own default."""
    document = slice_of(endpoints=[{"addresses": ["10.0.0.1"], "conditions": conditions}])
    (obj,) = decode_value(document).objects
    assert isinstance(obj, EndpointSlice)
    (endpoint,) = obj.endpoints
    assert (endpoint.ready, endpoint.serving, endpoint.terminating) == expected


def test_everything_of_an_endpoint() -> None:
    """Node, zone and both kinds of hints are read; only the first address counts."""
    endpoint = {
        "addresses": ["010.0.0.1", "nonsense"],
        "nodeName": "n1",
        "zone": "a",
        "hints": {"forZones": [{"name": "a"}, {"name": "b"}], "forNodes": [{"name": "n1"}]},
        "deprecatedTopology": {"kubernetes.io/hostname": "n9"},
    }
    (obj,) = decode_value(slice_of(endpoints=[endpoint])).objects
    assert isinstance(obj, EndpointSlice)
    assert obj.endpoints == (
        SliceEndpoint("10.0.0.1", node="n1", zone="a", zone_hints=("a", "b"), node_hints=("n1",)),
    )


@pytest.mark.parametrize(
    ("ports", "expected"),
    [
        ([{"port": 80}], [("", "TCP", 80)]),
        ([{"name": None, "port": 80, "protocol": "SCTP"}], [("", "SCTP", 80)]),
        ([{"name": "a"}, {"name": "b", "port": 0}, {"name": "c", "port": None}], []),
        (None, []),
    ],
)
def test_ports(ports: Any, expected: list[tuple[str, str, int]]) -> None:
    """A port without a name is named ""; one without a number is left out silently."""
    decoded = decode_value(slice_of(ports=ports))
    (obj,) = decoded.objects
    assert isinstance(obj, EndpointSlice)
    assert [(port.name, str(port.protocol), port.port) for port in obj.ports] == expected
    assert decoded.refusals == []


@pytest.mark.parametrize(
    ("endpoints", "kept", "refused"),
    [
        (
            [{"addresses": ["fd00::1"]}, {"addresses": ["10.0.0.2"]}],
            ["10.0.0.2"],
            ["endpoints[0].addresses[0]"],
        ),
        (
            [{"addresses": ["x"]}, {"addresses": ["10.0.0.2"]}],
            ["10.0.0.2"],
            ["endpoints[0].addresses[0]"],
        ),
        ([{"addresses": []}, {}], [], ["endpoints[0].addresses[0]", "endpoints[1].addresses[0]"]),
        ([{"addresses": ["127.0.0.1"]}], [], ["endpoints[0].addresses[0]"]),
        ([None, {"addresses": ["10.0.0.2"]}], ["10.0.0.2"], ["endpoints[0]"]),
        (
            [
                {"addresses": ["10.0.0.1"], "conditions": {"ready": "yes"}},
                {"addresses": ["10.0.0.2"]},
                7,
            ],
            ["10.0.0.2"],
            ["endpoints[0].conditions.ready", "endpoints[2]", "endpoints[0]"],
        ),
    ],
)
def test_bad_endpoints_are_left_out_alone(
    endpoints: list[Any], kept: list[str], refused: list[str]
) -> None:
    """A broken endpoint, or one of the other family, costs itself only."""
    decoded = decode_value(slice_of(endpoints=endpoints))
    (obj,) = decoded.objects
    assert isinstance(obj, EndpointSlice)
    assert [endpoint.address for endpoint in obj.endpoints] == kept
    assert [refusal.field for refusal in decoded.refusals] == refused
    assert not any(refusal.whole for refusal in decoded.refusals)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"addressType": "IPv5"}, "addressType"),
        ({"addressType": None}, "addressType"),
        ({"addressType": 4}, "addressType"),
        ({"metadata": {"name": "a"}}, "metadata.labels[kubernetes.io/service-name]"),
        ({"ports": [{"port": 70000}]}, "ports[0].port"),
        ({"ports": [{"port": 80, "protocol": "ICMP"}]}, "ports[0].protocol"),
        ({"ports": [{"port": 80, "name": "a b"}]}, "ports[0].name"),
        ({"ports": "80"}, "ports"),
        ({"endpoints": {}}, "endpoints"),
    ],
)
def test_bad_key_field_condemns(fields: dict[str, Any], field: str) -> None:
    """A broken key field leaves the slice out, and is named."""
    decoded = decode_value(slice_of(**fields))
    assert decoded.objects == []
    assert [(refusal.field, refusal.whole) for refusal in decoded.refusals] == [(field, True)]


@pytest.mark.parametrize(
    "fields",
    [
        {"addressType": "FQDN", "endpoints": [{"addresses": ["db.example.com"]}]},
        *(
            {"metadata": {"name": "a", "labels": {"kubernetes.io/service-name": "web", label: ""}}}
            for label in (
                "service.kubernetes.io/headless",
                "service.kubernetes.io/service-proxy-name",
            )
        ),
    ],
)
def test_ignored_slices(fields: dict[str, Any]) -> None:
    """What is not for this proxy is neither an object nor a fault."""
    (item,) = decode_value(slice_of(**fields)).items
    assert (item.objects, item.refusals, item.refused) == ((), (), False)


@pytest.mark.parametrize(
    ("document", "attribute", "value"),
    [
        (node_of(labels={"b": "2", "a": "1"}), "labels", (("a", "1"), ("b", "2"))),
        (
            node_of(
                status={
                    "addresses": [
                        {"type": "ExternalIP", "address": "192.0.2.1"},
                        {"type": "Hostname", "address": "n1"},
                        {"type": "InternalIP", "address": "010.0.0.1"},
                        {"type": "InternalIP", "address": "fd00::0"},
                    ]
                }
            ),
            "addresses",
            ("10.0.0.1", "fd00::", "192.0.2.1"),
        ),
        (
            node_of({"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24", "fd00::/64"]}),
            "pod_cidrs",
            ("10.1.0.0/24", "fd00::/64"),
        ),
        (node_of({"podCIDR": "10.1.0.0/24"}), "pod_cidrs", ("10.1.0.0/24",)),
        (node_of(), "eligible", True),
        (node_of({"taints": [{"key": "other"}]}), "eligible", True),
        (node_of({"taints": [{"key": "ToBeDeletedByClusterAutoscaler"}]}), "eligible", False),
        (node_of(deletionTimestamp="2026-01-01T00:00:00Z"), "eligible", False),
    ],
)
def test_node(document: dict[str, Any], attribute: str, value: object) -> None:
    """Labels, addresses, pod ranges and eligibility of a Node."""
    decoded = decode_value(document)
    (node,) = decoded.objects
    assert isinstance(node, Node)
    assert node.key == ObjectKey("", "n1")
    assert getattr(node, attribute) == value
    assert decoded.refusals == []


def test_bad_members_of_a_node() -> None:
    """Broken addresses, ranges and taints of a Node are left out one by one."""
    decoded = decode_value(
        node_of(
            {"podCIDRs": ["x", "10.1.0.0/24", 3], "taints": ["x"]},
            {"addresses": [{"type": "InternalIP", "address": "x"}, 1]},
        )
    )
    (node,) = decoded.objects
    assert isinstance(node, Node)
    assert node.pod_cidrs == ("10.1.0.0/24",)
    assert sorted(refusal.field for refusal in decoded.refusals) == [
        "spec.podCIDRs[0]",
        "spec.podCIDRs[2]",
        "spec.taints[0]",
        "status.addresses[0].address",
        "status.addresses[1]",
    ]


TRIGGER = "endpoints.kubernetes.io/last-change-trigger-time"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-01-01T00:00:00Z", 1767225600.0),
        ("2026-01-01T00:00:00.25Z", 1767225600.25),
        ("2026-01-01T00:00:00.123456789Z", 1767225600.123456),
        ("2026-01-01T01:00:00+01:00", 1767225600.0),
        ("yesterday", 0.0),
        ("", 0.0),
        (None, 0.0),
    ],
)
def test_when_a_slices_change_happened(text: str | None, seconds: float) -> None:
    """The annotation is read in all forms of RFC 3339; a broken one is no fault of the slice."""
    meta = {**slice_of()["metadata"], "annotations": {TRIGGER: text}}
    decoded = decode_value(slice_of(metadata=meta))
    (piece,) = decoded.objects
    assert isinstance(piece, EndpointSlice)
    assert piece.trigger == seconds
    assert decoded.refusals == []


def test_mirrored_endpoints_carry_the_time_too() -> None:
    """An Endpoints object has the same annotation."""
    document = {
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {"name": "web", "annotations": {TRIGGER: "2026-01-01T00:00:00Z"}},
        "subsets": [{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 80}]}],
    }
    (piece,) = decode_value(document).objects
    assert isinstance(piece, EndpointSlice)
    assert piece.trigger == 1767225600.0
