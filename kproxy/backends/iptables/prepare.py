"""The privileged part of iptables mode, done ahead: what ``kproxy run --init-only`` leaves behind.

Node ports on 127.0.0.0/8 need a sysctl, and the rule that keeps neighbours away from this node's
loopback has to stand before it is set. Nothing else is written: a proxy that serves stays as it is.
"""

from __future__ import annotations

import msgspec

from kproxy.backends.iptables import chains
from kproxy.backends.iptables.apply import IptablesBackend
from kproxy.backends.iptables.endpoint_set import SetChange
from kproxy.backends.xtables.saved import target_of
from kproxy.core.snapshot import Snapshot


def prepare(backend: IptablesBackend, snapshot: Snapshot) -> tuple[tuple[str, str], ...]:
    """Set the sysctls that ``snapshot``'s settings need, behind their guard.

    Returns those that were set as (name, value); the ports of ``snapshot`` do not matter.
    """
    patch = backend.diff(backend.render(snapshot, None), backend.read())
    if patch is None or not patch.sysctls:
        return ()
    guarded = msgspec.structs.replace(
        patch,
        parts=(),
        places=(),
        doomed=(),
        kept=(),
        surplus=tuple(j for j in patch.surplus if target_of(j[1]) == chains.KUBELET_FIREWALL),
        members=SetChange(),
        jumps=tuple(j for j in patch.jumps if target_of(j[1]) == chains.KUBELET_FIREWALL),
    )
    backend.apply(guarded)
    return guarded.sysctls
