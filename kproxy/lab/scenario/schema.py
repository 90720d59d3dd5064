"""Scenario files as frozen values. An unknown key is an error that names file, case and key.

A broken case does not stop the others of its file: :func:`load` returns it as a :class:`Broken`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec
import yaml

from kproxy.core.address import canonical_ip
from kproxy.core.objects import Protocol
from kproxy.errors import ScenarioError
from kproxy.health.journal import Kind
from kproxy.lab.scenario.actions import Action, action_faults
from kproxy.lab.scenario.basics import Strict, canonical_endpoint
from kproxy.lab.traffic.wire import join_host_port
from kproxy.sources.files import read

Manifest = dict[str, Any]


class SenderKind(StrEnum):
    """Who sends: a pod of this node, the node itself, a pod elsewhere, somebody outside."""

    POD = "pod"
    NODE = "node"
    OTHER_NODE_POD = "other-node-pod"
    EXTERNAL = "external"


class Verdict(StrEnum):
    """REJECT: refused. DROP: no answer. ACCEPT_UNTRANSLATED: left alone by the proxy."""

    REJECT = "REJECT"
    DROP = "DROP"
    ACCEPT_UNTRANSLATED = "ACCEPT_UNTRANSLATED"


class Web(Strict, frozen=True):
    """What the proxy's own web servers must answer: the status, and members of the JSON body."""

    status: int
    body: dict[str, Any]
    path: str = "/"


class Expect(Strict, frozen=True):
    """What a flow must meet: ``verdict``, or ``endpoints`` (``ip:port``) with what the endpoint
    sees of the source, or ``http``; for a check of a held flow ``alive``, ``endpoint``, ``lost``.
    """

    verdict: Verdict | None = None
    endpoints: tuple[str, ...] | None = None
    http: Web | None = None
    masquerade: bool | None = None
    masquerade_by_endpoint: dict[str, bool] | None = None
    same_endpoint: bool = False
    all_endpoints_seen: bool = False
    same_as: str = ""
    alive: bool | None = None
    endpoint: str = ""
    lost: int | None = None


class Text(Strict, frozen=True):
    """Words for the reader, allowed on case, step and flow."""

    about: str = ""
    origin: str = ""
    note: str = ""
    confidence: str | float = ""
    derived: bool = False


class Flow(Text, frozen=True):
    """One flow: sent (``from`` … ``port``), or the check of one that is held (``check``).

    ``flags``: a single crafted TCP packet with these flags in scapy's letters (``SA``), such as no
    socket would begin with.
    """

    name: str = ""
    source: str = msgspec.field(default="", name="from")
    from_kind: SenderKind = SenderKind.POD
    proto: Protocol = Protocol.TCP
    to: str = ""
    port: int = 0
    source_port: int = 0
    flags: str = ""
    repeat: int = 0
    hold: str = ""
    check: str = ""
    same_endpoint: bool = False
    all_endpoints_seen: bool = False
    same_as: str = ""
    expect: Expect | None = None
    modes: tuple[str, ...] | None = None

    @property
    def title(self) -> str:
        return self.name or self.note or (f"check {self.check}" if self.check else self.line)

    @property
    def line(self) -> str:
        """``pod 10.0.0.1 > TCP 172.30.0.1:80``."""
        to = join_host_port(self.to, self.port)
        return f"{self.from_kind} {self.source} > {self.proto} {to}"


class SetsExpected(Strict, frozen=True):
    """Endpoint sets of the one service port; a key that is absent is not looked at.

    ``null`` for ``cluster`` and ``local`` means that no rule uses that set.
    """

    cluster: tuple[str, ...] | msgspec.UnsetType | None = msgspec.UNSET
    local: tuple[str, ...] | msgspec.UnsetType | None = msgspec.UNSET
    all: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    has_any: bool | msgspec.UnsetType = msgspec.UNSET


TCP_FLAGS = "FSRPAU"


class Step(Text, frozen=True):
    """One update, on top of what is there; its parts are done in the order of these fields.

    ``expect_events``: how many events of a kind (``down``, ``panic``, …) the step's journal holds
    when its flows are through; kinds that are not named are not counted.
    """

    do: tuple[Action, ...] = ()
    apply: tuple[Manifest, ...] = ()
    delete: tuple[Manifest, ...] = ()
    flows: tuple[Flow, ...] = ()
    expect_sets: SetsExpected | None = None
    expect_martian_drop: bool | None = None
    expect_events: dict[Kind, int] = msgspec.field(default_factory=dict)
    api_valid: bool = True


