"""What ``iptables-save`` printed, by table and chain, and how large that is. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from kproxy.backends.xtables.rules import BASE, Table

#: table -> chain -> lines (``-A CHAIN …``), base chains and foreign ones included.
Saved = dict[Table, dict[str, list[str]]]

Line = tuple[Table, str]

_TABLES = {table.value: table for table in Table}


def parse(text: str) -> Saved:
    """Chains and lines of the tables that matter here, as the save tool printed them."""
    saved: Saved = {}
    table: dict[str, list[str]] | None = None
    for row in _plain(text).splitlines():
        if row.startswith("-A "):
            if table is not None:
                table[row[3 : row.find(" ", 3)] if " " in row[3:] else row[3:]].append(row)
        elif row.startswith(":"):
            if table is not None:
                table[row[1 : row.index(" ")]] = []
        elif row.startswith("*"):
            known = _TABLES.get(row[1:])
            table = saved.setdefault(known, {}) if known is not None else None
    return saved


def rows(text: str) -> list[str]:
    """The lines of one chain, as ``iptables -S CHAIN`` printed it."""
    return [row for row in _plain(text).splitlines() if row.startswith("-A ")]


def _plain(text: str) -> str:
    # The tools up to 1.8.9 at least put two spaces there, and no other option does that.
    return text.replace(" --nfacct-name  ", " --nfacct-name ")


def entries(saved: Saved) -> dict[str, int]:
    """How many entries the kernel counts in each legacy table; see kproxy.kernel.xtables."""
    return {
        table.value: empty_table(table)
        + sum(map(len, content.values()))
        + chain_entries(0) * len(content.keys() - BASE[table])
        for table, content in saved.items()
    }


def grown(
    before: Mapping[str, int], written: Mapping[str, int], replaced: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Entries by table after so many were ``written`` (:attr:`Tally.entries`), in chains that had
    ``replaced`` of them. A table of which nothing was known was made by this."""
    after, gone = dict(before), replaced or {}
    for table, count in written.items():
        there = before[table] if table in before else empty_table(Table(table))
        after[table] = there + count - gone.get(table, 0)
    return after


def empty_table(table: Table) -> int:
    """The entries of a table in which nobody has written."""
    return len(BASE[table]) + 1


def chain_entries(rules: int) -> int:
    """The entries of a chain that somebody made: its rules, its head and its end."""
    return rules + 2


def target_of(row: str) -> str:
    """The chain or target that a printed rule goes to, "" when it has none."""
    for option in (" -j ", " -g "):
        at = row.rfind(option)
        if at >= 0:
            return row[at + 4 :].split(" ", 1)[0]
    return ""
