"""The door to the kernel's iptables: two tools, the set that a rule asks, the sysctls.

The tools act in the network namespace of the calling thread. ``XTABLES_LOCKFILE`` in the
environment names the lock of the legacy tools: it is one file for all namespaces of a host, so a
lab gives each node its own.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Protocol

from kproxy.backends.xtables.variant import Variant
from kproxy.core.objects import Family
from kproxy.errors import KernelError
from kproxy.kernel import command, sysctl
from kproxy.kernel.ipset import IpSets
from kproxy.kernel.nfacct import Counters

#: Seconds that the legacy tools wait for the lock: kube-proxy's choice.
_LOCK_WAIT = "5"

#: Seconds to wait for a set: nf_tables frees a deleted rule, which holds it, a grace period later.
_LET_GO = 1.0

_PREFIX = {Family.IPV4: "iptables", Family.IPV6: "ip6tables"}
_FOREIGN_TABLE = re.compile(rb"^# Table `(nat|filter|mangle)' is incompatible", re.MULTILINE)


def tool(family: Family, variant: Variant, verb: str = "") -> str:
    """Name of a tool: ``iptables-legacy-restore``, ``ip6tables-nft`` …"""
    name = f"{_PREFIX[family]}-{variant}"
    return f"{name}-{verb}" if verb else name


class Door(Protocol):
    """What the backend needs of a kernel; the in-memory one is :mod:`kproxy.backends.fake`."""

    def restore(self, chunks: Iterable[bytes]) -> None:
        """One call of the restore tool, nothing flushed that is not named.

        All or nothing in each table. CommandError when refused.
        """

    def save(self, tables: Iterable[str] = ()) -> str:
        """All tables as the save tool prints them, or only some, which must be in use."""

    def chain(self, table: str, chain: str) -> str | None:
        """One chain as the tool lists it (``-S``); None when it does not, as one that is gone."""

    def members(self, name: str) -> AbstractSet[bytes] | None:
        """Members of a set, packed; None when there is no such set as :meth:`fill` makes."""

    def fill(self, name: str, members: Iterable[bytes], *, create: bool = False) -> None:
        """Put members into a set. NetlinkError when refused: there may be some of them in it."""

    def drain(self, name: str, members: Iterable[bytes]) -> None:
        """Take members out of a set."""

    def destroy(self, name: str, *, wait: bool = False) -> bool:
        """Whether there is no such set now: a rule that uses it keeps it. ``wait``: such a rule
        has just been deleted, and the kernel may need a moment to let go."""

    def counters(self) -> Mapping[str, int]:
        """Counter -> how many rules count with it, in any table; nothing where there are none."""

    def make_counter(self, name: str) -> None:
        """Make a counter for rules to count with; one that is there counts on."""

    def drop_counter(self, name: str, others: int = 0) -> bool:
        """Whether there is no such counter now: a rule that counts with it keeps it. ``others``
        are the rules that do and stay; it waits a moment for the kernel to let go of the rest."""

    def sysctl(self, name: str) -> str | None:
        """Current value, None when this kernel has no such sysctl."""

    def set_sysctl(self, name: str, value: str) -> None:
        """Set it, and remember what it was."""

    def forget_sysctls(self) -> None:
        """Set back what :meth:`set_sysctl` changed."""


def destroy_sets(family: Family, names: Iterable[str], *, wait: bool = False) -> tuple[str, ...]:
    """Destroy sets; those that stay, because a rule asks them. ``wait``: such rules have just been
    deleted, and the kernel may need a moment to let go."""
    end = time.monotonic() + (_LET_GO if wait else 0)
    stay = tuple(names)
    with IpSets(family) as sets:
        while stay := tuple(name for name in stay if not sets.destroy(name)):
            if time.monotonic() >= end:
                break
            # Nobody is told of it.
            time.sleep(_LET_GO / 100)
    return stay


class ToolDoor:
    """The host's tools of one family and variant; ``records`` is where sysctls are recorded."""

    def __init__(self, family: Family, variant: Variant, *, records: Path = sysctl.RECORDS) -> None:
        self.family = family
        self.variant = variant
        self.records = records

    def restore(self, chunks: Iterable[bytes]) -> None:
        argv = [tool(self.family, self.variant, "restore"), "--noflush", "-w", _LOCK_WAIT]
        command.run(argv, stdin=chunks)

    def save(self, tables: Iterable[str] = ()) -> str:
        # Without -t: naming a table would create it where it is not in use.
        name = tool(self.family, self.variant, "save")
        calls = [["-t", table] for table in tables] or [[]]
        text = b"".join([command.run([name, *options]).stdout for options in calls])
        foreign = _FOREIGN_TABLE.search(text)
        if foreign:
            table = foreign.group(1).decode()
            family = "ip" if self.family is Family.IPV4 else "ip6"
            raise KernelError(
                f"table {table} holds rules that {name} cannot express",
                hint=f"see: nft list table {family} {table}",
            )
        return text.decode()

    def chain(self, table: str, chain: str) -> str | None:
        argv = [tool(self.family, self.variant), "-w", _LOCK_WAIT, "-t", table, "-S", chain]
        listed = command.run(argv, check=False)
        return listed.stdout.decode() if listed.returncode == 0 else None

    def members(self, name: str) -> AbstractSet[bytes] | None:
        with IpSets(self.family) as sets:
            return sets.members(name)

    def fill(self, name: str, members: Iterable[bytes], *, create: bool = False) -> None:
        with IpSets(self.family) as sets:
            if create:
                sets.create(name)
            sets.add(name, members)

    def drain(self, name: str, members: Iterable[bytes]) -> None:
        with IpSets(self.family) as sets:
            sets.remove(name, members)

    def destroy(self, name: str, *, wait: bool = False) -> bool:
        return not destroy_sets(self.family, (name,), wait=wait)

    def counters(self) -> Mapping[str, int]:
        with Counters() as counters:
            return {name: counted.rules for name, counted in counters.all().items()}

    def make_counter(self, name: str) -> None:
        with Counters() as counters:
            counters.ensure(name)

    def drop_counter(self, name: str, others: int = 0) -> bool:
        end = time.monotonic() + _LET_GO
        while self.counters().get(name, 0) > others and time.monotonic() < end:
            time.sleep(_LET_GO / 100)
        if others:
            return False
        with Counters() as counters:
            return counters.remove(name)

    def sysctl(self, name: str) -> str | None:
        return sysctl.read(name)

    def set_sysctl(self, name: str, value: str) -> None:
        sysctl.change(name, value, records=self.records)

    def forget_sysctls(self) -> None:
        sysctl.restore(records=self.records)


def of_both_variants(
    door: Door, family: Family, variant: Variant
) -> Iterator[tuple[Door, Variant]]:
    """A door of ``variant``, and one for the other one's tools where this host has them: a node may
    have changed from one to the other."""
    for each in Variant:
        if each is variant:
            yield door, each
        elif isinstance(door, ToolDoor) and command.find(tool(family, each)) is not None:
            yield ToolDoor(family, each, records=door.records), each
