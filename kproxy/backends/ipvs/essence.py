"""What of ``/proc/net/ip_vs`` is anybody's wish, and not the course of things: for comparing. Pure.

Connections come and go by themselves, and so does a real server of weight 0, which drains: both are
left out. The rest changes when somebody changes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_address

from kproxy.core.objects import Family

#: The end of a real server's line (ip_vs_info_seq_show): weight in 6 columns, two numbers in 10.
_COUNTS = 21
_WEIGHT = slice(-_COUNTS - 7, -_COUNTS)
_DRAINS = b"0      "
_REAL = b"  -> "
#: Before the first server: version, and two lines of headings.
_HEADINGS = 3

#: Ranges in which servers are somebody else's.
Ranges = Iterable[IPv4Network | IPv6Network]


def essence(listing: bytes) -> bytes:
    """The listing without what changes by itself."""
    return b"\n".join(
        [
            line[:-_COUNTS] if line.startswith(_REAL) else line
            for line in listing.split(b"\n")
            if line[_WEIGHT] != _DRAINS
        ]
    )


def differing(one: bytes, other: bytes, families: frozenset[Family], spared: Ranges) -> list[str]:
    """Virtual servers that differ between two essences, ``TCP 10.0.0.1:80``, sorted; but for those
    of other families, by packet mark, or with an address in ``spared``."""
    before, after = _servers(one), _servers(other)
    names = {
        head.split(b" ", 1)[0] + b" " + head.split()[1]
        for head in before.keys() | after.keys()
        if before.get(head) != after.get(head)
    }
    spared = tuple(spared)
    found = filter(None, (_told(name.decode("ascii"), families, spared) for name in names))
    return sorted(found)


def _servers(text: bytes) -> dict[bytes, frozenset[bytes]]:
    """Line of a virtual server -> lines of its real ones."""
    found: dict[bytes, list[bytes]] = {}
    reals: list[bytes] = []
    for line in text.split(b"\n")[_HEADINGS:]:
        if line.startswith(_REAL):
            reals.append(line)
        elif line:
            reals = found.setdefault(line, [])
    return {head: frozenset(lines) for head, lines in found.items()}


def _told(name: str, families: frozenset[Family], spared: Ranges) -> str:
    protocol, _, place = name.partition(" ")
    if protocol == "FWM":
        return ""
    six = place.startswith("[")
    address, _, port = place.rpartition(":")
    ip = ip_address(address.strip("[]")) if six else ip_address(int(address, 16))
    if (Family.IPV6 if six else Family.IPV4) not in families or any(ip in each for each in spared):
        return ""
    return f"{protocol} {f'[{ip}]' if six else ip}:{int(port, 16)}"
