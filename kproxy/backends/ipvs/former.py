"""What servers found in the kernel do for UDP: the memory that survives a restart. Pure.

The virtual servers of a proxy that ran here before, ours or kube-proxy's own, are every way in that
it served, node ports by each address; their real ones are every endpoint that it chose.
"""

from __future__ import annotations

from kproxy.backends.ipvs.held import Held
from kproxy.backends.ipvs.ours import ours
from kproxy.core.members import address_text
from kproxy.core.objects import Family
from kproxy.core.stale_flows import Former

_UDP = 17


def former(held: Held) -> Former:
    """The ways in and the endpoints of UDP service ports."""
    servers = {key: server for key, server in held.servers.items() if key[-1] == _UDP}
    family = Family.IPV4 if any(len(key) == 7 for key in servers) else Family.IPV6
    known = ours(servers, held.sets, held.addresses or (), held.hosts, family)
    found = {key: servers[key] for key in known}
    return Former(
        vips=frozenset(_place(key[:-1]) for key in found),
        endpoints=frozenset(_place(real) for server in found.values() for real in server.reals),
    )


def _place(key: bytes) -> tuple[str, int]:
    return address_text(key[:-2]), int.from_bytes(key[-2:], "big")
