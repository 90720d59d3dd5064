"""From a patch to the text that the restore tool reads: which calls, in which order. Pure.

Each call is all or nothing in each of its tables (the tools commit table by table). nat comes
first: it is by far the largest and so the one that may be refused, and filter behind it is short,
which leaves milliseconds between a translation that goes and the refusal that follows it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain as joined

from kproxy.backends.iptables import chains
from kproxy.backends.iptables.diff import Part, Patch
from kproxy.backends.iptables.render import Place
from kproxy.backends.xtables.rules import Table
from kproxy.backends.xtables.script import (
    NFT_CHAINS_PER_CALL,
    Call,
    deleted,
    deletions,
    flushes,
    on_top,
    removals,
    section,
    slices,
)
from kproxy.backends.xtables.variant import Variant

#: Service ports written, and chains removed, in one call of the nft variant: its work grows with
#: the square of a call. Measured at 5,000 x 10: 100 is best (6 s; by 500 more than twice that).
NFT_SERVICES_PER_CALL = 100
#: The same once rules are reachable: for each call the kernel walks all of them (0.1 s at 5,000 x
#: 10), so that fewer and larger calls are better. 1,000 services changed there: by 100 1.7 s, by
#: 300 1.0 s, by 1,000 1.5 s.
NFT_CHANGES_PER_CALL = 300


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
    yield section(Table.NAT, _writing(patch, Table.NAT, first, ()))
    for some in slices(patch.parts, size):
        yield section(Table.NAT, _writing(patch, Table.NAT, (), some))
    later = [place for place in patch.places if place not in chains.FIXED]
    yield joined(
        section(Table.NAT, _writing(patch, Table.NAT, later, ()), _base_lines(patch, Table.NAT)),
        _filter_and_mangle(patch),
    )
    yield from removals(Table.NAT, (*patch.doomed, *patch.kept), patch.doomed)


def _one_call(patch: Patch) -> Call:
    removal = joined(flushes((*patch.doomed, *patch.kept)), deletions(patch.doomed))
    return joined(
        section(
            Table.NAT,
            _writing(patch, Table.NAT, patch.places, patch.parts),
            _base_lines(patch, Table.NAT),
            removal,
        ),
        _filter_and_mangle(patch),
    )


def _filter_and_mangle(patch: Patch) -> Call:
    return joined(
        section(
            Table.FILTER,
            _guard(patch),
            _writing(patch, Table.FILTER, patch.places, ()),
            _base_lines(patch, Table.FILTER),
        ),
        section(Table.MANGLE, _writing(patch, Table.MANGLE, patch.places, ())),
    )


def _writing(
    patch: Patch, table: Table, places: Sequence[Place], parts: Sequence[Part]
) -> Iterator[str]:
    """Empty or make each chain, then fill it. A rule can only name a chain that is there, and
    lines of dispatch chains are known when all services are rendered: they come last."""
    mine = [place for place in places if place[0] is table]
    yield from flushes([chain for _, chain in mine])
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
    yield from on_top(patch.jumps, table)
