"""A lab of one node that is put from mode to mode (``kproxy lab switch``) under load.

The lab is the topology ``single``; the generator's servers run in two of its pods, its client in
the third, and both speak by the cluster IP of a service that is put beside the topology's own.
"""

from __future__ import annotations

import os
import secrets
from contextlib import ExitStack
from typing import Any, Self

from msgspec.structs import replace

from kproxy.bench.agent import Agent
from kproxy.bench.path import ENDS
from kproxy.bench.window import Clients, Seen, watched
from kproxy.errors import CheckFailed
from kproxy.kernel import netns, sysctl
from kproxy.lab import catalogue, changes, lifecycle, state, switching
from kproxy.lab.manifests import Raw
from kproxy.lab.model import LabState
from kproxy.lab.switching import Switched
from kproxy.lab.undisturbed import undisturbed

_PORT = 7777
_NAME = "measured"

#: Pods that serve, and the one that is the client.
_SERVING, _CLIENT = "web", "echo-0"

#: Seconds that a switch takes at least, and how many times as long as the last one it may.
_LEAST, _SLOWER = 1.0, 1.5


def service(name: str, port: int) -> dict[str, Any]:
    """A Service before the pods of :data:`_SERVING`, to be put beside the topology's own."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"selector": {"app": _SERVING}, "ports": [{"port": port, "targetPort": port}]},
    }


class Stand:
    """The lab, gone when the ``with`` ends, Ctrl-C or not. ``first`` is the mode that it begins in;
    ``rate`` and ``held`` as of :class:`kproxy.bench.window.Clients`."""

    def __init__(self, first: str, *, rate: float, held: int) -> None:
        self._first = first
        self._rate, self._held = rate, held
        self._lab = f"b{secrets.token_hex(3)}"
        self._stack = ExitStack()
        self._slowest = _LEAST
        self._mode = first
        self._clients: Clients

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._close()

    def _close(self) -> None:
        with undisturbed():
            self._stack.close()

    def _build(self) -> None:
        self._stack.callback(state.forget_allocations, self._lab)
        self._stack.callback(lifecycle.down, self._lab)
        topology = catalogue.load("single")
        lab = lifecycle.up(self._lab, topology, lifecycle.mode_of(self._first)).lab
        changes.apply(self._lab, [Raw(service(_NAME, _PORT), "kproxy bench")])
        for pod in lab.pods:
            if pod.workload.endswith(_SERVING):
                self._agent(lab, pod.name).serve([("0.0.0.0", _PORT)])
        self._clients = Clients(
            self._client(lab),
            lab.network.namespace(_CLIENT),
            (self._address(), _PORT),
            rate=self._rate,
            held=self._held,
        )

    def _client(self, lab: LabState) -> Agent:
        """With ports enough, as on a path: where more than half are in TIME_WAIT connect(2) looks
        through thousands for a free one, and the client would be what is slow."""
        with netns.entered(lab.network.namespace(_CLIENT)):
            for name, value in ENDS:
                sysctl.write(name, value)
        return self._agent(lab, _CLIENT)

    def _agent(self, lab: LabState, host: str) -> Agent:
        namespace = netns.open_fd(lab.network.namespace(host))
        try:
            return self._stack.enter_context(Agent(namespace))
        finally:
            os.close(namespace)

    def _address(self) -> str:
        (found,) = [
            each["spec"]["clusterIP"]
            for each in lifecycle.objects_of(self._lab)
            if (each["kind"], each["metadata"]["name"]) == ("Service", _NAME)
        ]
        return str(found)

    def put(self, mode: str) -> Switched:
        """The node is in this mode, if it was not before."""
        (done,) = switching.switch(self._lab, lifecycle.mode_of(mode))
        self._mode = mode
        self._slowest = max(self._slowest, _SLOWER * done.seconds)
        return done

    def seen(self, old: str, new: str) -> Seen:
        """What clients see of a switch, and for how long the rules of both modes stood.
        KproxyError: it failed, or the new daemon does not say."""
        both: list[float] = []

        def happens() -> None:
            done = self.put(new)
            if done.both is None:
                raise CheckFailed(f"{new} does not say how long the rules of {old} stood beside it")
            both.append(done.both)

        def prepare() -> None:
            if self._mode != old:
                self.put(old)

        found = watched(self._clients, happens, within=self._slowest, prepare=prepare)
        return replace(found, both=max(both))
