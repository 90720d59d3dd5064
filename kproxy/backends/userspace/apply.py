"""Userspace mode: the backend that keeps a relay and the rules that lead to it in step.

Order of a change: sockets that nobody reaches yet and endpoint lists, their guards, then the rules
that lead there. What goes, goes the other way round: the guards last, so that no socket is open
without. A service whose endpoints change touches the relay alone. A front that cannot be opened and
a node port that somebody else has are told, and tried again at full syncs; no rules lead there, and
clients of a missing front are refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

from kproxy import logs
from kproxy.backends.base import Applied, Finding
from kproxy.backends.userspace import host, sizes
from kproxy.backends.userspace.chains import LAYOUT
from kproxy.backends.userspace.cleanup import clean
from kproxy.backends.userspace.diff import (
    Patch,
    RulesPatch,
    call,
    diff,
    guards_first,
    guards_last,
    lines_between,
    rules_between,
)
from kproxy.backends.userspace.found import ports_in
from kproxy.backends.userspace.held import Held, Relaying, rows_of, settled
from kproxy.backends.userspace.plan import Front, NodePort, Service, Serving
from kproxy.backends.userspace.relays import Relays, Standing
from kproxy.backends.userspace.render import SYSCTLS, Desired, render
from kproxy.backends.userspace.stale import RelayFlows
from kproxy.backends.xtables.door import Door, ToolDoor, of_both_variants
from kproxy.backends.xtables.found import find
from kproxy.backends.xtables.refusal import refusal
from kproxy.backends.xtables.saved import Line, entries, grown, parse
from kproxy.backends.xtables.script import Tally, chunks
from kproxy.backends.xtables.variant import Variant
from kproxy.core.objects import Family, PortName
from kproxy.core.policy import Use
from kproxy.core.snapshot import Snapshot, UserspaceSettings
from kproxy.errors import CommandError, KernelError

_log = logs.get("userspace")


class UserspaceBackend:
    """One family, in the network namespace of the calling thread.

    ``variant`` is that of the iptables tools. ``relay`` serves; left out, it is one of our own with
    ``settings``, which starts with the first service. ``door`` stands for the kernel's tables.
    """

    mode = "userspace"

    def __init__(
        self,
        family: Family,
        variant: Variant | str,
        *,
        settings: UserspaceSettings = UserspaceSettings(),  # noqa: B008 (frozen)
        relay: Relays | None = None,
        door: Door | None = None,
    ) -> None:
        self.family = family
        self.variant = Variant(variant)
        self.door: Door = ToolDoor(family, self.variant) if door is None else door
        self._settings = settings
        self._relay = relay
        self._desired: Desired | None = None
        #: Fronts and node ports that could not be had, and why.
        self._fronts: dict[Front, str] = {}
        self._node_ports: dict[NodePort, str] = {}
        #: Sysctls that could not be set, with the values that they had.
        self._unset: set[tuple[str, str | None]] = set()
        #: The lines in force of each service port, after a good apply.
        self._lines: dict[PortName, tuple[Line, ...]] = {}
        #: Fronts that the last change gave up.
        self._freed = 0
        self._entries: dict[str, int] | None = None

    @property
    def entries(self) -> Mapping[str, int] | None:
        """See :class:`kproxy.backends.base.Counting`. nf_tables counts transactions instead."""
        return self._entries

    @property
    def relay(self) -> Relays:
        if self._relay is None:
            from kproxy.backends.userspace.door import RelayDoor

            self._relay = RelayDoor(self.family, self._settings)
        return self._relay

    @relay.setter
    def relay(self, relay: Relays) -> None:
        self._relay = relay

    def findings(self) -> list[Finding]:
        """See :class:`kproxy.backends.base.Witnessing`."""
        return self._relay.findings() if self._relay is not None else []

    def probe(self) -> None:
        host.probe(self.family, self.variant)

    def render(self, snapshot: Snapshot, previous: Desired | None) -> Desired:
        self._desired = render(snapshot, previous)
        return self._desired

    def read(self) -> Held:
        """The rules, and what the relay has. What could not be had is tried again for this."""
        self._retry()
        saved = parse(self.door.save())
        if self.variant is Variant.LEGACY:
            self._entries = entries(saved)
        return Held(
            rules=find(saved, LAYOUT, self.family),
            relaying=self._relaying(),
            sysctls=self._sysctls(),
        )

    def _sysctls(self) -> dict[str, str | None]:
        """As they are; one that may not be set counts as set as long as it is as it was then."""
        found = {name: self.door.sysctl(name) for name, _ in SYSCTLS}
        refused = {name for name, value in found.items() if (name, value) in self._unset}
        return found | {name: value for name, value in SYSCTLS if name in refused}

    def _retry(self) -> None:
        if self._fronts and self._desired is not None:
            blocks = self._desired.blocks
            names = dict.fromkeys(front.name for front in self._fronts)
            wanted = [blocks[name].service for name in names if name in blocks]
            self._fronts.clear()
            self._put([service for service in wanted if service is not None and service.uses])
        if self._node_ports:
            ports = list(self._node_ports)
            self._node_ports.clear()
            self._hold(ports)

    def _relaying(self) -> Relaying:
        return self._with(self.relay.running())

    def _relaying_of(self, patch: Patch) -> Relaying:
        """As far as a patch is concerned."""
        if patch.read is not None:
            return self._relaying()
        running = self.relay.running()
        names = (*patch.names, *[service.name for service in patch.put])
        return self._with({name: running[name] for name in names if name in running})

    def _with(self, serving: Mapping[PortName, Standing]) -> Relaying:
        return Relaying(
            serving={name: _serving(each) for name, each in serving.items()},
            held=self.relay.held,
            refused=frozenset((*self._fronts, *self._node_ports)),
            sources=self.relay.sources,
        )

    def settled(self, desired: Desired) -> Held:
        return settled(desired)

    def diff(self, desired: Desired, actual: Held) -> Patch | None:
        patch = diff(desired, actual)
        if patch is None and actual.desired is None:
            # All was read and nothing is to be done, as after a hand-over. Later changes have to
            # know the lines that stand all the same, or old ones would stay.
            lines = {
                name: block.lines(actual.relaying.ports(block))
                for name, block in desired.blocks.items()
            }
            self._lines = {name: some for name, some in lines.items() if some}
        return patch

    def touched(self, patch: Patch) -> Iterator[PortName]:
        return patch.ports()

    def left_out(self) -> Iterator[tuple[PortName, str]]:
        """Service ports of which something is not served, and why."""
        desired = self._desired
        if desired is None:
            return
        for name in sorted(desired.unoffered):
            yield name, f"userspace mode does not carry {name.protocol.value}: it is refused"
        for front, why in self._fronts.items():
            yield front.name, why
        if self._node_ports:
            for name, block in desired.blocks.items():
                if block.node_port in self._node_ports:
                    yield name, self._node_ports[block.node_port]

    def flow_judge(self) -> RelayFlows:
        """Judges UDP flows by where the relay listens."""

        def ports() -> dict[PortName, tuple[tuple[Use, int], ...]]:
            running = self.relay.running()
            return {name: tuple(each.ports.items()) for name, each in running.items()}

        return RelayFlows(self.family, ports)

    # --- a change ------------------------------------------------------------------------------

    def apply(self, patch: Patch) -> Applied:
        """Bring a patch about. When the rules are refused nothing of them has changed in the table
        that was refused, and what the relay was to give up is served on. Ports that are given up
        go to those that found none at once."""
        applied = self._apply(patch)
        again = self._waiting(patch)
        return applied if again is None else sizes.both(applied, self._apply(again))

    def _apply(self, patch: Patch) -> Applied:
        before, self._entries = self._entries, None
        if patch.read is not None:
            self.relay.remember(ports_in(patch.read.rules))
        self._open(patch)
        relaying = self._relaying_of(patch)
        lines = self._lines_of(patch, relaying)
        counter = Tally()
        rules = self._rules(patch, relaying, lines)
        gone = self._replaced(patch, rules) if before is not None else {}
        # Guarded before anybody is let in: a client that finds a relay port in between would keep
        # his connection, or his UDP session as long as he likes, whatever source ranges say.
        rules, unguarding = guards_last(rules)
        for part in guards_first(rules) if self.relay.deaf else (rules,):
            self._write(part, lines, counter)
            self._hear()
        # After the rules: route_localnet without the guard would open 127.0.0.1 to neighbours.
        self._set(patch)
        self._close(patch, relaying)
        self._write(unguarding, lines, counter)
        if patch.read is not None:
            self._lines = {}
        for name, new in lines.items():
            if new:
                self._lines[name] = new
            else:
                self._lines.pop(name, None)
        if before is not None:
            self._entries = grown(before, counter.entries, gone)
        return Applied(
            full=patch.full,
            written=counter.tables.total() + len(patch.put) + len(patch.drop),
            tables=tuple(sorted(counter.tables.items())),
            transactions=counter.commits,
        )

    def _set(self, patch: Patch) -> None:
        """In a container /proc/sys may be read-only: the mode does without."""
        for name, value in patch.sysctls:
            was = self.door.sysctl(name)
            try:
                self.door.set_sysctl(name, value)
            except KernelError as refused:
                self._unset.add((name, was))
                _log.warning("left as it is", family=int(self.family), why=refused)

    def _open(self, patch: Patch) -> None:
        """What is there before rules lead to it."""
        gone = {*patch.drop, *(service.name for service in patch.put)}
        self._fronts = {front: why for front, why in self._fronts.items() if front.name not in gone}
        for port in patch.release:
            self._node_ports.pop(port, None)
        if patch.sources is not None:
            self.relay.set_sources(patch.sources)
        self._hold(patch.hold)
        self._put(patch.put)

    def _put(self, services: Iterable[Service]) -> None:
        services = list(services)
        refused = self.relay.put(services, deaf=True) if services else {}
        if not refused:
            return
        running = self.relay.running()
        for service in services:
            if service.name in refused:
                stand = running[service.name].ports if service.name in running else {}
                missing = [front for front in service.fronts if front.use not in stand]
                self._fronts.update(dict.fromkeys(missing, refused[service.name]))

    def _hold(self, ports: Iterable[NodePort]) -> None:
        self._node_ports.update(self.relay.hold(ports))

    def _lines_of(self, patch: Patch, relaying: Relaying) -> dict[PortName, tuple[Line, ...]]:
        """The lines that service ports of a patch are to have."""
        blocks = patch.desired.blocks
        names = blocks if patch.read is not None else patch.names
        return {
            name: blocks[name].lines(relaying.ports(blocks[name])) if name in blocks else ()
            for name in names
        }

    def _rules(
        self, patch: Patch, relaying: Relaying, lines: Mapping[PortName, tuple[Line, ...]]
    ) -> RulesPatch:
        if patch.read is not None:
            return rules_between(patch.desired, relaying, patch.read.rules)
        old = {name: self._lines[name] for name in lines if name in self._lines}
        blocks = patch.desired.blocks.values()
        return lines_between(lines, old, lambda: rows_of(blocks, self._relaying()), patch.guard)

    def _replaced(self, patch: Patch, rules: RulesPatch) -> Counter[str]:
        found = patch.read
        length = sizes.believed(self._lines) if found is None else sizes.found_in(found.rules)
        return sizes.replaced(rules, length)

    def _waiting(self, patch: Patch) -> Patch | None:
        """What could not be had before this one gave fronts and node ports up; as many of those
        that wait as may find something now."""
        if not (self._freed or patch.release) or not (self._fronts or self._node_ports):
            return None
        blocks = patch.desired.blocks
        waiting = dict.fromkeys(front.name for front in self._fronts)
        names = list(islice((name for name in waiting if name in blocks), self._freed))
        services = (blocks[name].service for name in names)
        free = {(port.port, port.udp) for port in patch.release}
        ports = tuple([port for port in self._node_ports if (port.port, port.udp) in free])
        names += [name for name, block in blocks.items() if ports and block.node_port in ports]
        put = tuple([service for service in services if service is not None])
        if not (put or ports):
            return None
        for port in ports:
            del self._node_ports[port]
        return Patch(patch.desired, put=put, hold=ports, names=tuple(dict.fromkeys(names)))

    def _hear(self) -> None:
        try:
            self.relay.hear()
        except OSError as refused:
            raise KernelError(
                f"relay ports cannot be opened to clients: {refused.strerror}",
                hint="allow the process more open files (ulimit -n, LimitNOFILE=)",
            ) from refused

    def _write(
        self, rules: RulesPatch, lines: Mapping[PortName, tuple[Line, ...]], counter: Tally
    ) -> None:
        if rules:
            text = list(call(rules))
            try:
                self.door.restore(chunks(counter.count(text)))
            except CommandError as error:

                def owners(row: str) -> tuple[PortName, ...]:
                    return tuple([name for name, some in lines.items() if _has(some, row)])

                raise refusal(error, "".join(text), owners) from error

    def _close(self, patch: Patch, relaying: Relaying) -> None:
        """What no rule leads to any more."""
        fronts = [
            Front(service.name, use)
            for service in patch.put
            if service.name in relaying.serving
            for use, _ in relaying.serving[service.name].ports
            if use not in service.uses
        ]
        running = self.relay.running()
        dropped = sum(len(running[name].ports) for name in patch.drop if name in running)
        self._freed = len(fronts) + dropped
        if fronts:
            self.relay.shut(fronts)
        if patch.drop:
            self.relay.drop(patch.drop)
        if patch.release:
            self.relay.release(patch.release)

    # --- the end -------------------------------------------------------------------------------

    def cleanup(self) -> None:
        """Both variants of this family: a node may have changed from one to the other."""
        # Before the rules, for the reason above.
        self.door.forget_sysctls()
        for door, variant in of_both_variants(self.door, self.family, self.variant):
            clean(door, self.family, variant)
        if self._relay is not None:
            self._relay.close()
        self._fronts, self._node_ports, self._lines = {}, {}, {}


def _has(lines: Iterable[Line], row: str) -> bool:
    return any(line[1] == row for line in lines)


def _serving(standing: Standing) -> Serving:
    ports = tuple(sorted(standing.ports.items()))
    return Serving(standing.service, ports)
