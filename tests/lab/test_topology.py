"""Topology files: what they may hold, and how a fault in one is named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kproxy.core.objects import Family, Protocol
from kproxy.errors import SourceError, TopologyError
from kproxy.lab import catalogue
from kproxy.lab.network import Shape
from kproxy.lab.topology import MAX_NODES, Port
from kproxy.lab.topology_file import parse

ONE_NODE = "name: t\nnodes: [{name: n1}]\n"


def test_absent_keys_have_their_defaults() -> None:
    """A topology needs a name and a node; a workload needs a name."""
    topology = parse(ONE_NODE + "workloads: [{name: web}]\n", "t.yaml")
    (load,) = topology.workloads
    assert topology.families == (Family.IPV4, Family.IPV6)
    assert (load.replicas, load.labels) == (1, (("app", "web"),))
    assert load.ports == (Port(8080, "http", Protocol.TCP),)
    assert load.link.mtu == 1500
    assert not load.link.shape


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("rate: 100mbit", Shape(rate=100_000_000)),
        ("rate: 1.5gbit", Shape(rate=1_500_000_000)),
        ("rate: 8000", Shape(rate=8000)),
        ("delay: 5ms", Shape(delay=0.005)),
        ("delay: 0.25", Shape(delay=0.25)),
        ("loss: 1%", Shape(loss=0.01)),
        ("loss: 0.5", Shape(loss=0.5)),
        ("rate: 20kbit, delay: 1us", Shape(rate=20_000, delay=1e-6)),
    ],
)
def test_quantities_of_a_link(written: str, read: Shape) -> None:
    """Rates are in bit/s by powers of 1000, delays in seconds, losses shares of one."""
    topology = parse(f"name: t\nnodes: [{{name: n1, link: {{{written}}}}}]\n", "t.yaml")
    assert topology.nodes[0].link.shape == read


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("name: t\nnodes: [{name: n1, lonk: {}}]", "nodes[0]"),
        ("name: t\nnodes: [{name: n1, link: {bandwidth: 5}}]", "nodes[0].link"),
        ("name: t\nnodes: []", "nodes"),
        ("name: t", "the file"),
        ("[]", "the file"),
        ("name: [\n", "t.yaml:2"),
        ("name: t\nname: u\n", "t.yaml:2"),
        ("a: &a [*a]", "t.yaml:1"),
        ("[" * 3000, "t.yaml:1"),
        ("", "the file"),
        (ONE_NODE + "---\nname: other\n", "the file"),
        (ONE_NODE + "objects: [{metadata: {name: x}}]", "objects[0]"),
        (ONE_NODE + "workloads: [{name: w, replicas: 45001}]", "workloads[0].replicas"),
        (ONE_NODE + "colour: red", "the file"),
        (ONE_NODE + "families: [IPv5]", "families"),
        (ONE_NODE + "families: []", "families"),
        ("name: t\nnodes: [{name: N1}]", "nodes[0].name"),
        ("name: t\nnodes: [{name: underlay}]", "nodes[0].name"),
        ("name: t\nnodes: [{name: n1}, {name: n1}]", "nodes and clients"),
        (ONE_NODE + "clients: [{name: n1}]", "nodes and clients"),
        (ONE_NODE + "workloads: [{name: w}, {name: w}]", "workloads"),
        (ONE_NODE + "workloads: [{name: w, replicas: -1}]", "workloads[0].replicas"),
        (ONE_NODE + "workloads: [{name: w, nodes: [n2]}]", "workloads[0].nodes"),
        (ONE_NODE + "workloads: [{name: w, ports: [{port: 0}]}]", "workloads[0].ports[0].port"),
        (
            ONE_NODE + "workloads: [{name: w, ports: [{port: 1, protocol: SCTP}]}]",
            "workloads[0].ports[0].protocol",
        ),
        (
            ONE_NODE + "workloads: [{name: w, ports: [{port: 1, protocol: tcp}]}]",
            "workloads[0].ports[0].protocol",
        ),
        (ONE_NODE + "workloads: [{name: w, ports: [{port: 1}, {port: 1}]}]", "workloads[0].ports"),
        ("name: t\nnodes: [{name: n1, link: {mtu: 1000}}]", "nodes[0].link.mtu"),
        ("name: t\nnodes: [{name: n1, link: {loss: 200%}}]", "nodes[0].link.loss"),
        ("name: t\nnodes: [{name: n1, link: {rate: fast}}]", "nodes[0].link.rate"),
        ("name: t\nnodes: [{name: n1, link: {rate: .inf}}]", "nodes[0].link.rate"),
        ("name: t\nnodes: [{name: n1, link: {rate: 7999}}]", "nodes[0].link.rate"),
        ("name: t\nnodes: [{name: n1, link: {rate: 33gbit}}]", "nodes[0].link.rate"),
        ("name: t\nnodes: [{name: n1, link: {delay: -1}}]", "nodes[0].link.delay"),
        ("name: t\nnodes: [{name: n1, link: {delay: 61s}}]", "nodes[0].link.delay"),
    ],
)
def test_a_fault_names_file_and_key(text: str, key: str) -> None:
    """Every fault is a TopologyError whose place is the file and the key."""
    with pytest.raises(TopologyError) as caught:
        parse(text, "t.yaml")
    assert caught.value.where in (f"t.yaml: {key}", key)
    assert caught.value.what


@pytest.mark.parametrize(
    ("name", "nodes", "pods", "clients"),
    [("standard", 2, 4, 1), ("single", 1, 3, 1), ("wide", 3, 12, 1)],
)
def test_topologies_that_come_with_kproxy(name: str, nodes: int, pods: int, clients: int) -> None:
    """Each loads by name, with the services of its manifests."""
    topology = catalogue.load(name)
    assert name in catalogue.names()
    assert (len(topology.nodes), len(topology.clients)) == (nodes, clients)
    assert sum(load.replicas for load in topology.workloads) == pods
    assert {obj["kind"] for obj in topology.objects} == {"Service"}
    assert topology.about


def test_a_path_is_a_topology_too(tmp_path: Path) -> None:
    """Manifests are found beside the file and stand before the objects written in it."""
    (tmp_path / "svc.yaml").write_text("kind: Service\nmetadata: {name: first}\n")
    file = tmp_path / "mine.yaml"
    file.write_text(
        ONE_NODE + "manifests: [svc.yaml]\nobjects: [{kind: Service, metadata: {name: second}}]\n"
    )
    topology = catalogue.load(str(file))
    assert [obj["metadata"]["name"] for obj in topology.objects] == ["first", "second"]


@pytest.mark.parametrize("content", [b"name: \xff\xfe", b"\x00\x01", "name: t".encode("utf-16")])
def test_a_file_that_is_no_text_is_named(tmp_path: Path, content: bytes) -> None:
    """Bytes that are no UTF-8 or no YAML are the file's fault, with its line."""
    file = tmp_path / "t.yaml"
    file.write_bytes(content)
    with pytest.raises(TopologyError) as caught:
        catalogue.load(str(file))
    assert caught.value.where == f"{file}:1"


