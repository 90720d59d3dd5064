"""Places at once, and who waits for whom."""

from __future__ import annotations

from kproxy.health.checks.gate import Gate, Lane


def test_silent_ones_hold_at_most_half() -> None:
    """However many do not answer, the others find a place at once."""
    gate: Gate[str] = Gate(4)
    silent = [f"silent-{number}" for number in range(10)]
    assert [gate.enter(each, Lane.SILENT) for each in silent] == [True, True] + [False] * 8
    assert gate.enter("a", Lane.ANSWERED)
    assert gate.enter("b", Lane.ANSWERED)
    assert not gate.enter("c", Lane.ANSWERED)
    assert (len(gate), gate.waiting) == (4, 9)


def test_a_place_goes_to_one_of_its_lane_in_turn() -> None:
    """One that answers first; a silent one only where silent ones have a place."""
    gate: Gate[str] = Gate(2)
    for each in ("s1", "s2", "s3"):
        gate.enter(each, Lane.SILENT)
    for each in ("a1", "a2", "a3"):
        gate.enter(each, Lane.ANSWERED)
    gate.leave("a1")
    assert gate.admitted() == ["a2"]
    gate.leave("s1")
    assert gate.admitted() == ["a3"]
    gate.leave("a2")
    assert gate.admitted() == ["s2"]
    gate.leave("s2")
    gate.leave("a3")
    assert gate.admitted() == ["s3"]
    assert (len(gate), gate.waiting) == (1, 0)


def test_nobody_overtakes_who_waits() -> None:
    """A newcomer takes its turn even if a place has just been left."""
    gate: Gate[str] = Gate(2)
    for each in ("a", "b", "c"):
        gate.enter(each, Lane.ANSWERED)
    gate.leave("a")
    assert not gate.enter("d", Lane.ANSWERED)
    assert gate.admitted() == ["c"]


def test_leaving_counts_for_those_who_wait_too() -> None:
    """Who is no longer wanted while it waits gets no place."""
    gate: Gate[str] = Gate(2)
    for each in ("a", "b", "c"):
        gate.enter(each, Lane.ANSWERED)
    gate.leave("c")
    gate.leave("c")
    gate.leave("a")
    assert gate.admitted() == []
    assert (len(gate), gate.waiting) == (1, 0)


def test_there_is_a_place_for_each_lane() -> None:
    """Even where descriptors are so few that none would be left."""
    gate: Gate[str] = Gate(0)
    assert gate.enter("s", Lane.SILENT)
    assert gate.enter("a", Lane.ANSWERED)
