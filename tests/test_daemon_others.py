"""A running daemon and the other programs of its node."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from kproxy.kernel import command, netns
from kproxy.kernel.netlink import open_route
from tests.test_daemon import TIMEOUT, Proxy, node, proxy, put, service
from tests.test_daemon_watched import of, samples

__all__ = ["node", "proxy"]

pytestmark = pytest.mark.kernel

VARIANTS = ["legacy", "nft"]


def run(proxy: Proxy, *argv: str, stdin: bytes | None = None) -> None:
    """Somebody else's command in the node."""
    with netns.entered(proxy.namespace):
        command.run(list(argv), stdin=stdin, env=proxy.environment)


def foreign(proxy: Proxy) -> float:
    return samples(proxy)[of("kproxy_foreign_changes_total", ip_family="IPv4")]


def serving(proxy: Proxy, variant: str) -> Path:
    file = proxy.manifests / "web.yaml"
    put(file, service())
    proxy.start("--iptables-variant", variant)
    proxy.until_in_force(file)
    return file


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_flush_is_mended_told_and_counted(proxy: Proxy, variant: str) -> None:
    """Without any change of objects, and long before syncPeriod (30 s): the rules are as they
    were, the log says what happened, the metric counts each time."""
    serving(proxy, variant)
    before = proxy.rules(variant)
    assert foreign(proxy) == 0
    for count, table in enumerate(("nat", "filter"), 1):
        run(proxy, f"iptables-{variant}", "-t", table, "-F")
        proxy.until(lambda count=count: foreign(proxy) == count)  # type: ignore[misc]
        assert sorted(proxy.rules(variant).splitlines()) == sorted(before.splitlines())
    assert proxy.log.read_text().count("rules were changed by others") == 2
    assert proxy.stop() == 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_change_beside_our_own_writing_is_mended(
    proxy: Proxy, variant: str, tmp_path: Path
) -> None:
    """Somebody else empties a chain right after a sync of ours has written, and nobody looks before
    that sync is over: it is mended long before syncPeriod (30 s), and counted."""
    folder, meddle = tmp_path / "bin", tmp_path / "meddle"
    folder.mkdir()
    real = command.require(f"iptables-{variant}-restore")
    foreign_tool = command.require(f"iptables-{variant}")
    wrapper = folder / f"iptables-{variant}-restore"
    wrapper.write_text(
        f'#!/bin/sh\n{real} "$@" || exit\n'
        f"rm {meddle} 2>/dev/null && {foreign_tool} -w -t nat -F KUBE-MARK-MASQ\nexit 0\n"
    )
    wrapper.chmod(0o755)
    file = proxy.manifests / "web.yaml"
    put(file, service())
    path = {"PATH": f"{folder}:{os.environ['PATH']}"}
    proxy.start("--iptables-variant", variant, environment=path)
    proxy.until_in_force(file)
    before = proxy.rules(variant)
    meddle.touch()
    put(file, service(endpoint="10.180.0.2"))
    proxy.until_in_force(file)
    proxy.until(lambda: foreign(proxy) == 1)
    assert not meddle.exists()
    after = proxy.rules(variant).replace("10.180.0.2", "10.180.0.1")
    assert without_endpoint_names(after) == without_endpoint_names(before)
    assert proxy.log.read_text().count("rules were changed by others") == 1
    assert proxy.stop() == 0


def without_endpoint_names(rules: str) -> list[str]:
    """The name of an endpoint's chain depends on its address."""
    return sorted(re.sub("KUBE-SEP-[A-Z0-9]+", "KUBE-SEP", rules).splitlines())


def test_other_peoples_tables_cause_no_sync(proxy: Proxy) -> None:
    """nft: a change of somebody's own table is not ours to look at. The next change of objects is
    the next sync."""
    file = serving(proxy, "nft")
    syncs = proxy.status().syncs
    run(proxy, "nft", "add table inet mine; add chain inet mine c; add rule inet mine c accept")
    run(proxy, "iptables-nft", "-N", "MINE")
    put(file, service(endpoint="10.180.0.2"))
    proxy.until_in_force(file)
    assert proxy.status().syncs == syncs + 1
    assert "changed by others" not in proxy.log.read_text()


@pytest.mark.parametrize(("old", "new"), [VARIANTS, VARIANTS[::-1]])
def test_a_start_in_the_other_variant_takes_over(proxy: Proxy, old: str, new: str) -> None:
    """The old rules are there until the new ones stand, then they go, and it is told."""
    file = serving(proxy, old)
    assert proxy.stop() == 0
    assert "KUBE-SVC" in proxy.rules(old)
    put(file, service(endpoint="10.180.0.2"))
    proxy.start("--iptables-variant", new)
    proxy.until_in_force(file)
    assert "KUBE" not in proxy.rules(old)
    assert "--to-destination 10.180.0.2:8080" in proxy.rules(new)
    assert f"removed what was left of another mode mode=iptables-{old}" in proxy.log.read_text()
    # The next syncs, so that somebody has looked since.
    for endpoint in ("10.180.0.3", "10.180.0.4"):
        put(file, service(endpoint=endpoint))
        proxy.until_in_force(file)
    assert "changed by others" not in proxy.log.read_text()
    assert foreign(proxy) == 0


