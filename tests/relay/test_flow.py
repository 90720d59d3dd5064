"""The decisions about one TCP flow, without any socket: what the workers run, step by step."""

from __future__ import annotations

from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

CONNECTING, OPEN, DONE = range(3)
PENDING, ENDED, TOLD = 1, 2, 4
LADDER = 4

State = tuple[int, int, int, int, int]

NEW: State = (CONNECTING, 0, LADDER, 0, 0)
OPENED: State = (OPEN, 0, LADDER, 0, 0)

EVENTS = (
    "established", "refused", "silent", "nobody", "client_end", "server_end", "client_reset",
    "server_reset", "server_full", "client_full", "server_took", "client_took", "expired",
)  # fmt: skip

RESET_BOTH = ("reset_client", "reset_server", "close")

#: (events from a new flow on, what the last one asks for)
STORIES: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "a server that answers is read, and so is the client": (
        ["established"],
        ("read_client", "read_server", "wait_idle"),
    ),
    "what the client sent early goes first": (
        ["server_full", "established"],
        ("flush", "read_server", "wait_idle"),
    ),
    "a client that finished early is told on": (
        ["client_end", "established"],
        ("read_server", "finish_server", "wait_half"),
    ),
    "a client that finished early is told on after its bytes": (
        ["server_full", "client_end", "established", "server_took"],
        ("finish_server", "wait_half"),
    ),
    "who refuses is left for the next": (["refused"], ("abandon", "connect")),
    "who is silent is left for the next": (["silent"], ("abandon", "connect")),
    "the ladder has an end": (
        ["refused", "silent", "refused", "silent"],
        ("abandon", "fail", "reset_client", "close"),
    ),
    "a retry that works is as good as a first try": (
        ["refused", "silent", "established"],
        ("read_client", "read_server", "wait_idle"),
    ),
    "a service without endpoints resets": (["nobody"], ("reset_client", "close")),
    "endpoints that all failed are a failure": (
        ["refused", "nobody"],
        ("fail", "reset_client", "close"),
    ),
    "a client that leaves before there is a server": (["client_reset"], RESET_BOTH),
    "half-close up": (["established", "client_end"], ("finish_server", "wait_half")),
    "half-close down": (["established", "server_end"], ("finish_client", "wait_half")),
    "both finished": (["established", "client_end", "server_end"], ("close",)),
    "both finished, the other way round": (["established", "server_end", "client_end"], ("close",)),
    "a server that does not read stops the client": (
        ["established", "server_full"],
        ("pause_client",),
    ),
    "a client that does not read stops the server": (
        ["established", "client_full"],
        ("pause_server",),
    ),
    "who reads again is given more": (
        ["established", "server_full", "server_took"],
        ("read_client",),
    ),
    "the end waits for what is kept": (["established", "client_full", "server_end"], ()),
    "and comes after it": (
        ["established", "client_full", "server_end", "client_took"],
        ("finish_client", "wait_half"),
    ),
    "the last end after what is kept closes": (
        ["established", "client_full", "server_end", "client_end", "client_took"],
        ("close",),
    ),
    "a reset of the client is passed on": (["established", "client_reset"], RESET_BOTH),
    "a reset of the server is passed on": (["established", "server_reset"], RESET_BOTH),
    "a reset after a half-close is passed on": (
        ["established", "client_end", "server_reset"],
        RESET_BOTH,
    ),
    "a reset does not wait for what is kept": (
        ["established", "server_full", "server_reset"],
        RESET_BOTH,
    ),
    "nothing moved for too long": (["established", "expired"], RESET_BOTH),
    "nothing comes after the end": (["established", "client_reset", "server_end"], ()),
}


def tell(relays: ModuleType, events: list[str], state: State = NEW) -> tuple[State, list[str]]:
    """The state after the events and what each one asked for."""
    asked: list[str] = []
    for event in events:
        state, asked = relays.flow_step(state, event, 100)
    return state, asked


@pytest.mark.parametrize("story", STORIES)
def test_stories(relays: ModuleType, story: str):
    """The machine asks for what the story says."""
    events, expected = STORIES[story]
    assert tell(relays, events)[1] == expected


@pytest.mark.parametrize(("kept", "asked"), [(100, ()), (1 << 20, ("pause_client",))])
def test_early_bytes_are_bounded(relays: ModuleType, kept: int, asked: tuple[str, ...]):
    """Before there is a server, a client is read up to a limit only."""
    assert relays.flow_step(NEW, "server_full", kept)[1] == asked


@pytest.mark.parametrize("rungs", range(1, 9))
def test_one_try_a_rung(relays: ModuleType, rungs: int):
    """A flow tries as often as the ladder has rungs."""
    state: State = (CONNECTING, 0, rungs, 0, 0)
    tries = 1
    while (stepped := relays.flow_step(state, "refused"))[0][0] == CONNECTING:
        state = stepped[0]
        assert stepped[1] == ("abandon", "connect")
        tries += 1
    assert tries == rungs


def test_unknown_event(relays: ModuleType):
    """An event that the machine does not know is an error of the caller."""
    with pytest.raises(ValueError, match="tuple"):
        relays.flow_step(NEW, "bored")


@given(events=st.lists(st.sampled_from(EVENTS), max_size=30))
@settings(suppress_health_check=list(HealthCheck), deadline=None)
def test_any_order(relays: ModuleType, events: list[str]):
    """Whatever happens: one close at most and nothing after it; an end is told once, and only when
    its sender has finished and nothing is kept; who must wait is not read."""
    state: State = NEW
    closed = 0
    told: list[str] = []
    for event in events:
        before = state
        state, asked = relays.flow_step(state, event, 100)
        phase, _, _, up, down = state
        if before[0] == DONE:
            assert (state, asked) == (before, ())
        closed += "close" in asked
        assert ("close" in asked) == (phase == DONE and before[0] != DONE)
        told += [act for act in asked if act.startswith("finish")]
        for ways, other, reads, tells in (
            (up, down, "read_client", "finish_server"),
            (down, up, "read_server", "finish_client"),
        ):
            assert not (reads in asked and ways & (PENDING | ENDED))
            assert not ways & TOLD or ways & (ENDED | PENDING) == ENDED
            assert not (tells in asked and other & TOLD)
    assert closed <= 1
    assert len(told) == len(set(told))
