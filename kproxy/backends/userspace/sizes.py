"""What a change amounts to: what it wrote, and what went with chains that it emptied. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from msgspec.structs import replace

from kproxy.backends.base import Applied
from kproxy.backends.userspace.diff import RulesPatch
from kproxy.backends.userspace.held import lines_in, place_of
from kproxy.backends.xtables.found import Found
from kproxy.backends.xtables.layout import Place
from kproxy.backends.xtables.saved import Line, chain_entries
from kproxy.core.objects import PortName

#: How many lines a chain has; None where it is not there.
Length = Callable[[Place], int | None]


def found_in(rules: Found) -> Length:
    """As they were read."""

    def length(place: Place) -> int | None:
        lines = lines_in(rules, place)
        return None if lines is None else len(lines)

    return length


def believed(lines: Mapping[PortName, tuple[Line, ...]]) -> Length:
    """As the service ports' lines say, each of which stands once."""

    def length(place: Place) -> int | None:
        return len({line for some in lines.values() for line in some if place_of(line) == place})

    return length


def replaced(patch: RulesPatch, length: Length) -> Counter[str]:
    """By table, what chains had that are written whole: the text that does so
    (:attr:`Tally.entries`) counts them as new."""
    counts: Counter[str] = Counter()
    for place, _ in patch.written:
        if (before := length(place)) is not None:
            counts[place[0].value] += chain_entries(before)
    for place, _ in patch.anew:
        # What has to come is there by then.
        added = sum(place_of(line) == place for line in patch.added if line[0] is place[0])
        counts[place[0].value] += chain_entries((length(place) or 0) + added)
    return counts


def both(one: Applied, other: Applied) -> Applied:
    """Two changes of one sync."""
    known = one.transactions is not None and other.transactions is not None
    tables = Counter(dict(one.tables)) + Counter(dict(other.tables))
    return replace(
        one,
        written=one.written + other.written,
        tables=tuple(sorted(tables.items())),
        transactions=(one.transactions or 0) + (other.transactions or 0) if known else None,
    )
