"""How many rules of ours are in force: what a metric shows. Pure."""

from __future__ import annotations

from collections import Counter

from kproxy.backends.ipvs.render import Desired


def rules_by_table(desired: Desired) -> dict[str, int]:
    """Rules by table, jumps of the base chains included. A rule is a line."""
    counts: Counter[str] = Counter()
    for (table, _), text in desired.rules.chains.items():
        counts[table.value] += text.count("\n")
    for table, _ in desired.rules.jumps:
        counts[table.value] += 1
    return {table: count for table, count in counts.items() if count}
