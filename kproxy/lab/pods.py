"""The process that answers for all pods of one lab: ``python -m kproxy.lab.pods LAB CONTROL-FD``.

It reads ``pods.json`` in the lab's folder, a list of :class:`Answering`, and the pods' faults and
restarts in ``conditions.json`` (:mod:`kproxy.lab.conditions`), makes what listens agree with them,
and does so again whenever somebody connects to its control socket; the one line that it sends back
is ``ok``, or what went wrong. :func:`tell` and :func:`poke` are the other end.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterable
from contextlib import suppress

import msgspec

from kproxy.core.objects import Value
from kproxy.errors import KproxyError, LabError
from kproxy.kernel import netns
from kproxy.lab import conditions, state
from kproxy.lab.conditions import Condition
from kproxy.lab.daemons import control_path
from kproxy.lab.faults import HEALTHY, Affliction, affliction
from kproxy.lab.model import Pod
from kproxy.lab.network import namespace_name
from kproxy.lab.topology import Port
from kproxy.lab.traffic import Listener, Responder

#: Seconds for an answer: opening some hundred sockets takes milliseconds.
_TIMEOUT = 10.0


class Answering(Value, frozen=True):
    """One pod as this process sees it. Equal names with other ports are another pod."""

    name: str
    ports: tuple[Port, ...]


def tell(lab: str, pods: Iterable[Pod]) -> None:
    """Say which pods must answer from now on; returns when exactly those do. LabError if not."""
    wanted = [Answering(pod.name, pod.ports) for pod in pods]
    state.write_atomically(state.lab_dir(lab) / "pods.json", msgspec.json.encode(wanted))
    poke(lab)


def poke(lab: str) -> None:
    """Say that there is something new; returns when it is so. LabError if it cannot be."""
    log = str(state.lab_dir(lab) / "pods.log")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
            control.settimeout(_TIMEOUT)
            control.connect(str(control_path(lab)))
            said = b"".join(iter(lambda: control.recv(4096), b"")).decode()
    except OSError as wrong:
        raise LabError(
            f"the process that answers for the pods is gone ({wrong.strerror or wrong})",
            where=log,
            hint=f"start it again: kproxy lab up --name {lab}",
        ) from wrong
    if said != "ok":
        raise LabError(f"pods cannot answer: {said or 'their process has ended'}", where=log)


class Pods:
    """Keeps a responder in step with the list."""

    def __init__(self, lab: str, responder: Responder) -> None:
        self._lab = lab
        self._responder = responder
        self._namespaces: dict[Answering, int] = {}
        #: What the responder was last told of each pod, and how often the pod had been started.
        self._suffering: dict[str, tuple[Affliction, int]] = {}

    def follow(self) -> None:
        """Read the list; stop answering for pods that are not on it, start for those that are, as
        well or as badly as they do."""
        text = (state.lab_dir(self._lab) / "pods.json").read_bytes()
        wanted = msgspec.json.decode(text, type=list[Answering])
        for pod in self._namespaces.keys() - set(wanted):
            self._responder.release(pod.name)
            self._suffering.pop(pod.name, None)
            os.close(self._namespaces.pop(pod))
        found = conditions.read(state.lab_dir(self._lab))
        for pod in wanted:
            if pod not in self._namespaces:
                self._begin(pod)
            self._suffer(pod.name, found.get(pod.name, conditions.FINE))

    def _suffer(self, pod: str, condition: Condition) -> None:
        now = affliction(condition.faults), condition.restarts
        before = self._suffering.get(pod, (HEALTHY, condition.restarts))
        # First what a restart has healed: nothing listens again before it may.
        if now[0] != before[0]:
            self._responder.afflict(pod, now[0])
        if now[1] != before[1]:
            self._responder.restart(pod)
        self._suffering[pod] = now

    def _begin(self, pod: Answering) -> None:
        namespace = netns.open_fd(namespace_name(self._lab, pod.name))
        self._namespaces[pod] = namespace
        for port in pod.ports:
            try:
                self._responder.listen(
                    pod.name, namespace, Listener(pod.name, port.port, port.protocol)
                )
            except OSError as wrong:
                raise LabError(
                    f"cannot listen on {port.port}/{port.protocol}: {wrong.strerror}",
                    where=f"pod {pod.name}",
                ) from wrong


def serve(lab: str, control: socket.socket) -> None:
    """Answer for pods until SIGTERM."""
    with Responder() as responder:
        pods = Pods(lab, responder)
        while True:
            asker, _ = control.accept()
            with asker, suppress(ConnectionError):
                asker.sendall(_outcome(pods).encode())


def _outcome(pods: Pods) -> str:
    try:
        pods.follow()
    except (KproxyError, OSError, msgspec.DecodeError) as wrong:
        sys.stderr.write(f"kproxy pods: {wrong}\n")
        return str(wrong)
    return "ok"


def main(argv: list[str]) -> None:
    # Nothing here outlives the process, so the default action of SIGTERM is the right one.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    serve(argv[1], socket.socket(fileno=int(argv[2])))


if __name__ == "__main__":
    main(sys.argv)
