"""Faults of pods: how they are written, which go together, what a restart takes away."""

from __future__ import annotations

import pytest

from kproxy.errors import UsageError
from kproxy.lab.faults import (
    FORMS,
    HEALTHY,
    Affliction,
    Fault,
    Kind,
    added,
    affliction,
    after_restart,
    loss_of,
    parse,
)

WRITTEN = [
    ("kill", Fault(Kind.KILL), "kill"),
    ("hang", Fault(Kind.HANG), "hang"),
    ("refuse", Fault(Kind.REFUSE), "refuse"),
    ("heal", Fault(Kind.HEAL), "heal"),
    ("slow=200", Fault(Kind.SLOW, (0.2,)), "slow=200ms"),
    ("slow=1.5s", Fault(Kind.SLOW, (1.5,)), "slow=1500ms"),
    ("slow=20ms", Fault(Kind.SLOW, (0.02,)), "slow=20ms"),
    ("loss=10", Fault(Kind.LOSS, (0.1,)), "loss=10%"),
    ("loss=0.5%", Fault(Kind.LOSS, (0.005,)), "loss=0.5%"),
    ("loss=100%", Fault(Kind.LOSS, (1.0,)), "loss=100%"),
    ("flap=2,0.5", Fault(Kind.FLAP, (2.0, 0.5)), "flap=2,0.5"),
    ("flap=1s, 250ms", Fault(Kind.FLAP, (1.0, 0.25)), "flap=1,0.25"),
]


@pytest.mark.parametrize(("text", "fault", "again"), WRITTEN)
def test_a_fault_is_read_and_written(text: str, fault: Fault, again: str) -> None:
    """What is told of a fault can be typed again, and means the same."""
    assert parse(text) == fault
    assert str(fault) == again
    assert parse(again) == fault


@pytest.mark.parametrize(
    "text",
    [
        *("", "die", "KILL", "kill=1", "heal=", "slow", "slow=", "slow=0", "slow=-1", "slow=1h"),
        *("slow=1,2", "slow=4000s", "slow=" + "9" * 400, "slow=²"),
        *("loss", "loss=0", "loss=101", "loss=1ms", "flap", "flap=1", "flap=1,0", "flap=1,2,3"),
        *("flap=0.001,1", "flap=,", "flap=1,4000"),
    ],
)
def test_what_is_no_fault_says_how_to_write_one(text: str) -> None:
    """Every refusal shows a form that is taken."""
    with pytest.raises(UsageError) as refused:
        parse(text)
    assert any(form in refused.value.hint for form in FORMS.values())


TOGETHER = [
    ((), ("kill",), ("kill",)),
    (("kill",), ("hang",), ("hang",)),
    (("hang", "slow=5"), ("flap=1,1",), ("slow=5ms", "flap=1,1")),
    (("slow=5",), ("slow=9",), ("slow=9ms",)),
    (("refuse", "loss=5"), ("loss=7", "slow=1"), ("refuse", "loss=7%", "slow=1ms")),
    (("refuse", "loss=5", "slow=1"), ("heal",), ()),
    (("refuse",), ("heal", "slow=3"), ("slow=3ms",)),
    (("kill",), (), ("kill",)),
]


@pytest.mark.parametrize(("there", "more", "then"), TOGETHER)
def test_faults_that_go_together(
    there: tuple[str, ...], more: tuple[str, ...], then: tuple[str, ...]
) -> None:
    """One way of not answering at a time; slowness and loss come on top; heal ends all."""
    found = added([parse(text) for text in there], [parse(text) for text in more])
    assert tuple(map(str, found)) == then


def test_a_restart_heals_what_was_the_process_s_own() -> None:
    """What is around the process stays as it was."""
    for text, left in (("kill", 1), ("hang", 1), ("refuse", 2), ("flap=1,1", 2)):
        faults = added([parse("slow=5")], [parse(text)])
        assert len(after_restart(faults)) == left


AFFLICTIONS = [
    ((), HEALTHY, 0.0),
    (("kill",), Affliction(closed=True), 0.0),
    (("refuse", "loss=25"), Affliction(closed=True), 0.25),
    (("hang", "slow=100"), Affliction(hung=True, slow=0.1), 0.0),
    (("flap=1,2",), Affliction(flap=(1.0, 2.0)), 0.0),
]


@pytest.mark.parametrize(("texts", "wanted", "loss"), AFFLICTIONS)
def test_what_a_responder_has_to_do(
    texts: tuple[str, ...], wanted: Affliction, loss: float
) -> None:
    """Loss is the network's affair, all else the responder's."""
    faults = [parse(text) for text in texts]
    assert affliction(faults) == wanted
    assert loss_of(faults) == loss
