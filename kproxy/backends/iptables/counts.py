"""How many rules of ours are in force: what a metric shows. Pure."""

from __future__ import annotations

from collections import Counter

from kproxy.backends.iptables.render import Desired


def rules_by_table(desired: Desired) -> dict[str, int]:
    """Rules by table, jumps of the base chains included.

    Works through the text of every service, so it is for who asks now and then. A rule is a line.
    """
    counts: Counter[str] = Counter()
    for places in (desired.fixed, desired.dispatch):
        for (table, _), text in places.items():
            counts[table.value] += text.count("\n")
    counts["nat"] += sum(
        text.count("\n") for block in desired.blocks.values() for text in block.chains.values()
    )
    for table, _ in desired.jumps:
        counts[table.value] += 1
    counts["filter"] += len(desired.guard)
    return {table: count for table, count in counts.items() if count}
