"""Takes labs up and down, and changes them while they run.

Everything that is made is in the undo log before it is made, so a crash or Ctrl-C at any point
leaves a lab that :func:`down` (and the next :func:`up`) cleans. For the controllers:

* :func:`change` builds what the new pods need and takes away what they no longer need;
* :func:`publish` writes what the nodes' proxies read and waits until it is in force;
* :func:`kproxy.lab.wiring.place` (pure) makes pods agree with workloads.

Whoever calls :func:`change` or :func:`publish` holds ``state.lock(lab)`` and got the lab from
:func:`opened`, which clears away what a change that was cut short has left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from kproxy.backends import registry
from kproxy.backends.registry import Choice
from kproxy.core.objects import Value
from kproxy.errors import CheckFailed, LabError
from kproxy.kernel import capabilities, netns
from kproxy.lab import conditions, daemons, edits, pods, preflight, readiness, state, wiring
from kproxy.lab.apply import Builder
from kproxy.lab.controllers import fill
from kproxy.lab.edits import Edit
from kproxy.lab.manifests import Raw
from kproxy.lab.model import LabState, Pod
from kproxy.lab.names import hosts_file
from kproxy.lab.network import Network, namespace_name
from kproxy.lab.plan import plan
from kproxy.lab.topology import Topology
from kproxy.lab.uml import resident
from kproxy.lab.undisturbed import undisturbed
from kproxy.lab.undo import UndoLog

#: The one file in the manifests folder: replaced as a whole, so no proxy sees half a change.
CLUSTER_FILE = "cluster.json"

Say = Callable[[str], None]


def _silent(line: str) -> None:
    """For callers who want to hear nothing."""


class Made(Value, frozen=True):
    """What :func:`up` did. ``edit`` tells of the objects that it took with it, and of those that it
    refused; None when the lab was up already, as asked for.
    """

    lab: LabState
    edit: Edit | None


def mode_of(name: str) -> Choice:
    """The mode and variant that a name means in a lab. UsageError for an unknown one.

    Without a variant it is the one of this machine's tools: nodes of a lab have no other programs
    whose choice would count, and the rules of the machine itself are not looked at.
    """
    choice = registry.parse(name)
    capabilities.require("a lab", "CAP_SYS_ADMIN", "CAP_NET_ADMIN")
    with netns.fresh():
        return registry.resolve(choice)


def up(
    name: str,
    topology: Topology,
    choice: Choice,
    raws: Iterable[Raw] = (),
    *,
    say: Say = _silent,
    step: Say = _silent,
) -> Made:
    """Bring a lab up: network, pods, a kproxy on every node, all in sync when it returns.

    ``choice`` is resolved (no ``auto``). ``say`` hears what a user should know, ``step`` what is
    going on right now. A half-made lab of that name is cleaned first. The very
    same lab that is up already is left alone, but for processes that have died, which are started
    again, and ``raws`` are not looked at; a different one under that name is a LabError.
    """
    with state.lock(name):
        edit = _wanted(name, topology, choice, raws)
        wanted = wiring.place(edit.state)
        wanted = msgspec.structs.replace(wanted, network=_network_of(wanted))
        there = state.find(name)
        if there is not None:
            return Made(_again(there, wanted, say), None)
        if resident.running(name):
            raise LabError(
                f"lab {name} is up on a kernel of its own",
                hint=f"first: kproxy lab down --name {name}; or give this one another --name",
            )
        if UndoLog(name).exists():
            clean(name, say)
        preflight.check_names(wanted)
        try:
            UndoLog(name).begin()
            preflight.try_shapes(wanted, _builder)
            _build(wanted, step)
            _await_ready(wanted, wanted.pods, say, step)
        except BaseException as why:
            if isinstance(why, KeyboardInterrupt):
                say("interrupted: taking down again what is there")
            discard(name)
            raise
        return Made(wanted, edit)


def down(name: str) -> bool:
    """Take a lab down, whole or half made; False when there is none. Allocations are kept."""
    with state.lock(name), undisturbed():
        if name not in state.list_labs():
            return False
        _take_down(name)
        return True


def clean(name: str, say: Say) -> None:
    """Take away what is recorded of a lab that is not whole. The caller holds its lock."""
    what = "its machine is gone" if resident.find(name) else "it was left half made"
    say(f"lab {name}: {what}: cleaning it first")
    discard(name)


def discard(name: str) -> None:
    """Take down whatever is recorded of a lab, come what may. The caller holds its lock."""
    with undisturbed():
        _take_down(name)


def opened(name: str) -> LabState:
    """The state of a lab that must be up, ready to be changed."""
    there = state.load(name)
    _sweep(there)
    return there


def _sweep(lab: LabState) -> None:
    """Take away namespaces that are recorded and in no state: :func:`change` was cut short."""
    log = UndoLog(lab.name)
    known = {namespace_name(lab.name, host.name) for host in lab.network.hosts}
    left = [namespace for namespace in log.read().namespaces if namespace not in known]
    if left:
        _tell(lab.name, lab.pods)
    for namespace in left:
        netns.remove(namespace)
        log.namespace_gone(namespace)


def change(old: LabState, new: LabState) -> LabState:
    """From ``old``, which is up, to ``new``: its pods exist and answer when this returns.

    Pods that are not in ``new`` stop answering first. ``new.network`` is worked out here; the
    result, with it, is saved. What the proxies read is left as it is: see :func:`publish`.
    """
    new = msgspec.structs.replace(new, network=_network_of(new))
    steps = plan(old.network, new.network)
    staying = [pod for pod in old.pods if pod in new.pods]
    with undisturbed():
        if steps:
            # A crash from here on finds the pods that are whole in any case, and does not use the
            # names and addresses of the others again: the kernel may still be at their end.
            state.save(_with_pods(old, staying, new.counters))
            if len(staying) < len(old.pods):
                # Sockets in a namespace keep it, and its links, alive.
                _tell(new.name, staying)
            with _builder(new.name) as builder:
                builder.apply(steps)
        if old.pods != new.pods:
            _tell(new.name, new.pods)
        state.save(new)
        conditions.keep(state.lab_dir(new.name), new.pods)
    return new


def _tell(lab: str, there: Iterable[Pod]) -> None:
    """Exactly these pods answer, and are probed, when this returns."""
    there = tuple(there)
    pods.tell(lab, there)
    readiness.tell(lab, there)


def _with_pods(lab: LabState, kept: Iterable[Pod], counters: dict[str, int]) -> LabState:
    fewer = msgspec.structs.replace(lab, pods=tuple(kept), counters=counters)
    return msgspec.structs.replace(fewer, network=_network_of(fewer))


def objects_of(lab: str) -> list[dict[str, Any]]:
    """The objects that the nodes' proxies were last given, filled in."""
    found: list[dict[str, Any]] = msgspec.json.decode(cluster_file(lab).read_bytes())["items"]
    return found


