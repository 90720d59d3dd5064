"""The command line as a user meets it: a process, its output, its exit status."""

from __future__ import annotations

import json
import select
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kproxy import flags
from kproxy.config import Config

ENTRY = [sys.executable, "-c", "from kproxy.cli.main import main; main()"]

WEB = """\
apiVersion: v1
kind: Service
metadata: {namespace: ns1, name: web}
spec: {clusterIP: 172.30.0.41, ports: [{port: 80, protocol: TCP}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {namespace: ns1, name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: "", port: 8080, protocol: TCP}]
endpoints: [{addresses: [10.180.0.1]}]
"""
BAD = """\
---
apiVersion: v1
kind: Service
metadata: {namespace: ns1, name: bad}
spec: {clusterIP: 172.30.0.999, ports: [{port: 80}]}
"""

#: Root without the rights that a proxy needs: a process that may do nothing to any network.
POWERLESS = ["setpriv", "--bounding-set", "-net_admin,-sys_admin"]


def kproxy(*argv: str, prefix: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*(prefix or []), *ENTRY, *argv], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--nope"], "--nope"),
        (["nothing"], "nothing"),
        (["run", "--nope"], "--nope"),
        (["run", "--masquerade-all=maybe"], "neither true nor false"),
        (["run", "--iptables-sync-period", "30"], "1m30s"),
        (["run", "--iptables-variant", "best"], "best"),
        (["run", "--config", "/nowhere.yaml"], "/nowhere.yaml"),
        (["run", "--proxy-mode", "magic", "--cluster-cidr", "x"], "clusterCIDR"),
        (["render"], "--filename"),
        (["render", "-f", "/nowhere"], "/nowhere"),
        (["render", "-f", "/tmp", "--mode", "magic"], "magic"),
        (["doctor", "-o", "xml"], "xml"),
    ],
)
def test_wrong_use_is_one_line_and_status_2(argv: list[str], told: str) -> None:
    """Wrong flags, files and values: one line on stderr that names them, nothing on stdout."""
    done = kproxy(*argv)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("kproxy: ")
    assert told in done.stderr


def test_every_wrong_flag_is_told_at_once() -> None:
    """Texts that cannot be read and values that make no sense stand in one line."""
    argv = ["--masquerade-all=maybe", "--conntrack-min", "many", "--cluster-cidr", "here"]
    done = kproxy("run", *argv)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    for part in ("--masquerade-all", "--conntrack-min", "clusterCIDR"):
        assert part in done.stderr


def test_render_prints_the_rules_of_both_families(tmp_path: Path) -> None:
    """The text that would be loaded, each family under its heading."""
    (tmp_path / "web.yaml").write_text(WEB)
    done = kproxy("render", "-f", str(tmp_path), "--node", "n1")
    assert (done.returncode, done.stderr) == (0, "")
    four, six = done.stdout.split("# IPv6\n")
    assert "-d 172.30.0.41/32" in four
    assert "--to-destination 10.180.0.1:8080" in four
    assert "172.30.0.41" not in six
    assert "KUBE-SERVICES" in six


def test_render_prints_what_is_good_and_names_what_is_not(tmp_path: Path) -> None:
    """One bad object does not stop the others, but the status says that something is left out."""
    (tmp_path / "web.yaml").write_text(WEB + BAD)
    done = kproxy("render", "-f", str(tmp_path), "--family", "4")
    assert done.returncode == 1
    assert "-d 172.30.0.41/32" in done.stdout
    assert "172.30.0.999" not in done.stdout
    assert "ns1/bad" in done.stderr


def test_render_follows_the_configuration(tmp_path: Path) -> None:
    """--config decides about masquerading, as it does for the daemon."""
    (tmp_path / "web.yaml").write_text(WEB)
    config = tmp_path / "config"
    config.write_text(flags.dump(Config(cluster_cidr="10.180.0.0/16")))
    done = kproxy("render", "-f", str(tmp_path / "web.yaml"), "--config", str(config))
    assert "! -s 10.180.0.0/16 -d 172.30.0.41/32" in done.stdout