class NodeSpec(Strict, frozen=True):
    """The node under test; the first address of each family is the primary one."""

    name: str = "test-node"
    ips: tuple[str, ...] = ("192.168.0.2", "2001:db8::1")
    labels: dict[str, str] = msgspec.field(default_factory=dict)


class Scenario(Text, frozen=True, kw_only=True):
    """One case: objects, flows, and updates with flows of their own."""

    name: str
    modes: tuple[str, ...] | None = None
    config: dict[str, Any] = msgspec.field(default_factory=dict)
    node: NodeSpec = NodeSpec()
    objects: tuple[Manifest, ...] = ()
    flows: tuple[Flow, ...] = ()
    updates: tuple[Step, ...] = ()
    expect_sets: SetsExpected | None = None
    expect_martian_drop: bool | None = None
    api_valid: bool = True

    @property
    def steps(self) -> tuple[Step, ...]:
        """The beginning as step 0, then the updates."""
        first = Step(
            about=self.about,
            apply=self.objects,
            flows=self.flows,
            expect_sets=self.expect_sets,
            expect_martian_drop=self.expect_martian_drop,
        )
        return (first, *self.updates)

    @property
    def all_flows(self) -> Iterator[Flow]:
        for step in self.steps:
            yield from step.flows

    @property
    def manifests(self) -> Iterator[Manifest]:
        """Every version of every object, over all steps."""
        for step in self.steps:
            yield from step.apply


class Broken(msgspec.Struct, frozen=True):
    """A case that cannot be read: its name as far as known, and why."""

    name: str
    error: ScenarioError


#: Modes in which an outcome that is claimed for ``iptables`` is claimed as well.
CLAIMED_WITH_IPTABLES = ("iptables", "ipvs", "userspace", "fastpath")
MODES = (*CLAIMED_WITH_IPTABLES, "nftables")


def claims(modes: tuple[str, ...] | None, mode: str) -> bool:
    """Whether a ``modes`` key claims its outcome for ``mode``; absent claims it for all. ``!ipvs``
    takes that mode out of those that ``iptables`` stands for."""
    if modes is None:
        return True
    if f"!{mode}" in modes:
        return False
    return mode in modes or ("iptables" in modes and mode in CLAIMED_WITH_IPTABLES)


def load(path: str | Path) -> list[Scenario | Broken]:
    """Every case of a file. ScenarioError when the file as such cannot be read."""
    try:
        _, text = read(str(path))
    except OSError as failed:
        raise ScenarioError(
            f"cannot be read: {failed.strerror or failed}", where=str(path), hint="check the path"
        ) from failed
    return parse(text, where=str(path))


def parse(text: bytes | str, *, where: str) -> list[Scenario | Broken]:
    """The same for text; ``where`` names it in errors."""
    try:
        document = yaml.load(text, Loader=yaml.CSafeLoader)
    except yaml.YAMLError as wrong:
        mark = getattr(wrong, "problem_mark", None)
        place = f"{where}:{mark.line + 1}" if mark is not None else where
        problem = getattr(wrong, "problem", None) or "no YAML"
        raise ScenarioError(str(problem), where=place, hint="mend the YAML") from wrong
    cases = document if isinstance(document, list) else [document]
    return [_case(case, index, where) for index, case in enumerate(cases)]


def _case(case: object, index: int, where: str) -> Scenario | Broken:
    name = case.get("name") if isinstance(case, Mapping) else None
    label = name if isinstance(name, str) else f"case {index + 1}"
    place = f"{where}: {label}"
    try:
        scenario = msgspec.convert(case, Scenario)
        faults = list(_faults(scenario))
    except (msgspec.ValidationError, TypeError) as wrong:
        faults = [str(wrong)]
    if faults:
        hint = "the keys are in docs/scenarios.md"
        return Broken(label, ScenarioError("; ".join(faults), where=place, hint=hint))
    return canonical(scenario)


