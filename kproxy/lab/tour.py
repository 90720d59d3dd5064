"""Every mode that works here, tried with real traffic in a lab of its own, one after the other.

The tour makes its own services in its own lab, so it disturbs no other lab and depends on none.
What was checked and what came of it is a value, :class:`Report`; printing is up to the command.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import msgspec

from kproxy import doctor
from kproxy.backends import registry
from kproxy.core.objects import Family, Protocol, Value, family_of
from kproxy.errors import LabError, UsageError
from kproxy.kernel import netns
from kproxy.lab import lifecycle, state, wiring
from kproxy.lab.manifests import Raw
from kproxy.lab.model import LabState
from kproxy.lab.topology import Topology, Workload
from kproxy.lab.traffic import Outcome, Probe, Reach, probe_all
from kproxy.lab.uml import machine
from kproxy.lab.uml.apart import Apart
from kproxy.lab.uml.beside import kproxy
from kproxy.lab.uml.place import INSIDE

#: The lab of the tour; taken down after each mode.
LAB = "tour"

#: A fair choice misses an endpoint less often than this in a spread check.
_MISS = 1e-9

Say = Callable[[str], None]


class Result(Value, frozen=True):
    """One check in one family. ``detail`` says why it was not tried (``ok`` None), or what was seen
    instead (``ok`` False).
    """

    check: str
    family: Family
    ok: bool | None
    detail: str = ""


class ModeResult(Value, frozen=True):
    """One mode. ``lacking`` says per family why it cannot run here, by kernel or by version;
    ``kernel`` which it ran on when that was not this host's."""

    mode: str
    results: tuple[Result, ...] = ()
    lacking: tuple[tuple[Family, str], ...] = ()
    kernel: str = ""

    @property
    def ok(self) -> bool:
        return all(result.ok is not False for result in self.results)


class Report(Value, frozen=True):
    modes: tuple[ModeResult, ...]

    @property
    def ok(self) -> bool:
        """Something was tried, and nothing of it failed."""
        tried = [result for mode in self.modes for result in mode.results if result.ok is not None]
        return bool(tried) and all(result.ok for result in tried)


# --- what is tried ----------------------------------------------------------------------------


class _Scene(Value, frozen=True):
    """A lab that is up, seen from the checks: addresses of one family only."""

    lab: LabState
    family: Family
    load: Workload
    service: dict[str, Any]
    empty: dict[str, Any]
    namespaces: dict[str, int]

    @property
    def endpoints(self) -> set[str]:
        return {pod.name for pod in wiring.pods_of(self.lab, self.load)}

    def ports(self) -> Iterator[tuple[int, int, Protocol]]:
        """(port, node port, protocol) of the service."""
        for port in self.service["spec"]["ports"]:
            yield port["port"], port["nodePort"], Protocol(port["protocol"])

    def pods(self) -> list[str]:
        return [pod.name for pod in self.lab.pods]

    def clients(self) -> list[str]:
        return [client.name for client in self.lab.topology.clients]

    def node_addresses(self) -> list[str]:
        addresses = (wiring.node_addresses(self.lab.topology, node) for node in self.lab.nodes)
        return [a for both in addresses for a in both if family_of(a) is self.family]

    def probe(self, sender: str, to: str, port: int, protocol: Protocol = Protocol.TCP) -> Probe:
        return Probe(to, port, protocol, namespace=self.namespaces[sender])


def _cluster_ip(service: Mapping[str, Any], family: Family) -> str:
    addresses: list[str] = service["spec"]["clusterIPs"]
    return next(address for address in addresses if family_of(address) is family)


def _to_cluster_ip(scene: _Scene, senders: Iterable[str]) -> list[Probe]:
    to = _cluster_ip(scene.service, scene.family)
    return [
        scene.probe(sender, to, port, protocol)
        for sender in senders
        for port, _, protocol in scene.ports()
    ]


def _from_pod(scene: _Scene) -> list[Probe]:
    return _to_cluster_ip(scene, scene.pods())


def _from_node(scene: _Scene) -> list[Probe]:
    return _to_cluster_ip(scene, scene.lab.nodes)


def _from_outside(scene: _Scene) -> list[Probe]:
    return [
        scene.probe(client, address, node_port, protocol)
        for client in scene.clients()
        for address in scene.node_addresses()
        for _, node_port, protocol in scene.ports()
    ]


def _spread(scene: _Scene) -> list[Probe]:
    to = _cluster_ip(scene.service, scene.family)
    port, _, protocol = next(scene.ports())
    return [scene.probe(scene.lab.nodes[0], to, port, protocol)] * tries(len(scene.endpoints))


