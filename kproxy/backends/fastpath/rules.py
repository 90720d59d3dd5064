"""The rules by which balancers' health checks pass a closed INPUT. Pure; see
:mod:`kproxy.backends.fastpath.gate`."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from kproxy.backends.xtables.layout import Layout, own
from kproxy.backends.xtables.rules import Accept, Jump, Rule, Table
from kproxy.backends.xtables.script import flushes, on_top, section
from kproxy.backends.xtables.text import line
from kproxy.core.objects import Family

CHAIN = "KPROXY-HEALTH"

JUMP = Rule(Table.FILTER, "INPUT", Jump(CHAIN), comment="kproxy health check node ports")

LAYOUT = Layout(own=own((Table.FILTER, CHAIN)), jumps=(JUMP,))


def rules(numbers: Collection[int], family: Family) -> Iterator[str]:
    """The rules of the chain, as the save tool prints them."""
    for number in sorted(numbers):
        yield line(Rule(Table.FILTER, CHAIN, Accept(), protocol="tcp", dport=number), family)


def script(numbers: Collection[int], family: Family, *, leads: bool) -> Iterator[str]:
    """What the restore tool reads. ``leads``: the jump is there already."""
    jump = [] if leads else [(Table.FILTER, line(JUMP, family))]
    rows = (f"{row}\n" for row in rules(numbers, family))
    return section(Table.FILTER, flushes([CHAIN]), on_top(jump, Table.FILTER), rows)
