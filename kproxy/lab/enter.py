"""Turns this process into a program inside a lab, as ``ip netns exec`` does and a little more.

The program gets the host's network namespace and a mount namespace of its own, in which /sys shows
the devices of that network and /etc/hosts knows the lab's names. Nothing of the machine changes.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NoReturn

from kproxy.errors import UsageError
from kproxy.kernel import mount, netns
from kproxy.lab import daemons, state
from kproxy.lab.model import LabState
from kproxy.lab.names import host_of


def environment(lab: LabState, host: str) -> dict[str, str]:
    """What is added to a program's environment: where it is, and a node's own iptables lock."""
    added = {"KPROXY_LAB": lab.name, "KPROXY_HOST": host}
    return {**daemons.node_environment(lab.name, host), **added} if host in lab.nodes else added


def become(
    lab: LabState, name: str, argv: Sequence[str], extra: Mapping[str, str] | None = None
) -> NoReturn:
    """Run ``argv`` in place of this process, in the node, client or pod ``name``.

    UsageError when there is no such program (the shell's words for it, exit status 127, would not
    say that the lab is fine).
    """
    host = host_of(lab, name)
    with_lab = {**os.environ, **environment(lab, host.name), **(extra or {})}
    namespace = netns.open_fd(lab.network.namespace(host.name))
    netns.enter(namespace)
    mount.own_mounts()
    # Containers may not mount sysfs; then /sys goes on showing the caller's devices.
    with suppress(OSError):
        mount.sysfs("/sys")
    hosts = state.hosts_path(lab.name)
    if hosts.exists():
        mount.bind(hosts, "/etc/hosts")
    # Python ignores it, and what is ignored stays so: ``yes | head`` must end in silence.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        os.execvpe(argv[0], list(argv), with_lab)
    except (OSError, ValueError) as wrong:  # ValueError: an empty name
        why = wrong.strerror if isinstance(wrong, OSError) else wrong
        raise UsageError(
            f"cannot run {argv[0]!r}: {why}", where=host.name, hint="is it installed here?"
        ) from wrong
