"""What nftables mode puts in force, as nft reads it. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from kproxy.backends.nftables import elements
from kproxy.backends.nftables.elements import KINDS
from kproxy.backends.nftables.render import Desired, render
from kproxy.backends.nftables.rules import TABLE, WORD, base
from kproxy.backends.nftables.script import chain_text, skeleton
from kproxy.core.snapshot import Snapshot


def text(snapshot: Snapshot) -> Iterator[str]:
    """All of a Snapshot, but for chains that stand ready and that nothing leads to."""
    desired = render(snapshot, None)
    yield from script(desired, without=desired.idle)


def script(desired: Desired, without: Collection[str] = ()) -> Iterator[str]:
    """A script that makes it, without chains of these names."""
    frame = desired.frame
    yield skeleton(frame)
    left_out = {*without, *(chain.name for chain in base(frame))}
    for name, chain in desired.chains.items():
        if name not in left_out:
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
