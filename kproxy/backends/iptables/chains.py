"""Names of chains, and where the base chains jump to: the tables that users and tools know.

Source: ``pkg/proxy/iptables`` of Kubernetes. Whoever compares a node of ours with kube-proxy's
finds the same names, hooks and comments.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256

from kproxy.backends.xtables import localnet
from kproxy.backends.xtables.rules import Jump, Rule, Table
from kproxy.core.objects import PortName

SERVICES = "KUBE-SERVICES"
EXTERNAL_SERVICES = "KUBE-EXTERNAL-SERVICES"
NODE_PORTS = "KUBE-NODEPORTS"
POSTROUTING = "KUBE-POSTROUTING"
MARK_MASQ = "KUBE-MARK-MASQ"
FORWARD = "KUBE-FORWARD"
PROXY_FIREWALL = "KUBE-PROXY-FIREWALL"
CANARY = "KUBE-PROXY-CANARY"
KUBELET_FIREWALL = localnet.KUBELET_FIREWALL

CLUSTER, LOCAL, EXTERNAL, FIREWALL = "KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-FW-"
ENDPOINT = "KUBE-SEP-"

#: Chains of one service port. All are in nat.
SERVICE_PREFIXES = (CLUSTER, LOCAL, EXTERNAL, FIREWALL, ENDPOINT)

#: Chains to which every service port adds rules: rewritten when one of those lines changes.
DISPATCH = (
    (Table.NAT, NODE_PORTS),
    (Table.NAT, SERVICES),
    (Table.FILTER, SERVICES),
    (Table.FILTER, EXTERNAL_SERVICES),
    (Table.FILTER, NODE_PORTS),
    (Table.FILTER, PROXY_FIREWALL),
)

#: Chains that depend on the node's settings only.
FIXED = (
    (Table.NAT, MARK_MASQ),
    (Table.NAT, POSTROUTING),
    (Table.FILTER, FORWARD),
    (Table.NAT, CANARY),
    (Table.FILTER, CANARY),
    (Table.MANGLE, CANARY),
)

_PORTALS = "kubernetes service portals"
_EXTERNAL_PORTALS = "kubernetes externally-visible service portals"
_LB_FIREWALL = "kubernetes load balancer firewall"
_NEW, _ANY = ("NEW",), ()

#: (table, base chain, chain, comment, connection states), in the order in which they are put at
#: the top: the last one ends up first.
_JUMPS: tuple[tuple[Table, str, str, str, tuple[str, ...]], ...] = (
    (Table.FILTER, "INPUT", EXTERNAL_SERVICES, _EXTERNAL_PORTALS, _NEW),
    (Table.FILTER, "FORWARD", EXTERNAL_SERVICES, _EXTERNAL_PORTALS, _NEW),
    (Table.FILTER, "INPUT", NODE_PORTS, "kubernetes health check service ports", _ANY),
    (Table.FILTER, "FORWARD", SERVICES, _PORTALS, _NEW),
    (Table.FILTER, "OUTPUT", SERVICES, _PORTALS, _NEW),
    (Table.FILTER, "FORWARD", FORWARD, "kubernetes forwarding rules", _ANY),
    (Table.FILTER, "INPUT", PROXY_FIREWALL, _LB_FIREWALL, _NEW),
    (Table.FILTER, "OUTPUT", PROXY_FIREWALL, _LB_FIREWALL, _NEW),
    (Table.FILTER, "FORWARD", PROXY_FIREWALL, _LB_FIREWALL, _NEW),
    (Table.NAT, "OUTPUT", SERVICES, _PORTALS, _ANY),
    (Table.NAT, "PREROUTING", SERVICES, _PORTALS, _ANY),
    (Table.NAT, "POSTROUTING", POSTROUTING, "kubernetes postrouting rules", _ANY),
    # Without a comment, so that they are the kubelet's own to the letter.
    (Table.FILTER, "INPUT", KUBELET_FIREWALL, "", _ANY),
    (Table.FILTER, "OUTPUT", KUBELET_FIREWALL, "", _ANY),
)

JUMPS: tuple[Rule, ...] = tuple(
    Rule(table, base, Jump(chain), comment=comment, ctstate=states)
    for table, base, chain, comment, states in _JUMPS
)


def is_service_chain(chain: str) -> bool:
    """Whether a chain of nat belongs to one service port."""
    return chain.startswith(SERVICE_PREFIXES)


def port_hash(name: PortName) -> str:
    """The sixteen characters in the chain names of one service port."""
    return _hash(_key(name))


def endpoint_chains(name: PortName, ends: Iterable[str]) -> list[str]:
    """KUBE-SEP-… of endpoints (``ip:port``, IPv6 in brackets) of one service port."""
    key = _key(name)
    return [ENDPOINT + _hash(key + end) for end in ends]


def _key(name: PortName) -> str:
    return f"{name}{name.protocol.value.lower()}"


_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]


def _hash(text: str) -> str:
    """base32(SHA-256(text))[:16]: 80 bits, two characters for each ten.

    base64.b32encode would take longer than all the rest of rendering an endpoint.
    """
    bits = int.from_bytes(sha256(text.encode()).digest()[:10], "big")
    pair = _PAIRS
    return (
        f"{pair[bits >> 70]}{pair[bits >> 60 & 1023]}{pair[bits >> 50 & 1023]}"
        f"{pair[bits >> 40 & 1023]}{pair[bits >> 30 & 1023]}{pair[bits >> 20 & 1023]}"
        f"{pair[bits >> 10 & 1023]}{pair[bits & 1023]}"
    )