def publish(lab: LabState) -> None:
    """Write what the nodes' proxies read, and return when it is in force on every node."""
    with daemons.Watch(lab) as watch:
        path = _write_cluster(lab)
        watch.until_in_force([path])


def refresh(name: str) -> None:
    """Write what the nodes' proxies read, as far as probes of pods changed it; waits for nobody but
    who changes the lab right now. Fine for a lab that is not (wholly) up."""
    with state.lock(name):
        lab = state.find(name)
        if lab is not None:
            _write_cluster(lab)


def await_ready(lab: LabState, names: Iterable[str]) -> None:
    """Return when these pods are ready. CheckFailed, with the reasons, if they do not get so."""
    wanted = set(names)
    readiness.until_ready(lab.name, [pod for pod in lab.pods if pod.name in wanted])


def restart(name: str, nodes: Iterable[str] = ()) -> list[tuple[str, int, int]]:
    """A new kproxy on these nodes, or on all, in sync when it returns.

    Returns (node, old process, new process); the old one is 0 where none ran.
    """
    with state.lock(name):
        lab = opened(name)
        chosen = nodes_of(lab, nodes)
        before = daemons.alive(name, daemons.ROLE_PROXY)
        with daemons.Watch(lab) as watch:
            started = daemons.restart_proxies(lab, chosen)
            watch.until_in_force([cluster_file(name)], started=started)
    return [
        (new.host, before[new.host].pid if new.host in before else 0, new.pid) for new in started
    ]


def kill(name: str, nodes: Iterable[str]) -> list[tuple[str, int]]:
    """End the kproxy of these nodes as a crash does, and start no other.

    Returns (node, process); the process is 0 where none ran.
    """
    with state.lock(name):
        chosen = nodes_of(opened(name), nodes)
        running = daemons.alive(name, daemons.ROLE_PROXY)
        daemons.kill(name, [running[node] for node in chosen if node in running])
    return [(node, running[node].pid if node in running else 0) for node in chosen]


def nodes_of(lab: LabState, named: Iterable[str]) -> tuple[str, ...]:
    """These nodes, each once; all when none is named. LabError for one that there is not."""
    chosen = tuple(dict.fromkeys(named)) or tuple(lab.nodes)
    if unknown := [node for node in chosen if node not in lab.nodes]:
        raise LabError(
            f"lab {lab.name} has no node {', '.join(unknown)}",
            hint=f"it has: {', '.join(lab.nodes)}",
        )
    return chosen


# --- up ---------------------------------------------------------------------------------------


