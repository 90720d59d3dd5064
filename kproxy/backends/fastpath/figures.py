"""What the engine of one family has counted, as values that metrics are made of."""

from __future__ import annotations

from collections.abc import Mapping

from kproxy.backends.fastpath.carrier import Carrier
from kproxy.backends.fastpath.render import text_of
from kproxy.core.objects import Family, PortName, Value
from kproxy.core.twin.values import Reason


class ServiceFigures(Value, frozen=True):
    """Of one service port: packets that were dropped or answered, by reason, and of each endpoint
    (``address:port``) the engine's counters (:meth:`kproxy._fastpath.Engine.endpoint_counters`)."""

    name: PortName
    reasons: Mapping[str, int]
    endpoints: Mapping[str, Mapping[str, int]]


class EngineFigures(Value, frozen=True):
    """Of one family. ``totals`` are flows, affinities and the like, ``carried`` what its threads
    have read and written, ``memory`` bytes by table."""

    family: Family
    totals: Mapping[str, int]
    carried: Mapping[str, int]
    memory: Mapping[str, int]
    services: tuple[ServiceFigures, ...]


def figures_of(carrier: Carrier) -> EngineFigures:
    """Takes time with the number of endpoints, and stops no packet for longer than one of them."""
    family = carrier.family
    found = carrier.engine.totals()
    which = 0 if family is Family.IPV4 else 1
    totals = {name: found[name] for name in ("endpoints", "ways", "recycled", "expired")}
    totals |= {name: found[name][which] for name in ("flows", "affinities")}
    return EngineFigures(
        family=family,
        totals=totals,
        carried=carrier.figures(),
        memory=carrier.engine.memory(),
        services=tuple(_service(carrier, name, number) for name, number in carrier.numbers()),
    )


def _service(carrier: Carrier, name: PortName, number: int) -> ServiceFigures:
    engine = carrier.engine
    # Of the first one, NONE, there is nothing to count.
    counted = list(zip(Reason, engine.service_counters(number), strict=True))[1:]
    return ServiceFigures(
        name=name,
        reasons={
            reason.name.lower(): count for reason, count in counted if reason is not Reason.NONE
        },
        endpoints={_text(place): some for place, some in engine.endpoint_counters(number).items()},
    )


def _text(place: bytes) -> str:
    address, port = text_of(place[:-2]), int.from_bytes(place[-2:])
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
