"""Probes of pods: Kubernetes' fields and defaults, what is refused, what a kubelet does of it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from kproxy.core.health.values import Check, Exec, Grpc, Http, Pace, Tcp
from kproxy.core.objects import Protocol
from kproxy.errors import TopologyError
from kproxy.lab.probes import (
    Command,
    GrpcCall,
    HttpGet,
    Probe,
    ProbeFault,
    TcpSocket,
    Written,
    check_of,
    host_of,
    made,
    port_of,
)
from kproxy.lab.topology_file import parse

PORTS = (("http", 8080, Protocol.TCP), ("dns", 53, Protocol.UDP), ("", 9, Protocol.TCP))


def read(raw: dict[str, Any], *, liveness: bool = False) -> Probe:
    return made(msgspec.convert(raw, Written), PORTS, liveness=liveness)


READ: list[tuple[dict[str, Any], Probe]] = [
    ({"httpGet": {"port": 80}}, Probe(HttpGet(80), 0, 10, 1, 1, 3)),
    (
        {
            "httpGet": {
                "path": "/x",
                "port": "http",
                "host": "h",
                "scheme": "HTTPS",
                "httpHeaders": [{"name": "A", "value": "b"}],
            },
            "initialDelaySeconds": 5,
            "periodSeconds": 2,
            "timeoutSeconds": 3,
            "successThreshold": 4,
            "failureThreshold": 6,
        },
        Probe(HttpGet(8080, "/x", "h", "HTTPS", (("A", "b"),)), 5, 2, 3, 4, 6),
    ),
    ({"tcpSocket": {"port": "http"}}, Probe(TcpSocket(8080))),
    ({"grpc": {"port": 9}, "periodSeconds": 0.5}, Probe(GrpcCall(9), period=0.5)),
    ({"grpc": {"port": 9, "service": "s"}}, Probe(GrpcCall(9, "s"))),
    ({"exec": {"command": ["a", "b"]}}, Probe(Command(("a", "b")))),
]


@pytest.mark.parametrize(("raw", "probe"), READ)
def test_fields_and_defaults_are_kubernetes_own(raw: dict[str, Any], probe: Probe) -> None:
    """Named ports are looked up among the pod's."""
    assert read(raw) == probe


REFUSED: list[tuple[dict[str, Any], bool, str]] = [
    ({}, False, "exactly one"),
    ({"tcpSocket": {"port": 1}, "grpc": {"port": 1}}, False, "exactly one"),
    ({"httpGet": {"port": 0}}, False, "httpGet.port"),
    ({"httpGet": {"port": "dns"}}, False, "no TCP port 'dns'"),
    ({"httpGet": {"port": 1, "path": "x"}}, False, "httpGet.path"),
    ({"httpGet": {"port": 1, "path": "/\r\nX: y"}}, False, "httpGet.path: '/\\r\\nX: y' must not"),
    ({"httpGet": {"port": 1, "path": "/a b"}}, False, "httpGet.path"),
    ({"httpGet": {"port": 1, "host": "h\r\nX: y"}}, False, "httpGet.host: 'h\\r\\nX: y' must not"),
    (
        {"httpGet": {"port": 1, "httpHeaders": [{"name": "A", "value": "b\r\nX: y"}]}},
        False,
        "httpGet.httpHeaders: ",
    ),
    (
        {"httpGet": {"port": 1, "httpHeaders": [{"name": "A\r\nX", "value": "b"}]}},
        False,
        "httpGet.httpHeaders",
    ),
    (
        {"httpGet": {"port": 1, "httpHeaders": [{"name": "Host", "value": "b\0"}]}},
        False,
        "httpGet.httpHeaders: ",
    ),
    ({"exec": {"command": []}}, False, "exec.command"),
    ({"exec": {"command": ["a\0b"]}}, False, "exec.command"),
    ({"tcpSocket": {"port": 1, "host": "web"}}, False, "tcpSocket.host"),
    ({"tcpSocket": {"port": 1}, "periodSeconds": 0}, False, "periodSeconds"),
    ({"tcpSocket": {"port": 1}, "failureThreshold": 0}, False, "failureThreshold"),
    ({"tcpSocket": {"port": 1}, "initialDelaySeconds": -1}, False, "initialDelaySeconds"),
    ({"tcpSocket": {"port": 1}, "successThreshold": 2}, True, "successThreshold"),
]


