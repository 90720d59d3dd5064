"""Names of chains, and where the base chains jump to, in userspace mode. Pure.

Source of the four in nat and of KUBE-NODEPORT-NON-LOCAL: ``pkg/proxy/userspace`` of Kubernetes up
to 1.25. Every chain is flat, and no two of its rules that may meet the same packet differ in what
they do with it: their order says nothing, and a change only adds and deletes lines. Where one
decision goes before another it has a chain of its own::

    nat     portals ─ left alone ─ node ports      to a relay port, or unchanged
    filter  portals ─ node ports ─ relay ports     what was not translated has no right to be here
            ─ accepted                             what was translated passes the node's INPUT rules

Linear chains cost by their length, so the ones in filter are met by the first packets of
connections only: all others are ESTABLISHED. That a connection was translated tells the virtual
state DNAT. A relay port takes no packet before its guard stands, and keeps its guard until it is
closed: who got in once would stay, as nobody asks about connections that are ESTABLISHED.
"""

from __future__ import annotations

from kproxy.backends.xtables.layout import Layout, Place, own
from kproxy.backends.xtables.localnet import KUBELET_FIREWALL, LOCALNET_GUARD
from kproxy.backends.xtables.rules import Jump, Rule, Table

PORTALS_CONTAINER = "KUBE-PORTALS-CONTAINER"
PORTALS_HOST = "KUBE-PORTALS-HOST"
NODEPORT_CONTAINER = "KUBE-NODEPORT-CONTAINER"
NODEPORT_HOST = "KUBE-NODEPORT-HOST"
NODEPORT_NON_LOCAL = "KUBE-NODEPORT-NON-LOCAL"
#: Ours: addresses of services that their portals left alone, and that are no node port's either.
PORTALS_UNSERVED = "KUBE-PORTALS-UNSERVED"
#: Ours: refusals and drops by service address, then by node port.
PORTALS_FILTER = "KUBE-PORTALS-FILTER"
NODEPORT_FILTER = "KUBE-NODEPORT-FILTER"
#: Ours: relay ports and held UDP ports are nobody's to reach who was not sent there.
RELAY_GUARD = "KUBE-RELAY-GUARD"

#: Every chain of the mode.
PLACES: tuple[Place, ...] = (
    (Table.NAT, PORTALS_CONTAINER),
    (Table.NAT, PORTALS_HOST),
    (Table.NAT, PORTALS_UNSERVED),
    (Table.NAT, NODEPORT_CONTAINER),
    (Table.NAT, NODEPORT_HOST),
    (Table.FILTER, PORTALS_FILTER),
    (Table.FILTER, NODEPORT_FILTER),
    (Table.FILTER, RELAY_GUARD),
    (Table.FILTER, NODEPORT_NON_LOCAL),
)

_PORTALS = "handle ClusterIPs"
_NODE_PORTS = "handle service NodePorts"
_UNSERVED = "not for node ports"
_REFUSED = "service addresses that nobody serves"
_REFUSED_PORTS = "node ports that nobody serves"
_GUARD = "relay ports are reached by translation only"
_NON_LOCAL = "Ensure that non-local NodePort traffic can flow"


def _untranslated(base: str, chain: str, note: str) -> Rule:
    """For packets that begin a connection, or belong to none that conntrack knows, and that were
    not translated."""
    states = ("RELATED", "ESTABLISHED", "DNAT")
    return Rule(Table.FILTER, base, Jump(chain), comment=note, ctstate=states, negated=("ctstate",))


def _nat(base: str, chain: str, note: str, *, here: bool = False) -> Rule:
    return Rule(Table.NAT, base, Jump(chain), comment=note, destination_local=here)


#: In the order in which they are put at the top: the last one ends up first.
_JUMPS = (
    Rule(Table.FILTER, "INPUT", Jump(NODEPORT_NON_LOCAL), comment=_NON_LOCAL, ctstate=("NEW",)),
    _untranslated("INPUT", RELAY_GUARD, _GUARD),
    _untranslated("INPUT", NODEPORT_FILTER, _REFUSED_PORTS),
    _untranslated("INPUT", PORTALS_FILTER, _REFUSED),
    _untranslated("FORWARD", PORTALS_FILTER, _REFUSED),
    _untranslated("OUTPUT", PORTALS_FILTER, _REFUSED),
    _nat("PREROUTING", NODEPORT_CONTAINER, _NODE_PORTS, here=True),
    _nat("OUTPUT", NODEPORT_HOST, _NODE_PORTS, here=True),
    _nat("PREROUTING", PORTALS_UNSERVED, _UNSERVED),
    _nat("OUTPUT", PORTALS_UNSERVED, _UNSERVED),
    _nat("PREROUTING", PORTALS_CONTAINER, _PORTALS),
    _nat("OUTPUT", PORTALS_HOST, _PORTALS),
    # Without a comment, so that they are the kubelet's own to the letter.
    Rule(Table.FILTER, "INPUT", Jump(KUBELET_FIREWALL)),
    Rule(Table.FILTER, "OUTPUT", Jump(KUBELET_FIREWALL)),
)

LAYOUT = Layout(
    own=own(*PLACES),
    jumps=_JUMPS,
    shared=frozenset({(Table.FILTER, KUBELET_FIREWALL)}),
    guests=(LOCALNET_GUARD,),
)
