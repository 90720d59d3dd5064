"""Speaks with the process that plays the kubelet of a lab's nodes (:mod:`kproxy.lab.kubelet`).

It runs where some pod has a probe, from then on as long as the lab. Its list of pods is
``kubelet.json`` in the lab's folder; a connection to its control socket says that the list is new,
or asks to be answered when certain pods are ready.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable

import msgspec

from kproxy.errors import CheckFailed, LabError
from kproxy.lab import conditions, daemons, state
from kproxy.lab.conditions import FINE
from kproxy.lab.model import Pod

#: What it answers when all is as it was told, or asked for.
OK = "ok"

#: Seconds for an answer that waits for nothing.
_TIMEOUT = 10.0

#: Seconds that a busy machine may be late.
_LENIENCE = 5.0

#: Pods whose reasons are told, of those that are not ready.
_TOLD = 3


def tell(lab: str, pods: Iterable[Pod]) -> None:
    """Say which pods there are from now on; LabError if nobody hears it."""
    probed = [pod for pod in pods if pod.probes]
    running = bool(daemons.alive(lab, daemons.ROLE_KUBELET))
    if not probed and not running:
        return
    state.write_atomically(state.lab_dir(lab) / "kubelet.json", msgspec.json.encode(probed))
    if not running:
        daemons.start_kubelet(lab)
    _ask(lab, (), _TIMEOUT)


def until_ready(lab: str, pods: Iterable[Pod]) -> None:
    """Return when these pods are ready; CheckFailed, with their probes' reasons, when they are not
    within the time that their probes give them."""
    waited = [pod for pod in pods if pod.probes.readiness is not None]
    if not waited:
        return
    patience = max(pod.probes.readiness.patience for pod in waited if pod.probes.readiness)
    try:
        _ask(lab, [pod.name for pod in waited], patience + _LENIENCE)
    except TimeoutError:
        raise _late(lab, waited, patience + _LENIENCE) from None


def _late(lab: str, waited: Iterable[Pod], patience: float) -> CheckFailed:
    found = conditions.read(state.lab_dir(lab))
    unready = [pod.name for pod in waited if found.get(pod.name, FINE).ready is not True]
    reasons = [f"{name}: {found.get(name, FINE).why or 'no word'}" for name in unready[:_TOLD]]
    more = f", and {len(unready) - _TOLD} more" if len(unready) > _TOLD else ""
    return CheckFailed(
        f"not ready after {patience:g} s: {'; '.join(reasons)}{more}",
        hint=f"see: kproxy lab get --name {lab} pods",
    )


def _ask(lab: str, names: Iterable[str], timeout: float) -> None:
    log = str(state.lab_dir(lab) / "kubelet.log")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
            control.settimeout(timeout)
            control.connect(str(daemons.kubelet_path(lab)))
            control.sendall(msgspec.json.encode(list(names)))
            control.shutdown(socket.SHUT_WR)
            said = b"".join(iter(lambda: control.recv(4096), b"")).decode()
    except TimeoutError:
        raise
    except OSError as wrong:
        raise LabError(
            f"the process that probes the pods is gone ({wrong.strerror or wrong})",
            where=log,
            hint=f"start it again: kproxy lab up --name {lab}",
        ) from wrong
    if said != OK:
        raise LabError(f"pods cannot be probed: {said or 'their process has ended'}", where=log)
