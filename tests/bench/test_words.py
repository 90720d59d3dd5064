"""How figures are written."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.bench import words
from kproxy.bench.results import Absent, Cost, Unit
from kproxy.bench.subjects import COMPARED
from tests.bench.comparisons import MEASURES, make_section, make_uml_section


@pytest.mark.parametrize(
    ("value", "unit", "written"),
    [
        (52_300, "1/s", "52.3 k/s"),
        (41.26e9, "bit/s", "41.3 Gbit/s"),
        (14.2e-6, "s", "14.2 µs"),
        (999.6e-6, "s", "1.00 ms"),
        (0.9996, "s", "1.00 s"),
        (72.5, "s", "72.5 s"),
        (1234.0, "s", "1,230 s"),
        (250e-9, "s", "250 ns"),
        (0.0, "s", "0 s"),
        (97.6e6, "B", "97.6 MB"),
        (999.7, "B", "1.00 kB"),
        (0.021, "share", "2.10 %"),
        (0.0, "share", "0 %"),
        (1.0, "share", "100 %"),
        (3.14159, "", "3.14"),
        (math.inf, "s", "–"),
        (math.nan, "1/s", "–"),
    ],
)
def test_quantities(value: float, unit: Unit, written: str) -> None:
    """Three significant digits with the prefix that they need, and the unit."""
    assert words.quantity(value, unit) == written


_PREFIXES = {"T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3, "": 1.0, "m": 1e-3, "µ": 1e-6, "n": 1e-9}


@given(st.floats(1e-9, 1e13))
def test_a_quantity_says_the_value(value: float) -> None:
    """What is written is within rounding of what was meant, and never 1,000 of a prefix."""
    amount, _, unit = words.quantity(value, "bit/s").partition(" ")
    assert float(amount.replace(",", "")) * _PREFIXES[unit.removesuffix("bit/s")] == pytest.approx(
        value, rel=0.006
    )
    assert value >= 1e15 or float(amount.replace(",", "")) < 1000


@pytest.mark.parametrize(
    ("names", "written"),
    [([], ""), (["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")],
)
def test_lists(names: list[str], written: str) -> None:
    """Commas, and one "and"."""
    assert words.listed(names) == written


def test_cost_is_given_for_what_was_done() -> None:
    """Half a second at 20,000 a second is one lot of 10,000; a gigabyte is eight gigabits."""
    assert words.cost(Cost(0.5, 0.2, 0.4), 20_000, "1/s") == (0.2, 0.4, "10,000 operations")
    assert words.cost(Cost(2.0, 1.0, 3.0), 8e9, "bit/s") == (0.5, 1.5, "a gigabyte")
    assert words.cost(Cost(2.0, 1.0, 3.0), 0.01, "s") == (1.0, 3.0, "a turn")


def test_every_subject_measure_and_group_has_words() -> None:
    """Nothing that `kproxy bench` measures by itself stands in a report unexplained."""
    assert set(COMPARED) <= set(words.SUBJECTS)
    for name, measure in MEASURES.items():
        assert measure.group in words.GROUPS
        event, _, part = name.rpartition("-")
        assert name in words.HOW or (event in words.HOW and part in words.SURVIVAL)


def test_kernels_and_who_is_missing() -> None:
    """A kernel in user-mode Linux is never written like the host's; absence of one measure and of
    all is found."""
    assert words.kernel_name(make_section()) == "Linux 6.18.5"
    assert words.kernel_name(make_uml_section()) == "user-mode Linux 6.1.0"
    section = make_section(absent=(Absent("a", "", "r"), Absent("b", "udp", "s")))
    assert list(words.missing(section, ["udp"])) == ["a", "b"]
    assert list(words.missing(section, ["crr"])) == ["a"]
