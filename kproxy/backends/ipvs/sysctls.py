"""The sysctls that IPVS needs set, as a table. Pure.

``net/ipv4/vs/*`` serve both families, and each network namespace has its own.
"""

from __future__ import annotations

from collections.abc import Callable

from kproxy.core.objects import Value
from kproxy.core.snapshot import IpvsSettings

#: (major, minor) of the kernel.
KernelVersion = tuple[int, int]


class Sysctl(Value, frozen=True):
    """``name`` is set to ``value`` where ``when`` (settings, kernel) says so."""

    name: str
    value: str
    when: Callable[[IpvsSettings, KernelVersion], bool] = lambda settings, kernel: True


SYSCTLS: tuple[Sysctl, ...] = (
    # Without it IPVS keeps conntrack out of its connections, and nothing can masquerade them.
    Sysctl("net/ipv4/vs/conntrack", "1"),
    # 1, the default, sends a client that reuses its port to a server anew: before 5.9 that took a
    # second for each such connection when conntrack was on. The sysctl came with 4.1.
    Sysctl("net/ipv4/vs/conn_reuse_mode", "0", lambda settings, kernel: (4, 1) <= kernel < (5, 9)),
    # A connection to a server that is gone ends with the next packet, instead of hanging on.
    Sysctl("net/ipv4/vs/expire_nodest_conn", "1"),
    # Session affinity does not send new connections to a server of weight 0.
    Sysctl("net/ipv4/vs/expire_quiescent_template", "1"),
    Sysctl("net/ipv4/ip_forward", "1"),
    # The VIPs stand on a dummy device: no other interface answers for them.
    Sysctl("net/ipv4/conf/all/arp_ignore", "1", lambda settings, kernel: settings.strict_arp),
    Sysctl("net/ipv4/conf/all/arp_announce", "2", lambda settings, kernel: settings.strict_arp),
)

#: What a backend reads; where a sysctl is not wanted its value does not matter.
NAMES = tuple(each.name for each in SYSCTLS)


def wanted(settings: IpvsSettings, kernel: KernelVersion) -> frozenset[tuple[str, str]]:
    """(name, value) of every sysctl that is to be set for these settings on this kernel."""
    return frozenset((each.name, each.value) for each in SYSCTLS if each.when(settings, kernel))
