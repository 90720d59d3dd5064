"""From a patch to the text that the restore tool reads: which calls, in which order. Pure.

Each call is all or nothing in each of its tables (the tools commit table by table). nat comes
first: it is by far the largest and so the one that may be refused, and filter behind it is short,
which leaves milliseconds between a translation that goes and the refusal that follows it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain as joined
from typing import TypeVar

from kproxy.backends.iptables import chains
from kproxy.backends.iptables.diff import Part, Patch
from kproxy.backends.iptables.render import Place
from kproxy.backends.xtables.rules import Table
from kproxy.backends.xtables.saved import Line
from kproxy.backends.xtables.variant import Variant

#: Service ports written, and chains removed, in one call of the nft variant: its work grows with
#: the square of a call. Measured at 5,000 x 10: 100 is best (6 s; by 500 more than twice that).
NFT_SERVICES_PER_CALL = 100
#: The same once rules are reachable: for each call the kernel walks all of them (0.1 s at 5,000 x
#: 10), so that fewer and larger calls are better. 1,000 services changed there: by 100 1.7 s, by
#: 300 1.0 s, by 1,000 1.5 s.
NFT_CHANGES_PER_CALL = 300
NFT_CHAINS_PER_CALL = 1000

Call = Iterator[str]

#: The piece that ends a table: one transaction.
COMMIT = "COMMIT\n"
T = TypeVar("T")


def calls(patch: Patch, variant: Variant) -> Iterator[Call]:
    """The calls of the restore tool, in order; each an iterator over pieces of its text.

    legacy takes one call whatever the change: each replaces its whole table. nft takes one as long
    as the change is small. Beyond that nothing half-made may be reachable: services' chains first,
    then the chains that lead to them, then what nobody reaches any more.
    """
    if not patch.rules:
        return
    size = NFT_SERVICES_PER_CALL if patch.first else NFT_CHANGES_PER_CALL
    small = len(patch.parts) <= size and len(patch.doomed) + len(patch.kept) <= NFT_CHAINS_PER_CALL
    if variant is Variant.LEGACY or small:
        yield _one_call(patch)
        return
    first = [place for place in patch.places if place in chains.FIXED]
    yield _section(Table.NAT, _writing(patch, Table.NAT, first, ()))
    for some in _slices(patch.parts, size):
        yield _section(Table.NAT, _writing(patch, Table.NAT, (), some))
    later = [place for place in patch.places if place not in chains.FIXED]
    yield joined(
        _section(Table.NAT, _writing(patch, Table.NAT, later, ()), _base_lines(patch, Table.NAT)),
        _filter_and_mangle(patch),
    )
    yield from removals(Table.NAT, (*patch.doomed, *patch.kept), patch.doomed)


def _one_call(patch: Patch) -> Call:
    removal = joined(_flushes((*patch.doomed, *patch.kept)), _deletions(patch.doomed))
    return joined(
        _section(
            Table.NAT,
            _writing(patch, Table.NAT, patch.places, patch.parts),
            _base_lines(patch, Table.NAT),
            removal,
        ),
        _filter_and_mangle(patch),
    )


def _filter_and_mangle(patch: Patch) -> Call:
    return joined(
        _section(
            Table.FILTER,
            _guard(patch),
            _writing(patch, Table.FILTER, patch.places, ()),
            _base_lines(patch, Table.FILTER),
        ),
        _section(Table.MANGLE, _writing(patch, Table.MANGLE, patch.places, ())),
    )


def _section(table: Table, *pieces: Iterator[str]) -> Call:
    """``*table … COMMIT``, nothing at all when there are no pieces."""
    content = joined(*pieces)
    first = next(content, None)
    if first is None:
        return
    yield f"*{table}\n"
    yield first
    yield from content
    yield COMMIT


def _writing(
    patch: Patch, table: Table, places: Sequence[Place], parts: Sequence[Part]
) -> Iterator[str]:
    """Empty or make each chain, then fill it. A rule can only name a chain that is there, and
    lines of dispatch chains are known when all services are rendered: they come last."""
    mine = [place for place in places if place[0] is table]
    yield from _flushes([chain for _, chain in mine])
    for part in parts:
        content = list(part.chains())
        yield "".join(
            [*[f":{chain} - [0:0]\n" for chain, _ in content], *[text for _, text in content]]
        )
    for place in mine:
        text = patch.desired.text_of(place)
        if text:
            yield text


def _guard(patch: Patch) -> Iterator[str]:
    if patch.declare_guard:
        yield f":{chains.KUBELET_FIREWALL} - [0:0]\n"
    for row in patch.guard:
        yield f"{row}\n"


def _base_lines(patch: Patch, table: Table) -> Iterator[str]:
    yield from deleted(patch.surplus, table)
    for owner, row in patch.jumps:
        if owner is table:
            yield f"-I{row[2:]}\n"


def deleted(rows: Sequence[Line], table: Table) -> Iterator[str]:
    """``-D CHAIN …`` for ``-A CHAIN …``: takes away the first rule that is equal."""
    for owner, row in rows:
        if owner is table:
            yield f"-D{row[2:]}\n"


def _flushes(names: Sequence[str]) -> Iterator[str]:
    for chain in names:
        yield f":{chain} - [0:0]\n"


def _deletions(names: Sequence[str]) -> Iterator[str]:
    for chain in names:
        yield f"-X {chain}\n"


def removals(table: Table, emptied: Sequence[str], gone: Sequence[str]) -> Iterator[Call]:
    """Calls of bounded size that empty chains, then delete some of them: all are emptied before
    any is deleted, because the kernel deletes no chain to which another one still goes."""
    for some in _slices(emptied, NFT_CHAINS_PER_CALL):
        yield _section(table, _flushes(some))
    for some in _slices(gone, NFT_CHAINS_PER_CALL):
        yield _section(table, _deletions(some))


def _slices(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
