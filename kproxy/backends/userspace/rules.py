"""The rules of one service port in userspace mode, as typed values. Pure.

A rule that leads to a front, or guards one, lacks the relay port until the front's sockets stand:
a :class:`Draft` names the front instead. What a client may not use is not translated for it, and
meets a refusal in filter with the service's own address still on it. No rule asks for the order of
others in its chain (:mod:`kproxy.backends.userspace.chains`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from msgspec.structs import replace

from kproxy.backends.userspace import chains
from kproxy.backends.userspace.plan import OFFERED, uses_of
from kproxy.backends.xtables.detector import of_others, of_pods
from kproxy.backends.xtables.layout import Place
from kproxy.backends.xtables.localnet import LOCALNET, LOCALNET_GUARD
from kproxy.backends.xtables.rules import Accept, Dnat, Drop, Redirect, Reject, Rule, Table, Target
from kproxy.backends.xtables.text import comment, host
from kproxy.core.objects import Family, Protocol, Value
from kproxy.core.policy import EXTERNAL, INTERNAL, VERDICT, Client, Use, Verdict
from kproxy.core.snapshot import LocalDetector, NodeSettings, PortPlan
from kproxy.core.ways import permitted

_LOOPBACK = {Family.IPV4: LOCALNET, Family.IPV6: "::1/128"}

_CONTAINER = (Table.NAT, chains.PORTALS_CONTAINER)
_HOST = (Table.NAT, chains.PORTALS_HOST)
_UNSERVED = (Table.NAT, chains.PORTALS_UNSERVED)
_PORT_CONTAINER = (Table.NAT, chains.NODEPORT_CONTAINER)
_PORT_HOST = (Table.NAT, chains.NODEPORT_HOST)
_FILTER = (Table.FILTER, chains.PORTALS_FILTER)
_PORT_FILTER = (Table.FILTER, chains.NODEPORT_FILTER)
_GUARD = (Table.FILTER, chains.RELAY_GUARD)
_NON_LOCAL = (Table.FILTER, chains.NODEPORT_NON_LOCAL)


class Context(Value, frozen=True):
    """What the rules of every service depend on besides its plan."""

    family: Family
    settings: NodeSettings

    @property
    def to(self) -> str:
        """Where translated packets go, "" when no address is known to be this node's.

        REDIRECT, kube-proxy's way, takes an address of the device that the packet came by, and
        drops what comes by one without any: with some networks those of all pods.
        """
        settings = self.settings
        own = (ip for ip in settings.addresses if ip in settings.local_addresses)
        return settings.userspace.listen or next(own, "")

    @property
    def serves_localhost(self) -> bool:
        """Whether node ports answer on 127.0.0.0/8. Never on ::1, as in every mode."""
        return self.family is Family.IPV4 and self.settings.node_port_targets.localhost

    @property
    def guard(self) -> tuple[Rule, ...]:
        """What must stand in the chain that is shared with the kubelet."""
        return (LOCALNET_GUARD,) if self.serves_localhost else ()


class Draft(Value, frozen=True, gc=False):
    """A rule, and what it waits for.

    ``front``: the relay port of that list's front, as its target where it has none, as its dport
    where it has one. ``held``: it stands only as long as the node port is held. ``whole``: only as
    long as all of these fronts do; ``lacking``: only as long as one of them does not, since it
    could not be opened.
    """

    rule: Rule
    front: Use | None = None
    held: bool = False
    whole: tuple[Use, ...] = ()
    lacking: tuple[Use, ...] = ()


class Found(NamedTuple):
    """What drafts wait for: relay ports by list, whether the node port is held, and where
    translated packets go (:attr:`Context.to`)."""

    ports: tuple[tuple[Use, int], ...] = ()
    held: bool = True
    to: str = ""


def finished(draft: Draft, found: Found) -> Rule | None:
    """The rule; None when what it waits for is not there."""
    if draft.held and not found.held:
        return None
    ports = dict(found.ports)
    if not all(use in ports for use in draft.whole):
        return None
    if draft.lacking and all(use in ports for use in draft.lacking):
        return None
    if draft.front is None:
        return draft.rule
    port = ports.get(draft.front)
    if port is None:
        return None
    if draft.rule.target is not None:
        return replace(draft.rule, dport=port)
    at = f"[{found.to}]:{port}" if ":" in found.to else f"{found.to}:{port}"
    return replace(draft.rule, target=Dnat(at) if found.to else Redirect(port))


def drafts_of(plan: PortPlan, context: Context) -> tuple[Draft, ...]:
    """Every rule of one service port, each once."""
    service = _Port(plan, context)
    made = dict.fromkeys(service.internal())
    made.update(dict.fromkeys(service.external()))
    made.update(dict.fromkeys(service.node_port()))
    made.update(dict.fromkeys(service.guards()))
    return tuple(made)


#: Verdict -> what refuses, and the comment that says why.
_REFUSALS: dict[Verdict, tuple[Target, str]] = {
    Verdict.REFUSE: (Reject(), "has no endpoints"),
    Verdict.DROP: (Drop(), "has none for this client"),
}


class _Port:
    """One service port: what its rules have in common."""

    def __init__(self, plan: PortPlan, context: Context) -> None:
        self._plan = plan
        self._context = context
        self._family, self._settings = context.family, context.settings
        self._label = comment(str(plan.name))
        self._protocol = plan.protocol.value.lower()
        self._uses = uses_of(plan)
        self._inside = INTERNAL[plan.internal_policy]
        self._outside = {client: EXTERNAL[plan.external_policy, client].use for client in Client}

    def _rule(self, place: Place, target: Target | None, note: str, dport: int) -> Rule:
        return Rule(
            *place,
            target,
            comment=f"{self._label} {note}",
            protocol=self._protocol,
            dport=dport,
        )

    def _refusal(self, place: Place, dport: int) -> Rule:
        """For what its portal did not translate."""
        if self._plan.protocol not in OFFERED:
            return self._rule(place, Reject(), "is of no protocol that is relayed", dport)
        refusal = _REFUSALS[VERDICT[self._plan.endpoints.has_any, False]]
        return self._rule(place, *refusal, dport)

    def _no_front(self, place: Place, dport: int) -> Rule:
        """For clients whose front is missing."""
        return self._rule(place, Reject(), "has no relay port", dport)

    @property
    def _entered(self) -> tuple[Use, ...]:
        """The fronts that clients outside the cluster IP are led to."""
        return tuple([use for use in self._uses if use in self._outside.values()])

    @property
    def _all_served(self) -> bool:
        """Whether every client outside the cluster IP finds a front."""
        return all(use in self._uses for use in self._outside.values())

    # --- ways in ---------------------------------------------------------------------------------

    def internal(self) -> Iterator[Draft]:
        """The cluster IP."""
        plan = self._plan
        if not plan.cluster_ip:
            return
        address = host(plan.cluster_ip, self._family)
        if self._inside in self._uses:
            for place in (_CONTAINER, _HOST):
                rule = self._rule(place, None, "cluster IP", plan.port)
                yield Draft(replace(rule, destination=address), self._inside)
            refusal = replace(self._no_front(_FILTER, plan.port), destination=address)
            yield Draft(refusal, lacking=(self._inside,))
        else:
            yield Draft(replace(self._refusal(_FILTER, plan.port), destination=address))

    def external(self) -> Iterator[Draft]:
        """External IPs and load-balancer addresses."""
        plan = self._plan
        sources = tuple(permitted(plan, self._settings)) if plan.restricted else ("",)
        for note, addresses, ranges, open_ in (
            ("external IP", plan.external_ips, ("",), True),
            ("loadbalancer IP", plan.load_balancer_ips, sources, not plan.restricted),
        ):
            for text in addresses:
                address = host(text, self._family)
                for source in ranges:
                    for place in (_CONTAINER, _HOST):
                        rule = self._rule(place, None, note, plan.port)
                        rule = replace(rule, destination=address, source=_spelled(source))
                        yield from self._for_clients(rule)
                unserved = self._rule(_UNSERVED, Accept(), f"{note} unserved", plan.port)
                unserved = replace(unserved, destination=address)
                for draft in self._left_alone(_FILTER, plan.port, open_=open_):
                    yield replace(draft, rule=replace(draft.rule, destination=address))
                    yield replace(draft, rule=unserved)

    def node_port(self) -> Iterator[Draft]:
        plan = self._plan
        if not plan.node_port:
            return
        for place, loopback in (
            (_PORT_CONTAINER, False),
            (_PORT_HOST, self._context.serves_localhost),
        ):
            rule = self._rule(place, None, "node port", plan.node_port)
            for one in self._at_node(rule, loopback=loopback):
                yield from (replace(each, held=True) for each in self._for_clients(one))
        for draft in self._left_alone(_PORT_FILTER, plan.node_port):
            for one in self._at_node(draft.rule, loopback=self._context.serves_localhost):
                yield replace(draft, rule=one, held=True)

    def _left_alone(self, place: Place, dport: int, *, open_: bool = True) -> Iterator[Draft]:
        """What becomes of clients that a way in from outside does not translate. ``open_``: it is
        for every source.

        Where a front is missing all are refused, as where there are no endpoints. Who has none by
        policy is dropped all the same: one rule cannot tell him from the others.
        """
        missing = Draft(self._no_front(place, dport), lacking=self._entered)
        if not self._all_served:
            yield Draft(self._refusal(place, dport))
        elif not open_:
            yield Draft(self._refusal(place, dport), whole=self._entered)
            yield missing
        else:
            yield missing

    def guards(self) -> Iterator[Draft]:
        """What keeps strangers from the ports that are open for this service port, and what lets
        its clients through the node's own rules."""
        plan = self._plan
        entered = set(self._outside.values()) if plan.external else set()
        for use in self._uses:
            yield Draft(self._rule(_GUARD, Reject(), f"{use} relay", 0), use)
            if use in entered:
                yield Draft(self._rule(_NON_LOCAL, Accept(), f"{use} relay", 0), use)
        if plan.node_port and plan.protocol is Protocol.UDP:
            # Its holder never reads: whoever sends to it past the node port hears that nobody does.
            rule = self._rule(_GUARD, Reject(), "held node port", plan.node_port)
            targets = self._settings.node_port_targets
            for address in () if targets.all else targets.addresses:
                yield Draft(replace(rule, destination=host(address, self._family)), held=True)
            if targets.all:
                yield Draft(rule, held=True)
        if plan.health_check_node_port:
            rule = self._rule(_NON_LOCAL, Accept(), "health check node port", 0)
            yield Draft(replace(rule, protocol="tcp", dport=plan.health_check_node_port))

    # --- who and where ---------------------------------------------------------------------------

    def _at_node(self, rule: Rule, *, loopback: bool) -> Iterator[Rule]:
        """For the addresses of this node that node ports answer on."""
        targets, localnet = self._settings.node_port_targets, _LOOPBACK[self._family]
        if targets.all and loopback:
            yield rule
        elif targets.all:
            yield replace(rule, destination=localnet, negated=(*rule.negated, "destination"))
        else:
            for address in targets.addresses:
                yield replace(rule, destination=host(address, self._family))
            if loopback:
                yield replace(rule, destination=localnet)

    def _for_clients(self, rule: Rule) -> Iterator[Draft]:
        """A rule of a portal, for each kind of client that may use one of the fronts.

        What the node itself sends meets the chains of hosts only, and nothing else does.
        """
        if rule.chain in (chains.PORTALS_HOST, chains.NODEPORT_HOST):
            kinds: tuple[tuple[Client, Rule | None], ...] = ((Client.NODE, rule),)
        elif len(set(self._outside.values())) == 1:
            kinds = ((Client.OTHER, rule),)
        else:
            detector = self._settings.detector
            kinds = tuple((client, _of_client(rule, client, detector)) for client in Client)
        for client, one in kinds:
            if one is not None and self._outside[client] in self._uses:
                yield Draft(one, self._outside[client])


def _of_client(rule: Rule, client: Client, detector: LocalDetector | None) -> Rule | None:
    """The rule for one kind of client; None when there are none such."""
    if client is Client.POD:
        return None if detector is None else _by_detector(rule, detector)
    local = replace(rule, source_local=True)
    if client is Client.OTHER:
        local = replace(local, negated=(*local.negated, "source_local"))
    return local if detector is None else _by_detector(local, detector, others=True)


def _by_detector(rule: Rule, detector: LocalDetector, *, others: bool = False) -> Rule | None:
    """The rule for this node's pods, or for others; beside a range of sources the pods' own range
    is asked of the connection."""
    ranges = rule.source
    made = (of_others if others else of_pods)(rule, detector)
    if made is None or not (ranges and detector.cidr):
        return made
    negated = tuple("original_source" if name == "source" else name for name in made.negated)
    return replace(made, source=ranges, original_source=detector.cidr, negated=negated)


def _spelled(cidr: str) -> str:
    """A range as the tools spell it."""
    address, _, length = cidr.partition("/")
    if address.startswith("::") and length:
        return f"{host(address, Family.IPV6).rpartition('/')[0]}/{length}"
    return cidr
