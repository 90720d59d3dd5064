"""Finds topologies: by name among those that come with kproxy, or as a file of the user's.

Also the pure function that makes a topology wider by numbers.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

import kproxy
from kproxy.errors import SourceError, TopologyError
from kproxy.lab.manifests import read_paths
from kproxy.lab.topology import MAX_NODES, MAX_PODS_PER_NODE, NodeSpec, Topology, Workload
from kproxy.lab.topology_file import parse
from kproxy.sources.files import SUFFIXES, read

#: The data that comes with kproxy stands beside the package.
DATA = Path(kproxy.__file__).parent.parent / "netns-lab"


def names() -> tuple[str, ...]:
    """Names of the topologies that come with kproxy."""
    return tuple(sorted(path.stem for path in (DATA / "topologies").glob("*.yaml")))


def load(name_or_path: str) -> Topology:
    """A topology by name, or from a file if the argument is a path (has a ``/`` or a suffix).

    The objects of its ``manifests`` stand before its own ``objects`` in the result.
    """
    is_path = "/" in name_or_path or name_or_path.endswith(SUFFIXES)
    path = Path(name_or_path) if is_path else DATA / "topologies" / f"{name_or_path}.yaml"
    try:
        data = read(str(path))[1]
    except OSError as wrong:
        hint = f"there are: {', '.join(names())}; or give the path of a YAML file"
        why = wrong.strerror or str(wrong)
        raise TopologyError(
            why if is_path else f"no topology of this name: {why}", where=name_or_path, hint=hint
        ) from wrong
    topology = parse(data, str(path))
    own = read_paths(str(path.parent / manifest) for manifest in topology.manifests)
    if own.refusals:
        raise SourceError(str(own.refusals[0]), hint=f"topology {path} names that file")
    objects = (*(raw.obj for raw in own.objects), *topology.objects)
    return msgspec.structs.replace(topology, objects=objects, manifests=())


def scaled(topology: Topology, nodes: int | None = None, pods: int | None = None) -> Topology:
    """A topology with ``nodes`` nodes and ``pods`` pods on each (None: as it is).

    Added nodes repeat the labels and links of those there are in turn; pods are shared out among
    the workloads, which then may run on every node.
    """
    if nodes is not None:
        topology = _with_nodes(topology, nodes)
    if pods is not None:
        topology = _with_pods(topology, pods)
    return topology


def _with_nodes(topology: Topology, count: int) -> Topology:
    if not 1 <= count <= MAX_NODES:
        raise TopologyError(f"{count} nodes: 1 to {MAX_NODES} are possible", where="--nodes")
    old = topology.nodes
    made = tuple(
        old[i]
        if i < len(old)
        else NodeSpec(f"node{i + 1}", old[i % len(old)].labels, old[i % len(old)].link)
        for i in range(count)
    )
    there = {node.name for node in made}
    if len(there) < count or there & {client.name for client in topology.clients}:
        raise TopologyError("names of added nodes (node<N>) are taken", where="--nodes")
    workloads = tuple(
        msgspec.structs.replace(load, nodes=tuple(n for n in load.nodes if n in there))
        for load in topology.workloads
    )
    return msgspec.structs.replace(topology, nodes=made, workloads=workloads)


def _with_pods(topology: Topology, each: int) -> Topology:
    if not 0 <= each <= MAX_PODS_PER_NODE:
        raise TopologyError(f"{each} pods: 0 to {MAX_PODS_PER_NODE} on a node", where="--pods")
    loads = topology.workloads or (Workload("web", labels=(("app", "web"),)),)
    share, rest = divmod(each * len(topology.nodes), len(loads))
    workloads = tuple(
        msgspec.structs.replace(load, replicas=share + (i < rest), nodes=())
        for i, load in enumerate(loads)
    )
    return msgspec.structs.replace(topology, workloads=workloads)
