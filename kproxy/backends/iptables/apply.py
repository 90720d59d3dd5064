"""iptables mode: the backend that programs kube-proxy's chains through the host's tools."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice

from kproxy import logs
from kproxy.backends.base import Applied, Scope
from kproxy.backends.iptables import counters, host
from kproxy.backends.iptables.diff import Patch, diff
from kproxy.backends.iptables.endpoint_set import NAMES
from kproxy.backends.iptables.fixed import SYSCTLS
from kproxy.backends.iptables.held import Held, held, reheld, settled
from kproxy.backends.iptables.host import Machine
from kproxy.backends.iptables.layout import LAYOUT
from kproxy.backends.iptables.render import Desired, context_of, render
from kproxy.backends.iptables.script import calls
from kproxy.backends.xtables.cleanup import cleanup_calls
from kproxy.backends.xtables.door import Door, ToolDoor, of_both_variants, tool
from kproxy.backends.xtables.layout import Layout, Place
from kproxy.backends.xtables.localnet import NEEDED_BY
from kproxy.backends.xtables.refusal import refusal
from kproxy.backends.xtables.rules import Table
from kproxy.backends.xtables.saved import Saved, entries, grown, parse, rows
from kproxy.backends.xtables.script import Call, Tally, chunks
from kproxy.backends.xtables.variant import Variant
from kproxy.core.objects import Family, PortName
from kproxy.core.snapshot import Snapshot
from kproxy.errors import CommandError, KernelError
from kproxy.kernel import command, sysctl

_log = logs.get("iptables")

#: Chains that are listed one by one, each by a process (1 ms), when others were at work in them: to
#: list all of 5,000 x 10 takes 0.8 s.
FEW_CHAINS = 64


class IptablesBackend:
    """One family and variant, in the network namespace of the calling thread.

    ``door`` and ``machine`` stand for the kernel; left out, they are the host's own. ``machine`` is
    asked once, when it is first needed.
    """

    mode = "iptables"

    def __init__(
        self,
        family: Family,
        variant: Variant | str,
        *,
        door: Door | None = None,
        machine: Machine | None = None,
    ) -> None:
        self.family = family
        self.variant = Variant(variant)
        self.door = ToolDoor(family, self.variant) if door is None else door
        self._machine = machine
        self._set = NAMES[family]
        self._entries: dict[str, int] | None = None

    @property
    def entries(self) -> Mapping[str, int] | None:
        """See :class:`kproxy.backends.base.Counting`. nf_tables counts transactions instead."""
        return self._entries

    @property
    def machine(self) -> Machine:
        if self._machine is None:
            self._machine = host.machine(self.family, self.variant)
            if self._machine.drop_invalid and not self._machine.endpoint_set:
                _log.warning(
                    "INVALID packets of anybody are dropped: rules cannot ask a set of endpoints",
                    family=int(self.family),
                    hint="try: modprobe -a ip_set_hash_ipport xt_set",
                )
        return self._machine

    def probe(self) -> None:
        host.probe(self.family, self.variant)

    def render(self, snapshot: Snapshot, previous: Desired | None) -> Desired:
        context = context_of(
            snapshot,
            random_fully=self.machine.random_fully,
            drop_invalid=self.machine.drop_invalid,
            endpoint_set=self.machine.endpoint_set,
            counters=self.machine.counters,
        )
        return render(snapshot, context, previous)

    def read(self) -> Held:
        saved = parse(self.door.save())
        if self.variant is Variant.LEGACY:
            self._entries = entries(saved)
        return held(saved, self.family, self._sysctls(), self.door.members(self._set))

    def reread(self, believed: Desired, scope: Scope) -> Held:
        """As :meth:`read`, which is asked where it costs no more."""
        if self.variant is Variant.LEGACY:
            # A table is listed as a whole there, whichever chain of it is asked for.
            scope = Scope(scope.tables | {table for table, _ in scope.chains})
        saved = self._saved(scope)
        if saved is None:
            return self.read()
        if self._entries is not None:
            self._entries |= entries(saved)
        members = self.door.members(self._set)
        return reheld(believed, saved, scope, self._sysctls(), members)

    def _saved(self, scope: Scope) -> Saved | None:
        """What is within ``scope``; None: more has to be read."""
        if self.variant is Variant.LEGACY:
            return parse(self.door.save(sorted(scope.tables))) if scope.tables else {}
        if scope.tables or len(scope.chains) > FEW_CHAINS:
            # The other way round there: every listing by the save tool takes as long as one of all.
            return None
        saved: Saved = {}
        for table, chain in sorted(scope.chains):
            text = self.door.chain(table, chain)
            if text is None:
                return None
            saved.setdefault(Table(table), {})[chain] = rows(text)
        return saved

    def _sysctls(self) -> dict[str, str | None]:
        return {name: self.door.sysctl(name) for name, _, _ in SYSCTLS}

    def settled(self, desired: Desired) -> Held:
        return settled(desired)

    def diff(self, desired: Desired, actual: Held) -> Patch | None:
        return diff(desired, actual)

    def touched(self, patch: Patch) -> Iterator[PortName]:
        return patch.ports()

    def script(self, patch: Patch) -> Iterator[Call]:
        """The restore tool's input, call by call: what :meth:`apply` sends."""
        return calls(patch, self.variant)

    def text(self, snapshot: Snapshot) -> Iterator[str]:
        """All rules of a Snapshot as restore text, piece by piece: what a first sync sends."""
        patch = diff(self.render(snapshot, None), Held())
        if patch is not None:
            for call in self.script(patch):
                yield from call

    def apply(self, patch: Patch) -> Applied:
        """Send a patch. A call that is refused changes nothing.

        Of a large change in the nft variant the calls before it stay in force: whole chains that
        nothing leads to yet, or whole new contents of services that were served before.
        """
        counter, members = Tally(), patch.members
        before, self._entries = self._entries, None
        for name in patch.desired.context.counted if patch.places else ():
            # A rule can name it only when it is there. It is fine when it is.
            self.door.make_counter(name)
        filling = self._fill(patch)
        for number, call in enumerate(self.script(patch)):
            try:
                self.door.restore(chunks(_behind(filling, counter.count(call))))
            except CommandError as error:
                with suppress(KernelError):
                    filling()
                again = next(islice(self.script(patch), number, None))
                raise refusal(error, "".join(again), patch.owners) from error
        filling()
        if members.gone:
            self.door.drain(self._set, members.gone)
        if members.destroy:
            self.door.destroy(self._set, wait=True)
        # After the rules: route_localnet without the guard would open 127.0.0.1 to neighbours.
        for name, value in patch.sysctls:
            self.door.set_sysctl(name, value)
        if before is not None:
            self._entries = grown(before, counter.entries, patch.replaced)
        return Applied(
            full=patch.full,
            written=counter.tables.total(),
            tables=tuple(sorted(counter.tables.items())),
            transactions=counter.commits,
        )

    def _fill(self, patch: Patch) -> Callable[[], object]:
        """Bring members in, before the rule that asks for them and before those that make them
        answer. Call what is returned to wait for it: a first sync needs not, as long as it writes
        services' chains, and the tool is what takes the time."""
        members = patch.members
        if members.create:
            self.door.fill(self._set, (), create=True)
        if members.added and patch.first:
            # The thread is born in the namespace of this one.
            pool = ThreadPoolExecutor(1, thread_name_prefix="set")
            filled = pool.submit(self.door.fill, self._set, members.added)
            pool.shutdown(wait=False)
            return filled.result
        if members.added:
            self.door.fill(self._set, members.added)
        return lambda: None

    def cleanup(self) -> None:
        """Both variants of this family: a node may have changed from one to the other."""
        # Before the rules, for the reason above.
        self.door.forget_sysctls()
        for door, variant in of_both_variants(self.door, self.family, self.variant):
            _clean(door, self.family, variant)
        for name, rules in self.door.counters().items():
            if name in counters.NAMES and not rules:
                self.door.drop_counter(name)
        if not self.door.destroy(self._set, wait=True):
            # A rule of somebody else asks it: it is left there, and says no.
            self.door.drain(self._set, self.door.members(self._set) or ())


