"""Pieces of the text that the restore tool reads, and the calls that they make. Pure.

Each call is all or nothing in each of its tables: the tools commit table by table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain as joined
from typing import TypeVar

from kproxy.backends.xtables.rules import Table
from kproxy.backends.xtables.saved import Line, chain_entries

#: Chains emptied or deleted in one call of the nft variant, whose work grows with the square of
#: what it commits.
NFT_CHAINS_PER_CALL = 1000

#: Bytes handed to the tool at once: what a pipe holds.
_CHUNK = 64 * 1024

Call = Iterator[str]

#: The piece that ends a table: one transaction.
COMMIT = "COMMIT\n"
#: Entries of a legacy table that go with a rule and an empty chain.
_TAKEN = {"-D ": 1, "-X ": chain_entries(0)}
T = TypeVar("T")


def section(table: Table, *pieces: Iterator[str]) -> Call:
    """``*table … COMMIT``, nothing at all when there are no pieces."""
    content = joined(*pieces)
    first = next(content, None)
    if first is None:
        return
    yield f"*{table}\n"
    yield first
    yield from content
    yield COMMIT


def on_top(rows: Iterable[Line], table: Table) -> Iterator[str]:
    """``-I CHAIN …`` for ``-A CHAIN …``: at the top of the chain."""
    for owner, row in rows:
        if owner is table:
            yield f"-I{row[2:]}\n"


def deleted(rows: Iterable[Line], table: Table) -> Iterator[str]:
    """``-D CHAIN …`` for ``-A CHAIN …``: takes away the first rule that is equal."""
    for owner, row in rows:
        if owner is table:
            yield f"-D{row[2:]}\n"


def flushes(names: Iterable[str]) -> Iterator[str]:
    """Make each chain, or empty it."""
    for chain in names:
        yield f":{chain} - [0:0]\n"


def deletions(names: Iterable[str]) -> Iterator[str]:
    """Delete each chain: it has to be empty, and no rule may go there."""
    for chain in names:
        yield f"-X {chain}\n"


def removals(table: Table, emptied: Sequence[str], gone: Sequence[str]) -> Iterator[Call]:
    """Calls of bounded size that empty chains, then delete some of them: all are emptied before
    any is deleted, because the kernel deletes no chain to which another one still goes."""
    for some in slices(emptied, NFT_CHAINS_PER_CALL):
        yield section(table, flushes(some))
    for some in slices(gone, NFT_CHAINS_PER_CALL):
        yield section(table, deletions(some))


def slices(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Pieces of at most ``size``."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


class Tally:
    """Counts the rules in text that streams by, by table, and the transactions.

    ``entries`` is by how many entries of a legacy table that text makes it larger, if no chain that
    it declares is there already.
    """

    def __init__(self) -> None:
        self.tables: Counter[str] = Counter()
        self.entries: Counter[str] = Counter()
        self.commits = 0

    def count(self, pieces: Iterable[str]) -> Iterator[str]:
        table = ""
        for piece in pieces:
            if piece.startswith("*"):
                table = piece[1:].partition("\n")[0]
            rules = piece.count("\n-A ") + piece.startswith(("-A ", "-I "))
            if rules:
                self.tables[table] += rules
            if piece[:1] in ":-":
                self.entries[table] += _entries(piece, rules)
            self.commits += piece == COMMIT
            yield piece


def _entries(piece: str, rules: int) -> int:
    """Of text that takes one thing away, or else declares chains and adds rules."""
    taken = _TAKEN.get(piece[:3])
    return rules + chain_entries(0) * (piece.count("\n") - rules) if taken is None else -taken


def chunks(pieces: Iterable[str]) -> Iterator[bytes]:
    """Pieces of text as chunks of about :data:`_CHUNK` bytes."""
    waiting: list[str] = []
    size = 0
    for piece in pieces:
        waiting.append(piece)
        size += len(piece)
        if size >= _CHUNK:
            yield "".join(waiting).encode()
            waiting, size = [], 0
    if waiting:
        yield "".join(waiting).encode()
