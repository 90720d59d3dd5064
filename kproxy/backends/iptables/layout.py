"""Which chains and rules of the kernel's tables are iptables mode's. Pure."""

from __future__ import annotations

from kproxy.backends.iptables import chains
from kproxy.backends.xtables.layout import Layout, own
from kproxy.backends.xtables.localnet import LOCALNET_GUARD
from kproxy.backends.xtables.rules import Table

LAYOUT = Layout(
    own=own(*chains.DISPATCH, *chains.FIXED),
    prefixes={Table.NAT: chains.SERVICE_PREFIXES},
    jumps=chains.JUMPS,
    # Other programs may mark packets for masquerading; the kubelet has a firewall of its own.
    shared=frozenset({(Table.NAT, chains.MARK_MASQ), (Table.FILTER, chains.KUBELET_FIREWALL)}),
    guests=(LOCALNET_GUARD,),
)
