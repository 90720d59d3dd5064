"""What a running daemon shows and heeds beside its objects: servers, settings, limits."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kproxy.kernel import command, netns, sysctl
from kproxy.kernel.nfacct import Counters
from tests.test_config import KUBEADM
from tests.test_daemon import TIMEOUT, Proxy, node, proxy, put, service

__all__ = ["node", "proxy"]

pytestmark = pytest.mark.kernel

HEALTH, METRICS = 10256, 10249
ESTABLISHED = "net/netfilter/nf_conntrack_tcp_timeout_established"
LIBERAL = "net/netfilter/nf_conntrack_tcp_be_liberal"
LOCALNET = "net/ipv4/conf/all/route_localnet"

#: A limit of conntrack that no machine has already: that one would be left as it is.
ODD_LIMIT = ("--conntrack-max-per-core", "12345", "--conntrack-min", "0")

NODE = """\
apiVersion: v1
kind: Node
metadata: {{name: n1}}
spec: {spec}
"""


def get(proxy: Proxy, port: int, path: str) -> tuple[int, str]:
    """Ask a server of the node from the node itself."""
    with netns.entered(proxy.namespace):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
        connection.connect()
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def samples(proxy: Proxy) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = get(proxy, METRICS, "/metrics")[1]
    return {
        (sample.name.removeprefix("kubeproxy_"), frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def of(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


def test_paths_are_looked_at_before_the_node_is_touched(proxy: Proxy) -> None:
    """A mistyped -f sets no sysctl and leaves nothing that would have to be set back."""
    before = in_node(proxy, ESTABLISHED)
    ended = proxy.kproxy("run", "-f", "/nonexistent/web.yaml", "--state-dir", str(proxy.state))
    assert ended.returncode == 2
    assert "/nonexistent/web.yaml: No such file" in ended.stderr
    assert "check the path given with -f" in ended.stderr
    assert in_node(proxy, ESTABLISHED) == before != "86400"
    assert not Path(proxy.environment["KPROXY_RECORDS"]).exists()
    assert not proxy.state.exists()


COUNTED = {
    "iptables_ct_state_invalid_dropped_packets_total",
    "iptables_localhost_nodeports_accepted_packets_total",
}
STRAY = """
from scapy.all import IP, TCP, raw
import socket
door = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
for port in (8080, 9999):
    stray = IP(src="10.180.0.1", dst="203.0.113.9") / TCP(sport=port, dport=4000, flags="SA")
    door.sendto(raw(stray), ("203.0.113.9", 0))
