"""The engine's flows as connections that the kernel translates by itself. Pure.

Read from the records that one engine leaves to the next (kproxy/fastpath/estate.pxi).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from kproxy.core.objects import Family
from kproxy.core.twin.states import ENDED, State
from kproxy.kernel.conntrack_gifts import Gift

_FLOW = 1

#: service, tick, kind, family, state, length of the place, place, client, there, back, spare
_RECORD = struct.Struct("=IIBBBB20s16s40s40sQ")

#: Engine's number of a family.
_FAMILIES = {Family.IPV4: 0, Family.IPV6: 1}

#: Of what the kernel translates.
_PROTOCOLS = (6, 17, 132)


def flows(records: bytes, family: Family) -> Iterator[Gift]:
    """Every flow of a family that has not ended."""
    for _, _, kind, which, state, _, _, _, there, back, _ in _RECORD.iter_unpack(records):
        if kind != _FLOW or which != _FAMILIES[family] or State(state) in ENDED:
            continue
        source, destination, sport, dport, protocol = _key(there, family)
        endpoint, hidden, port, hidden_port, _ = _key(back, family)
        if protocol in _PROTOCOLS:
            yield Gift(
                protocol, (source, sport), (destination, dport), (endpoint, port),
                (hidden, hidden_port),
            )  # fmt: skip


def _key(key: bytes, family: Family) -> tuple[bytes, bytes, bytes, bytes, int]:
    """Source and destination, their ports, the protocol."""
    size = 4 if family is Family.IPV4 else 16
    ports = 2 * size
    return (
        key[:size], key[size:ports], key[ports : ports + 2], key[ports + 2 : ports + 4],
        key[ports + 4],
    )  # fmt: skip
