"""The entries of a step's ``do``: what they are, and what is wrong with them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from kproxy.errors import UsageError
from kproxy.health.standing import PortStanding, State
from kproxy.lab.faults import FORMS, parse
from kproxy.lab.scenario.basics import Strict, canonical_endpoint

PROXY_VERBS = ("restart", "kill", "stop", "start")

SYNCED = "synced"

#: Endpoints in these states get no new connection.
_OUT = (State.DOWN, State.EJECTED)


class Health(Strict, frozen=True):
    """What health must have made of the endpoints: of every service port that is judged, or of
    those of ``service`` (``namespace/name``, or with ``:port``).

    ``out`` are all endpoints (``ip:port``) that are down or ejected, ``ejected`` those of them that
    real connections threw out; ``up`` how many are up; ``panic``: all are used all the same.
    A key that is absent is not looked at.
    """

    service: str = ""
    out: tuple[str, ...] | None = None
    ejected: tuple[str, ...] | None = None
    up: int | None = None
    panic: bool | None = None

    def reached(self, ports: Iterable[PortStanding]) -> bool:
        """Whether it is so, in every family in which the service has endpoints."""
        judged = [port for port in ports if port.of and self._means(port)]
        return bool(judged) and all(self._holds(port) for port in judged)

    def _means(self, port: PortStanding) -> bool:
        return self.service in ("", port.name, port.name.rpartition(":")[0])

    def _holds(self, port: PortStanding) -> bool:
        return (
            (self.out is None or _same(self.out, port, _OUT))
            and (self.ejected is None or _same(self.ejected, port, (State.EJECTED,)))
            and self.up in (None, port.up)
            and self.panic in (None, port.panic)
        )

    def __str__(self) -> str:
        words = [f"{key} {value}" for key, value in msgspec.structs.asdict(self).items() if value]
        return f"endpoints are judged so: {', '.join(words)}"


def _same(wanted: Sequence[str], port: PortStanding, states: Sequence[State]) -> bool:
    seen = {end.address for end in port.endpoints if end.state in states}
    return seen == {canonical_endpoint(text) for text in wanted}


class Action(Strict, frozen=True):
    """One entry of ``do``: exactly one of ``proxy``, ``exec``, ``fault``, ``wait_for``.

    ``stdin`` is what an ``exec`` reads, such as the ruleset of a firewall that reloads. ``kind`` of
    a fault is written as for ``kproxy lab fault``. ``wait_for`` is ``synced``, or what health must
    have come to.
    """

    proxy: str = ""
    exec: tuple[str, ...] = ()
    stdin: str = ""
    place: str = msgspec.field(default="node", name="in")
    fault: str = ""
    kind: str = ""
    wait_for: str | Health = ""


def action_faults(action: Action, place: str) -> Iterator[str]:
    """Values that make no sense together, or by themselves."""
    given = [key for key in ("proxy", "exec", "fault", "wait_for") if getattr(action, key)]
    if len(given) != 1:
        yield f"{place}: exactly one of proxy, exec, fault, wait_for is needed"
    if action.proxy and action.proxy not in PROXY_VERBS:
        yield f"{place}.proxy: {action.proxy!r} is none of {', '.join(PROXY_VERBS)}"
    if isinstance(action.wait_for, Health):
        yield from _health_faults(action.wait_for, f"{place}.wait_for")
    elif action.wait_for not in ("", SYNCED):
        yield f"{place}.wait_for: {action.wait_for!r} is neither {SYNCED} nor a map"
    if action.stdin and not action.exec:
        yield f"{place}: stdin is for an exec to read"
    if action.fault and not action.kind:
        yield f"{place}: a fault needs a kind: {', '.join(FORMS.values())}"
    elif action.fault:
        try:
            parse(action.kind)
        except UsageError as wrong:
            yield f"{place}.kind: {wrong}"


def _health_faults(health: Health, place: str) -> Iterator[str]:
    wanted = (health.out, health.ejected, health.up, health.panic)
    if all(value is None for value in wanted):
        yield f"{place}: nothing to wait for; give out, ejected, up or panic"
    for text in (*(health.out or ()), *(health.ejected or ())):
        if canonical_endpoint(text) is None:
            yield f"{place}: {text!r} is no endpoint; write it like 192.0.2.1:80"
