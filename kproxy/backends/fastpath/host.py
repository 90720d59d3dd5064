"""What this host has for fastpath mode, found by doing it in a scratch namespace."""

from __future__ import annotations

import os

from kproxy.backends.fastpath import steer
from kproxy.backends.fastpath.door import learned
from kproxy.backends.fastpath.steer import DEVICES, Frame
from kproxy.core.objects import Family
from kproxy.core.steering import wanted
from kproxy.errors import CommandError, KernelError, MachineError
from kproxy.kernel import command, netns, steering, sysctl, tun


def probe(family: Family) -> None:
    """MachineError that names what is missing and what would give it."""
    command.require("nft")
    try:
        learned(Frame(family, localhost=family is Family.IPV4))
    except CommandError as refused:
        raise MachineError(
            f"fastpath mode: nft refuses its rules: {refused.stderr.strip()}",
            hint="a kernel with CONFIG_NF_TABLES and CONFIG_NFT_CT",
        ) from refused
    with netns.fresh():
        _try_device(family)


def _try_device(family: Family) -> None:
    """A device, and packets led to it by their mark."""
    plan = steer.plan(family)
    for queue in tun.open_queues(DEVICES[family], 1):
        os.close(queue)
    try:
        steering.put(plan, wanted(plan))
    except KernelError as refused:
        raise MachineError(
            f"fastpath mode: {refused.what}",
            hint="a kernel with CONFIG_IP_MULTIPLE_TABLES and CONFIG_IPV6_MULTIPLE_TABLES",
        ) from refused
    for name, value in steer.device_sysctls(family).items():
        if sysctl.read(name) is None:
            raise MachineError(
                f"fastpath mode: no sysctl {name}", hint=f"a kernel that knows {name}={value}"
            )
