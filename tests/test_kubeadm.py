"""A cluster's own kube-proxy configuration and ``-f``: real packets arrive at endpoints."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kproxy.core.objects import Protocol
from kproxy.kernel import netns
from kproxy.lab.apply import Builder
from kproxy.lab.network import FORWARDING_SYSCTLS, Address, End, Host, Link, Network, Route
from kproxy.lab.plan import plan
from kproxy.lab.traffic import Listener, Probe, Responder, join_host_port, probe_all
from tests.test_config import KUBEADM
from tests.test_daemon import Proxy, put

pytestmark = pytest.mark.kernel

NODE, NODE_INSIDE, CLIENT = "192.0.2.1", "10.244.0.1", "192.0.2.2"
#: In kubeadm's clusterCIDR: pods of this node.
POD, LOCAL_POD = "10.244.0.10", "10.244.0.11"
CLUSTER_IP = "172.30.0.41"
ENDPOINT_PORTS = {Protocol.TCP: 8080, Protocol.UDP: 5300}

MANIFEST = f"""\
apiVersion: v1
kind: Service
metadata: {{namespace: shop, name: web}}
spec:
  type: NodePort
  clusterIP: {CLUSTER_IP}
  ports:
  - {{name: http, port: 80, nodePort: 30080}}
  - {{name: dns, protocol: UDP, port: 80, nodePort: 30080}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{namespace: shop, name: web-1, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv4
ports: [{{name: http, port: 8080, protocol: TCP}}, {{name: dns, port: 5300, protocol: UDP}}]
endpoints: [{{addresses: [{POD}]}}]
"""

#: client -- node -- pod, and a second pod that is a client.
NETWORK = Network(
    f"n-kubeadm-{os.getpid()}",
    hosts=(
        Host(
            "client",
            addresses=(Address("eth0", f"{CLIENT}/32"),),
            routes=(Route(f"{NODE}/32", "eth0"), Route("0.0.0.0/0", "eth0", via=NODE)),
        ),
        Host(
            "node",
            addresses=(Address("eth0", f"{NODE}/32"), Address("pod0", f"{NODE_INSIDE}/32")),
            routes=(
                Route(f"{CLIENT}/32", "eth0"),
                # It makes eth0's address the primary one: where nftables mode's node ports are.
                Route("0.0.0.0/0", "eth0", via=CLIENT),
                Route(f"{POD}/32", "pod0"),
                Route(f"{LOCAL_POD}/32", "pod1"),
            ),
            sysctls=FORWARDING_SYSCTLS,
        ),
        *(
            Host(
                name,
                addresses=(Address("eth0", f"{address}/32"),),
                routes=(
                    Route(f"{NODE_INSIDE}/32", "eth0"),
                    Route("0.0.0.0/0", "eth0", via=NODE_INSIDE),
                ),
            )
            for name, address in (("pod", POD), ("local", LOCAL_POD))
        ),
    ),
    links=(
        Link(End("client", "eth0"), End("node", "eth0")),
        Link(End("node", "pod0"), End("pod", "eth0")),
        Link(End("node", "pod1"), End("local", "eth0")),
    ),
)


@pytest.fixture
def network() -> Iterator[Builder]:
    with Builder(NETWORK.lab) as builder:
        try:
            builder.apply(plan(None, NETWORK))
            yield builder
        finally:
            for host in NETWORK.hosts:
                netns.remove(NETWORK.namespace(host.name))


@pytest.fixture
def proxy(network: Builder, tmp_path: Path) -> Iterator[Proxy]:
    with Proxy(NETWORK.namespace("node"), tmp_path) as made:
        yield made


#: (client, destination, port) -> whether the endpoint sees another source than the client's. Pods
#: are told by clusterCIDR; loopback node ports need localhostNodePorts, null in the file.
FLOWS = {
    ("client", CLUSTER_IP, 80): True,
    ("local", CLUSTER_IP, 80): False,
    ("client", NODE, 30080): True,
    ("local", NODE, 30080): True,
    ("node", "127.0.0.1", 30080): True,
}


#: Mode -> ways in that are not served in it.
UNSERVED = {"": (), "nftables": (("node", "127.0.0.1", 30080),)}


@pytest.mark.parametrize("mode", UNSERVED)
def test_kubeadms_config_and_manifests_serve(
    proxy: Proxy, network: Builder, tmp_path: Path, mode: str
) -> None:
    """kubeadm's file, its nulls as they are, and -f: each way in leads to the pod."""
    config, file = tmp_path / "config.conf", proxy.manifests / "web.yaml"
    config.write_text(KUBEADM.replace('\nmode: ""\n', f'\nmode: "{mode}"\n'))
    put(file, MANIFEST)
    served = FLOWS.keys() - UNSERVED[mode]
    flows = [(*flow, protocol) for flow in served for protocol in ENDPOINT_PORTS]
    with Responder() as responder:
        for protocol, port in ENDPOINT_PORTS.items():
            responder.listen("pod", network.fd("pod"), Listener("pod", port, protocol))
        proxy.start("--config", str(config), "--iptables-variant", "auto")
        proxy.until_in_force(file)
        seen = probe_all(
            [
                Probe(to, port, protocol, network.fd(name), timeout=20.0)
                for name, to, port, protocol in flows
            ]
        )
    found = {
        flow: (str(outcome.reach), outcome.endpoint, outcome.local, outcome.masqueraded)
        for flow, outcome in zip(flows, seen, strict=True)
    }
    assert found == {
        (*flow, protocol): ("reached", "pod", join_host_port(POD, port), masqueraded)
        for flow, masqueraded in FLOWS.items()
        if flow in served
        for protocol, port in ENDPOINT_PORTS.items()
    }
