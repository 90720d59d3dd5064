"""What is in force of userspace mode: the relay's fronts, held node ports, rules. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import msgspec

from kproxy.backends.userspace.chains import PLACES
from kproxy.backends.userspace.plan import Front, NodePort, Service, Serving
from kproxy.backends.userspace.render import Block, Desired
from kproxy.backends.userspace.rules import Found as Ports
from kproxy.backends.xtables.found import Found
from kproxy.backends.xtables.layout import Place
from kproxy.backends.xtables.localnet import KUBELET_FIREWALL
from kproxy.backends.xtables.rules import Table
from kproxy.backends.xtables.saved import Line
from kproxy.core.objects import PortName

#: Lines by chain.
Rows = dict[Place, dict[str, None]]


class Relaying(msgspec.Struct, frozen=True):
    """What the relay has. ``refused`` are fronts that could not be opened and node ports that
    could not be held, when that was last tried: nobody waits for them. ``sources`` are addresses
    of the node to connect from."""

    serving: Mapping[PortName, Serving] = {}
    held: AbstractSet[NodePort] = frozenset()
    refused: AbstractSet[Front | NodePort] = frozenset()
    sources: tuple[str, ...] = ()

    def wanted(self, service: Service) -> Service:
        """The service but for the fronts that cannot be had."""
        uses = tuple([one for one in service.uses if Front(service.name, one) not in self.refused])
        return service if uses == service.uses else msgspec.structs.replace(service, uses=uses)

    def ports(self, block: Block) -> Ports:
        """What the block's rules wait for."""
        serving = self.serving.get(block.name)
        return Ports(
            ports=serving.ports if serving is not None else (),
            held=block.node_port is None or block.node_port in self.held,
            to=block.context.to,
        )


class Held:
    """``rules`` are those of chains that are there, ``relaying`` what the relay has, ``sysctls``
    None where the kernel has no such one. ``desired``: what is believed to be in force after a good
    apply; then there is nothing else."""

    __slots__ = ("desired", "relaying", "rules", "sysctls")

    def __init__(
        self,
        *,
        rules: Found | None = None,
        relaying: Relaying | None = None,
        sysctls: Mapping[str, str | None] | None = None,
        desired: Desired | None = None,
    ) -> None:
        self.rules = rules or Found({})
        self.relaying = relaying or Relaying()
        self.sysctls = sysctls or {}
        self.desired = desired

    def __eq__(self, other: object) -> bool:
        """The same in force. Which relay ports lead there is only known when it was read; the
        order of lines says nothing."""
        if not isinstance(other, Held):
            return NotImplemented
        relaying = self.relaying if self.desired is None else other.relaying
        return self._ours(relaying) == other._ours(relaying)

    __hash__ = None  # type: ignore[assignment]

    def _ours(self, relaying: Relaying) -> tuple[Any, ...]:
        if self.desired is None:
            services = {name: each.service for name, each in self.relaying.serving.items()}
            rows = {place: sorted(lines_in(self.rules, place) or ()) for place in PLACES}
            guard = set(guard_in(self.rules) or ())
            ours = (services, set(self.relaying.held), self.relaying.sources)
            return *ours, rows, sorted(self.rules.jumps), guard
        wanted, held = wanted_of(self.desired, relaying)
        lines = rows_of(self.desired.blocks.values(), relaying)
        rows = {place: sorted(lines[place]) for place in PLACES}
        ours = (wanted, held, self.desired.sources)
        return *ours, rows, sorted(self.desired.jumps), set(self.desired.guard)

    def __repr__(self) -> str:
        size = {table.value: len(content) for table, content in self.rules.tables.items()}
        return f"Held(chains={size}, serving={len(self.relaying.serving)})"


def settled(desired: Desired) -> Held:
    """What reading gives once ``desired`` is in force."""
    return Held(desired=desired)


def lines_in(rules: Found, place: Place) -> list[str] | None:
    """Lines of a chain, None when it is not there."""
    table, chain = place
    text = rules.tables.get(table, {}).get(chain)
    return None if text is None else text.splitlines()


def guard_in(rules: Found) -> tuple[str, ...] | None:
    """Our lines in the chain that is shared with the kubelet, None when it is not there."""
    return rules.guests.get((Table.FILTER, KUBELET_FIREWALL))


def wanted_of(
    desired: Desired, relaying: Relaying
) -> tuple[dict[PortName, Service], set[NodePort]]:
    """The services that the relay is to have and the node ports to be held, but for what cannot be
    had."""
    services, held = {}, set()
    for block in desired.blocks.values():
        service = block.service
        if service is None:
            continue
        if service.uses:
            services[service.name] = relaying.wanted(service)
        if service.node_port is not None and service.node_port not in relaying.refused:
            held.add(service.node_port)
    return services, held


def rows_of(blocks: Iterable[Block], relaying: Relaying) -> Rows:
    """The lines that every chain is to have."""
    rows: Rows = {place: {} for place in PLACES}
    for block in blocks:
        for line in block.lines(relaying.ports(block)):
            rows[place_of(line)][line[1]] = None
    return rows


def place_of(line: Line) -> Place:
    """The chain that a line stands in: ``-A CHAIN …``."""
    table, row = line
    return table, row[3 : row.index(" ", 3)]
