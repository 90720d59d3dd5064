"""What nftables mode puts in force, as nft reads it. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from kproxy.backends.nftables import elements
from kproxy.backends.nftables.elements import KINDS
from kproxy.backends.nftables.render import Desired, render
from kproxy.backends.nftables.rules import TABLE, WORD, base, chain_text, skeleton
from kproxy.core.snapshot import Snapshot


def text(snapshot: Snapshot) -> Iterator[str]:
    """All of a Snapshot."""
    yield from script(render(snapshot, None))


def script(desired: Desired) -> Iterator[str]:
    """A script that makes it."""
    frame = desired.frame
    yield skeleton(frame)
    fixed = {chain.name for chain in base(frame)}
    for name, chain in desired.chains.items():
        if name not in fixed:
            yield chain_text(chain, frame)
    where = f"{WORD[frame.family]} {TABLE}"
    for name, records in desired.elements().items():
        if not records:
            continue
        kind = KINDS[name]
        yield f"add element {where} {name} {{\n"
        for record in sorted(records):
            yield f"\t{elements.text(elements.unpack(kind, record, frame.family))},\n"
        yield "}\n"