def test_settings_are_written_and_read_back(tmp_path: Path) -> None:
    """--write-config-to gives a file that --config takes, for its owner alone."""
    path = tmp_path / "config.yaml"
    done = kproxy("run", "-v=3", "--masquerade-all", "--write-config-to", str(path))
    assert done.returncode == 0
    config, warnings = flags.load(str(path))
    assert (config.iptables.masquerade_all, config.logging.verbosity) == (True, 3)
    assert warnings == ()
    assert path.stat().st_mode & 0o777 == 0o600


def test_every_flag_is_in_the_help() -> None:
    """The help of run names each flag of the table."""
    text = kproxy("run", "--help").stdout
    assert [flag.name for flag in flags.FLAGS if f"--{flag.name}" not in text] == []


@pytest.mark.kernel
@pytest.mark.parametrize(
    "argv", [["run", "-f", "/tmp"], ["run", "--init-only"], ["cleanup"], ["doctor"]]
)
def test_without_rights_it_is_one_line_and_status_3(argv: list[str]) -> None:
    """A process that may not: exit 3, and what to do about it."""
    done = kproxy(*argv, prefix=POWERLESS)
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert "sudo" in done.stderr


@pytest.mark.kernel
def test_render_takes_the_nodes_addresses_from_the_node(tmp_path: Path) -> None:
    """ipvs mode names each of them, and this host's are none of the manifests'."""
    node = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "n1"},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.7"}]},
    }
    service = yaml.safe_load_all(WEB.replace("port: 80,", "port: 80, nodePort: 30080,").replace(
        "spec: {", "spec: {type: NodePort, "))  # fmt: skip
    (tmp_path / "all.yaml").write_text(yaml.safe_dump_all([node, *service]))
    done = kproxy("render", "--mode", "ipvs", "--node", "n1", "--family", "4", "-f", str(tmp_path))
    assert done.returncode == 0, done.stderr
    servers = [line for line in done.stdout.splitlines() if line.startswith("-A -t ")]
    assert sorted(servers) == ["-A -t 172.30.0.41:80 -s rr", "-A -t 192.0.2.7:30080 -s rr"]


def test_render_needs_no_rights(tmp_path: Path) -> None:
    """Without any capability the rules are the same."""
    (tmp_path / "web.yaml").write_text(WEB)
    argv = ["render", "-f", str(tmp_path), "--node", "n1"]
    powerless = kproxy(*argv, prefix=POWERLESS)
    assert powerless.returncode == 0
    assert powerless.stdout == kproxy(*argv).stdout


@pytest.mark.kernel
def test_doctor_speaks_json_yaml_and_tables() -> None:
    """All formats carry the same modes; exit 0 since a mode works here."""
    plain, as_json, as_yaml = (
        kproxy("doctor"),
        kproxy("doctor", "-o", "json"),
        kproxy("doctor", "-o", "yaml"),
    )
    assert {plain.returncode, as_json.returncode, as_yaml.returncode} == {0}
    report = json.loads(as_json.stdout)
    assert report == yaml.safe_load(as_yaml.stdout)
    assert all(mode["name"] in plain.stdout for mode in report["modes"])


def test_render_waits_for_the_end_of_its_input() -> None:
    """What comes after a pause of the writer counts as well."""
    command = subprocess.Popen(
        [*ENTRY, "render", "-f", "-", "--node", "n1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert command.stdin is not None
    assert command.stdout is not None
    command.stdin.write("kind: Service\nmetadata: {name: early}\nspec: {clusterIP: 10.0.0.1, ")
    command.stdin.write("ports: [{port: 80}]}\n---\n")
    command.stdin.flush()
    # It prints nothing before the end; a reader that gives up after a quiet second would.
    assert select.select([command.stdout], [], [], 3)[0] == []
    out, _ = command.communicate(
        "kind: Service\nmetadata: {name: late}\nspec: {clusterIP: 10.0.0.2, ports: [{port: 80}]}\n",
        timeout=60,
    )
    assert command.returncode == 0
    assert "default/early" in out
    assert "default/late" in out
