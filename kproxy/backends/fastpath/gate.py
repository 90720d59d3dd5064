"""The way for balancers' health checks through a node whose own firewall closes INPUT.

What one table of nftables drops, no other brings back, and the firewall of a node is iptables' more
often than not: so health check node ports are accepted there, as the other modes do, in a chain of
ours at the top of INPUT. It is there as long as such ports are. What another program does to it is
found at the next full sync. A firewall of nftables itself is its author's to open.
"""

from __future__ import annotations

from collections.abc import Iterator

from kproxy import logs
from kproxy.backends.fastpath.rules import CHAIN, JUMP, LAYOUT, rules, script
from kproxy.backends.xtables.cleanup import cleanup_calls
from kproxy.backends.xtables.door import ToolDoor, tool
from kproxy.backends.xtables.host import detect_variant
from kproxy.backends.xtables.rules import Table
from kproxy.backends.xtables.saved import parse
from kproxy.backends.xtables.script import Tally, chunks
from kproxy.backends.xtables.text import line
from kproxy.backends.xtables.variant import Variant
from kproxy.core.objects import Family
from kproxy.errors import KernelError
from kproxy.kernel import command

_log = logs.get("fastpath")


class Gate:
    """One family's, in the network namespace of the calling thread.

    Where it cannot be opened the rest of the mode serves on: the log says so, and it is tried again
    when other ports are wanted.
    """

    def __init__(self, family: Family) -> None:
        self._family = family
        #: Whose rules ours are among; None: not known yet, or there are none.
        self._variant: Variant | None = None
        self._looked = False
        #: What was asked for last.
        self._wanted: frozenset[int] = frozenset()

    def numbers(self) -> frozenset[int]:
        """The ports that are let through, looked up as long as there are any; what was asked for
        where that cannot be known, or cannot be."""
        if not self._looked:
            self._looked = True
            self._variant = next(iter(self._standing()), None)
        content = self._content(self._variant) if self._variant is not None else None
        if content is None:
            return self._wanted
        if line(JUMP, self._family) not in content.get("INPUT", ()):
            return frozenset()
        there = content.get(CHAIN, [])
        found = {row.rpartition("--dport ")[2].split(" ")[0] for row in there}
        numbers = frozenset(int(number) for number in found if number.isdigit())
        # Else somebody has changed it.
        whole = list(rules(numbers, self._family)) == there
        return numbers if whole else frozenset()

    def let(self, numbers: frozenset[int]) -> int:
        """Let these through and no others; the transactions of nftables that it took."""
        self._wanted = numbers
        try:
            if numbers:
                return self._open(numbers)
            return self._take(self._variant) if self._variant is not None else 0
        except KernelError as refused:
            _log.warning("health check node ports in INPUT are left as they are", why=refused)
            return 0

    def take(self) -> bool:
        """Take it away, in whichever variant it is; whether there was anything."""
        self._wanted = frozenset()
        there = self._standing()
        for variant in there:
            self._take(variant)
        return bool(there)

    def _open(self, numbers: frozenset[int]) -> int:
        variant = self._variant or self._used()
        if variant is None:
            return 0
        leads = line(JUMP, self._family) in self._filter(variant).get("INPUT", ())
        done = self._run(variant, script(numbers, self._family, leads=leads))
        self._variant = variant
        return done

    def _take(self, variant: Variant) -> int:
        saved = parse(ToolDoor(self._family, variant).save())
        calls = cleanup_calls(LAYOUT, saved, self._family, variant)
        done = sum([self._run(variant, call) for call in calls])
        self._variant = None
        return done

    def _run(self, variant: Variant, pieces: Iterator[str]) -> int:
        tally = Tally()
        ToolDoor(self._family, variant).restore(chunks(tally.count(pieces)))
        return tally.commits if variant is Variant.NFT else 0

    def _tools(self) -> Iterator[Variant]:
        for variant in Variant:
            if command.find(tool(self._family, variant, "restore")) is not None:
                yield variant

    def _used(self) -> Variant | None:
        """Whose rules this host's firewall is made of; None: it has no iptables."""
        there = tuple(self._tools())
        if not there or command.find("iptables") is None:
            return None
        used = detect_variant()
        return used if used in there else None

    def _standing(self) -> list[Variant]:
        """Among whose rules ours are."""
        return [each for each in self._tools() if CHAIN in (self._content(each) or ())]

    def _content(self, variant: Variant) -> dict[str, list[str]] | None:
        """The table as it is now; None where the tool cannot tell, because somebody else has made
        a table of the same name that is not iptables'."""
        try:
            return self._filter(variant)
        except KernelError as unknown:
            _log.detail("the rules in INPUT are not known", why=unknown)
            return None

    def _filter(self, variant: Variant) -> dict[str, list[str]]:
        return parse(ToolDoor(self._family, variant).save()).get(Table.FILTER, {})
