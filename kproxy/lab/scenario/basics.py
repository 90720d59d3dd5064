"""What all that is read from scenario files is made of. Pure."""

from __future__ import annotations

import msgspec

from kproxy.core.address import canonical_ip
from kproxy.lab.traffic.wire import join_host_port


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all that is read from a file."""


def canonical_endpoint(text: str) -> str | None:
    """``ip:port`` in canonical text, IPv6 in brackets; None when it is none."""
    host, colon, port = text.rpartition(":")
    address = canonical_ip(host.strip("[]"))
    if not colon or address is None or not port.isdigit() or not 0 < int(port) < 65536:
        return None
    return join_host_port(address, int(port))