def test_what_is_no_file_is_said_at_once(tmp_path: Path) -> None:
    """A folder, a pipe that nobody writes to, and a ring of links end with a message."""
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "ring.yaml").symlink_to("ring.yaml")
    for name in ("pipe.yaml", "ring.yaml", "."):
        with pytest.raises(TopologyError, match="single, standard, walk, wide"):
            catalogue.load(f"{tmp_path}/{name}")


def test_an_unknown_name_lists_those_there_are() -> None:
    """The message of a wrong name holds the right ones."""
    with pytest.raises(TopologyError, match="single, standard, walk, wide"):
        catalogue.load("standart")


def test_a_broken_manifest_of_a_topology_is_named(tmp_path: Path) -> None:
    """The user cannot mend the topology by -f, so its own faults end the command."""
    (tmp_path / "svc.yaml").write_text("kind: [\n")
    (tmp_path / "mine.yaml").write_text(ONE_NODE + "manifests: [svc.yaml]\n")
    with pytest.raises(SourceError, match=r"svc\.yaml"):
        catalogue.load(str(tmp_path / "mine.yaml"))


def test_numbers_make_a_topology_wide() -> None:
    """Added nodes repeat labels in turn; pods are shared out among workloads."""
    topology = catalogue.scaled(catalogue.load("standard"), nodes=5, pods=3)
    assert [node.name for node in topology.nodes] == [f"node{i}" for i in range(1, 6)]
    assert topology.nodes[4].labels == topology.nodes[0].labels
    assert [load.replicas for load in topology.workloads] == [8, 7]
    assert catalogue.scaled(topology, nodes=1).nodes == topology.nodes[:1]


@pytest.mark.parametrize(("nodes", "pods"), [(0, None), (MAX_NODES + 1, None), (None, 1000)])
def test_numbers_out_of_range(nodes: int | None, pods: int | None) -> None:
    """The address plan has room for so many and no more."""
    with pytest.raises(TopologyError, match=r"--nodes|--pods"):
        catalogue.scaled(catalogue.load("wide"), nodes, pods)


def test_added_nodes_take_no_name_that_is_used() -> None:
    """A client called node2 is in the way of a second node."""
    topology = parse("name: t\nnodes: [{name: node1}]\nclients: [{name: node2}]", "t.yaml")
    with pytest.raises(TopologyError, match="taken"):
        catalogue.scaled(topology, nodes=2)
