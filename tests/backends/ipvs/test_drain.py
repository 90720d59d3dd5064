"""Graceful termination: who is deleted when, and what is remembered of it."""

from __future__ import annotations

import pytest

from kproxy.backends.ipvs.drain import Drain, Loads, judge
from kproxy.core.servers import HeldReal

WEB, DNS = b"web", b"dns"
A, B = b"a", b"b"
PATIENCE = 900.0


def load(weight: int, connections: int) -> HeldReal:
    """Some of the connections are closing: those count as well."""
    return HeldReal(weight, active=connections // 2, inactive=connections - connections // 2)


#: (about, seconds at weight 0, loads, deleted, no more to be watched)
TABLE: list[tuple[str, float, Loads, bool, bool]] = [
    ("connections go on", 10, {WEB: {A: load(0, 3)}}, False, False),
    ("the last one ended", 10, {WEB: {A: load(0, 0)}}, True, False),
    ("its time is over", 900, {WEB: {A: load(0, 3)}}, True, False),
    ("a moment before its time is over", 899.9, {WEB: {A: load(0, 3)}}, False, False),
    ("somebody uses it again", 10, {WEB: {A: load(1, 0)}}, False, True),
    ("used again when its time is over", 900, {WEB: {A: load(1, 3)}}, False, True),
    ("somebody took it away", 10, {WEB: {B: load(1, 3)}}, False, True),
    ("the service is gone", 10, {WEB: {}}, False, True),
    ("the service was not looked at", 10, {}, False, True),
]


@pytest.mark.parametrize(
    ("about", "seconds", "loads", "deleted", "over"), TABLE, ids=[row[0] for row in TABLE]
)
def test_what_becomes_of_a_real_server(
    about: str, seconds: float, loads: Loads, deleted: bool, over: bool
) -> None:
    """By its connections, its weight and its time, as written in the table."""
    verdict = judge({(WEB, A): 100.0}, loads, 100.0 + seconds, PATIENCE)
    assert verdict.delete == ((WEB, A),) * deleted
    assert verdict.over == ((WEB, A),) * over


def test_no_patience_deletes_at_once() -> None:
    """drain_seconds 0: connections are cut with the endpoint."""
    assert judge({(WEB, A): 5.0}, {WEB: {A: load(0, 9)}}, 5.0, 0.0).delete == ((WEB, A),)


def test_time_counts_from_the_first_sight() -> None:
    """Reading the kernel again, or letting go again, does not start the time anew."""
    drain = Drain()
    drain.let_go([(WEB, A)], 100.0)
    drain.found([(WEB, A), (DNS, B)], 500.0)
    drain.let_go([(WEB, A), (DNS, B)], 900.0)
    busy = {WEB: {A: load(0, 1)}, DNS: {B: load(0, 1)}}
    assert drain.judge(busy, 1000.0, PATIENCE).delete == ((WEB, A),)
    assert set(drain.judge(busy, 1400.0, PATIENCE).delete) == {(WEB, A), (DNS, B)}


def test_what_the_kernel_holds_is_what_drains() -> None:
    """After a restart, and after any reading: those of weight 0, and no others."""
    drain = Drain()
    drain.let_go([(WEB, A), (WEB, B)], 1.0)
    drain.found([(WEB, B)], 2.0)
    assert list(drain) == [(WEB, B)]
    assert drain.servers == {WEB}


def test_deleted_ones_stay_known_until_they_are() -> None:
    """A deletion that the kernel refuses is tried again; what is over is forgotten at once."""
    drain = Drain()
    drain.let_go([(WEB, A), (WEB, B)], 1.0)
    loads = {WEB: {A: load(0, 0), B: load(1, 0)}}
    assert drain.judge(loads, 2.0, PATIENCE).delete == ((WEB, A),)
    assert list(drain) == [(WEB, A)]
    drain.forget([(WEB, A)])
    assert not len(drain)


def test_until_the_pause_is_over_only_what_is_new_is_looked_at() -> None:
    """The pause follows what a look at all of it took, and a look at what is new does not put it
    off."""
    drain = Drain()
    drain.let_go([(WEB, A)], 100.0)
    assert drain.due(100.0) == {WEB}
    assert drain.looked(100.0, 100.1) == pytest.approx(5.0)
    drain.let_go([(WEB, A)], 101.0)
    drain.found([(WEB, A)], 101.0)
    assert drain.due(101.0) == frozenset()
    assert drain.looked(101.0, 101.1) == pytest.approx(4.0)
    drain.let_go([(DNS, B)], 102.0)
    assert drain.due(102.0) == {DNS}
    busy = {DNS: {B: load(0, 1)}}
    assert drain.judge(busy, 102.0, PATIENCE).over == ()
    assert drain.looked(102.0, 102.1) == pytest.approx(3.0)
    assert drain.due(105.2) == {WEB, DNS}


def test_what_was_not_judged_stays_due() -> None:
    """A look that broke off is made again; what is wanted again, or gone, is not looked at."""
    drain = Drain()
    drain.let_go([(WEB, A)], 100.0)
    drain.looked(100.0, 100.0)
    drain.let_go([(DNS, A), (DNS, B)], 100.5)
    assert drain.due(100.6) == drain.due(100.7) == {DNS}
    drain.forget([(DNS, A)])
    assert drain.due(100.8) == {DNS}
    drain.forget_servers([DNS])
    assert drain.due(100.9) == frozenset()


def test_a_service_takes_its_real_servers_with_it() -> None:
    """What drained there drains no more; others go on."""
    drain = Drain()
    drain.let_go([(WEB, A), (DNS, B)], 1.0)
    drain.forget_servers([WEB])
    assert ((WEB, A) in drain, (DNS, B) in drain) == (False, True)
