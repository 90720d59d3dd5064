"""From which addresses of the node the relay may connect to endpoints, besides the usual one. Pure.

The relay is the client of every endpoint, and an address has some 28,000 ports towards each. Where
the node has more addresses, each is worth as many again.
"""

from __future__ import annotations

import ipaddress

from kproxy.core.snapshot import NodeSettings

#: Of one family; the relay takes no more.
MOST_SOURCES = 16


def sources_of(settings: NodeSettings) -> tuple[str, ...]:
    """The node's own addresses that are of the same scope as its primary one, in their order.

    An endpoint that answers to a private address of the node may have no way to a public one, or
    lose its answers in somebody's address translation. Which of them a route prefers is the
    kernel's to know; that it is among these costs nothing before its ports are used up.
    """
    local = [ipaddress.ip_address(address) for address in settings.local_addresses]
    if not local:
        return ()
    scope = local[0].is_global
    usable = (ip for ip in local if not (ip.is_loopback or ip.is_link_local or ip.is_multicast))
    return tuple([str(ip) for ip in usable if ip.is_global is scope][:MOST_SOURCES])
