"""Answers of the health server and of health check node ports. Pure."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from kproxy.core.health_state import Verdict
from kproxy.core.objects import ObjectKey

#: On every answer.
HEADERS = {"Content-Type": "application/json", "X-Content-Type-Options": "nosniff"}

#: What Go prints for a time that never was.
_NEVER = "0001-01-01T00:00:00Z"


def healthz(verdict: Verdict, now: float) -> tuple[int, str]:
    """Status and body of /healthz: the proxy is healthy and balancers may use the node."""
    return _answer(verdict, verdict.healthy and verdict.eligible, now, with_node=True)


def livez(verdict: Verdict, now: float) -> tuple[int, str]:
    """Status and body of /livez: the proxy is healthy, whatever becomes of the node."""
    return _answer(verdict, verdict.healthy, now, with_node=False)


def node_port(service: ObjectKey, endpoints: int, *, healthy: bool) -> tuple[int, str]:
    """Status and body for a balancer that asks whether to send a Service's clients here.

    ``endpoints`` are the ready ones of this node, by address; ``healthy``: the proxy, as in
    :func:`livez`, for a node that takes no new clients still serves those that it has.
    """
    body = {
        "service": {"namespace": service.namespace, "name": service.name},
        "localEndpoints": endpoints,
        "serviceProxyHealthy": healthy,
    }
    return 200 if healthy and endpoints else 503, json.dumps(body)


def weighted(endpoints: int) -> dict[str, str]:
    """The headers of such an answer: balancers may give a node as much as it has endpoints."""
    return {**HEADERS, "X-Load-Balancing-Endpoint-Weight": str(endpoints)}


def _answer(verdict: Verdict, healthy: bool, now: float, *, with_node: bool) -> tuple[int, str]:
    body: dict[str, object] = {
        # Old clients read it as the last run of the sync loop, so it is recent while all is well.
        "lastUpdated": _time(now if healthy else verdict.updated),
        "currentTime": _time(now),
        "healthy": healthy,
    }
    if with_node:
        body["nodeEligible"] = verdict.eligible
    body["status"] = {
        f"IPv{family:d}": {"lastUpdated": _time(now if fine else updated), "healthy": fine}
        for family, fine, updated in verdict.families
    }
    return 200 if healthy else 503, json.dumps(body)


def _time(moment: float | None) -> str:
    """RFC 3339; ``moment`` in seconds since the epoch."""
    if moment is None:
        return _NEVER
    return datetime.fromtimestamp(moment, UTC).isoformat().replace("+00:00", "Z")
