"""Puts nodes of a running lab into another mode while traffic flows, one node after the other.

On each node the new mode's daemon starts beside the old one's, which makes room when the new one is
ready (:mod:`kproxy.changeover`): rules of both stand for a moment, then the old ones are swept
away. When the new one does not come into force, or somebody presses Ctrl-C, the nodes are put back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

import msgspec

from kproxy import occupancy, status, succession
from kproxy.backends import registry
from kproxy.backends.registry import Choice
from kproxy.core.objects import Family, Value
from kproxy.errors import KproxyError, LabError, MachineError
from kproxy.kernel import netns
from kproxy.lab import daemons, lifecycle, state
from kproxy.lab.model import LabState
from kproxy.lab.undisturbed import undisturbed
from kproxy.lab.undo import Process

Say = Callable[[str], None]


#: Seconds for an old daemon to notice that the new one is gone, or for the new one to sweep again,
#: and between two looks.
_NOTICED, _LOOK = 3.0, 0.02


def _silent(line: str) -> None:
    """For callers who want to hear nothing."""


class Switched(Value, frozen=True):
    """One node: modes before and after, seconds until nothing but the new one is in force; 0.0
    where it was in force already. ``process`` is the daemon's. ``both``: of these seconds those in
    which the rules of both stood, as the new daemon measured it; None: there was nothing to be
    switched from, or the new daemon did not say, since it could not sweep the old ones away yet."""

    node: str
    before: str
    now: str
    seconds: float
    process: int
    both: float | None = None


def switch(
    name: str, choice: Choice, nodes: Iterable[str] = (), *, step: Say = _silent
) -> list[Switched]:
    """Put these nodes, or all, into a mode; it alone is in force on them when this returns.

    ``choice`` is resolved (no ``auto``). MachineError, before anything is touched, when this kernel
    cannot run it. When it fails on a node, all of them are in their old mode again, as far as that
    can be had.
    """
    with state.lock(name):
        lab = lifecycle.opened(name)
        chosen = lifecycle.nodes_of(lab, nodes)
        require(lab, choice)
        wanted = (choice.mode, choice.variant)
        before = daemons.alive(name, daemons.ROLE_PROXY)
        done: list[Switched] = []
        now = lab
        try:
            for node in chosen:
                step(f"{node}: {choice}")
                now, one = _switch(now, node, wanted)
                done.append(one)
        except BaseException as why:
            with undisturbed():
                touched = [one.node for one in done if one.seconds]
                _put_back(lab, touched, chosen[len(done)], before, why)
            raise
        return done


def require(lab: LabState, choice: Choice) -> None:
    """MachineError, with what is missing, when this kernel cannot run a mode for a lab's nodes."""
    with netns.fresh():
        for family in lab.topology.families:
            try:
                registry.create(choice, family).probe()
            except MachineError as lacking:
                if family is Family.IPV4 or len(lab.topology.families) == 1:
                    # A tool may have a line to say about each of its rules.
                    first = str(lacking).partition("\n")[0]
                    raise MachineError(
                        f"this kernel cannot run {choice}: {first}",
                        hint="nothing was changed; what it can run: kproxy doctor",
                    ) from lacking


def _switch(lab: LabState, node: str, wanted: tuple[str, str]) -> tuple[LabState, Switched]:
    """One node; the lab as it is then, saved."""
    old = daemons.alive(lab.name, daemons.ROLE_PROXY).get(node)
    before = lab.mode_of(node)
    if before == wanted and old is not None:
        return lab, Switched(node, _word(before), _word(wanted), 0.0, old.pid)
    begun = time.monotonic()
    new_lab = _with_mode(lab, node, wanted)
    with daemons.Watch(new_lab) as watch:
        new = daemons.start_successor(new_lab, node)
        watch.until_in_force([lifecycle.cluster_file(lab.name)], nodes=[node], started=[new])
        seconds = time.monotonic() - begun
        both = None if old is None else _stood_beside(lab.name, new)
        if both is not None:
            seconds = time.monotonic() - begun
    with undisturbed():
        state.save(new_lab)
        if old is not None and before[0] not in succession.MODES:
            # It ends by itself, and is out of the lab's books when this returns.
            daemons.stop(lab.name, [old])
    return new_lab, Switched(node, _word(before), _word(wanted), seconds, new.pid, both)


