"""The table of tracked connections, emptied for real."""

from __future__ import annotations

import socket

import pytest

from kproxy.errors import NetlinkError
from kproxy.kernel import command, conntrack_table, netns, sysctl

pytestmark = pytest.mark.kernel

#: What makes the kernel track connections here.
TRACKING = "table inet t { chain c { type filter hook output priority 0; ct state new accept; }; }"


def tracked() -> int:
    return int(sysctl.read("net/netfilter/nf_conntrack_count"))


def test_everything_is_forgotten() -> None:
    """Of both families and protocols; and an empty table may be emptied again."""
    with netns.fresh():
        command.run(["ip", "link", "set", "lo", "up"])
        command.run(["nft", "-f", "-"], stdin=TRACKING.encode())
        for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            with socket.create_server((host, 0), family=family) as server:
                socket.create_connection(server.getsockname()[:2]).close()
            with socket.socket(family, socket.SOCK_DGRAM) as datagrams:
                datagrams.sendto(b"x", (host, 9))
        assert tracked() >= 4
        conntrack_table.flush()
        assert tracked() == 0
        conntrack_table.flush()


def test_a_refusal_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's reason."""
    monkeypatch.setattr(conntrack_table, "CT_DELETE", 0x01FF)  # no such message
    with netns.fresh(), pytest.raises(NetlinkError, match="cannot empty the conntrack table"):
        conntrack_table.flush()
