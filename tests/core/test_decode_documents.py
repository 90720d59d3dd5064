"""Documents: lists, other kinds, broken neighbours, JSON beside parsed values, fuzz."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.core.decode import Document, decode_json, decode_value
from kproxy.core.objects import EndpointSlice, Node, Refusal, Service


def service(name: str = "web", **fields: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"clusterIP": "10.96.0.10", "ports": [{"port": 80}]},
        **fields,
    }


def bare(name: str) -> dict[str, Any]:
    """An item of a typed list: no kind of its own."""
    document = service(name)
    del document["kind"], document["apiVersion"]
    return document


def both_ways(document: Any) -> Document:
    """Decodes the value and its JSON text, which must agree."""
    decoded = decode_value(document)
    assert decode_json(json.dumps(document).encode()) == decoded
    return decoded


def names(decoded: Document) -> list[str]:
    return [obj.name for obj in decoded.objects]


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (service("a"), ["a"]),
        ([service("a"), service("b")], ["a", "b"]),
        ({"kind": "List", "apiVersion": "v1", "items": [service("a"), service("b")]}, ["a", "b"]),
        (
            {"kind": "ServiceList", "apiVersion": "v1", "items": [bare("a"), service("b")]},
            ["a", "b"],
        ),
        (
            {
                "kind": "List",
                "items": [{"kind": "ServiceList", "items": [bare("a")]}, service("b")],
            },
            ["a", "b"],
        ),
        ({"kind": "List", "apiVersion": "v1", "items": None}, []),
        ({"kind": "List", "apiVersion": "v1"}, []),
        ({"kind": "NodeList", "items": [{"metadata": {"name": "n"}}]}, ["n"]),
        (None, []),
        ([], []),
    ],
)
def test_documents(document: Any, expected: list[str]) -> None:
    """Single objects, plain lists, List and typed lists give their objects in order."""
    decoded = both_ways(document)
    assert names(decoded) == expected
    assert decoded.refusals == []


@pytest.mark.parametrize(
    ("document", "kinds"),
    [
        ({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"items": 3}}, {"Deployment": 1}),
        (
            {"apiVersion": "serving.knative.dev/v1", "kind": "Service"},
            {"Service.serving.knative.dev": 1},
        ),
        (
            {"kind": "List", "items": [{"kind": "Pod"}, {"kind": "Pod"}, {"kind": "Secret"}]},
            {"Pod": 2, "Secret": 1},
        ),
        ({"apiVersion": "v1", "kind": "PodList", "items": [{}]}, {"PodList": 1}),
    ],
)
def test_other_kinds_are_noticed_once(document: Any, kinds: dict[str, int]) -> None:
    """Kinds that a proxy does not read give one notice each, with their number."""
    decoded = both_ways(document)
    assert {notice.kind: notice.count for notice in decoded.notices} == kinds
    assert (decoded.items, decoded.refusals) == ((), [])


@pytest.mark.parametrize(
    ("document", "field"),
    [
        (7, ""),
        ("text", ""),
        ([7], "[0]"),
        ({}, "kind"),
        ({"kind": 7}, "kind"),
        ({"kind": "Service", "apiVersion": 1}, "apiVersion"),
        ({"kind": "List", "items": 7}, "items"),
        ({"kind": "List", "items": [None]}, "items[0]"),
        ({"kind": "ServiceList", "items": [{"kind": []}]}, "items[0].kind"),
        (service(apiVersion="v2"), "apiVersion"),
        (
            {**service(), "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1beta1"},
            "apiVersion",
        ),
    ],
)
def test_what_is_no_object(document: Any, field: str) -> None:
    """Something that cannot be told to be an object is named by its place."""
    decoded = both_ways(document)
    assert decoded.objects == []
    assert [refusal.field for refusal in decoded.refusals] == [field]
    assert decoded.items[0].ref is None


def test_good_objects_around_bad_ones() -> None:
    """One bad object never stops the others, whatever is wrong with it."""
    bad = [
        7,
        None,
        {"kind": "Service", "metadata": 5},
        service("b", spec={"clusterIP": "x"}),
        service("c", spec={"clusterIP": "10.0.0.1", "ports": [{"port": "80"}]}),
        service("d", spec="nonsense"),
        {"kind": "EndpointSlice"},
    ]
    items = [service("a"), *bad, service("z")]
    decoded = both_ways({"kind": "List", "items": items})
    assert names(decoded) == ["a", "z"]
    assert {item.path for item in decoded.items if item.refused} == {
        f"items[{at}]" for at in range(1, len(bad) + 1)
    }


def test_unknown_fields_and_duplicates() -> None:
    """Fields that decide nothing are skipped whatever they hold; of a JSON key twice, the last."""
    raw = (
        b'{"kind":"Service","apiVersion":"v1","metadata":{"name":"a","managedFields":[{"f:x":{}}]},'
        b'"spec":{"selector":5,"clusterIP":"10.0.0.1","clusterIP":"10.0.0.2","ports":[{"port":80,'
        b'"targetPort":"http","appProtocol":{}}]}}'
    )
    (obj,) = decode_json(raw).objects
    assert isinstance(obj, Service)
    assert obj.cluster_ips == ("10.0.0.2",)


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"{} x", b"\x00", b"{'kind': 1}", b'{"kind": "Service\xff"}']
)
def test_no_json(raw: bytes) -> None:
    """Bytes that are no JSON raise: the caller knows whether they may be YAML."""
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
        decode_json(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"[" * 100_000,
        b'{"kind":"Service","metadata":{"name":"a"},"x":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b'{"kind":"Service","metadata":{"name":5},"x":' + b"[" * 900 + b"]" * 900 + b"}",
    ],
)
def test_deep_nesting_is_refused(raw: bytes) -> None:
    """Nesting that no object has is a refusal, not the end of the process."""
    decoded = decode_json(raw)
    assert decoded.objects == []
    assert decoded.refusals


def test_many_bad_members() -> None:
    """A thousand broken endpoints are all named, each once."""
    endpoints = [{"addresses": at} for at in range(1000)]
    decoded = decode_value(
        {
            "kind": "EndpointSlice",
            "metadata": {"name": "a", "labels": {"kubernetes.io/service-name": "a"}},
            "addressType": "IPv4",
            "endpoints": endpoints,
        }
    )
    fields = [refusal.field for refusal in decoded.refusals if refusal.field.endswith("addresses")]
    assert fields == [f"endpoints[{at}].addresses" for at in range(1000)]
    (obj,) = decoded.objects
    assert isinstance(obj, EndpointSlice)
    assert obj.endpoints == ()


_WORDS = st.sampled_from(
    ["10.0.0.1", "fd00::1", "None", "TCP", "Local", "ClientIP", "LoadBalancer", "IPv4", "web", ""]
)
_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | _WORDS
_FIELD_NAMES = """
    name namespace labels annotations creationTimestamp deletionTimestamp type ports port protocol
    nodePort clusterIP clusterIPs externalIPs loadBalancerSourceRanges sessionAffinity ip ipMode
    sessionAffinityConfig clientIP timeoutSeconds internalTrafficPolicy externalTrafficPolicy
    healthCheckNodePort loadBalancer ingress addresses conditions ready hints forZones forNodes
    nodeName zone subsets notReadyAddresses taints key podCIDR podCIDRs address kind items
    kubernetes.io/service-name
