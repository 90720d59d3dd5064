"""What ``iptables-save`` printed, by table and chain. Pure."""

from __future__ import annotations

from kproxy.backends.xtables.rules import Table

#: table -> chain -> lines (``-A CHAIN …``), base chains and foreign ones included.
Saved = dict[Table, dict[str, list[str]]]

Line = tuple[Table, str]

_TABLES = {table.value: table for table in Table}


def parse(text: str) -> Saved:
    """Chains and lines of the tables that matter here, as the save tool printed them."""
    saved: Saved = {}
    table: dict[str, list[str]] | None = None
    # The save tools up to 1.8.9 at least put two spaces there, and no other option does that.
    text = text.replace(" --nfacct-name  ", " --nfacct-name ")
    for row in text.splitlines():
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


def target_of(row: str) -> str:
    """The chain or target that a printed rule goes to, "" when it has none."""
    for option in (" -j ", " -g "):
        at = row.rfind(option)
        if at >= 0:
            return row[at + 4 :].split(" ", 1)[0]
    return ""
