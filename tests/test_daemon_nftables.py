"""A running daemon in nftables mode: others' hands, restarts, and what it takes over."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from kproxy.kernel import command, netns
from tests.test_daemon import Proxy, node, proxy, put, service
from tests.test_daemon_others import foreign, run
from tests.test_daemon_watched import of, samples

__all__ = ["node", "proxy"]

pytestmark = pytest.mark.kernel

#: What others do to the table.
DAMAGE = (
    "delete element ip kproxy ways { 172.30.0.41 . tcp . 80 }",
    "flush map ip kproxy endpoints",
    "insert rule ip kproxy nat-output accept",
    "delete table ip kproxy",
    "flush ruleset",
)


def started(proxy: Proxy) -> None:
    proxy.start("--proxy-mode", "nftables", "--iptables-variant", "auto")


def serving(proxy: Proxy) -> Path:
    file = proxy.manifests / "web.yaml"
    put(file, service())
    started(proxy)
    proxy.until_in_force(file)
    return file


def table(proxy: Proxy) -> list[str]:
    """What stands in the node, but for the time that clients have left."""
    with netns.entered(proxy.namespace):
        return sorted(command.run(["nft", "list", "ruleset"]).stdout.decode().split())


def test_what_others_do_is_mended_told_and_counted(proxy: Proxy) -> None:
    """Without any change of objects, and long before syncPeriod (30 s): the table is as it was, the
    log says what happened, the metric counts each time."""
    serving(proxy)
    before = table(proxy)
    assert foreign(proxy) == 0
    for count, damage in enumerate(DAMAGE, 1):
        run(proxy, "nft", damage)
        proxy.until(lambda count=count: foreign(proxy) == count)  # type: ignore[misc]
        assert table(proxy) == before
    log = proxy.log.read_text()
    assert log.count("rules were changed by others") == len(DAMAGE)
    assert "nft (" in log
    failures = of("sync_proxy_rules_nftables_sync_failures_total", ip_family="IPv4")
    assert samples(proxy)[failures] == 0
    assert proxy.stop() == 0


def test_tables_of_others_cause_no_sync(proxy: Proxy) -> None:
    """The next change of objects is the next sync."""
    file = serving(proxy)
    syncs = proxy.status().syncs
    run(proxy, "nft", "add table ip mine; add chain ip mine c; add rule ip mine c accept")
    run(proxy, "iptables-nft", "-N", "MINE")
    run(proxy, "nft", "delete table ip mine")
    put(file, service(endpoint="10.180.0.2"))
    proxy.until_in_force(file)
    assert proxy.status().syncs == syncs + 1
    assert "changed by others" not in proxy.log.read_text()


def test_kill_9_and_a_new_start_converge(proxy: Proxy) -> None:
    """Killed with a change on its way: the old endpoint or the new one is there, whole; the next
    daemon ends where the objects say. One that finds what it wants writes nothing, and clients keep
    their endpoints."""
    file = serving(proxy)
    for number in range(2, 4):
        put(file, service(endpoint=f"10.180.0.{number}"))
        assert proxy.process is not None
        proxy.process.send_signal(signal.SIGKILL)
        proxy.process.wait()
        found = [word for word in table(proxy) if word.startswith("10.180.0.")]
        either = (f"10.180.0.{number - 1}", f"10.180.0.{number}")
        assert set(found) in ({either[0]}, {either[1]})
        started(proxy)
        proxy.until_in_force(file)
        assert f"10.180.0.{number}" in table(proxy)
    run(proxy, "nft", "add element ip kproxy affinity { 192.0.2.1 . 0x1 timeout 1h : 7 }")
    assert proxy.stop() == 0
    started(proxy)
    proxy.until_in_force(file)
    assert all(family.written == 0 for family in proxy.status().families)
    assert "192.0.2.1" in table(proxy)


def test_it_takes_over_from_kube_proxys(proxy: Proxy) -> None:
    """The table of kube-proxy's mode of this name goes when ours stands, and it is told."""
    run(proxy, "nft", "add table ip kube-proxy; add chain ip kube-proxy services")
    run(proxy, "nft", "add table ip6 kube-proxy; add chain ip6 kube-proxy services")
    serving(proxy)
    words = table(proxy)
    assert "kube-proxy" not in words
    assert "kproxy" in words
    log = proxy.log.read_text()
    assert "removed what was left of another mode mode=nftables" in log
    assert "changed by others" not in log