def _stood_beside(name: str, new: Process) -> float | None:
    """How long the rules of both stood, once the old ones are gone. They are when a daemon says the
    first time that it is in force, unless something kept it from sweeping them away, which it does
    again after a moment. None: they are not gone yet, or never were there."""
    deadline = time.monotonic() + _NOTICED
    while True:
        told = status.read(daemons.proxy_state_dir(name, new.host))
        if told is not None and told.pid == new.pid and told.both is not None:
            return told.both
        if time.monotonic() >= deadline:
            return None
        time.sleep(_LOOK)


def _with_mode(lab: LabState, node: str, wanted: tuple[str, str]) -> LabState:
    """The lab with a node in a mode; the one of all nodes is the lab's."""
    modes = {each: lab.mode_of(each) for each in lab.nodes} | {node: wanted}
    common = {*modes.values()}
    mode, variant = wanted if len(common) == 1 else (lab.mode, lab.variant)
    switched = {each: mine for each, mine in modes.items() if mine != (mode, variant)}
    return msgspec.structs.replace(lab, mode=mode, variant=variant, switched=switched)


def _word(mode: tuple[str, str]) -> str:
    return str(Choice(*mode))


# --- the way back -------------------------------------------------------------------------------


def _put_back(
    lab: LabState,
    done: Iterable[str],
    broken: str,
    before: Mapping[str, Process],
    why: BaseException,
) -> None:
    """Nodes that are done, and the one at which it broke, serve as ``lab`` says. LabError when one
    does not."""
    state.save(lab)
    failed = []
    for node, back in ((broken, _break_off), *((each, _return) for each in done)):
        try:
            back(lab, node, before.get(node))
        except KproxyError as refused:
            failed.append(f"{node}: {refused}")
    if failed:
        raise LabError(
            f"{why}; and the old mode is not back on {'; '.join(failed)}",
            hint=f"mend: kproxy lab restart --name {lab.name}",
        ) from why


def _break_off(lab: LabState, node: str, old: Process | None) -> None:
    """The new daemon ends, and the old one goes on: it does so by itself when the new one is gone
    before it served alone."""
    new = daemons.alive(lab.name, daemons.ROLE_PROXY).get(node)
    with daemons.Watch(lab) as watch:
        if new is not None and new != old:
            daemons.stop(lab.name, [new])
        if old is None or not _back(lab, node, old):
            daemons.start_successor(lab, node)
        watch.until_in_force([lifecycle.cluster_file(lab.name)], nodes=[node])


def _back(lab: LabState, node: str, old: Process) -> bool:
    """Whether a process is the node's proxy again; it takes a moment to notice that it is."""
    deadline = time.monotonic() + _NOTICED
    while old.alive() and time.monotonic() < deadline:
        serving = _serving(lab, node)
        if serving is not None and serving.pid == old.pid:
            return True
        time.sleep(_LOOK)
    return False


def _return(lab: LabState, node: str, _: Process | None) -> None:
    """From the new mode to the old one, as it came."""
    new = daemons.alive(lab.name, daemons.ROLE_PROXY).get(node)
    serving = _serving(lab, node)
    with daemons.Watch(lab) as watch:
        back = daemons.start_successor(lab, node)
        watch.until_in_force([lifecycle.cluster_file(lab.name)], nodes=[node], started=[back])
    if new is not None and serving is not None and serving.mode not in succession.MODES:
        daemons.stop(lab.name, [new])


def _serving(lab: LabState, node: str) -> occupancy.Occupant | None:
    """Who is the proxy of a node's network namespace."""
    with netns.entered(lab.network.namespace(node)):
        return occupancy.occupant()
