"""How many rules of ours are in force: what a metric shows. Pure."""

from __future__ import annotations

from collections import Counter

from kproxy.backends.userspace.render import Desired


def rules_by_table(desired: Desired) -> dict[str, int]:
    """Rules by table, jumps of the base chains included, with every front open and every node port
    held."""
    counts = Counter(
        draft.rule.table.value for block in desired.blocks.values() for draft in block.drafts
    )
    for table, _ in desired.jumps:
        counts[table.value] += 1
    return {table: count for table, count in counts.items() if count}