def _faults(scenario: Scenario) -> Iterator[str]:
    """What msgspec cannot tell: values that make no sense together."""
    yield from _unknown_modes(scenario.modes, "modes")
    for address in scenario.node.ips:
        if canonical_ip(address) is None:
            yield f"node.ips: {address!r} is no IP address"
    held: set[str] = set()
    names: set[str] = set()
    for number, step in enumerate(scenario.steps):
        for index, action in enumerate(step.do):
            yield from action_faults(action, f"updates[{number - 1}].do[{index}]")
        for index, flow in enumerate(step.flows):
            head = f"updates[{number - 1}]." if number else ""
            place = f"{head}flows[{index}]"
            yield from _unknown_modes(flow.modes, f"{place}.modes")
            yield from _flow_faults(flow, place, held, names)
            names.add(flow.name)
            if flow.hold:
                held.add(flow.hold)


def _unknown_modes(modes: tuple[str, ...] | None, place: str) -> Iterator[str]:
    for mode in modes or ():
        if mode.removeprefix("!") not in MODES:
            yield f"{place}: unknown mode {mode!r}; there are {', '.join(MODES)}"


def _flow_faults(flow: Flow, place: str, held: set[str], names: set[str]) -> Iterator[str]:
    expect = expectation(flow)
    if flow.check:
        if flow.check not in held:
            yield f"{place}.check: no flow before it holds {flow.check!r}"
        if expect is None:
            yield f"{place}: a check needs an expect"
        return
    for key, value in (("from", flow.source), ("to", flow.to)):
        if canonical_ip(value) is None:
            yield f"{place}.{key}: {value!r} is no IP address"
    if flow.flags and (flow.proto is not Protocol.TCP or set(flow.flags) - set(TCP_FLAGS)):
        yield f"{place}.flags: {flow.flags!r} is no set of TCP's flags {TCP_FLAGS}"
    if not 1 <= flow.port <= 65535:
        yield f"{place}.port: {flow.port} is no port (1 to 65535)"
    if expect is None:
        if not flow.hold:
            yield f"{place}: nothing is expected; give expect"
        return
    kinds = (expect.verdict, expect.endpoints, expect.http)
    if sum(kind is not None for kind in kinds) != 1:
        yield f"{place}.expect: exactly one of verdict, endpoints and http is needed"
    if expect.http is not None and (flow.proto is not Protocol.TCP or flow.hold):
        yield f"{place}.expect.http: such a flow is of TCP, and is not held"
    if expect.endpoints == ():
        yield f"{place}.expect.endpoints: name one at least, or expect a verdict"
    for text in (*(expect.endpoints or ()), *(expect.masquerade_by_endpoint or ())):
        if canonical_endpoint(text) is None:
            yield f"{place}.expect: {text!r} is no endpoint; write it like 192.0.2.1:80"
    if expect.same_as and expect.same_as not in names:
        yield f"{place}: same_as names {expect.same_as!r}, which no flow before it is called"


def expectation(flow: Flow) -> Expect | None:
    """The flow's expectation, with what stands on the flow itself taken in."""
    if flow.expect is None:
        return None
    return msgspec.structs.replace(
        flow.expect,
        same_endpoint=flow.expect.same_endpoint or flow.same_endpoint,
        all_endpoints_seen=flow.expect.all_endpoints_seen or flow.all_endpoints_seen,
        same_as=flow.expect.same_as or flow.same_as,
    )


def canonical(scenario: Scenario) -> Scenario:
    """The same with every address as canonical text, so that equal ones are equal strings."""
    replace = msgspec.structs.replace

    def flow(old: Flow) -> Flow:
        return replace(
            old,
            source=_ip(old.source),
            to=_ip(old.to),
            expect=_canonical_expect(expectation(old)),
        )

    def flows(old: tuple[Flow, ...]) -> tuple[Flow, ...]:
        return tuple(map(flow, old))

    return replace(
        scenario,
        node=replace(scenario.node, ips=tuple(map(_ip, scenario.node.ips))),
        flows=flows(scenario.flows),
        updates=tuple(replace(step, flows=flows(step.flows)) for step in scenario.updates),
    )


def _ip(text: str) -> str:
    return canonical_ip(text) or text


def _canonical_expect(expect: Expect | None) -> Expect | None:
    if expect is None:
        return None
    by_endpoint = expect.masquerade_by_endpoint
    return msgspec.structs.replace(
        expect,
        endpoints=None
        if expect.endpoints is None
        else tuple(canonical_endpoint(text) or text for text in expect.endpoints),
        masquerade_by_endpoint=None
        if by_endpoint is None
        else {canonical_endpoint(text) or text: value for text, value in by_endpoint.items()},
        endpoint=canonical_endpoint(expect.endpoint) or expect.endpoint,
    )