"""


@pytest.mark.parametrize("variant", ["legacy", "nft"])
def test_the_kernel_counts_for_the_metrics(proxy: Proxy, variant: str) -> None:
    """A stray packet of an endpoint that is dropped, and a connection to a node port on loopback,
    each once; neither packets of others nor other ports. Cleanup takes the counters away."""
    file = proxy.manifests / "web.yaml"
    put(file, service())
    with endpoint_beside(proxy) as peer:
        proxy.start("--iptables-variant", variant)
        proxy.until_in_force(file)
        assert counted(proxy) == dict.fromkeys(COUNTED, 0)
        with netns.entered(peer):
            subprocess.run([sys.executable, "-c", STRAY], check=True, timeout=TIMEOUT)
        for port in (30080, 30081):
            with netns.entered(proxy.namespace):
                client = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            with client:
                client.connect_ex(("127.0.0.1", port))
        # What crosses a link may do so a moment after it was sent.
        deadline = time.monotonic() + TIMEOUT
        while not all(counted(proxy).values()):
            assert time.monotonic() < deadline, counted(proxy)
        assert counted(proxy) == dict.fromkeys(COUNTED, 1)
        assert proxy.stop() == 0
        cleaned = proxy.kproxy("cleanup")
        assert cleaned.returncode == 0, cleaned.stderr
        with netns.entered(proxy.namespace), Counters() as counters:
            assert counters.all() == {}


def counted(proxy: Proxy) -> dict[str, float]:
    return {name: value for (name, _), value in samples(proxy).items() if name in COUNTED}


@contextmanager
def endpoint_beside(proxy: Proxy) -> Iterator[str]:
    """The endpoint of :func:`service` in a namespace of its own, behind a router that is the node;
    what the node forwards ends there for lack of a neighbour."""
    name = f"{proxy.namespace}p"
    netns.create(name)
    try:
        with netns.entered(proxy.namespace):
            sysctl.write("net/ipv4/ip_forward", "1")
            for argv in (
                f"link add kp0 type veth peer kp0 netns {name}",
                "link set kp0 up",
                "address add 10.180.255.254/16 dev kp0",
                "route add 203.0.113.0/24 dev br0",
            ):
                command.run(["ip", *argv.split()])
        with netns.entered(name):
            for argv in (
                "link set kp0 up",
                "address add 10.180.0.1/16 dev kp0",
                "route add default via 10.180.255.254",
            ):
                command.run(["ip", *argv.split()])
        yield name
    finally:
        netns.remove(name)


def in_node(proxy: Proxy, name: str) -> str | None:
    with netns.entered(proxy.namespace):
        return sysctl.read(name)


def test_the_servers_of_a_running_proxy(proxy: Proxy) -> None:
    """Health, mode and settings of the process that serves."""
    file = proxy.manifests / "web.yaml"
    put(file, service())
    proxy.start()
    proxy.until_in_force(file)
    code, text = get(proxy, HEALTH, "/healthz")
    assert (code, json.loads(text)["nodeEligible"]) == (200, True)
    assert set(json.loads(text)["status"]) == {"IPv4", "IPv6"}
    assert get(proxy, HEALTH, "/livez")[0] == 200
    assert get(proxy, METRICS, "/proxyMode") == (200, "iptables")
    settings = json.loads(get(proxy, METRICS, "/configz")[1])["kubeproxy.config.k8s.io"]
    assert settings["hostnameOverride"] == "n1"
    put(proxy.manifests / "node.yaml", NODE.format(spec="{taints: [{key: X}]}"))
    proxy.until_in_force(proxy.manifests / "node.yaml")
    assert get(proxy, HEALTH, "/healthz")[0] == 200
    leaving = "{taints: [{key: ToBeDeletedByClusterAutoscaler}]}"
    put(proxy.manifests / "node.yaml", NODE.format(spec=leaving))
    proxy.until_in_force(proxy.manifests / "node.yaml")
    assert get(proxy, HEALTH, "/healthz")[0] == 503
    assert get(proxy, HEALTH, "/livez")[0] == 200
    assert proxy.stop() == 0


def test_the_metrics_of_a_running_proxy(proxy: Proxy) -> None:
    """Syncs, rules and changes are counted, and the way of a change from the cluster is timed."""
    file = proxy.manifests / "web.yaml"
    put(file, service())
    proxy.start()
    proxy.until_in_force(file)
    first = samples(proxy)
    assert first[of("sync_full_proxy_rules_duration_seconds_count", ip_family="IPv4")] == 1
    assert first[of("sync_proxy_rules_service_changes_total")] == 1
    assert first[of("sync_proxy_rules_iptables_total", table="nat", ip_family="IPv4")] == sum(
        line.startswith("-A") for line in proxy.rules().split("*nat")[1].split("*")[0].splitlines()
    )
    assert of("network_programming_duration_seconds_count", ip_family="IPv4") not in first
    happened = datetime.now(UTC) - timedelta(seconds=0.1)
    trigger = "annotations: {endpoints.kubernetes.io/last-change-trigger-time: "
    trigger += f"'{happened.isoformat()}'}}, labels: {{kubernetes.io"
    text = service(endpoint="10.180.0.2").replace("labels: {kubernetes.io", trigger)
    put(file, text)
    proxy.until_in_force(file)
    then = samples(proxy)
    four = {"ip_family": "IPv4"}
    assert then[of("network_programming_duration_seconds_count", **four)] == 1
    assert then[of("network_programming_duration_seconds_sum", **four)] >= 0.1
    assert then[of("sync_partial_proxy_rules_duration_seconds_count", **four)] == 1
    assert then[of("sync_proxy_rules_endpoint_changes_total")] == 2
    assert then[of("sync_proxy_rules_endpoint_changes_pending")] == 0
    asked = then[of("sync_proxy_rules_last_queued_timestamp_seconds", **four)]
    assert asked <= then[of("sync_proxy_rules_last_timestamp_seconds", **four)]


def test_it_is_not_healthy_before_it_has_begun(proxy: Proxy) -> None:
    """In NodeCIDR mode without pod ranges: no rule, no health; both with the ranges."""
    file, of_node = proxy.manifests / "web.yaml", proxy.manifests / "node.yaml"
    put(file, service())
    put(of_node, NODE.format(spec="{}"))
    proxy.start("--detect-local-mode", "NodeCIDR")
    proxy.until_logged("waiting for spec.podCIDRs")
    assert get(proxy, HEALTH, "/livez")[0] == 503
    assert "KUBE" not in proxy.rules()
    put(of_node, NODE.format(spec="{podCIDRs: [10.180.0.0/24]}"))
    proxy.until_in_force(file, of_node)
    assert "! -s 10.180.0.0/24 -d 172.30.0.41/32" in proxy.rules()
    assert get(proxy, HEALTH, "/livez")[0] == 200


def test_waiting_for_pod_ranges_has_an_end(proxy: Proxy) -> None:
    """After the patience is over it gives up, naming the Node; nothing was written."""
    put(proxy.manifests / "web.yaml", service())
    code = (
        "from kproxy import daemon; from kproxy.config import Config; import sys;"
        "sys.exit(daemon.main(Config(detect_local_mode='NodeCIDR', hostname_override='n1'),"
        f"[{str(proxy.manifests)!r}], {str(proxy.state)!r}, 'nft', patience=0.05))"
    )
    done = proxy.python(code)
    assert done.returncode == 1
    assert "kproxy: Node n1: no spec.podCIDRs after 50ms" in done.stderr
    assert "KUBE" not in proxy.rules()


def kubeadm(**changes: Any) -> str:
    text = KUBEADM
    for name, value in changes.items():
        text = text.replace(f"{name}: ", f"{name}: {value} #", 1)
    return text


def test_a_changed_configuration_file_ends_it(proxy: Proxy, tmp_path: Path) -> None:
    """Told and not zero, rules left; a broken file or the same settings again end nothing."""
    path, file = tmp_path / "config.yaml", proxy.manifests / "web.yaml"
    path.write_text(KUBEADM)
    put(file, service())
    proxy.start("--config", str(path))
    proxy.until_in_force(file)
    rules = proxy.rules()
    put(path, "# the same\n" + KUBEADM)
    put(path, kubeadm(clusterCIDR="nonsense"))
    proxy.until_logged("not usable")
    put(path, kubeadm(clusterCIDR="10.99.0.0/16"))
    assert proxy.process is not None
    assert proxy.process.wait(TIMEOUT) == 1
    assert "the configuration file has changed" in proxy.log.read_text()
    assert proxy.rules() == rules
    proxy.start("--config", str(path))
    proxy.until(lambda: proxy.mine() and "! -s 10.99.0.0/16" in proxy.rules())


def test_a_mounted_configmap_is_followed(proxy: Proxy, tmp_path: Path) -> None:
    """The kubelet swaps a link beside the file: the name stays, the content is another one."""
    volume, file = tmp_path / "volume", proxy.manifests / "web.yaml"
    for number, text in enumerate((KUBEADM, kubeadm(clusterCIDR="10.99.0.0/16"))):
        (volume / f"..{number}").mkdir(parents=True)
        (volume / f"..{number}" / "config.conf").write_text(text)
    (volume / "..data").symlink_to("..0")
    (volume / "config.conf").symlink_to("..data/config.conf")
    put(file, service())
    proxy.start("--config", str(volume / "config.conf"))
    proxy.until_in_force(file)
    (volume / "..tmp").symlink_to("..1")
    (volume / "..tmp").rename(volume / "..data")
    assert proxy.process is not None
    assert proxy.process.wait(TIMEOUT) == 1


def test_conntracks_limits_are_set_and_cleanup_sets_them_back(proxy: Proxy) -> None:
    """Set before the first sync, reported where they cannot be, and gone after cleanup."""
    file = proxy.manifests / "web.yaml"
    put(file, service())
    before = {name: in_node(proxy, name) for name in (ESTABLISHED, LIBERAL, LOCALNET)}
    established = ("--conntrack-tcp-timeout-established", "1h")
    proxy.start(*established, "--conntrack-tcp-be-liberal", *ODD_LIMIT)
    proxy.until_in_force(file)
    now = {name: in_node(proxy, name) for name in before}
    assert now == {ESTABLISHED: "3600", LIBERAL: "1", LOCALNET: "1"}
    # With it conntrack calls fewer packets INVALID, and those are let through.
    assert "INVALID" not in proxy.rules()
    log = proxy.log.read_text()
    assert "cannot set net/netfilter/nf_conntrack_max=" in log
    assert "nf_conntrack_tcp_timeout_established value=3600" in log
    proxy.stop()
    done = proxy.kproxy("cleanup")
    assert done.returncode == 0
    assert f"restored: {ESTABLISHED}" in done.stdout
    assert {name: in_node(proxy, name) for name in before} == before


def test_init_only_prepares_and_serves_nothing(proxy: Proxy) -> None:
    """Sysctls and the guard of the loopback, and no rule of any service; then a run adds these."""
    alone = ("--init-only", "--iptables-variant", "nft", "--conntrack-max-per-core", "0")
    done = proxy.kproxy("run", *alone)
    assert done.returncode == 0
    assert (in_node(proxy, LOCALNET), in_node(proxy, ESTABLISHED)) == ("1", "86400")
    assert "block incoming localnet connections" in proxy.rules()
    assert "KUBE-SERVICES" not in proxy.rules()
    again = proxy.kproxy("run", *alone)
    assert (again.returncode, again.stderr) == (0, "")
    file = proxy.manifests / "web.yaml"
    put(file, service())
    proxy.start("--conntrack-max-per-core", "0")
    proxy.until_in_force(file)
    assert proxy.rules().count("block incoming localnet connections") == 1
    assert "sysctl=" not in proxy.log.read_text()


def test_init_only_tells_what_it_could_not_do(proxy: Proxy) -> None:
    """conntrack's limit is not a namespace's own: named, and not zero; the rest is done."""
    done = proxy.kproxy("run", "--init-only", "--iptables-variant", "nft", *ODD_LIMIT)
    assert done.returncode == 1
    assert "nf_conntrack_max" in done.stderr.splitlines()[-1]
    assert (in_node(proxy, LOCALNET), in_node(proxy, ESTABLISHED)) == ("1", "86400")


@pytest.mark.parametrize("flag", ["true", "false"])
def test_a_taken_port(proxy: Proxy, flag: str) -> None:
    """With --bind-address-hard-fail the end, before any rule; else it serves without that port."""
    file = proxy.manifests / "web.yaml"
    put(file, service())
    with netns.entered(proxy.namespace):
        taken = socket.create_server(("0.0.0.0", HEALTH))
    with taken:
        if flag == "true":
            argv = ["-f", str(proxy.manifests), "--state-dir", str(proxy.state)]
            done = proxy.kproxy("run", *argv, "--bind-address-hard-fail")
            assert done.returncode == 1
            assert f"kproxy: 0.0.0.0:{HEALTH}: cannot listen" in done.stderr
            assert "KUBE" not in proxy.rules()
            return
        proxy.start("--bind-address-hard-fail", flag)
        proxy.until_in_force(file)
        assert get(proxy, METRICS, "/healthz") == (200, "ok")
        assert "no health server" in proxy.log.read_text()


def test_foreign_changes_are_counted_when_they_are_mended(proxy: Proxy) -> None:
    """A rule taken away by somebody else is back after the next period, and counted."""
    file = proxy.manifests / "web.yaml"
    put(file, service())
    proxy.start("--iptables-sync-period", "200ms")
    proxy.until_in_force(file)
    before = proxy.rules()
    with netns.entered(proxy.namespace):
        os.spawnvp(os.P_WAIT, "iptables-nft", ["iptables-nft", "-t", "nat", "-F", "KUBE-SERVICES"])
    proxy.until(lambda: proxy.rules() == before)
    name = of("kproxy_foreign_changes_total", ip_family="IPv4")
    proxy.until(lambda: samples(proxy)[name] == 1)
    assert samples(proxy)[of("kproxy_foreign_changes_total", ip_family="IPv6")] == 0


def test_kubeadms_own_configuration_serves_and_answers(proxy: Proxy, tmp_path: Path) -> None:
    """The whole ConfigMap with its nulls, a kubeconfig in it, and -f: rules, health, mode."""
    path, file = tmp_path / "config.conf", proxy.manifests / "web.yaml"
    path.write_text(KUBEADM)
    put(file, service())
    proxy.start("--config", str(path))
    proxy.until_in_force(file)
    assert "--to-destination 10.180.0.1:8080" in proxy.rules()
    assert get(proxy, METRICS, "/proxyMode") == (200, "iptables")
    assert get(proxy, HEALTH, "/healthz")[0] == 200
    assert proxy.stop(signal.SIGTERM) == 0


def test_kubeadms_configuration_alone_has_no_objects(proxy: Proxy, tmp_path: Path) -> None:
    """Its kubeconfig is no source: exit 3, one line that names -f, nothing set or written."""
    path = tmp_path / "config.conf"
    path.write_text(KUBEADM)
    before = in_node(proxy, ESTABLISHED)
    done = proxy.kproxy("run", "--config", str(path), "--state-dir", str(proxy.state))
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert "-f" in done.stderr
    assert "KUBE" not in proxy.rules()
    assert in_node(proxy, ESTABLISHED) == before
