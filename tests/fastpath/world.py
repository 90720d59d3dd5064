"""A cluster with a service of each kind, for the tests that do not need one of their own."""

from __future__ import annotations

from kproxy.core.twin.values import ServiceTable
from tests.fastpath.pair import LOCAL_ROWS, SCTP, UDP, Algorithm, member, service


def services() -> dict[int, ServiceTable]:
    """One of each kind, in both families."""
    near = {"near": True, "local": True}
    pods4 = (member("10.180.0.1", **near), member("10.180.0.2", 8081, **near), "10.180.2.1")
    pods6 = (member("fd00:10::1", **near), "fd00:10:2::1")
    return {
        1: service(*pods4, node_port=30080, external=("198.51.100.7",)),
        2: service(*pods6, ip="fd00:30::41", node_port=30080, external=("2001:db8:7::7",)),
        3: service(*pods4, ip="172.30.0.42", protocol=UDP, port=53, node_port=30053),
        4: service(*pods6, ip="fd00:30::42", protocol=UDP, port=53, affinity_seconds=30),
        5: service(*pods4, ip="172.30.0.44", protocol=SCTP, port=99, algorithm=Algorithm.RANDOM),
        6: service(*pods6, ip="fd00:30::44", protocol=SCTP, port=99, algorithm=Algorithm.LEAST),
        7: service(ip="172.30.0.45"),
        8: service(ip="172.30.0.46", protocol=UDP),
        9: service(*pods4, ip="172.30.0.47", affinity_seconds=60, rows=LOCAL_ROWS),
        10: service("10.180.2.7", ip="172.30.0.48", rows=LOCAL_ROWS),
        11: service(ip="fd00:30::45"),
        12: service(ip="fd00:30::46", protocol=UDP),
    }
