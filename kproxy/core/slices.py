"""The slices of one service, joined into the endpoints of each of its ports.

A slice port belongs to the service port of the same *name* and protocol; the numbers may differ,
also between slices, because a named target port is looked up in every pod. Equal address and port
is one endpoint, however many slices hold it.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import itemgetter

from kproxy.core.objects import EndpointSlice, Family, Protocol, SliceEndpoint
from kproxy.core.snapshot import Endpoint
from kproxy.core.topology import STANDING, Standing

_Place = tuple[str, int]
_BY_PLACE = itemgetter(0)


def join(
    slices: Iterable[EndpointSlice], family: Family, name: str, protocol: Protocol, node: str
) -> tuple[Endpoint, ...]:
    """Endpoints of the service port ``name``/``protocol``, sorted by (ip text, port).

    All endpoints, usable or not. ``local`` is set for those on ``node`` (never when that is "").
    The result does not depend on the order of ``slices``.
    """
    found: dict[_Place, SliceEndpoint] = {}
    for piece in slices:
        if piece.family is not family:
            continue
        for port in piece.ports:
            if port.name == name and port.protocol is protocol:
                _add(found, piece.endpoints, port.port)
    return tuple(
        [
            # Positional, in the order of the fields: half the time of keywords, and this line
            # runs once per endpoint of the cluster.
            Endpoint(
                ip,
                port,
                entry.node == node != "",
                entry.ready,
                entry.serving,
                entry.terminating,
                entry.node,
                entry.zone_hints,
                entry.node_hints,
            )
            for (ip, port), entry in sorted(found.items(), key=_BY_PLACE)
        ]
    )


def _add(
    found: dict[_Place, SliceEndpoint], endpoints: tuple[SliceEndpoint, ...], port: int
) -> None:
    for entry in endpoints:
        place = entry.address, port
        twin = found.setdefault(place, entry)
        if twin is not entry and _precedence(entry) > _precedence(twin):
            found[place] = entry


_Precedence = tuple[Standing, bool, bool, bool, str, str, tuple[str, ...], tuple[str, ...]]


def _precedence(entry: SliceEndpoint) -> _Precedence:
    """Of two entries for one place the greater is believed.

    While an endpoint moves from slice to slice both may hold it, one of them out of date; and a
    new pod may have the address of one that is still going. The entry that can serve is the living
    one. The rest of the tuple only makes the choice independent of the order of slices: an entry
    that knows its node (and so may be local) before one that does not, then by content.
    """
    return (
        STANDING[entry.ready, entry.serving, entry.terminating],
        entry.serving,
        not entry.terminating,
        bool(entry.node),
        entry.node,
        entry.zone,
        entry.zone_hints,
        entry.node_hints,
    )
