"""The daemon in a network namespace of its own, as a real process with real signals."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest
from pyroute2 import IPRoute

from kproxy import daemon, status
from kproxy.config import Config
from kproxy.kernel import command, netns, sysctl
from kproxy.kernel.netlink import open_route

pytestmark = pytest.mark.kernel

TIMEOUT = 60.0
#: linux/if_addr.h
IFA_F_TENTATIVE = 0x40

ENTRY = [sys.executable, "-c", "from kproxy.cli.main import main; main()"]

SERVICE = """\
apiVersion: v1
kind: Service
metadata: {{namespace: ns1, name: {name}}}
spec:
  type: NodePort
  clusterIP: {ip}
  ports: [{{name: p, port: 80, protocol: TCP, nodePort: {node_port}}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{namespace: ns1, name: {name}-1, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: IPv4
ports: [{{name: p, port: 8080, protocol: TCP}}]
endpoints: [{{addresses: [{endpoint}]}}]
"""


def service(
    name: str = "web", ip: str = "172.30.0.41", endpoint: str = "10.180.0.1", node_port: int = 30080
) -> str:
    return SERVICE.format(name=name, ip=ip, endpoint=endpoint, node_port=node_port)


def put(path: Path, text: str) -> None:
    """Replace a file as a whole, as careful writers do."""
    fresh = path.with_name(f".{path.name}")
    fresh.write_text(text)
    fresh.rename(path)


@pytest.fixture
def node() -> Iterator[str]:
    """A namespace with loopback up and one address, 192.0.2.7."""
    name = f"kp-e{os.getpid()}"
    netns.create(name)
    try:
        with netns.entered(name):
            # Else the bridge's own address changes a second or two later, when nobody is found to
            # have it too, and each change of addresses is a sync that these tests do not count on.
            sysctl.write("net/ipv6/conf/default/accept_dad", "0")
        with open_route(name) as route:
            route.link("set", index=1, state="up")
            route.link("add", ifname="br0", kind="bridge", state="up")
            index = route.link_lookup(ifname="br0")[0]
            while is_tentative(route, index):
                os.sched_yield()
            # After the kernel's worker, which holds the lock that this needs: it has told all.
            route.addr("add", index=index, address="192.0.2.7", prefixlen=24)
        yield name
    finally:
        netns.remove(name)


def is_tentative(route: IPRoute, index: int) -> bool:
    """Whether a device has an address that the kernel is not sure of yet."""
    rows = route.get_addr(index=index, family=socket.AF_INET6)
    return any(row["flags"] & IFA_F_TENTATIVE for row in rows)


class Proxy:
    """One node's daemon with its files."""

    def __init__(self, namespace: str, folder: Path) -> None:
        self.namespace = namespace
        self.manifests = folder / "manifests"
        self.manifests.mkdir()
        self.state = folder / "state"
        self.environment = {
            "XTABLES_LOCKFILE": str(folder / "xtables.lock"),
            "KPROXY_RECORDS": str(folder / "records"),
        }
        self.notices = status.Notifications(folder / "notify")
        self.log = folder / "log"
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(TIMEOUT)
        self.notices.close()

    def start(self, *flags: str, environment: dict[str, str] | None = None) -> None:
        argv = [*ENTRY, "run", "-f", str(self.manifests), "--state-dir", str(self.state)]
        argv += ["--hostname-override", "n1", "--iptables-variant", "nft"]
        argv += ["--iptables-min-sync-period", "0", *flags]
        more = {**self.environment, **(environment or {}), "NOTIFY_SOCKET": self.notices.path}
        with netns.entered(self.namespace), self.log.open("ab") as log:
            self.process = subprocess.Popen(argv, env={**os.environ, **more}, stderr=log)

    def until(self, reached: Callable[[], bool]) -> None:
        self.notices.until_sync(reached, TIMEOUT)

    def until_in_force(self, *files: Path) -> None:
        self.until(lambda: self.mine() and status.in_force(self.state, files))

    def mine(self) -> bool:
        """The status is of the process that was started last."""
        found = status.read(self.state)
        assert self.process is not None
        return found is not None and found.pid == self.process.pid

    def status(self) -> status.Status:
        found = status.read(self.state)
        assert found is not None
        return found

    def until_logged(self, words: str) -> None:
        """Return when the daemon has said that; it must not end before."""
        assert self.process is not None
        while words not in self.log.read_text():
            assert self.process.poll() is None
            os.sched_yield()

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(TIMEOUT)

    def rules(self, variant: str = "nft") -> str:
        """What is in force, without counters and comments of the tool."""
        with netns.entered(self.namespace):
            text = command.run([f"iptables-{variant}-save"]).stdout.decode()
        lines = (re.sub(r"\[\d+:\d+\]", "", line) for line in text.splitlines())
        return "\n".join(line for line in lines if not line.startswith("#"))

    def python(self, code: str) -> subprocess.CompletedProcess[str]:
        """A program in the node's namespace."""
        with netns.entered(self.namespace):
            return subprocess.run(
                [sys.executable, "-c", code],
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
                check=False,
                env={**os.environ, **self.environment},
            )

    def kproxy(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Another kproxy command in the node's namespace."""
        with netns.entered(self.namespace):
            return subprocess.run(
                [*ENTRY, *argv],
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
                check=False,
                env={**os.environ, **self.environment},
            )


@pytest.fixture
def proxy(node: str, tmp_path: Path) -> Iterator[Proxy]:
    with Proxy(node, tmp_path) as made:
        yield made
    if made.log.exists():
        sys.stdout.write(made.log.read_text())


def test_it_serves_stops_and_leaves_the_rules(proxy: Proxy) -> None:
    """A Service is in force when the status says so; SIGTERM ends with 0 and the rules stay."""
    file = proxy.manifests / "web.yaml"
    put(file, service())
    proxy.start()
    proxy.until_in_force(file)
    rules = proxy.rules()
    assert "-d 172.30.0.41/32" in rules
    assert "--to-destination 10.180.0.1:8080" in rules
    found = proxy.status()
    assert found.ready
    assert (found.node, found.mode, found.variant) == ("n1", "iptables", "nft")
    assert [(one.family, one.service_ports) for one in found.families] == [(4, 1), (6, 0)]
    assert proxy.stop() == 0
    assert proxy.rules() == rules


def test_a_restart_changes_nothing(proxy: Proxy) -> None:
    """The second daemon finds everything as it should be and writes not one rule."""
    file = proxy.manifests / "web.yaml"
    put(file, service())
    proxy.start()
    proxy.until_in_force(file)
    before = proxy.rules()
    assert proxy.stop(signal.SIGINT) == 0
    proxy.start()
    proxy.until_in_force(file)
    assert proxy.rules() == before
    assert [one.written for one in proxy.status().families] == [0, 0]
    assert all(one.full for one in proxy.status().families)


def test_changes_are_followed(proxy: Proxy) -> None:
    """A file replaced, added and deleted is in force each time, by partial syncs."""
    first, second = proxy.manifests / "a.yaml", proxy.manifests / "b.yaml"
    put(first, service())
    proxy.start()
    proxy.until_in_force(first)
    put(first, service(endpoint="10.180.0.2"))
    proxy.until_in_force(first)
    assert "10.180.0.2:8080" in proxy.rules()
    assert "10.180.0.1:8080" not in proxy.rules()
    put(second, service("db", "172.30.0.42", "10.180.0.9", 30081))
    proxy.until_in_force(first, second)
    assert "10.180.0.9:8080" in proxy.rules()
    assert not any(one.full for one in proxy.status().families)
    second.unlink()
    proxy.until_in_force(first, second)
    assert "10.180.0.9:8080" not in proxy.rules()


def test_a_broken_manifest_keeps_what_was_good(proxy: Proxy) -> None:
    """A file that turns bad is named in the status, and its last good content stays in force."""
    file = proxy.manifests / "web.yaml"
    put(file, service())
    proxy.start()
    proxy.until_in_force(file)
    before = proxy.rules()
    put(file, service() + "\n---\n{ broken: [")
    proxy.until_in_force(file)
    assert proxy.rules() == before
    assert any("web.yaml" in line for line in proxy.status().refusals)
    put(file, service())
    proxy.until_in_force(file)
    assert proxy.status().refusals == ()
    assert proxy.log.read_text().count("WARNING daemon: left out") == 1


def test_the_notify_protocol(proxy: Proxy) -> None:
    """READY once, a datagram after each status, STOPPING at the end."""
    file = proxy.manifests / "web.yaml"
    put(file, service())
    proxy.start()
    seen: list[dict[str, str]] = []

    def hear(wanted: str) -> None:
        while not any(wanted in one for one in seen):
            assert select.select([proxy.notices], [], [], TIMEOUT)[0]
            while (notice := proxy.notices.receive()) is not None:
                seen.append(dict(notice))

    hear("READY")
    hear("X_KPROXY_STATUS")
    assert status.in_force(proxy.state, [file])
    proxy.stop()
    hear("STOPPING")
    names = [next(iter(one)) for one in seen]
    assert names.count("READY") == 1
    assert names.index("READY") < names.index("STOPPING")
    changed = next(one for one in seen if "X_KPROXY_STATUS" in one)
    assert changed["X_KPROXY_STATUS"] == "changed"
    assert changed["X_KPROXY_STATE_DIR"] == str(proxy.state)
    assert changed["STATUS"] == "1 service ports, 1 endpoints"


def test_the_status_is_for_its_owner_alone(proxy: Proxy) -> None:
    """The directory has mode 0700, its files 0600."""
    proxy.start()
    proxy.until(lambda: status.read(proxy.state) is not None)
    assert proxy.state.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in proxy.state.iterdir()} == {0o600}


def test_cleanup_leaves_nothing(proxy: Proxy) -> None:
    """After cleanup the namespace is as before; a second one finds nothing."""
    empty = proxy.rules()
    file = proxy.manifests / "web.yaml"
    put(file, service())
    proxy.start()
    proxy.until_in_force(file)
    proxy.stop()
    done = proxy.kproxy("cleanup")
    assert (done.returncode, done.stderr) == (0, "")
    assert "removed: iptables-nft IPv4" in done.stdout
    assert "removed: iptables-nft IPv6" in done.stdout
    assert "KUBE" not in proxy.rules()
    assert "-A" not in proxy.rules()
    assert empty.count("-A") == 0
    again = proxy.kproxy("cleanup")
    assert (again.returncode, again.stdout) == (0, "nothing of kproxy was here\n")


def test_cleanup_beside_a_daemon_says_so(proxy: Proxy) -> None:
    """It names the process and touches nothing; what --force takes away, the daemon writes
    again."""
    file = proxy.manifests / "web.yaml"
    put(file, service())
    proxy.start()
    proxy.until_in_force(file)
    before = proxy.rules()
    assert proxy.process is not None
    pid = proxy.process.pid
    for argv in (["cleanup"], ["run", "--cleanup"]):
        refused = proxy.kproxy(*argv)
        assert refused.returncode == 1
        assert refused.stdout == ""
        assert refused.stderr == (
            f"kproxy: process {pid} (iptables mode, --state-dir {proxy.state}) is the proxy of "
            "this network namespace, and writes its rules again; "
            f"stop it first (kill {pid}), or: kproxy cleanup --force\n"
        )
        assert proxy.rules() == before
    done = proxy.kproxy("cleanup", "--force")
    assert done.returncode == 0
    assert done.stderr.startswith(f"kproxy: warning: process {pid} ")
    assert "removed: iptables-nft IPv4" in done.stdout
    proxy.until(lambda: sorted(proxy.rules().splitlines()) == sorted(before.splitlines()))


@pytest.mark.parametrize("mode", ["iptables", "userspace", "fastpath"])
def test_a_second_daemon_is_told_of_the_first(proxy: Proxy, tmp_path: Path, mode: str) -> None:
    """With a state directory of its own, in whatever mode: one line that names the first one, and
    it goes on undisturbed. When it is killed, the second one may."""
    file = proxy.manifests / "web.yaml"
    put(file, service())
    proxy.start()
    proxy.until_in_force(file)
    before = proxy.rules()
    assert proxy.process is not None
    place = ("-f", str(proxy.manifests), "--state-dir", str(tmp_path / "second"))
    refused = proxy.kproxy("run", *place, "--proxy-mode", mode)
    assert refused.returncode == 1
    assert refused.stderr == (
        f"kproxy: process {proxy.process.pid} (iptables mode, --state-dir {proxy.state}) is the "
        "proxy of this network namespace already; "
        f"stop it first (kill {proxy.process.pid}): two would undo each other's rules\n"
    )
    assert proxy.process.poll() is None
    assert proxy.rules() == before
    proxy.stop(signal.SIGKILL)
    proxy.state = tmp_path / "second"
    proxy.start()
    proxy.until_in_force(file)


def test_it_serves_without_a_place_for_its_status(proxy: Proxy) -> None:
    """A status that cannot be written is told once; changes are followed all the same, and the
    status is there again when it can be."""
    file, away = proxy.manifests / "web.yaml", proxy.state.with_name("away")
    put(file, service())
    proxy.start()
    proxy.until_in_force(file)
    proxy.state.rename(away)
    for endpoint in ("10.180.0.2", "10.180.0.3"):
        put(file, service(endpoint=endpoint))
        proxy.until(lambda endpoint=endpoint: endpoint in proxy.rules())  # type: ignore[misc]
    away.rename(proxy.state)
    put(file, service(endpoint="10.180.0.4"))
    proxy.until_in_force(file)
    assert proxy.log.read_text().count("the status is not told") == 1
    assert proxy.stop() == 0


def test_one_daemon_for_one_state_directory(proxy: Proxy) -> None:
    """The second one refuses, naming the process that is there."""
    proxy.start()
    proxy.until(lambda: status.read(proxy.state) is not None)
    assert proxy.process is not None
    second = proxy.kproxy("run", "-f", str(proxy.manifests), "--state-dir", str(proxy.state))
    assert second.returncode == 2
    assert f"process {proxy.process.pid}" in second.stderr


def test_a_failing_tool_is_retried_until_it_works(proxy: Proxy, tmp_path: Path) -> None:
    """The failure is counted and told with its reason; then the change arrives after all."""
    tool = shutil.which("iptables-nft-restore")
    assert tool is not None
    switch, folder = tmp_path / "fail", tmp_path / "bin"
    folder.mkdir()
    wrapper = folder / "iptables-nft-restore"
    wrapper.write_text(
        f'#!/bin/sh\nif [ -e {switch} ]; then echo out of luck >&2; exit 4; fi\nexec {tool} "$@"\n'
    )
    wrapper.chmod(0o755)
    file = proxy.manifests / "web.yaml"
    put(file, service())
    proxy.start(environment={"PATH": f"{folder}:{os.environ['PATH']}"})
    proxy.until_in_force(file)
    switch.touch()
    put(file, service(endpoint="10.180.0.2"))
    proxy.until(lambda: proxy.status().failures >= 2)
    assert "out of luck" in proxy.status().last_error
    assert not status.in_force(proxy.state, [file])
    assert "10.180.0.1:8080" in proxy.rules()
    switch.unlink()
    proxy.until_in_force(file)
    assert "10.180.0.2:8080" in proxy.rules()
    assert proxy.status().last_error == ""


def test_a_new_address_is_noticed(proxy: Proxy) -> None:
    """Node ports follow the node's addresses without any change of a manifest."""
    file = proxy.manifests / "web.yaml"
    put(file, service())
    proxy.start("--nodeport-addresses", "203.0.113.0/24")
    proxy.until_in_force(file)
    assert "203.0.113.5" not in proxy.rules()
    with open_route(proxy.namespace) as route:
        index = route.link_lookup(ifname="br0")[0]
        route.addr("add", index=index, address="203.0.113.5", prefixlen=32)
    proxy.until(lambda: "203.0.113.5" in proxy.rules())


def test_nothing_is_written_before_a_stream_has_begun(proxy: Proxy) -> None:
    """A pipe whose writer is late: no rule and no status until its first object, then both."""
    read, write = os.pipe()
    try:
        argv = [*ENTRY, "run", "-f", "-", "--state-dir", str(proxy.state)]
        argv += ["--hostname-override", "n1", "--iptables-variant", "nft"]
        environment = {**os.environ, **proxy.environment, "NOTIFY_SOCKET": proxy.notices.path}
        with netns.entered(proxy.namespace), proxy.log.open("ab") as log:
            proxy.process = subprocess.Popen(argv, stdin=read, stderr=log, env=environment)
        proxy.until_logged("started")
        assert status.read(proxy.state) is None
        assert "KUBE" not in proxy.rules()
        os.write(write, service().encode() + b"---\n")
        proxy.until(lambda: "10.180.0.1:8080" in proxy.rules())
    finally:
        os.close(read)
        os.close(write)
    assert proxy.stop() == 0


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_it_runs_in_a_forked_process(proxy: Proxy, variant: str) -> None:
    """Without a command line: fork, enter the namespace, call main; signals work."""
    file = proxy.manifests / "web.yaml"
    put(file, service())
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            os.environ.update(proxy.environment)
            with netns.entered(proxy.namespace), proxy.log.open("a") as log:
                os.dup2(log.fileno(), 2)
                code = daemon.main(
                    Config(hostname_override="n1"),
                    [str(proxy.manifests)],
                    str(proxy.state),
                    variant,
                    notify=proxy.notices.path,
                )
        finally:
            os._exit(code)
    proxy.until(lambda: status.in_force(proxy.state, [file]))
    assert proxy.status().pid == pid
    assert "10.180.0.1:8080" in proxy.rules(variant)
    os.kill(pid, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize(
    ("argv", "code", "told"),
    [
        (["run", "-f", "/nowhere/at-all"], 2, "/nowhere/at-all"),
        (["run", "--kubeconfig", "/etc/kubernetes/proxy.conf"], 3, "-f"),
        (["run"], 3, "-f"),
        (["run", "-f", "/tmp", "--proxy-mode", "nftable"], 2, "nftable"),
    ],
)
def test_what_cannot_start_says_why_in_one_line(
    proxy: Proxy, argv: list[str], code: int, told: str
) -> None:
    """A missing folder, no source, an unknown mode: one line and the right exit status."""
    done = proxy.kproxy(*argv, *(["--state-dir", str(proxy.state)] if len(argv) > 1 else []))
    lines = [line for line in done.stderr.splitlines() if line.startswith("kproxy: ")]
    assert done.returncode == code
    assert len(lines) == 1
    assert told in lines[0]