@pytest.mark.parametrize(("raw", "liveness", "named"), REFUSED)
def test_values_that_make_no_sense(raw: dict[str, Any], liveness: bool, named: str) -> None:
    """The field is named."""
    with pytest.raises(ProbeFault) as refused:
        read(raw, liveness=liveness)
    assert named in str(refused.value)


IN_FILES = [
    ("readinessProbe: {httpGet: {port: http}, periodsSeconds: 3}", "periodsSeconds"),
    ("readinessProbe: {httpget: {port: http}}", "httpget"),
    ("livenessProbe: {httpGet: {port: http, verify: no}}", "livenessProbe.httpGet"),
    ("livenessProbe: {tcpSocket: {port: nope}}", "workloads[0].livenessProbe.tcpSocket.port"),
    ("readinessProbe: {}", "workloads[0].readinessProbe"),
    ("readinessProbe: {tcpSocket: {port: 1}, periodSeconds: .nan}", "periodSeconds"),
    ("startupProbe: {tcpSocket: {port: 1}}", "startupProbe"),
]


@pytest.mark.parametrize(("text", "named"), IN_FILES)
def test_a_topology_s_fault_names_the_field(text: str, named: str) -> None:
    """An unknown field is an error, as every unknown key of a topology is."""
    whole = f"name: t\nnodes: [{{name: n1}}]\nworkloads: [{{name: web, {text}}}]\n"
    with pytest.raises(TopologyError) as refused:
        parse(whole, "t.yaml")
    assert named in str(refused.value)


def test_a_topology_s_workloads_have_probes() -> None:
    """Both kinds, beside the ports that they name."""
    text = "readinessProbe: {httpGet: {port: http}}, livenessProbe: {tcpSocket: {port: 8080}}"
    whole = f"name: t\nnodes: [{{name: n1}}]\nworkloads: [{{name: web, {text}}}]\n"
    (load,) = parse(whole, "t.yaml").workloads
    assert load.probes.readiness == Probe(HttpGet(8080))
    assert load.probes.liveness == Probe(TcpSocket(8080))


AGENT = ("User-Agent", "kube-probe/1.30")
CHECKS = [
    (HttpGet(1), Http(1, headers=(AGENT,), verify=False), "", 1),
    (HttpGet(1, host="h"), Http(1, host="h", headers=(AGENT,), verify=False), "h", 1),
    (
        HttpGet(1, "/x", scheme="HTTPS", headers=(("hOST", "n"), ("user-agent", "me"))),
        Http(1, "https", "/x", "n", (("user-agent", "me"),), verify=False),
        "",
        1,
    ),
    (TcpSocket(2, "h"), Tcp(2), "h", 2),
    (GrpcCall(3, "s"), Grpc(3, "s"), "", 3),
    (Command(("a", "b")), Exec(command=("in", "pod", "a", "b")), "", 0),
]


@pytest.mark.parametrize(("action", "wanted", "host", "port"), CHECKS)
def test_what_a_kubelet_does(action: Any, wanted: Any, host: str, port: int) -> None:
    """200 to 399 is fine, certificates are not looked at, commands run where the pod is."""
    probe = Probe(action, 5, 2, 3, 4, 6)
    check = check_of(probe, initial=True, prefix=("in", "pod"))
    assert check == Check(wanted, Pace(2, 3, 4, 6, 0.0, 2, True))
    assert (host_of(probe), port_of(probe)) == (host, port)
