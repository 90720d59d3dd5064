"""What the health server answers, by table."""

from __future__ import annotations

import json

import pytest

from kproxy.core.health_state import Verdict
from kproxy.core.objects import Family
from kproxy.health.answers import healthz, livez

NOW = 1767225600.5
NOW_TEXT = "2026-01-01T00:00:00.500000Z"
OLD, OLD_TEXT = 1767225000.0, "2025-12-31T23:50:00Z"
NEVER = "0001-01-01T00:00:00Z"


def verdict(*, healthy: bool, eligible: bool = True, updated: float | None = OLD) -> Verdict:
    return Verdict(healthy, updated, eligible, ((Family.IPV4, healthy, updated),))


@pytest.mark.parametrize(
    ("found", "on_healthz", "on_livez", "updated"),
    [
        (verdict(healthy=True), 200, 200, NOW_TEXT),
        (verdict(healthy=True, eligible=False), 503, 200, OLD_TEXT),
        (verdict(healthy=False), 503, 503, OLD_TEXT),
        (verdict(healthy=False, updated=None), 503, 503, NEVER),
        (verdict(healthy=False, eligible=False), 503, 503, OLD_TEXT),
    ],
)
def test_status_and_body(found: Verdict, on_healthz: int, on_livez: int, updated: str) -> None:
    """/healthz minds the node and /livez does not; lastUpdated is now while all is well."""
    status, text = healthz(found, NOW)
    body = json.loads(text)
    assert status == on_healthz
    assert body["healthy"] == (status == 200)
    assert body["nodeEligible"] == found.eligible
    assert (body["lastUpdated"], body["currentTime"]) == (updated, NOW_TEXT)
    assert body["status"]["IPv4"]["healthy"] == found.healthy
    status, text = livez(found, NOW)
    assert status == on_livez
    assert "nodeEligible" not in json.loads(text)


def test_each_family_has_its_own_time() -> None:
    """A healthy family's time is now, a late one's its last success."""
    both = Verdict(False, OLD, families=((Family.IPV4, True, NOW - 99), (Family.IPV6, False, OLD)))
    body = json.loads(livez(both, NOW)[1])
    assert body["status"] == {
        "IPv4": {"lastUpdated": NOW_TEXT, "healthy": True},
        "IPv6": {"lastUpdated": OLD_TEXT, "healthy": False},
    }
