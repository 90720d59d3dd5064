"""What elements that were found in the kernel did for UDP: a plan of the past. Pure."""

from __future__ import annotations

from kproxy.backends.nftables.elements import KINDS, unpack
from kproxy.backends.nftables.held import Held
from kproxy.core.stale_flows import Former

_UDP = "udp"


def former(actual: Held) -> Former:
    """VIPs, node ports and endpoints of UDP service ports."""
    family = actual.family
    vips: set[tuple[str, int]] = set()
    node_ports: set[int] = set()
    endpoints: set[tuple[str, int]] = set()
    for name, records in actual.elements.items():
        word = name.removeprefix("node-").removeprefix("local-")
        if word not in ("ways", "endpoints", "known"):
            continue
        for record in records:
            try:
                element = unpack(KINDS[name], record, family)
            except KeyError:  # somebody else's
                continue
            if _UDP not in element.key[:2]:
                continue
            if word != "ways":
                assert isinstance(element.data, tuple)
                endpoints.add((str(element.data[0]), int(element.data[1])))
            elif name.startswith("node-"):
                node_ports.add(int(element.key[1]))
            else:
                vips.add((str(element.key[0]), int(element.key[2])))
    return Former(frozenset(vips), frozenset(node_ports), frozenset(endpoints))
