"""One verdict for each endpoint: what the API says AND its active check AND passive detection.

:func:`judge` looks at the endpoints of one service port that the API lets serve and says which of
them are up; :func:`admitted` makes the others look like unready pods, so that every table after it
works as it always does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import repeat
from typing import TYPE_CHECKING

from kproxy.core.health.values import (
    FULL_WEIGHT,
    Check,
    Opinion,
    Place,
    Policy,
    portless,
)
from kproxy.core.objects import PortName, family_of
from kproxy.core.snapshot import Cause, Endpoint, Judged, PortHealth

if TYPE_CHECKING:
    from kproxy.core.health.book import Book

__all__ = ["Cause", "Judged", "PortHealth", "admitted", "allowed", "judge"]


def allowed(endpoints: tuple[Endpoint, ...]) -> tuple[Endpoint, ...]:
    """Those that the API lets serve: ready, or draining. The very tuple when all are."""
    found = tuple([each for each in endpoints if each.ready or (each.serving and each.terminating)])
    return endpoints if len(found) == len(endpoints) else found


def judge(
    policy: Policy, name: PortName, endpoints: tuple[Endpoint, ...], book: Book
) -> PortHealth:
    """The verdict on the service port ``name``.

    ``policy`` is what holds for the port, ``endpoints`` are those that the API lets serve, of one
    family.
    """
    if not endpoints:
        return PortHealth(policy, ())
    family = family_of(endpoints[0].ip)
    ejections = book.ejections(family, name) if policy.passive is not None else {}
    weights = book.weights(family, name) if policy.slow_start else {}
    active = _opinions(policy.check, endpoints, book)
    judged = tuple(
        [
            _judged(each, opinion, ejections.get((each.ip, each.port)), weights)
            for each, opinion in zip(endpoints, active)
        ]
    )
    up = sum(each.up for each in judged)
    return PortHealth(policy, judged, panic=up == 0 or up / len(judged) < policy.panic)


def admitted(endpoints: tuple[Endpoint, ...], health: PortHealth) -> tuple[Endpoint, ...]:
    """The endpoints with those that are not up neither ready nor serving, and with weights.

    In panic, and when all are up with one weight, the very tuple that came in. One weight for all
    is the full one: only their proportion matters, and so no rule changes for it.
    """
    judged = health.judged
    weights = {each.weight for each in judged if each.up}
    even = len(weights) < 2
    if health.panic or (even and all(each.up for each in judged)):
        return endpoints
    known = {(each.endpoint.ip, each.endpoint.port): each for each in judged}
    return tuple([_as_judged(each, known.get((each.ip, each.port)), even) for each in endpoints])


def _opinions(
    check: Check | None, endpoints: tuple[Endpoint, ...], book: Book
) -> Iterable[Opinion | None]:
    """What the check says of each endpoint; None: nothing is asked of it."""
    if check is None:
        return repeat(None, len(endpoints))
    known = book.opinions(family_of(endpoints[0].ip), portless(check))
    assumed = _ASSUMED[check.pace.initial]
    port = check.probe.port
    return [known.get((each.ip, port or each.port), assumed) for each in endpoints]


_ASSUMED = {up: Opinion(up, "not checked yet", 0.0) for up in (True, False)}


def _judged(
    endpoint: Endpoint,
    active: Opinion | None,
    passive: Opinion | None,
    weights: Mapping[Place, int],
) -> Judged:
    """An endpoint is up when nobody says that it is down; a check says more about why."""
    weight = weights.get((endpoint.ip, endpoint.port), FULL_WEIGHT) if weights else FULL_WEIGHT
    if passive is not None and not passive.up and (active is None or active.up):
        return Judged(endpoint, False, Cause.PASSIVE, passive.reason, passive.at, weight)
    if active is None:
        return Judged(endpoint, True, weight=weight)
    cause = Cause.ASSUMED if active is _ASSUMED[active.up] else Cause.CHECK
    return Judged(endpoint, active.up, cause, active.reason, active.at, weight)


def _as_judged(endpoint: Endpoint, judged: Judged | None, even: bool) -> Endpoint:
    if judged is None or (judged.up and (even or judged.weight == FULL_WEIGHT)):
        return endpoint
    return Endpoint(
        endpoint.ip,
        endpoint.port,
        endpoint.local,
        endpoint.ready and judged.up,
        endpoint.serving and judged.up,
        endpoint.terminating,
        endpoint.node,
        endpoint.zone_hints,
        endpoint.node_hints,
        FULL_WEIGHT if even or not judged.up else judged.weight,
    )
