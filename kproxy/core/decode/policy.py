"""Reads what somebody wants of endpoints' health: a word, or a map of plain values.

The same form stands in the annotation of a Service (:mod:`kproxy.core.decode.health_check`) and in
the configuration. Every field that is wrong is named, with what it may be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kproxy.core.decode import leaf
from kproxy.core.decode.report import quoted
from kproxy.core.health.values import (
    Check,
    Exec,
    Grpc,
    Http,
    Pace,
    Passive,
    Policy,
    Probe,
    Tcp,
    Udp,
)

Fault = tuple[str, str]
"""A field (``http.path``, "" the value as such), and what is wrong with it."""


def read_policy(value: object) -> tuple[Policy, tuple[Fault, ...]]:
    """The policy, and everything that is wrong; the policy asks for nothing if anything is."""
    reader = _Reader()
    policy = reader.policy(value)
    return (Policy(), tuple(reader.faults)) if reader.faults else (policy, ())


Fields = Mapping[str, tuple[str, Callable[[Any], Any]]]

_HTTP: Fields = {
    "port": ("port", leaf.port_number),
    "path": ("path", leaf.path),
    "host": ("host", leaf.host),
    "headers": ("headers", leaf.headers),
    "status": ("statuses", leaf.statuses),
    "body": ("body", leaf.text),
}
#: Name of a probe -> its type, what its name sets besides, its fields.
_PROBES: Mapping[str, tuple[Callable[..., Probe], Mapping[str, Any], Fields]] = {
    "tcp": (Tcp, {}, {"port": ("port", leaf.port_number)}),
    "http": (Http, {"scheme": "http"}, _HTTP),
    "https": (
        Http,
        {"scheme": "https"},
        {**_HTTP, "verify": ("verify", leaf.flag), "ca": ("ca", leaf.certificates)},
    ),
    "udp": (
        Udp,
        {},
        {
            "port": ("port", leaf.port_number),
            "send": ("send", leaf.octets),
            "sendHex": ("send", leaf.hex_octets),
            "expect": ("expect", leaf.octets),
            "expectHex": ("expect", leaf.hex_octets),
        },
    ),
    "grpc": (Grpc, {}, {"port": ("port", leaf.port_number), "service": ("service", leaf.line)}),
    "exec": (Exec, {}, {"command": ("command", leaf.command)}),
}
#: Probe -> the fields without which it means nothing, one of each group.
_NEEDED: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "udp": (("send", "sendHex"),),
    "exec": (("command",),),
}
#: Probes that may stand alone as a word.
_WORDS = tuple(name for name in _PROBES if name not in _NEEDED)

#: Seconds between two tries, at the least.
_SHORTEST = 0.05

_PACE: Fields = {
    "interval": ("interval", leaf.seconds(0.1, 3600)),
    "timeout": ("timeout", leaf.seconds(0.01, 300)),
    "rise": ("rise", leaf.whole_number(1, 100)),
    "fall": ("fall", leaf.whole_number(1, 100)),
    "jitter": ("jitter", leaf.share(50)),
    "fastInterval": ("fast_interval", leaf.seconds(_SHORTEST, 3600)),
    "initial": ("initial", leaf.up_or_down),
}
_PASSIVE: Fields = {
    "failures": ("failures", leaf.whole_number(1, 1000)),
    "base": ("base", leaf.seconds(0.1, 3600)),
    "max": ("most", leaf.seconds(0.1, 86400)),
    "share": ("share", leaf.share(100, positive=True)),
}
_GENERAL: Fields = {
    "panic": ("panic", leaf.share(100)),
    "slowStart": ("slow_start", leaf.seconds(0, 3600)),
}

_FIELDS = (*_PROBES, *_PACE, *_GENERAL, "passive")

#: Without a ``fastInterval`` it is this part of the interval.
_FAST = 4


class _Reader:
    """Keeps what is wrong while it reads."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []

    def policy(self, value: object) -> Policy:
        if isinstance(value, str):
            return self._word(value)
        if not isinstance(value, Mapping) or not value:
            self._add("", f"{quoted(value)} must be none, {', '.join(_WORDS)} or a map")
            return Policy()
        for name in value:
            if name not in _FIELDS:
                self._unknown("", name, _FIELDS)
        probe, pace = self._probe(value), self._pace(value)
        check = Check(probe, pace) if probe is not None else None
        passive = self._passive(value.get("passive"), active=check is not None)
        if check is None and not self.faults:
            self._without_check(value, passive)
        return Policy(check, passive, **self._fields(_GENERAL, value, ""))

    def _word(self, word: str) -> Policy:
        if word == "none":
            return Policy()
        if word in _WORDS:
            return self.policy({word: {}})
        self._add("", f"{quoted(word)} must be none, {', '.join(_WORDS)} or a map")
        return Policy()

    def _probe(self, value: Mapping[Any, Any]) -> Probe | None:
        named = [name for name in _PROBES if name in value]
        if not named:
            return None
        if len(named) > 1:
            self._add(named[1], f"is a second check beside {named[0]}; keep one of them")
            return None
        name = named[0]
        body = value[name] if value[name] is not None else {}
        if not isinstance(body, Mapping):
            self._add(name, f"{quoted(body)} must be a map, such as {{}}")
            return None
        make, given, fields = _PROBES[name]
        for key in body:
            if key not in fields:
                self._unknown(name, key, fields)
        for group in _NEEDED.get(name, ()):
            if not any(body.get(key) is not None for key in group):
                self._add(f"{name}.{group[0]}", "is missing; without it nothing is checked")
        for key in ("send", "expect"):
            if body.get(key) is not None and body.get(f"{key}Hex") is not None:
                self._add(f"{name}.{key}Hex", f"says the same as {key}; keep one of them")
        return make(**given, **self._fields(fields, body, f"{name}."))

    def _pace(self, value: Mapping[Any, Any]) -> Pace:
        given = self._fields(_PACE, value, "")
        interval = given.get("interval", Pace().interval)
        if given.setdefault("fast_interval", max(_SHORTEST, interval / _FAST)) > interval:
            self._add("fastInterval", "must not exceed interval")
        return Pace(**given)

    def _passive(self, value: object, *, active: bool) -> Passive | None:
        """On by default beside an active check: both see what the other one cannot."""
        if value is None:
            return Passive() if active else None
        if isinstance(value, bool):
            return Passive() if value else None
        if not isinstance(value, Mapping):
            self._add("passive", f"{quoted(value)} must be true, false or a map")
            return None
        for key in value:
            if key not in _PASSIVE:
                self._unknown("passive", key, _PASSIVE)
        given = self._fields(_PASSIVE, value, "passive.")
        base = given.get("base", Passive().base)
        # A base of more than the ordinary maximum is its own.
        if given.setdefault("most", max(base, Passive().most)) < base:
            self._add("passive.max", "must not be less than base")
        return Passive(**given)

    def _without_check(self, value: Mapping[Any, Any], passive: Passive | None) -> None:
        idle = [name for name in _PACE if value.get(name) is not None]
        if idle:
            self._add(idle[0], "there is no check to pace; add one, such as tcp: {}")
        elif passive is None:
            self._add("", "asks for nothing; name a check, such as tcp: {}, or write none")

    def _fields(self, fields: Fields, body: Mapping[Any, Any], path: str) -> dict[str, Any]:
        """What the fields that are there set. null is as if not there."""
        found = {}
        for name, (attribute, read) in fields.items():
            if body.get(name) is None:
                continue
            try:
                found[attribute] = read(body[name])
            except leaf.Wrong as wrong:
                self._add(path + name, str(wrong))
        return found

    def _unknown(self, path: str, name: object, known: Iterable[str]) -> None:
        here = f"{path}.{name}" if path else str(name)
        known = list(known)
        near = [one for one in known if one.lower() == str(name).lower()]
        hint = f"did you mean {near[0]}?" if near else f"use {', '.join(known)}"
        self._add(here[:80], f"is unknown; {hint}")

    def _add(self, field: str, message: str) -> None:
        self.faults.append((field, message))
