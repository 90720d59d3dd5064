"""What has to go so that no trace of ours is left. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from kproxy.backends.iptables import chains
from kproxy.backends.iptables.fixed import LOCALNET_GUARD
from kproxy.backends.iptables.held import is_own
from kproxy.backends.iptables.script import Call, deleted, removals
from kproxy.backends.xtables.rules import BASE, Table
from kproxy.backends.xtables.saved import Line, Saved, target_of
from kproxy.backends.xtables.text import line
from kproxy.backends.xtables.variant import Variant
from kproxy.core.objects import Family

#: Other programs may use these: they stay, with their rules, while a rule that is not ours goes
#: there.
SHARED = frozenset({(Table.NAT, chains.MARK_MASQ), (Table.FILTER, chains.KUBELET_FIREWALL)})


def cleanup_calls(saved: Saved, family: Family, variant: Variant) -> Iterator[Call]:
    """Calls of the restore tool that take away what is ours in ``saved``: first the rules that
    lead to us, so that traffic never meets half of it, then the chains. None when there is
    nothing."""
    for table in Table:
        content = saved.get(table, {})
        kept = _kept(table, content, family)
        leading = _leading(table, content, family)
        if leading:
            yield _table(table, deleted(leading, table))
        mine = [
            chain
            for chain in content
            if (is_own(table, chain) or (table, chain) in SHARED) and chain not in kept
        ]
        pinned = _pinned(table, content, leading)
        gone = [chain for chain in mine if chain not in pinned]
        if variant is Variant.NFT:
            yield from removals(table, mine, gone)
        elif mine:
            flushes = (f":{chain} - [0:0]\n" for chain in mine)
            deletions = (f"-X {chain}\n" for chain in gone)
            yield _table(table, flushes, deletions)


def _table(table: Table, *pieces: Iterator[str]) -> Call:
    yield f"*{table}\n"
    for piece in pieces:
        yield from piece
    yield "COMMIT\n"


def _kept(table: Table, content: dict[str, list[str]], family: Family) -> frozenset[str]:
    """Shared chains that somebody else still needs."""
    known = {line(rule, family) for rule in chains.JUMPS if rule.table is table}
    foreign = [
        row
        for chain, rows in content.items()
        if not is_own(table, chain)
        for row in rows
        if row not in known
    ]
    used = {target_of(row) for row in foreign}
    kept = {chain for owner, chain in SHARED if owner is table and chain in used}
    if table is Table.FILTER and _kubelet_has_rules(content, family):
        kept.add(chains.KUBELET_FIREWALL)
    return frozenset(kept)


def _kubelet_has_rules(content: dict[str, list[str]], family: Family) -> bool:
    """Whether the kubelet keeps rules of its own in the chain that we share: then the jumps to it,
    which are alike to the letter, are the kubelet's."""
    guard = line(LOCALNET_GUARD, family)
    return any(row != guard for row in content.get(chains.KUBELET_FIREWALL, ()))


def _leading(table: Table, content: dict[str, list[str]], family: Family) -> list[Line]:
    """Rules of base chains that go to chains of ours, whoever's version wrote them."""
    known = {line(rule, family) for rule in chains.JUMPS if rule.table is table}
    theirs = chains.KUBELET_FIREWALL if _kubelet_has_rules(content, family) else None
    rows: list[Line] = []
    for base in sorted(BASE[table] & content.keys()):
        for row in content[base]:
            target = target_of(row)
            ours = is_own(table, target) and (table, target) not in SHARED
            if (ours or row in known) and target != theirs:
                rows.append((table, row))
    return rows


def _pinned(table: Table, content: dict[str, list[str]], leading: list[Line]) -> frozenset[str]:
    """Chains of ours to which a foreign chain goes: emptied, but the kernel keeps them."""
    taken = {row for _, row in leading}
    return frozenset(
        target_of(row)
        for chain, rows in content.items()
        if not is_own(table, chain)
        for row in rows
        if row not in taken and is_own(table, target_of(row))
    )
