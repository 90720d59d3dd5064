"""What a node needs set once, before anything is served: conntrack's limits, and our OOM score.

Each setting stands for itself: one that cannot be set is told, with the reason, and the others
are set. A proxy without larger limits is better than none.
"""

from __future__ import annotations

import os

from kproxy import logs
from kproxy.backends import registry
from kproxy.config import Config
from kproxy.core.kernel_limits import (
    HASH_SIZE,
    conntrack_max,
    conntrack_sysctls,
    hash_size,
)
from kproxy.core.objects import Family
from kproxy.core.settings import node_settings
from kproxy.core.snapshot import Snapshot
from kproxy.errors import KernelError
from kproxy.kernel import process, sysctl
from kproxy.kernel.addresses import host_addresses

_log = logs.get("setup")


def prepare(config: Config) -> tuple[str, ...]:
    """Set conntrack's sysctls of this network namespace; what could not be set, and why.

    What is changed is recorded for ``kproxy cleanup``.
    """
    failed: list[str] = []
    for name, value in conntrack_sysctls(config, cpus()):
        failed += _set(name, str(value))
    failed += _widen(conntrack_max(config.conntrack, cpus()))
    return tuple(failed)


def prepare_process(config: Config) -> tuple[str, ...]:
    """Set this process's OOM score and limits; what could not be set, and why."""
    process.raise_open_files()
    try:
        process.set_oom_score_adj(config.oom_score_adj)
    except KernelError as refused:
        return (str(refused),)
    return ()


def prepare_mode(config: Config, choice: registry.Choice, name: str) -> None:
    """What the mode's rules need set beside the rules, for every family of this machine."""
    choice = registry.resolve(choice)
    addresses = host_addresses()
    for family in Family:
        settings = node_settings(config, None, name, family, addresses)
        snapshot = Snapshot(family=family, settings=settings, ports={})
        backend = registry.create(choice, family)
        for sysctl_name, value in registry.prepare(choice.mode, backend, snapshot):
            _log.info("set", sysctl=sysctl_name, value=value)


def cpus() -> int:
    """Processors of the machine, whatever share of them this process may use."""
    return os.cpu_count() or 1


def _set(name: str, value: str) -> list[str]:
    try:
        if sysctl.change(name, value):
            _log.info("set", sysctl=name, value=value)
    except KernelError as refused:
        return [f"{refused.what} (it is {sysctl.read(name) or 'not there'})"]
    return []


def _widen(limit: int) -> list[str]:
    """The hash table follows the limit. The kernel lets nobody but the host's namespace do it."""
    current = sysctl.read(HASH_SIZE)
    wanted = hash_size(limit, int(current)) if limit and current is not None else None
    return _set(HASH_SIZE, str(wanted)) if wanted is not None else []
