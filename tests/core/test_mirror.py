"""Endpoints, mirrored to EndpointSlices."""

from __future__ import annotations

from typing import Any

import pytest

from kproxy.core.decode import decode_objects, decode_value
from kproxy.core.objects import EndpointSlice, Family, Protocol, SliceEndpoint, SlicePort


def endpoints(*subsets: Any, **meta: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {"name": "db", "namespace": "shop", **meta},
        "subsets": list(subsets),
    }


SUBSET = {
    "addresses": [{"ip": "10.0.0.1", "nodeName": "n1"}, {"ip": "fd00::1"}],
    "notReadyAddresses": [{"ip": "10.0.0.2"}],
    "ports": [{"name": "sql", "port": 5432}, {"name": "stats", "port": 81, "protocol": "UDP"}],
}
SLICE = {
    "apiVersion": "discovery.k8s.io/v1",
    "kind": "EndpointSlice",
    "metadata": {
        "name": "db-x",
        "namespace": "shop",
        "labels": {"kubernetes.io/service-name": "db"},
    },
    "addressType": "IPv4",
}


def test_one_slice_a_subset_and_family() -> None:
    """A subset gives a slice for each family, ready addresses ready and the others not."""
    decoded = decode_value(endpoints(SUBSET, {"addresses": [{"ip": "10.0.0.3"}]}))
    ports = (SlicePort("sql", Protocol.TCP, 5432), SlicePort("stats", Protocol.UDP, 81))
    assert decoded.objects == [
        EndpointSlice(
            "shop",
            "db-mirror-0-ipv4",
            "db",
            Family.IPV4,
            ports,
            (SliceEndpoint("10.0.0.1", node="n1"), SliceEndpoint("10.0.0.2", ready=False)),
        ),
        EndpointSlice(
            "shop", "db-mirror-0-ipv6", "db", Family.IPV6, ports, (SliceEndpoint("fd00::1"),)
        ),
        EndpointSlice(
            "shop", "db-mirror-1-ipv4", "db", Family.IPV4, (), (SliceEndpoint("10.0.0.3"),)
        ),
    ]
    assert decoded.refusals == []


@pytest.mark.parametrize(
    ("meta", "mirrored"),
    [
        ({"labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}}, False),
        ({"labels": {"endpointslice.kubernetes.io/skip-mirror": "false"}}, True),
        ({"annotations": {"control-plane.alpha.kubernetes.io/leader": "{}"}}, False),
    ],
)
def test_what_is_not_mirrored(meta: dict[str, Any], mirrored: bool) -> None:
    """A skip label and a leader election lock are not mirrored, and are no faults."""
    decoded = decode_value(endpoints(SUBSET, **meta))
    assert bool(decoded.objects) is mirrored
    assert decoded.refusals == []


def test_bad_members_and_key_fields() -> None:
    """A broken address is left out alone; a broken port condemns the object."""
    broken = {**SUBSET, "addresses": [{"ip": "x"}, 5, {"ip": "10.0.0.9"}]}
    decoded = decode_value(endpoints(broken))
    assert [refusal.field for refusal in decoded.refusals] == [
        "subsets[0].addresses[1]",
        "subsets[0].addresses[0].ip",
    ]
    first = decoded.objects[0]
    assert isinstance(first, EndpointSlice)
    assert [endpoint.address for endpoint in first.endpoints] == ["10.0.0.9", "10.0.0.2"]

    condemned = decode_value(endpoints({**SUBSET, "ports": [{"port": 99999}]}))
    assert condemned.objects == []
    assert condemned.items[0].refused


@pytest.mark.parametrize("documents", [[endpoints(SUBSET), SLICE], [SLICE, endpoints(SUBSET)]])
def test_real_slices_come_first(documents: list[Any]) -> None:
    """A Service that has slices of its own gets none from its Endpoints, in any order."""
    objects, refusals = decode_objects(documents)
    assert [obj.key.name for obj in objects] == ["db-x"]
    assert refusals == []