def _wanted(name: str, topology: Topology, choice: Choice, raws: Iterable[Raw]) -> Edit:
    """The lab as asked for, objects taken in, pods not yet placed."""
    bare = LabState(
        name=name,
        topology=topology,
        mode=choice.mode,
        variant=choice.variant,
        network=Network(name),
        workloads=topology.workloads,
    )
    own = [Raw(obj, f"topology {topology.name}") for obj in topology.objects]
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return edits.take(bare, [*own, *raws], state.load_allocations(name), now=now)


def _network_of(lab: LabState) -> Network:
    return wiring.network(lab.name, lab.topology, lab.workloads, lab.pods)


def _build(lab: LabState, step: Say) -> None:
    step(f"building {len(lab.network.hosts)} namespaces")
    with _builder(lab.name) as builder:
        builder.apply(plan(None, lab.network))
    step(f"starting kproxy on {len(lab.nodes)} nodes")
    with daemons.Watch(lab) as watch:
        path = _write_cluster(lab)
        daemons.start_proxies(lab, lab.nodes)
        daemons.start_responder(lab.name)
        _tell(lab.name, lab.pods)
        step("waiting until every node is in sync")
        watch.until_in_force([path])
    state.save(lab)


def _await_ready(lab: LabState, new: Iterable[Pod], say: Say, step: Say) -> None:
    """Give new pods the time that their probes need; who is late is only told of."""
    probed = [pod.name for pod in new if pod.probes.readiness is not None]
    if not probed:
        return
    step("waiting until pods are ready")
    try:
        await_ready(lab, probed)
    except CheckFailed as late:
        say(str(late))
    publish(lab)


def _again(there: LabState, wanted: LabState, say: Say) -> LabState:
    """The lab is up already: leave it alone if it is what is wanted, mend its processes."""
    asked_for = ("topology", "mode", "variant")
    differ = [key for key in asked_for if getattr(there, key) != getattr(wanted, key)]
    if differ:
        raise LabError(
            f"lab {there.name} is up with another {' and '.join(differ)}",
            hint=f"first: kproxy lab down --name {there.name}; or give this one another --name",
        )
    missing = [
        h.name for h in there.network.hosts if not netns.exists(namespace_name(there.name, h.name))
    ]
    if missing:
        raise LabError(
            f"lab {there.name} has lost namespaces: {', '.join(missing)}",
            hint=f"take it down and up again: kproxy lab down --name {there.name}",
        )
    with daemons.Watch(there) as watch:
        running = daemons.alive(there.name, daemons.ROLE_PROXY)
        dead = [node for node in there.nodes if node not in running]
        if dead:
            say(f"kproxy had ended on {', '.join(dead)}: starting it again")
            daemons.start_proxies(there, dead)
        if not daemons.alive(there.name, daemons.ROLE_PODS):
            say("the process that answers for the pods had ended: starting it again")
            daemons.start_responder(there.name)
            pods.tell(there.name, there.pods)
        probed = any(pod.probes for pod in there.pods)
        if probed and not daemons.alive(there.name, daemons.ROLE_KUBELET):
            say("the process that probes the pods had ended: starting it again")
            readiness.tell(there.name, there.pods)
        _sweep(there)
        placed = wiring.place(there)
        if placed.pods != there.pods:
            say("a change of this lab was cut short: making the pods that are missing")
            there = change(there, placed)
        watch.until_in_force([_write_cluster(there)])
    return there


def _write_cluster(lab: LabState) -> Path:
    # As pods are now: whoever holds the lab's lock for long has read them long ago.
    lab = conditions.applied(lab, conditions.read(state.lab_dir(lab.name)))
    done = fill(lab, state.load_allocations(lab.name))
    # First the promise, then its use: a crash in between wastes nothing but a number.
    state.save_allocations(lab.name, done.allocations)
    text = msgspec.json.encode({"apiVersion": "v1", "kind": "List", "items": done.objects})
    path, draft = cluster_file(lab.name), state.lab_dir(lab.name) / f".{CLUSTER_FILE}"
    content = msgspec.json.format(text, indent=1)
    if not path.exists() or path.read_bytes() != content:
        state.write_atomically(path, content, draft=draft)
    names = hosts_file(lab, done.of("Service"))
    state.write_atomically(state.hosts_path(lab.name), names.encode())
    return path


def cluster_file(lab: str) -> Path:
    """The file that every node's proxy reads."""
    return state.manifests_dir(lab) / CLUSTER_FILE


def _builder(lab: str) -> Builder:
    log = UndoLog(lab)
    return Builder(lab, on_namespace=log.namespace, on_removed=log.namespace_gone)


# --- down -------------------------------------------------------------------------------------


def _take_down(name: str) -> None:
    """Undo by record: proxies and responder first, so that no socket keeps a namespace alive."""
    log = UndoLog(name)
    resident.stop(name)
    there = log.read()
    daemons.stop(name, there.processes)
    for namespace in reversed(there.namespaces):
        netns.remove(namespace)
        log.namespace_gone(namespace)
    state.forget(name)