def tries(endpoints: int) -> int:
    """How many connections see each of ``endpoints`` but for one time in 10⁹: the chance that
    some endpoint is never chosen is at most n·(1 − 1/n)^tries."""
    if endpoints < 2:
        return 1
    return math.ceil(math.log(_MISS / endpoints) / math.log(1 - 1 / endpoints))


def _refused(scene: _Scene) -> list[Probe]:
    to = _cluster_ip(scene.empty, scene.family)
    port = scene.empty["spec"]["ports"][0]
    inside = [scene.probe(s, to, port["port"]) for s in (*scene.pods(), *scene.lab.nodes)]
    outside = [
        scene.probe(client, address, port["nodePort"])
        for client in scene.clients()
        for address in scene.node_addresses()
    ]
    return inside + outside


def _reached_endpoints(scene: _Scene, outcomes: Sequence[Outcome]) -> str:
    """ "" when all outcomes are answers of endpoints, else the first that is not, in words."""
    for outcome in outcomes:
        if outcome.reach is not Reach.REACHED or outcome.endpoint not in scene.endpoints:
            return f"from {outcome.sender or '?'}: {outcome}"
    return ""


def _saw_all(scene: _Scene, outcomes: Sequence[Outcome]) -> str:
    missed = scene.endpoints - {outcome.endpoint for outcome in outcomes}
    wrong = _reached_endpoints(scene, outcomes)
    if wrong or not missed:
        return wrong
    return f"{', '.join(sorted(missed))} never chosen in {len(outcomes)} connections"


def _all_refused(scene: _Scene, outcomes: Sequence[Outcome]) -> str:
    for outcome in outcomes:
        if outcome.reach is not Reach.REFUSED:
            return f"from {outcome.sender or '?'}: {outcome}"
    return ""


#: check -> (what is sent, what is wrong with what came back), in the order of the table's columns.
CHECKS: dict[
    str, tuple[Callable[[_Scene], list[Probe]], Callable[[_Scene, Sequence[Outcome]], str]]
] = {
    "ClusterIP from pod": (_from_pod, _reached_endpoints),
    "ClusterIP from node": (_from_node, _reached_endpoints),
    "NodePort from outside": (_from_outside, _reached_endpoints),
    "spread over endpoints": (_spread, _saw_all),
    "refused when empty": (_refused, _all_refused),
}


# --- the tour ---------------------------------------------------------------------------------


def run(
    topology: Topology, modes: Iterable[str] = (), *, say: Say, step: Say, name: str = ""
) -> Report:
    """Try each mode of ``modes`` (with variant or without; empty: all there are), one at a time.

    With ``name``, by which ``kproxy lab tour`` finds the topology, the modes that only user-mode
    Linux can run here are tried there meanwhile. ``say`` hears what a user should know, ``step``
    what is going on. UsageError for unknown modes.
    """
    load = busiest(topology)
    _clear(say)
    chosen = _chosen(_by_mode(doctor.examine().modes), modes)
    inside = _for_inside(chosen) if name else ()
    results: dict[str, ModeResult] = {}
    with ExitStack() as running:
        apart = None
        if inside:
            argv = ("lab", "tour", name, "--mode", ",".join(inside), "--kernel", "host")
            apart = running.enter_context(Apart(kproxy(*argv, "--no-lab", "-o", "json")))
        for mode, findings in chosen.items():
            if mode not in inside:
                results[mode] = _try_here(topology, load, mode, findings, say, step)
        if apart is not None:
            step(f"{', '.join(inside)}: in user-mode Linux")
            results |= _from_inside(apart, inside, topology.families)
    return Report(tuple(results[mode] for mode in chosen))


def _try_here(
    topology: Topology,
    load: Workload,
    mode: str,
    findings: Mapping[Family, doctor.ModeFinding],
    say: Say,
    step: Say,
) -> ModeResult:
    works = tuple(f for f in topology.families if findings[f].works)
    lacking = tuple((f, _why(findings[f])) for f in topology.families if f not in works)
    tried = _try_mode(topology, load, mode, works, say, step) if works else ()
    return ModeResult(mode, tried, lacking)


def _for_inside(chosen: Mapping[str, Mapping[Family, doctor.ModeFinding]]) -> tuple[str, ...]:
    """Modes that this host's kernel cannot run, but a machine that it can boot."""
    wanted = tuple(
        mode
        for mode, findings in chosen.items()
        if mode in INSIDE and registry.built(mode) and not any(f.kernel for f in findings.values())
    )
    return wanted if wanted and machine.lacking() is None else ()


def _from_inside(
    apart: Apart, modes: Sequence[str], families: Sequence[Family]
) -> dict[str, ModeResult]:
    """What the tour in the machine found; why there is nothing of it, when it broke off."""
    try:
        report = msgspec.json.decode(apart.output(fine=(0, 1)), type=Report)
    except (LabError, msgspec.DecodeError) as broken:
        why = tuple((family, str(broken)) for family in families)
        return {mode: ModeResult(mode, lacking=why) for mode in modes}
    return {
        one.mode: msgspec.structs.replace(one, kernel="user-mode Linux") for one in report.modes
    }


