"""A daemon on a machine that can serve one family only."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.test_daemon import TIMEOUT, Proxy, node, proxy, put, service

__all__ = ["node", "proxy"]

pytestmark = pytest.mark.kernel

#: What the tool says on a kernel without the family's tables, which is a status of 3.
LACKING = "can't initialize table nat: Table does not exist (do you need to insmod?)"

IPV6 = """\
apiVersion: v1
kind: Service
metadata: {namespace: ns1, name: six}
spec: {clusterIP: 'fd00:172:30::41', ipFamilies: [IPv6], ports: [{name: p, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {namespace: ns1, name: six-1, labels: {kubernetes.io/service-name: six}}
addressType: IPv6
ports: [{name: p, port: 8080, protocol: TCP}]
endpoints: [{addresses: ['fd00:10:180::1']}]
"""

#: Family -> (its restore tool, a bind address that makes it the node's own).
TOOLS = {4: ("iptables-nft-restore", "192.0.2.7"), 6: ("ip6tables-nft-restore", "2001:db8::7")}


def without(family: int, folder: Path) -> dict[str, str]:
    """An environment in which that family's tables cannot be had."""
    folder.mkdir()
    tool = folder / TOOLS[family][0]
    tool.write_text(f'#!/bin/sh\ncat >/dev/null\necho "{LACKING}" >&2\nexit 3\n')
    tool.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


@pytest.mark.parametrize("lacking", TOOLS)
def test_a_family_that_the_machine_lacks_is_left_out(
    proxy: Proxy, lacking: int, tmp_path: Path
) -> None:
    """The other one is served; log and status say which is not, and why."""
    served = 10 - lacking
    file = proxy.manifests / "web.yaml"
    put(file, f"{service()}---\n{IPV6}")
    environment = without(lacking, tmp_path / "bin")
    proxy.start("--bind-address", TOOLS[served][1], environment=environment)
    proxy.until_in_force(file)
    families = {each.family: each for each in proxy.status().families}
    assert LACKING in families[lacking].skipped
    assert (families[served].skipped, families[served].service_ports) == ("", 1)
    assert f"family is not served family={lacking}" in proxy.log.read_text()
    assert proxy.stop() == 0


@pytest.mark.parametrize("lacking", TOOLS)
def test_the_nodes_own_family_must_be_there(proxy: Proxy, lacking: int, tmp_path: Path) -> None:
    """Else it does not start: a node without the family of its address would serve nobody."""
    environment = without(lacking, tmp_path / "bin")
    proxy.start("--bind-address", TOOLS[lacking][1], environment=environment)
    assert proxy.process is not None
    assert proxy.process.wait(TIMEOUT) == 3
    last = proxy.log.read_text().splitlines()[-1]
    assert last.startswith("kproxy: ")
    assert LACKING in last