def dial(proxy: Proxy) -> socket.socket:
    """A connection from the node to the service's cluster IP, answered once."""
    with netns.entered(proxy.namespace):
        made = socket.create_connection(("172.30.0.41", 80), TIMEOUT)
    echo(made)
    return made


def echo(connection: socket.socket) -> None:
    connection.sendall(b"x")
    assert connection.recv(1) == b"x"


@contextmanager
def responder(proxy: Proxy) -> Iterator[None]:
    """An endpoint on the node's own address that sends back what it gets."""

    def answer(connection: socket.socket) -> None:
        with connection:
            while data := connection.recv(1):
                connection.sendall(data)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=answer, args=listener.accept()[:1]).start()

    with open_route(proxy.namespace) as route:
        index = route.link_lookup(ifname="br0")[0]
        route.route("add", dst="172.30.0.0/16", oif=index)
    with netns.entered(proxy.namespace):
        listener = socket.create_server(("192.0.2.7", 8080), backlog=64)
    worker = threading.Thread(target=accept)
    worker.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        worker.join()


@pytest.mark.parametrize(("old", "new"), [VARIANTS, VARIANTS[::-1]])
def test_no_connection_notices_the_takeover(proxy: Proxy, old: str, new: str) -> None:
    """A long one goes on, and new ones are answered at any moment of it: the old variant's rules go
    only when the new one's stand."""
    file = proxy.manifests / "web.yaml"
    put(file, service(endpoint="192.0.2.7"))
    over, failed, done = threading.Event(), list[str](), 0

    def keep_dialling() -> None:
        nonlocal done
        while not over.is_set():
            try:
                dial(proxy).close()
                done += 1
            except (OSError, AssertionError) as error:
                failed.append(repr(error))

    with responder(proxy):
        proxy.start("--iptables-variant", old)
        proxy.until_in_force(file)
        held = dial(proxy)
        worker = threading.Thread(target=keep_dialling)
        worker.start()
        try:
            assert proxy.stop() == 0
            proxy.start("--iptables-variant", new)
            proxy.until_in_force(file)
            assert "KUBE" not in proxy.rules(old)
            after = done
            while done < after + 10 and not failed:
                os.sched_yield()
        finally:
            over.set()
            worker.join()
        echo(held)
        held.close()
    assert failed == []
    assert done > 10


@pytest.mark.parametrize("variant", VARIANTS)
def test_kill_9_and_a_new_start_converge(proxy: Proxy, variant: str) -> None:
    """Killed with a change on its way: whatever of it arrived, the next daemon ends where the
    objects say, and what is reachable meanwhile is an endpoint of the old or of the new state."""
    file = serving(proxy, variant)
    for number in range(2, 6):
        put(file, service(endpoint=f"10.180.0.{number}"))
        assert proxy.process is not None
        proxy.process.send_signal(signal.SIGKILL)
        proxy.process.wait()
        ends = [row for row in proxy.rules(variant).splitlines() if "--to-destination" in row]
        assert len(ends) == 1
        assert ends[0].endswith((f"10.180.0.{number - 1}:8080", f"10.180.0.{number}:8080"))
        proxy.start("--iptables-variant", variant)
        proxy.until_in_force(file)
        assert f"--to-destination 10.180.0.{number}:8080" in proxy.rules(variant)


def test_a_poisonous_service_is_told_and_the_others_serve(proxy: Proxy, tmp_path: Path) -> None:
    """The tool refuses one service: it is in the status, the log and the metric, the other one is
    in force; when it changes it is tried again, and serves."""
    folder = tmp_path / "bin"
    folder.mkdir()
    real = command.require("iptables-nft-restore")
    wrapper = folder / "iptables-nft-restore"
    # A real refusal by the real tool: a port that does not exist.
    wrapper.write_text(f'#!/bin/sh\nsed "s/10.180.66.6:8080/10.180.66.6:80800/" | {real} "$@"\n')
    wrapper.chmod(0o755)
    good, bad = proxy.manifests / "web.yaml", proxy.manifests / "bad.yaml"
    put(good, service())
    put(bad, service("bad", "172.30.0.66", "10.180.66.6", 30066))
    proxy.start(environment={"PATH": f"{folder}:{os.environ['PATH']}"})
    proxy.until_in_force(good, bad)
    assert "10.180.0.1:8080" in proxy.rules()
    assert "172.30.0.66" not in proxy.rules()
    (line,) = proxy.status().refusals
    assert line.startswith("Service port ns1/bad:p: ")
    assert "80800" in line
    assert samples(proxy)[of("kproxy_refused_objects")] == 1
    failures = of("sync_proxy_rules_iptables_restore_failures_total", ip_family="IPv4")
    assert samples(proxy)[failures] >= 1
    put(bad, service("bad", "172.30.0.66", "10.180.0.6", 30066))
    proxy.until_in_force(bad)
    assert "172.30.0.66" in proxy.rules()
    assert proxy.status().refusals == ()
    assert "no longer left out" in proxy.log.read_text()
