"""Which conntrack sysctls a configuration asks for: kube-proxy's arithmetic, as a table."""

from __future__ import annotations

from kproxy.config import Config
from kproxy.config_sections import Conntrack

_NETFILTER = "net/netfilter/nf_conntrack"

MAX = f"{_NETFILTER}_max"
BE_LIBERAL = f"{_NETFILTER}_tcp_be_liberal"

#: The module's parameter; it belongs to the host and not to a network namespace.
HASH_SIZE = "/sys/module/nf_conntrack/parameters/hashsize"

#: Entries for each bucket of the hash table that kube-proxy puts up with.
ENTRIES_PER_BUCKET = 4

#: Sysctl -> the field, a time of which the kernel takes whole seconds.
_TIMEOUTS = (
    (f"{_NETFILTER}_tcp_timeout_established", "tcp_established_timeout"),
    (f"{_NETFILTER}_tcp_timeout_close_wait", "tcp_close_wait_timeout"),
    (f"{_NETFILTER}_udp_timeout", "udp_timeout"),
    (f"{_NETFILTER}_udp_timeout_stream", "udp_stream_timeout"),
)


def conntrack_max(conntrack: Conntrack, cpus: int) -> int:
    """Entries that conntrack may hold; 0 leaves the kernel's limit."""
    if not conntrack.max_per_core:
        return 0
    return max(conntrack.min, conntrack.max_per_core * cpus)


def conntrack_sysctls(config: Config, cpus: int) -> tuple[tuple[str, int], ...]:
    """(name, value) of what is to be set; what the configuration leaves alone is not among them."""
    conntrack = config.conntrack
    limit = conntrack_max(conntrack, cpus)
    wanted = [(MAX, limit)] if limit else []
    for name, field in _TIMEOUTS:
        seconds = int(getattr(conntrack, field))
        if seconds > 0:
            wanted.append((name, seconds))
    if conntrack.tcp_be_liberal:
        wanted.append((BE_LIBERAL, 1))
    return tuple(wanted)


def hash_size(limit: int, current: int) -> int | None:
    """Buckets to ask for so that chains stay short; None when there are enough."""
    wanted = limit // ENTRIES_PER_BUCKET
    return wanted if current < wanted else None
