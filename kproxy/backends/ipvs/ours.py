"""Which virtual servers that the kernel holds are ours, when no plan says so. Pure.

The sets name them to the byte: what stands in a set of VIPs is a server's key. Those of node ports
of TCP and UDP name only the port; their servers are at the node's own addresses, and one of the
same number elsewhere is another program's. At an address that the node has lost since, none is
known as ours.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from collections.abc import Set as AbstractSet
from ipaddress import ip_address

from kproxy.backends.ipvs import sets
from kproxy.core.objects import Family, Protocol

#: Sets whose members are server keys.
_KEYS = (
    sets.CLUSTER_IP,
    sets.EXTERNAL_IP,
    sets.EXTERNAL_IP_LOCAL,
    sets.LOAD_BALANCER,
    sets.LOAD_BALANCER_LOCAL,
    sets.NODE_PORT[Protocol.SCTP],
    sets.NODE_PORT_LOCAL[Protocol.SCTP],
)

#: Sets of node ports -> the protocol number of their servers.
_PORTS = {
    sets.NODE_PORT[Protocol.TCP]: b"\x06",
    sets.NODE_PORT_LOCAL[Protocol.TCP]: b"\x06",
    sets.NODE_PORT[Protocol.UDP]: b"\x11",
    sets.NODE_PORT_LOCAL[Protocol.UDP]: b"\x11",
}


def ours(
    servers: Collection[bytes],
    members: Mapping[str, AbstractSet[bytes] | None],
    bound: Collection[str],
    hosts: Collection[str],
    family: Family,
) -> Iterator[bytes]:
    """Server keys on addresses that are ``bound`` to the device, those that sets name, and those
    of node ports at addresses of ``hosts``, the node's own.

    ``members`` are those of sets by their name in the kernel.
    """

    def held(name: str) -> AbstractSet[bytes]:
        return members.get(sets.in_family(name, family)) or frozenset()

    addresses = {ip_address(text).packed for text in bound}
    own = {ip_address(text).packed for text in hosts}
    keys = frozenset[bytes]().union(*(held(name) for name in _KEYS))
    ports = {port + protocol for name, protocol in _PORTS.items() for port in held(name)}
    for server in servers:
        address = server[:-3]
        if address in addresses or server in keys or (server[-3:] in ports and address in own):
            yield server
