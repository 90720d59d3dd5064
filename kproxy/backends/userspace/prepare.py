"""The privileged part of userspace mode, done ahead: what ``kproxy run --init-only`` leaves.

Node ports on 127.0.0.0/8 need a sysctl, and the rule that keeps neighbours away from this node's
loopback has to stand before it is set. Nothing else is written.
"""

from __future__ import annotations

from kproxy.backends.userspace.apply import UserspaceBackend
from kproxy.backends.userspace.diff import RulesPatch, call, rules_between
from kproxy.backends.userspace.held import Relaying
from kproxy.backends.xtables.localnet import KUBELET_FIREWALL
from kproxy.backends.xtables.saved import Line, target_of
from kproxy.backends.xtables.script import chunks
from kproxy.core.snapshot import Snapshot


def prepare(backend: UserspaceBackend, snapshot: Snapshot) -> tuple[tuple[str, str], ...]:
    """Set the sysctls that ``snapshot``'s settings need, behind their guard.

    Returns those that were set as (name, value); the ports of ``snapshot`` do not matter.
    """
    desired, found = backend.render(snapshot, None), backend.read()
    missing = tuple(sorted(desired.sysctls - set(found.sysctls.items())))
    if not missing:
        return ()
    rules = rules_between(desired, Relaying(), found.rules)
    guard = RulesPatch(
        jumps=_of_guard(rules.jumps),
        surplus=_of_guard(rules.surplus),
        guard=rules.guard,
        declare_guard=rules.declare_guard,
    )
    if guard and desired.guard:
        backend.door.restore(chunks(call(guard)))
    for name, value in missing:
        backend.door.set_sysctl(name, value)
    return missing


def _of_guard(lines: tuple[Line, ...]) -> tuple[Line, ...]:
    return tuple([line for line in lines if target_of(line[1]) == KUBELET_FIREWALL])
