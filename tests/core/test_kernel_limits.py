"""conntrack's sysctls: kube-proxy's arithmetic, by table."""

from __future__ import annotations

import pytest

from kproxy.config import Config
from kproxy.config_sections import Conntrack
from kproxy.core.kernel_limits import conntrack_max, conntrack_sysctls, hash_size
from kproxy.durations import Seconds

ESTABLISHED = "net/netfilter/nf_conntrack_tcp_timeout_established"
CLOSE_WAIT = "net/netfilter/nf_conntrack_tcp_timeout_close_wait"


@pytest.mark.parametrize(
    ("per_core", "least", "cpus", "limit"),
    [
        (32768, 131072, 2, 131072),
        (32768, 131072, 4, 131072),
        (32768, 131072, 64, 2097152),
        (32768, 0, 2, 65536),
        (0, 131072, 64, 0),
    ],
)
def test_the_limit(per_core: int, least: int, cpus: int, limit: int) -> None:
    """max(min, maxPerCore x CPUs); maxPerCore 0 leaves the limit alone, whatever min says."""
    assert conntrack_max(Conntrack(max_per_core=per_core, min=least), cpus) == limit


@pytest.mark.parametrize(
    ("conntrack", "wanted"),
    [
        (
            Conntrack(),
            {"net/netfilter/nf_conntrack_max": 131072, ESTABLISHED: 86400, CLOSE_WAIT: 3600},
        ),
        (
            Conntrack(
                max_per_core=0,
                tcp_established_timeout=Seconds(0),
                tcp_close_wait_timeout=Seconds(0),
            ),
            {},
        ),
        (
            Conntrack(
                max_per_core=0,
                tcp_established_timeout=Seconds(90.9),
                tcp_close_wait_timeout=Seconds(0.5),
                tcp_be_liberal=True,
                udp_timeout=Seconds(10),
                udp_stream_timeout=Seconds(20),
            ),
            {
                ESTABLISHED: 90,
                "net/netfilter/nf_conntrack_udp_timeout": 10,
                "net/netfilter/nf_conntrack_udp_timeout_stream": 20,
                "net/netfilter/nf_conntrack_tcp_be_liberal": 1,
            },
        ),
    ],
)
def test_the_sysctls(conntrack: Conntrack, wanted: dict[str, int]) -> None:
    """Each setting has its sysctl, in whole seconds; zero and false leave the kernel's."""
    assert dict(conntrack_sysctls(Config(conntrack=conntrack), 2)) == wanted


@pytest.mark.parametrize(
    ("limit", "current", "wanted"),
    [(131072, 32768, None), (131072, 32767, 32768), (131072, 262144, None), (0, 1, None)],
)
def test_the_hash_table_follows(limit: int, current: int, wanted: int | None) -> None:
    """A quarter of the limit at least; it is never made smaller."""
    assert hash_size(limit, current) == wanted
