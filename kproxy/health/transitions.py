"""What became of endpoints between two verdicts on one service port. Pure.

Told of by verdict and not by observation: what one observation means for a service port depends on
its other endpoints and on other judges, and an endpoint that went and came back between two syncs
changed no rule. The moment is that of the opinion, which is when it was found out.
"""

from __future__ import annotations

from collections.abc import Iterator

from kproxy.core.health.values import FULL_WEIGHT
from kproxy.core.health.verdict import Cause, Judged, PortHealth
from kproxy.core.objects import Family, PortName
from kproxy.health.journal import Event, Kind

#: Who decided that an endpoint is out, or had decided it -> what happened; else it is UP or DOWN.
_OUT = {Cause.PASSIVE: Kind.EJECTED}
_IN = {Cause.PASSIVE: Kind.READMITTED}


def events_between(
    name: PortName,
    family: Family,
    before: PortHealth | None,
    after: PortHealth | None,
    *,
    node: str,
    now: float,
) -> Iterator[Event]:
    """In the order of the plan, panic last. None: there was no verdict, or is none any more.

    An endpoint that is new, or goes, is no event: the cluster said so.
    """
    if after is None:
        return
    known = {} if before is None else {_place(each): each for each in before.judged}
    for each in after.judged:
        was = known.get(_place(each))
        kind = _kind(was, each) if was is not None else None
        if kind is not None:
            yield Event.of(
                kind,
                name,
                family,
                each.reason or _REASONS[kind],
                node=node,
                # Opinions keep their order where the clock was set back; events keep its time.
                at=min(each.at or now, now),
                endpoint=str(each.endpoint),
            )
    panicked = before is not None and before.panic
    # Of a port without endpoints there is nothing to fall back on.
    if after.panic is not panicked and (after.judged or panicked):
        kind = Kind.PANIC if after.panic else Kind.CALM
        yield Event.of(kind, name, family, share(after), node=node, at=now)


def share(health: PortHealth) -> str:
    """How many of a port's endpoints are up, and what is made of it."""
    up = sum(each.up for each in health.judged)
    text = f"{up} of {len(health.judged)} endpoints up"
    return f"{text}: all are used" if health.panic else text


#: Where the opinion that decides gives none.
_REASONS = {Kind.UP: "checks passed", Kind.READMITTED: "let in again"}


def _kind(was: Judged, now: Judged) -> Kind | None:
    if was.up and not now.up:
        return _OUT.get(now.cause, Kind.DOWN)
    if now.up and not was.up:
        return _IN.get(was.cause, Kind.UP)
    # Down from the start, and now for a reason.
    first = was.cause is Cause.ASSUMED and now.cause is Cause.CHECK
    return Kind.DOWN if first and not now.up else None


def _place(judged: Judged) -> tuple[str, int]:
    return judged.endpoint.ip, judged.endpoint.port


def grows(judged: Judged) -> bool:
    """Whether an endpoint has yet to get its full share."""
    return judged.up and judged.weight < FULL_WEIGHT
