"""Others' transactions on the kernel: heard, counted while we write, or tallied while we do."""

from __future__ import annotations

import select
from collections.abc import Iterator
from contextlib import closing

import pytest

from kproxy.core.objects import Family
from kproxy.kernel import command, netns
from kproxy.kernel.nftables import Event, Kind
from kproxy.kernel.transactions import Transactions, of_table

pytestmark = pytest.mark.kernel


def nft(text: str) -> None:
    command.run(["nft", text])


@pytest.fixture
def ours() -> Iterator[Transactions]:
    """Of the IPv4 table "ours", which is there, as is "theirs"."""
    with netns.fresh():
        nft("add table ip ours; add table ip theirs; add table ip6 ours")
        with closing(Transactions(of_table("ours", {Family.IPV4}))) as made:
            yield made


def test_what_matters_is_told_once(ours: Transactions) -> None:
    """Who did the first of what matters; another family's and another table are no concern."""
    nft("add chain ip theirs c; add chain ip6 ours c")
    assert ours.look() == ""
    nft("add chain ip theirs d; add chain ip ours c; add chain ip ours d")
    assert select.select([ours.fileno()], [], [], 60)[0]
    told = ours.look()
    assert told.startswith("nft (")
    assert told.endswith(") NEWCHAIN ours c")
    assert ours.look() == ""
    assert not ours.missed()


def test_while_we_write_transactions_are_counted(ours: Transactions) -> None:
    """What came before the pause is heard; then all tables count, beside our own."""
    nft("add chain ip ours c")
    assert "NEWCHAIN ours c" in ours.pause()
    nft("delete chain ip ours c")
    nft("add chain ip theirs c")
    assert not select.select([ours.fileno()], [], [], 0)[0]
    assert ours.resume(1) == "1 transactions of others during a sync"
    assert ours.missed()
    assert not ours.missed()
    nft("add chain ip ours c")
    assert "NEWCHAIN ours c" in ours.look()


@pytest.mark.parametrize("own", [2, None])
def test_our_own_are_not_told(ours: Transactions, own: int | None) -> None:
    """Neither when they are counted right nor when nobody knows how many they were."""
    ours.pause()
    nft("add chain ip ours c")
    nft("delete chain ip ours c")
    assert ours.resume(own) == ""
    assert ours.look() == ""
    assert not ours.missed()


def test_a_tally_tells_ours_from_a_neighbours(ours: Transactions) -> None:
    """Only transactions that did something that matters count, in however many looks."""
    for number in range(3):
        nft(f"add chain ip theirs c{number}")
        nft(f"add chain ip ours c{number}; add chain ip theirs d{number}")
        assert ours.tally() == number + 1
    assert ours.resume(3) == "3 transactions of others during a sync"
    assert ours.tally() == 0


def test_what_cannot_be_told_is_missed(ours: Transactions) -> None:
    """More than waits to be heard: the look says so and goes on from there; a tally is none."""
    many = "add rule ip theirs c tcp dport 80 accept\n" * 20_000
    text = f"add chain ip theirs c\n{many}".encode()
    command.run(["nft", "-f", "-"], stdin=text)
    assert ours.look() == "more changes of rules than could be told"
    assert ours.missed()
    nft("add chain ip ours c")
    assert "NEWCHAIN ours c" in ours.look()
    command.run(["nft", "-f", "-"], stdin=text)
    assert ours.tally() is None
    ours.resume(0)
    assert ours.tally() == 0


TABLE = [
    (Event(Kind.NEWSETELEM, 2, "ours"), "NEWSETELEM ours"),
    (Event(Kind.DELCHAIN, 2, "ours", "c"), "DELCHAIN ours c"),
    (Event(Kind.DELCHAIN, 10, "ours", "c"), ""),
    (Event(Kind.DELCHAIN, 1, "ours", "c"), ""),
    (Event(Kind.DELCHAIN, 2, "theirs", "c"), ""),
]


@pytest.mark.parametrize(("event", "what"), TABLE)
def test_what_concerns_a_table(event: Event, what: str) -> None:
    """Its name and family both."""
    assert of_table("ours", {Family.IPV4})(event) == what