"""
_KEYS = st.sampled_from(sorted(set(_FIELD_NAMES.split())))
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS, inner, max_size=6),
    max_leaves=25,
)
_MAPS = st.dictionaries(_KEYS, _VALUES, max_size=6)
_OBJECTS = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(
            ["Service", "EndpointSlice", "Endpoints", "Node", "List", "NodeList"]
        ),
        "metadata": st.fixed_dictionaries(
            {"name": st.just("web") | _VALUES},
            optional={
                "labels": st.just({"kubernetes.io/service-name": "web"}) | _VALUES,
                "namespace": _VALUES,
            },
        )
        | _VALUES,
    },
    optional={
        "apiVersion": st.sampled_from(["v1", "discovery.k8s.io/v1", "x/v1", None]) | _SCALARS,
        "spec": _MAPS | _VALUES,
        "status": _MAPS | _VALUES,
        "addressType": _WORDS,
        "ports": _VALUES,
        "endpoints": st.lists(_MAPS, max_size=3) | _VALUES,
        "subsets": st.lists(_MAPS, max_size=3) | _VALUES,
        "items": _VALUES,
    },
)


@given(_OBJECTS | _VALUES)
def test_anything_gives_values_or_refusals(document: Any) -> None:
    """Whatever a document holds: nothing raises, and what is not read is refused or noticed."""
    decoded = decode_value(document, file="x.yaml")
    for item in decoded.items:
        assert item.objects == () or not item.refused
        assert item.refusals or not item.refused
        assert all(isinstance(obj, Service | EndpointSlice | Node) for obj in item.objects)
        for refusal in item.refusals:
            assert isinstance(refusal, Refusal)
            assert refusal.message
            assert refusal.file == "x.yaml"


@given(_OBJECTS)
def test_json_and_values_agree(document: Any) -> None:
    """The fast way over JSON text and the way over parsed values read the same objects."""
    raw = json.dumps(document, allow_nan=False) if _is_json(document) else None
    if raw is not None:
        plain = json.loads(raw)
        assert decode_json(raw.encode()).objects == decode_value(plain).objects


def _is_json(document: Any) -> bool:
    try:
        text = json.dumps(document, allow_nan=False)
        text.encode()
        return "\\ud" not in text and not _has_float(document)
    except ValueError:
        return False


def _has_float(value: Any) -> bool:
    """JSON 80.0 is an integer to the JSON reader only; the YAML reader makes it one itself."""
    if isinstance(value, dict):
        return any(map(_has_float, value.values()))
    if isinstance(value, list):
        return any(map(_has_float, value))
    return isinstance(value, float)
