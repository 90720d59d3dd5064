"""Stale flows go with a sync: a whole proxy in a namespace, and entries in its conntrack table."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Iterator

import pytest

from kproxy import flows
from kproxy.backends import registry
from kproxy.backends.xtables.variant import Variant
from kproxy.config import Config
from kproxy.core.events import Delta, ref_of
from kproxy.core.objects import ClusterObject, Family
from kproxy.errors import NetlinkError
from kproxy.flows import FlowCleaner
from kproxy.kernel.conntrack import Conntrack
from kproxy.proxy import NodeProxy
from tests.contract.namespaces import scratch
from tests.core.flows import World, dns, pods
from tests.kernel.entries import SCTP, TCP, Entry, put

pytestmark = pytest.mark.kernel

VIP, VIP6, OUT = "172.30.0.41:53", "[fd00:30::41]:53", "198.51.100.7:53"
POD, POD2, POD6 = "10.180.0.1:53", "10.180.0.2:53", "[fd00:10::1]:53"


@pytest.fixture(params=list(Variant), autouse=True)
def variant(request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of its own, and the variant of its proxy."""
    with scratch():
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        subprocess.run(["ip", "addr", "add", "192.0.2.7/32", "dev", "lo"], check=True)
        yield str(request.param)


def proxy(variant: str, *objects: ClusterObject) -> NodeProxy:
    made = NodeProxy(Config(), "node1", registry.parse(f"iptables-{variant}"))
    made.begin(Delta(objects))
    return made


def sources() -> list[str]:
    """Protocol and source port of every entry, both families."""
    rows = []
    for family in ("ipv4", "ipv6"):
        argv = ["conntrack", "-L", "-f", family]
        out = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
        for row in out.splitlines():
            words = row.split()
            port = next(word for word in words if word.startswith("sport="))
            rows.append(f"{words[0]} {port.removeprefix('sport=')}")
    return sorted(rows)


def deleted(proxy: NodeProxy) -> int:
    return sum(record.cleaned.deleted for record in proxy.records if record.cleaned)


BOTH = dns(ip=("172.30.0.41", "fd00:30::41"), external_ips=("198.51.100.7",), node_port=30053)
ONE, TWO = pods("10.180.0.1"), pods("10.180.0.1", "10.180.0.2")


def entries(*rows: tuple[int, str, str], protocol: int = 17) -> None:
    """(source port, destination, place)"""
    client = {True: "[fd00:9::9]", False: "10.0.0.9"}
    put(
        Entry(f"{client['[' in way]}:{port}", way, place, "", protocol) for port, way, place in rows
    )


def test_only_what_is_stale_goes(variant):
    """At a change the flows to the endpoint that went go; healthy ones, TCP and SCTP stay."""
    node = proxy(variant, BOTH, TWO)
    assert node.sync(full=True)
    entries((1, VIP, POD), (2, VIP, POD2), (3, OUT, POD2), (4, "192.0.2.7:30053", POD2))
    entries((5, "192.0.2.7:5353", POD2), (6, POD2, POD2), (7, "203.0.113.9:53", POD2))
    entries((8, VIP, POD2), (9, VIP, POD), protocol=TCP)
    entries((10, VIP, POD2), (11, VIP, POD), protocol=SCTP)
    assert node.sync([Delta((ONE,))])
    assert deleted(node) == 3
    left = ["udp 1", "udp 5", "udp 6", "udp 7", "tcp 8", "tcp 9", "sctp 10", "sctp 11"]
    assert sources() == sorted(left)
    node.close()


def test_both_families_and_a_deleted_service(variant):
    """Each family cleans its own table; a service that goes takes its flows along."""
    slice6 = pods("fd00:10::1")
    node = proxy(variant, BOTH, ONE)
    assert node.sync([Delta((slice6,))], full=True)
    entries((1, VIP6, POD6), (2, VIP6, VIP6))
    assert node.sync([Delta((), (ref_of(BOTH),))])
    assert sources() == ["udp 2"]
    node.close()


def test_at_start(variant):
    """What changed while nobody ran is found in the table, and in the rules that still stand."""
    node = proxy(variant, BOTH, TWO, dns("gone", ip="172.30.0.99"), pods(POD[:-3], service="gone"))
    assert node.sync(full=True)
    node.close()
    entries((1, VIP, POD), (2, VIP, POD2), (3, "172.30.0.99:53", POD))
    entries((4, "172.30.0.98:53", POD), (5, "172.30.0.99:53", "172.17.0.2:53"))
    again = proxy(variant, BOTH, ONE)
    assert again.sync(full=True)
    assert sources() == ["udp 1", "udp 4", "udp 5"]
    again.close()


def test_a_failure_is_no_failed_sync(variant, monkeypatch):
    """Rules are in force all the same; the next sync, with no change at all, cleans."""
    node = proxy(variant, BOTH, TWO)
    assert node.sync(full=True)
    entries((1, VIP, POD), (2, VIP, POD2))

    def refuse(*_: object) -> None:
        raise NetlinkError("no room", errno.ENOBUFS)

    with monkeypatch.context() as broken:
        broken.setattr(Conntrack, "delete", refuse)
        assert node.sync([Delta((ONE,))])
    assert node.flows_retry_delay == 1.0
    assert sources() == ["udp 1", "udp 2"]
    assert node.sync()
    assert node.flows_retry_delay == 0.0
    assert sources() == ["udp 1"]
    node.close()


def test_a_sync_of_nothing_looks_at_nothing(variant):
    """Work follows the change: no UDP port changed, or only endpoints came."""
    node = proxy(variant, BOTH, ONE)
    assert node.sync(full=True)
    for change in ([], [Delta((TWO,))], [Delta((dns("other", ip="172.30.0.42"),))]):
        assert node.sync(change)
    assert [record.cleaned is None for record in node.records] == [False, True]
    assert node.sync([Delta((pods("10.180.0.1", service="nobody"),))])
    assert all(record.cleaned is None for record in node.records)
    node.close()


@pytest.mark.parametrize("mode", ["userspace", "fastpath"])
def test_other_modes_keep_flows_elsewhere(mode, variant):
    """Their entries tell nothing of an endpoint."""
    entries((1, VIP, POD))
    cleaner = FlowCleaner(Family.IPV4, mode)
    cleaner.plan(World().plan(dns(), pods("10.180.0.2")), ())
    assert cleaner.knows_its_past
    assert cleaner.clean(all_of_it=True) is None
    assert sources() == ["udp 1"]


def test_a_fault_of_ours_is_told_and_tried_again(variant, monkeypatch, caplog):
    """It ends neither the sync nor the cleaning for good; the wait doubles up to its limit."""
    cleaner = FlowCleaner(Family.IPV4, "iptables")
    cleaner.plan(World().plan(dns(), pods("10.180.0.2")), ())
    with monkeypatch.context() as broken:
        broken.setattr(flows, "Conntrack", None)
        delays = [cleaner.clean(all_of_it=False) or cleaner.retry_delay for _ in range(12)]
    assert delays[:3] == [1.0, 2.0, 4.0]
    assert delays[-1] == 300.0
    assert sum("may be left" in record.message for record in caplog.records) == 1
    assert cleaner.clean(all_of_it=False) is not None
    assert cleaner.retry_delay == 0.0
