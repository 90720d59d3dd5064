"""A lab's services and pods in words, for the summary after ``lab up``. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kproxy.lab.model import Pod

#: Longer lists are cut: who wants all asks ``kproxy lab get``.
_SHOWN = 12


def service_lines(services: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name, type, cluster IPs and ports, as kubectl writes ports (``80:30080/TCP``)."""
    rows = [
        (
            _name(service),
            service["spec"]["type"],
            "  ".join(service["spec"].get("clusterIPs") or ("None",)),
            ",".join(map(_port, service["spec"].get("ports") or ())),
        )
        for service in services
    ]
    return _columns(rows, "services: kproxy lab get services")


def pod_lines(pods: Sequence[Pod]) -> list[str]:
    """Name, node, addresses and ports."""
    rows = [
        (
            pod.name,
            pod.node,
            "  ".join(pod.addresses),
            ",".join(f"{port.port}/{port.protocol}" for port in pod.ports),
        )
        for pod in pods
    ]
    return _columns(rows, "pods: kproxy lab get pods")


def _columns(rows: Sequence[tuple[str, ...]], all_of: str) -> list[str]:
    if not rows:
        return []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  "
        + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows[:_SHOWN]
    ]
    return lines if len(rows) <= _SHOWN else [*lines, f"  … {len(rows) - _SHOWN} more {all_of}"]


def _name(service: Mapping[str, Any]) -> str:
    meta = service["metadata"]
    namespace = meta.get("namespace", "default")
    return str(meta["name"]) if namespace == "default" else f"{namespace}/{meta['name']}"


def _port(port: Mapping[str, Any]) -> str:
    outside = f":{port['nodePort']}" if port.get("nodePort") else ""
    return f"{port['port']}{outside}/{port['protocol']}"


def _tcp_ports(
    services: Iterable[Mapping[str, Any]],
) -> Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """TCP ports of services that select pods, but for those that exist to refuse."""
    for service in services:
        if service["metadata"]["name"] != "empty" and service["spec"].get("selector"):
            for port in service["spec"].get("ports") or ():
                if port["protocol"] == "TCP":
                    yield service, port


def first_node_port(services: Iterable[Mapping[str, Any]]) -> int:
    """A TCP node port to try, 0 when there is none."""
    return next((p["nodePort"] for _, p in _tcp_ports(services) if p.get("nodePort")), 0)


def first_reachable(services: Iterable[Mapping[str, Any]]) -> str:
    """``name:port`` of a service to try from inside, "" when there is none."""
    return next((f"{_name(s)}:{p['port']}" for s, p in _tcp_ports(services)), "")
