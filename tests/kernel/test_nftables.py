"""What nf_tables says of transactions, taken apart."""

from __future__ import annotations

import pytest

from kproxy.core.objects import Family
from kproxy.kernel.nftables import Event, Kind, events, generations


@pytest.mark.parametrize("cut", range(0, 60, 7))
def test_broken_datagrams_say_nothing_wrong(cut: int) -> None:
    """A datagram that ends early gives what is whole in it, and never an exception."""
    whole = (
        b"\x30\x00\x00\x00\x0f\x0a\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
        b"\x08\x00\x01\x00\x00\x00\x00\x07\x08\x00\x02\x00\x00\x00\x00\x2a\x08\x00\x03\x00nft\x00"
        b"\x04\x00\x63\x00"
    )
    assert list(events(whole)) == [Event(Kind.NEWGEN, generation=7, program="nft", pid=42)]
    assert all(event.kind is Kind.NEWGEN for event in events(whole[:cut]))


def test_generations_start_again() -> None:
    """The counter has 32 bits."""
    assert generations(5, 9) == 4
    assert generations(2**32 - 1, 1) == 2


@pytest.mark.parametrize(
    ("event", "version", "what"),
    [
        (Event(Kind.DELRULE, 2, "nat", "OUTPUT"), Family.IPV4, "DELRULE nat OUTPUT"),
        (Event(Kind.DELTABLE, 10, "nat"), Family.IPV6, "DELTABLE nat"),
        (Event(Kind.NEWTABLE, 1, "both"), None, "NEWTABLE both"),
    ],
)
def test_what_an_event_is(event: Event, version: Family | None, what: str) -> None:
    """A table of both families (inet) is of none alone; a table has no chain to be told."""
    assert (event.version, event.what) == (version, what)
