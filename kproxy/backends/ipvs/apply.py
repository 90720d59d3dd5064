"""IPVS mode: the backend that programs virtual servers, and the sets and rules around them.

The order of a change keeps what is half-made out of reach: sets and their members, rules, servers
with their real ones, and only then the addresses that lead to them; what goes, goes the other way
round. A service port that the kernel refuses is told by name.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from kproxy import logs
from kproxy.backends.base import Applied
from kproxy.backends.ipvs import host, refusal, sets, sysctls
from kproxy.backends.ipvs.chains import LAYOUT, PORTALS, SERVICES
from kproxy.backends.ipvs.cleanup import clean
from kproxy.backends.ipvs.departure import depart
from kproxy.backends.ipvs.diff import Leaving, Patch, diff, leaving
from kproxy.backends.ipvs.door import Door, KernelDoor
from kproxy.backends.ipvs.drain import Drain
from kproxy.backends.ipvs.fixed import Context, RelayPorts
from kproxy.backends.ipvs.held import Held, settled
from kproxy.backends.ipvs.host import Machine
from kproxy.backends.ipvs.knobs import TOLD, Knobs, Told
from kproxy.backends.ipvs.plan import loopback_target
from kproxy.backends.ipvs.render import Desired, render
from kproxy.backends.xtables import ruleset
from kproxy.backends.xtables.door import tool
from kproxy.backends.xtables.rules import Table
from kproxy.backends.xtables.saved import parse
from kproxy.backends.xtables.script import Tally, chunks
from kproxy.backends.xtables.variant import Variant
from kproxy.core.objects import Family, PortName
from kproxy.core.servers import Order, Verb
from kproxy.core.snapshot import NodeSettings, Snapshot
from kproxy.errors import CommandError, MemberError
from kproxy.kernel import command
from kproxy.kernel.ipset import Change

if TYPE_CHECKING:
    from kproxy.backends.ipvs.loopback import Loopback

_log = logs.get("ipvs")


class IpvsBackend:
    """One family, in the network namespace of the calling thread.

    ``variant`` is that of the iptables tools. ``door`` and ``machine`` stand for the kernel; left
    out, they are the host's own. ``scheduler`` is the one that :meth:`probe` tries. ``told`` is
    what the other family has said of sysctls already; left out, it is this process's if the door
    is. ``clock`` counts seconds. ``loopback`` serves clients with a loopback source; without one
    nobody does.
    """

    mode = "ipvs"

    def __init__(
        self,
        family: Family,
        variant: Variant | str,
        *,
        scheduler: str = "rr",
        door: Door | None = None,
        machine: Machine | None = None,
        told: Told | None = None,
        clock: Callable[[], float] = time.monotonic,
        loopback: Loopback | None = None,
    ) -> None:
        self.family = family
        self.variant = Variant(variant)
        self.door: Door = KernelDoor(family, self.variant) if door is None else door
        self._scheduler = scheduler
        self._machine = machine
        self._clock = clock
        self._loopback = loopback
        self._drain = Drain()
        self._desired: Desired | None = None
        #: What was read and not yet looked through for what drains.
        self._found: Held | None = None
        #: Another mode serves by a chain that is this mode's as well (KUBE-SERVICES of iptables
        #: mode), or by one that ours hides (userspace mode's): what our rules have accepted
        #: meets no others in their table. So they are written when servers and addresses stand, and
        #: not before.
        self._beside = False
        if told is None:
            told = TOLD if door is None else Told()
        self._knobs = Knobs(self.door, family, told)

    @property
    def machine(self) -> Machine:
        if self._machine is None:
            self._machine = host.machine(self.family, self.variant)
        return self._machine

    def probe(self) -> None:
        host.probe(self.family, self.variant, self._scheduler)

    def render(self, snapshot: Snapshot, previous: Desired | None) -> Desired:
        machine = self.machine
        context = Context(
            self.family,
            snapshot.settings,
            random_fully=machine.random_fully,
            drop_invalid=machine.drop_invalid,
            relay=self._relay_ports(snapshot.settings),
        )
        self._desired = render(snapshot, context, machine.kernel, previous)
        return self._desired

    def _relay_ports(self, settings: NodeSettings) -> RelayPorts | None:
        own = loopback_target(settings) or "".join(settings.addresses[:1])
        if self._loopback is None or not own:
            return None
        return self._loopback.ports(own, self.door.save)

    def read(self) -> Held:
        door = self.door
        sysctls_ = {name: door.sysctl(name) for name in sysctls.NAMES}
        timeouts = door.timeouts()
        self._knobs.found(sysctls_, timeouts)
        saved = parse(door.save())
        found = Held(
            servers=door.servers().servers,
            sets=door.read_sets(sets.kinds(self.family)),
            addresses=door.addresses(),
            rules=ruleset.read(saved, LAYOUT, self.family),
            sysctls=sysctls_,
            timeouts=timeouts,
            hosts=self._hosts(),
        )
        self._found = found
        others = any(saved.get(Table.NAT, {}).get(chain) for chain in (SERVICES, PORTALS))
        # The device may be there already, made for the other family a moment ago.
        self._beside = not found.addresses and others
        return found

    def _hosts(self) -> frozenset[str]:
        """The node's addresses as far as its settings know them."""
        if self._desired is None:
            return frozenset()
        settings = self._desired.snapshot.settings
        return frozenset((*settings.local_addresses, *settings.node_port_targets.addresses))

    def settled(self, desired: Desired) -> Held:
        return settled(desired)

    def diff(self, desired: Desired, actual: Held) -> Patch | None:
        return self._knobs.without_refused(diff(desired, actual))

    def touched(self, patch: Patch) -> Iterator[PortName]:
        return patch.ports()

    # --- a change ------------------------------------------------------------------------------

    def apply(self, patch: Patch) -> Applied:
        """Bring a patch about.

        ContentError names the service ports of which the kernel refused something. What comes
        later in the order is not in force then: new servers stand, but no address leads to them;
        nothing that goes is gone. A member that is refused stops the change before any server is
        touched.
        """
        self._adopt(patch.desired)
        # Before anything else: without them IPVS's connections are not masqueraded.
        self._knobs.set(patch)
        door, counter = self.door, Tally()
        self._put_members(patch)
        beside, self._beside = self._beside, False
        if not beside:
            self._put_rules(patch, counter)
        self._order(patch)
        # An empty set of addresses is still to have its device: rules and cleanup know it by that.
        if patch.bound or patch.device:
            refusal.raise_for_addresses(door.bind(patch.bound), patch)
        if beside:
            self._put_rules(patch, counter)
        if patch.unbound:
            refusal.raise_for_addresses(door.unbind(patch.unbound), patch)
        self._remove(patch)
        gone = [
            Change(each.name, each.kind, gone=each.gone)
            for each in reversed(patch.sets)
            if each.gone
        ]
        if gone:
            door.change_sets(gone)
        return Applied(
            full=patch.full,
            written=_size(patch) + counter.tables.total(),
            tables=tuple(sorted(counter.tables.items())),
            transactions=counter.commits,
        )

    def _put_rules(self, patch: Patch, counter: Tally) -> None:
        if not patch.rules:
            return
        try:
            self.door.restore(chunks(counter.count(ruleset.call(patch.rules))))
        except CommandError as error:
            raise refusal.of_rules(error) from error

    def _put_members(self, patch: Patch) -> None:
        made = {each.name: each.kind for each in patch.sets if each.make}
        if made:
            self.door.make_sets(made)
        added = [Change(each.name, each.kind, each.added) for each in patch.sets if each.added]
        if not added:
            return
        try:
            self.door.change_sets(added)
        except MemberError as error:
            raise refusal.of_member(error, patch) from error

    def _order(self, patch: Patch) -> None:
        """Servers and real ones that come or change, and those that are let go."""
        orders: Sequence[Order] = patch.orders
        if len(self._drain):
            # An endpoint that returns while it drains is still there, with weight 0. It takes new
            # connections again before others are let go, lest for a moment nobody does.
            orders = [self._returning(order) for order in orders]
            self._drain.forget((order.server, order.real) for order in orders if order.real)
        quiet = [Order(Verb.SET_REAL, server, real, weight=0) for server, real in patch.let_go]
        refused = self.door.send([*orders, *quiet])
        self._drain.let_go(patch.let_go, self._clock())
        # So it is with one of which only the kernel knew.
        again = [
            each.order._replace(verb=Verb.SET_REAL) for each in refused if refusal.returns(each)
        ]
        others = [each for each in refused if not refusal.returns(each)]
        if again:
            others += self.door.send(again)
        refusal.raise_for_servers(others, patch)

    def _returning(self, order: Order) -> Order:
        drains = order.verb is Verb.ADD_REAL and (order.server, order.real) in self._drain
        return order._replace(verb=Verb.SET_REAL) if drains else order

    def _remove(self, patch: Patch) -> None:
        if patch.removals:
            refusal.raise_for_servers(self.door.send(patch.removals), patch)
            self._drain.forget_servers(order.server for order in patch.removals)

    # --- what goes on by itself ----------------------------------------------------------------

    def tend(self) -> float | None:
        """Take away real servers that have drained; see :class:`kproxy.backends.base.Tending`.

        After each of many syncs only those are looked at that have just been let go; the others
        when their pause is over.
        """
        if self._desired is None:
            return None
        self._adopt(self._desired)
        drain = self._drain
        if not len(drain):
            return None
        begun = self._clock()
        due = drain.due(begun)
        if due:
            patience = self._desired.snapshot.settings.ipvs.drain_seconds
            verdict = drain.judge(self.door.reals(due), begun, patience)
            if verdict.delete:
                self._delete(verdict.delete)
        return drain.looked(begun, self._clock()) if len(drain) else None

    def _delete(self, drained: Collection[Leaving]) -> None:
        orders = [Order(Verb.REMOVE_REAL, server, real) for server, real in drained]
        refusal.raise_for_servers(self.door.send(orders), None)
        self._drain.forget(drained)
        _log.detail("endpoints have drained", family=int(self.family), count=len(drained))

    def _adopt(self, desired: Desired) -> None:
        """What the kernel was found to hold at weight 0 drains, whoever began that."""
        if self._found is not None:
            self._drain.found(leaving(desired, self._found), self._clock())
            self._found = None

    # --- the end -------------------------------------------------------------------------------

    def leave(self) -> int:
        """See :class:`kproxy.backends.base.Leaving`."""
        held = self.door.servers().servers
        own = {} if self._desired is None else self._desired.servers
        reals = [(key, real) for key in held.keys() & own.keys() for real in held[key].reals]
        return depart(self.door, self.family, reals)

    def cleanup(self) -> None:
        """Everything of ours, with rules in either variant; other programs' servers stay."""
        self._drain = Drain()
        other = Variant.LEGACY if self.variant is Variant.NFT else Variant.NFT
        if isinstance(self.door, KernelDoor) and command.find(tool(self.family, other)) is not None:
            clean(
                KernelDoor(self.family, other, records=self.door.records), self.family, other,
                rules_only=True,
            )  # fmt: skip
        clean(self.door, self.family, self.variant, hosts=self._hosts())
        self.door.forget_sysctls()
        if self._loopback is not None:
            self._loopback.close()


def _size(patch: Patch) -> int:
    """Orders, members and addresses that were written."""
    members = sum(len(each.added) + len(each.gone) for each in patch.sets)
    orders = len(patch.orders) + len(patch.let_go) + len(patch.removals)
    return members + orders + len(patch.bound) + len(patch.unbound)
