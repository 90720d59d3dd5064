"""How much of fastpath mode is in force: what a metric shows. Pure."""

from __future__ import annotations

from kproxy.backends.fastpath.render import Desired


def objects(desired: Desired) -> dict[str, int]:
    """Service ports in the engine, and members of the sets that lead packets to it."""
    counts = {name: len(members) for name, members in desired.sets.items()}
    return {"engine": len(desired.tables.services), **counts}
