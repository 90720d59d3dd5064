"""Healthy or not, by table: what happened, and what must be said at second 100."""

from __future__ import annotations

import pytest

from kproxy.core.health_state import FamilyHealth, judge
from kproxy.core.objects import Family

NOW, TIMEOUT = 100.0, 60.0

#: Event, second.
Event = tuple[str, float]


def after(*events: Event) -> FamilyHealth:
    state = FamilyHealth()
    for what, when in events:
        if what in ("good", "bad"):
            state = state.ended(when, ok=what == "good")
        else:
            state = getattr(state, what)(when)
    return state


@pytest.mark.parametrize(
    ("events", "healthy"),
    [
        pytest.param([], False, id="never asked, never synced"),
        pytest.param([("asked", 99)], False, id="asked, not yet synced"),
        pytest.param([("asked", 99), ("began", 99)], False, id="the first sync runs"),
        pytest.param([("asked", 1), ("began", 1), ("bad", 2)], False, id="the first sync failed"),
        pytest.param([("began", 1), ("good", 2)], True, id="synced long ago, nothing asked since"),
        pytest.param([("began", 1), ("good", 2), ("asked", 41)], True, id="asked 59 s ago"),
        pytest.param([("began", 1), ("good", 2), ("asked", 40)], False, id="asked 60 s ago"),
        pytest.param(
            [("began", 1), ("good", 2), ("asked", 40), ("asked", 99)], False, id="the oldest counts"
        ),
        pytest.param(
            [("began", 1), ("good", 2), ("asked", 30), ("began", 50), ("good", 51)],
            True,
            id="a success answers it",
        ),
        pytest.param(
            [("began", 1), ("good", 2), ("asked", 30), ("began", 50), ("bad", 51), ("asked", 99)],
            False,
            id="a failure leaves it waiting",
        ),
        pytest.param(
            [("began", 1), ("good", 2), ("began", 30), ("bad", 31), ("began", 99), ("bad", 99)],
            False,
            id="what nobody asked for failed, again and again",
        ),
        pytest.param(
            [("began", 1), ("good", 2), ("began", 30), ("asked", 35), ("good", 98)],
            False,
            id="asked while a sync ran: that one does not answer it",
        ),
        pytest.param(
            [("began", 1), ("good", 2), ("began", 30), ("asked", 35), ("good", 36), ("began", 37),
             ("good", 38)],
            True,
            id="the next one does",
        ),
        pytest.param([("began", 1), ("good", 2), ("began", 39)], False, id="a sync hangs"),
    ],
)  # fmt: skip
def test_a_family(events: list[Event], *, healthy: bool) -> None:
    """Healthy: it has synced, and nothing asked for has waited too long."""
    assert after(*events).healthy(NOW, TIMEOUT) is healthy


FINE = after(("began", 80), ("good", 90))
OLDER = after(("began", 70), ("good", 71))
LATE = after(("began", 1), ("good", 2), ("asked", 3))
NEVER = FamilyHealth()


@pytest.mark.parametrize(
    ("four", "six", "healthy", "updated"),
    [
        (None, None, False, None),
        (FINE, None, True, 90),
        (FINE, OLDER, True, 90),
        (FINE, LATE, False, 2),
        (LATE, NEVER, False, None),
        (FINE, NEVER, False, None),
    ],
)
def test_a_proxy(
    four: FamilyHealth | None, six: FamilyHealth | None, *, healthy: bool, updated: float | None
) -> None:
    """Every served family must be healthy; without any there is nothing to trust."""
    both = {Family.IPV4: four, Family.IPV6: six}
    verdict = judge({f: s for f, s in both.items() if s is not None}, NOW, TIMEOUT)
    assert (verdict.healthy, verdict.updated) == (healthy, updated)


def test_the_node_does_not_change_the_proxys_health() -> None:
    """An ineligible node is told beside the proxy's health, for /healthz alone."""
    verdict = judge({Family.IPV4: FINE}, NOW, TIMEOUT, eligible=False)
    assert (verdict.healthy, verdict.eligible) == (True, False)