def sweep(family: Family, variant: Variant, standing: str, spared: Layout | None) -> bool:
    """Take away the rules of an earlier proxy; whether there were any.

    ``standing`` is the mode that serves now, and ``spared`` its layout if it stands in this
    variant. The sysctls are taken back when it is another mode; one that stays as it was set keeps
    its guard.
    """
    if command.find(tool(family, variant, "save")) is None:
        return False
    door = ToolDoor(family, variant)
    other = standing != IptablesBackend.mode
    found = _clean(door, family, variant, spared, _guarded(family, standing) if other else ())
    if found or other:
        # Where rules of our own variant ask it, it stays.
        door.destroy(NAMES[family], wait=found and other)
    return found


def _guarded(family: Family, standing: str) -> Collection[Place]:
    """The chain of the guard, where neighbours could reach 127.0.0.1 without it: route_localnet is
    on, because the mode that stands needs it or somebody else has set it."""
    names = [name for name, _, _ in SYSCTLS]
    if standing not in NEEDED_BY:
        sysctl.restore(only=names)
    on = family is Family.IPV4 and any(sysctl.read(name) == "1" for name in names)
    return {(rule.table, rule.chain) for rule in LAYOUT.guests} if on else ()


def _clean(
    door: Door,
    family: Family,
    variant: Variant,
    spared: Layout | None = None,
    kept: Collection[Place] = (),
) -> bool:
    found, saved, counted = False, parse(door.save()), door.counters()
    for call in cleanup_calls(LAYOUT, saved, family, variant, spared=spared, kept=kept):
        door.restore(chunks(call))
        found = True
    if found:
        for name in counted.keys() & set(counters.NAMES):
            door.drop_counter(name, counted[name] - _rules_with(saved, name))
    return found


def _rules_with(saved: Saved, counter: str) -> int:
    named = f" --nfacct-name {counter} "
    return sum(
        named in row for content in saved.values() for rows in content.values() for row in rows
    )


def _behind(filling: Callable[[], object], pieces: Iterable[str]) -> Iterator[str]:
    """Table filter, which has the rule that asks, waits until there is something to ask."""
    for piece in pieces:
        if piece == f"*{Table.FILTER}\n":
            filling()
        yield piece
