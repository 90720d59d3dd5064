"""Connections that IPVS carries in the calling thread's network namespace, by the kernel's list.

/proc/net/ip_vs_conn has a line for each (net/netfilter/ipvs/ip_vs_conn.c, ip_vs_conn_seq_show)::

    Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData
    TCP C0A80002 8F3C AC1E0001 0050 0A000002 1F90 ESTABLISHED     899
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from kproxy.core.objects import Family
from kproxy.kernel.conntrack_gifts import Place

_LISTING = Path("/proc/thread-self/net/ip_vs_conn")

_PROTOCOLS = {"TCP": 6, "UDP": 17, "SCTP": 132}

#: States in which somebody still wants something; UDP has one only, by its name.
_OPEN = frozenset({"ESTABLISHED", "SYN_RECV", "FIN_WAIT", "CLOSE_WAIT", "UDP"})

#: Bytes of an address.
_SIZES = {Family.IPV4: 4, Family.IPV6: 16}


class Carried(NamedTuple):
    """From ``client`` to ``asked``, a virtual server, which leads it to ``endpoint``."""

    protocol: int
    client: Place
    asked: Place
    endpoint: Place


def carried(family: Family) -> list[Carried]:
    """One family's that have not ended; none where there is no IPVS."""
    try:
        text = _LISTING.read_text()
    except FileNotFoundError:
        return []
    return list(parse(text, family))


def parse(text: str, family: Family) -> Iterator[Carried]:
    """Pure. What holds a client to a server between its connections (port 0) is none."""
    size = _SIZES[family]
    for line in text.splitlines()[1:]:
        protocol, *ends, state, _ = line.split()[:9]
        if protocol not in _PROTOCOLS or state not in _OPEN:
            continue
        packed = [bytes.fromhex(end.replace(":", "")) for end in ends]
        if any(len(each) != size for each in packed[::2]) or not any(packed[1]):
            continue
        client, asked, endpoint = zip(packed[::2], packed[1::2], strict=True)
        yield Carried(_PROTOCOLS[protocol], client, asked, endpoint)