def _by_mode(
    findings: Iterable[doctor.ModeFinding],
) -> dict[str, dict[Family, doctor.ModeFinding]]:
    by_mode: dict[str, dict[Family, doctor.ModeFinding]] = {}
    for finding in findings:
        by_mode.setdefault(finding.name, {})[Family(finding.family)] = finding
    return by_mode


def _chosen(
    known: dict[str, dict[Family, doctor.ModeFinding]], names: Iterable[str]
) -> dict[str, dict[Family, doctor.ModeFinding]]:
    """Those that are named; a mode's name stands for all of its variants."""
    chosen: set[str] = set()
    for name in names:
        matching = {mode for mode in known if name in (mode, mode.partition("-")[0])}
        if not matching:
            raise UsageError(f"unknown mode {name!r}", hint=f"there are: {', '.join(known)}")
        chosen |= matching
    return {mode: found for mode, found in known.items() if mode in chosen or not chosen}


def _why(finding: doctor.ModeFinding) -> str:
    """Why a mode does not run: the kernel's reason first, since no version of kproxy mends it."""
    if not finding.kernel:
        return f"{finding.why}; {finding.remedy}" if finding.remedy else finding.why
    return "this kernel has it, kproxy will in a later version"


def _clear(say: Say) -> None:
    """What a tour that was killed has left."""
    if LAB in state.list_labs():
        say("an earlier tour was cut short: cleaning up after it")
        _down()


def _down() -> None:
    lifecycle.down(LAB)
    state.forget_allocations(LAB)


def _try_mode(
    topology: Topology,
    load: Workload,
    mode: str,
    families: Sequence[Family],
    say: Say,
    step: Say,
) -> tuple[Result, ...]:
    step(f"{mode}: bringing a lab up")
    try:
        choice = registry.parse(mode)
        lab = lifecycle.up(LAB, topology, choice, services_for(load), say=say).lab
        step(f"{mode}: sending traffic")
        return tuple(try_lab(lab, load, families))
    finally:
        _down()


def try_lab(lab: LabState, load: Workload, families: Sequence[Family]) -> Iterator[Result]:
    """All checks in a lab that is up with :func:`services_for` of ``load``."""
    services = {
        obj["metadata"]["name"]: obj
        for obj in lifecycle.objects_of(lab.name)
        if obj["kind"] == "Service" and obj["metadata"]["namespace"] == load.namespace
    }
    with ExitStack() as opened:
        namespaces: dict[str, int] = {}
        for host in lab.network.hosts:
            namespaces[host.name] = netns.open_fd(lab.network.namespace(host.name))
            opened.callback(os.close, namespaces[host.name])
        for family in families:
            scene = _Scene(lab, family, load, services[_FULL], services[_EMPTY], namespaces)
            for name, (probes_of, fault_of) in CHECKS.items():
                yield _check(scene, name, probes_of(scene), fault_of)


def _check(
    scene: _Scene,
    name: str,
    probes: list[Probe],
    fault_of: Callable[[_Scene, Sequence[Outcome]], str],
) -> Result:
    if not probes:
        return Result(name, scene.family, None, "the topology has nobody to send it")
    fault = fault_of(scene, probe_all(probes))
    return Result(name, scene.family, not fault, fault)


# --- its services -----------------------------------------------------------------------------

_FULL, _EMPTY = "kproxy-tour", "kproxy-tour-empty"


def busiest(topology: Topology) -> Workload:
    """The workload to try: the one with the most pods. LabError when there is none."""
    loads = [load for load in topology.workloads if load.replicas and load.ports and load.labels]
    if not loads:
        raise LabError(
            f"topology {topology.name} has no workload with pods, ports and labels to try",
            hint="try: kproxy lab tour standard",
        )
    return max(loads, key=lambda load: load.replicas)


def services_for(load: Workload) -> tuple[Raw, ...]:
    """The services that the checks use: one for all ports of ``load``, one that selects nobody."""
    ports = [
        {
            "name": f"p{i}",
            "port": 1000 + i,
            "targetPort": port.port,
            "protocol": port.protocol.value,
        }
        for i, port in enumerate(load.ports)
    ]
    return (
        Raw(_service(_FULL, load.namespace, dict(load.labels), ports)),
        Raw(_service(_EMPTY, load.namespace, {_EMPTY: "nobody"}, [{"port": 1000}])),
    )


def _service(
    name: str, namespace: str, selector: dict[str, str], ports: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "type": "NodePort",
            "ipFamilyPolicy": "PreferDualStack",
            "selector": selector,
            "ports": ports,
        },
    }
