"""The states of a flow, and what each packet does to them: tables that the engine reads as well.

Nothing checks sequence numbers, so a forged RST can be told from a true one only by what follows:
it puts a flow into RESET, where every further packet keeps it alive and silence ends it soon.
"""

from __future__ import annotations

from enum import IntEnum


class State(IntEnum):
    """Where a flow is in its life."""

    SYN_SENT = 0  # the client's SYN went out
    SYN_RECEIVED = 1  # the endpoint agreed
    PICKED_UP = 2  # began before us: no handshake seen, no answer yet
    ESTABLISHED = 3
    CLIENT_FINISHED = 4
    SERVER_FINISHED = 5
    CLOSED = 6  # both finished
    RESET = 7
    UDP_NEW = 8
    UDP_ANSWERED = 9
    SCTP_NEW = 10
    SCTP_OPEN = 11
    SCTP_CLOSED = 12


class Event(IntEnum):
    """What a packet says: TCP's flags, or the type of SCTP's first chunk."""

    BEGIN = 0  # SYN, INIT
    AGREE = 1  # SYN and ACK, INIT ACK
    DATA = 2  # anything else
    FINISH = 3  # FIN, SHUTDOWN and its kin
    ABORT = 4  # RST, ABORT


class Direction(IntEnum):
    """The direction of a packet within its flow."""

    THERE = 0  # from the client
    BACK = 1


#: Nobody has proved to be there: recycled first when room is short, after those that ended.
UNCONFIRMED = frozenset(
    {State.SYN_SENT, State.SYN_RECEIVED, State.PICKED_UP, State.UDP_NEW, State.SCTP_NEW}
)
#: Nothing more is to come; a new BEGIN from the client makes a new flow.
ENDED = frozenset({State.CLOSED, State.RESET, State.SCTP_CLOSED})

#: (state, direction, event) -> next state; what is not listed changes nothing.
NEXT: dict[tuple[State, Direction, Event], State] = {
    (State.SYN_SENT, Direction.BACK, Event.AGREE): State.SYN_RECEIVED,
    (State.SYN_SENT, Direction.BACK, Event.ABORT): State.RESET,
    (State.SYN_SENT, Direction.THERE, Event.ABORT): State.RESET,
    (State.SYN_RECEIVED, Direction.THERE, Event.DATA): State.ESTABLISHED,
    (State.SYN_RECEIVED, Direction.THERE, Event.FINISH): State.CLIENT_FINISHED,
    (State.SYN_RECEIVED, Direction.BACK, Event.FINISH): State.SERVER_FINISHED,
    (State.SYN_RECEIVED, Direction.THERE, Event.ABORT): State.RESET,
    (State.SYN_RECEIVED, Direction.BACK, Event.ABORT): State.RESET,
    (State.PICKED_UP, Direction.BACK, Event.DATA): State.ESTABLISHED,
    (State.PICKED_UP, Direction.BACK, Event.FINISH): State.SERVER_FINISHED,
    (State.PICKED_UP, Direction.THERE, Event.ABORT): State.RESET,
    (State.PICKED_UP, Direction.BACK, Event.ABORT): State.RESET,
    (State.ESTABLISHED, Direction.THERE, Event.FINISH): State.CLIENT_FINISHED,
    (State.ESTABLISHED, Direction.BACK, Event.FINISH): State.SERVER_FINISHED,
    (State.ESTABLISHED, Direction.THERE, Event.ABORT): State.RESET,
    (State.ESTABLISHED, Direction.BACK, Event.ABORT): State.RESET,
    (State.CLIENT_FINISHED, Direction.BACK, Event.FINISH): State.CLOSED,
    (State.CLIENT_FINISHED, Direction.THERE, Event.ABORT): State.RESET,
    (State.CLIENT_FINISHED, Direction.BACK, Event.ABORT): State.RESET,
    (State.SERVER_FINISHED, Direction.THERE, Event.FINISH): State.CLOSED,
    (State.SERVER_FINISHED, Direction.THERE, Event.ABORT): State.RESET,
    (State.SERVER_FINISHED, Direction.BACK, Event.ABORT): State.RESET,
    (State.CLOSED, Direction.THERE, Event.ABORT): State.RESET,
    (State.CLOSED, Direction.BACK, Event.ABORT): State.RESET,
    (State.UDP_NEW, Direction.BACK, Event.DATA): State.UDP_ANSWERED,
    (State.SCTP_NEW, Direction.BACK, Event.DATA): State.SCTP_OPEN,
    (State.SCTP_NEW, Direction.THERE, Event.ABORT): State.RESET,
    (State.SCTP_NEW, Direction.BACK, Event.ABORT): State.RESET,
    (State.SCTP_OPEN, Direction.THERE, Event.FINISH): State.SCTP_CLOSED,
    (State.SCTP_OPEN, Direction.BACK, Event.FINISH): State.SCTP_CLOSED,
    (State.SCTP_OPEN, Direction.THERE, Event.ABORT): State.RESET,
    (State.SCTP_OPEN, Direction.BACK, Event.ABORT): State.RESET,
}

#: (protocol, first packet) -> state of a new flow; a pair that is not listed begins none.
FIRST: dict[tuple[int, Event], State] = {
    (6, Event.BEGIN): State.SYN_SENT,
    # Without a flow it began before we did: the same seed most likely finds its endpoint again,
    # and any other endpoint answers with a RST, which ends it cleanly.
    (6, Event.DATA): State.PICKED_UP,
    (6, Event.FINISH): State.PICKED_UP,
    (17, Event.DATA): State.UDP_NEW,
    (132, Event.BEGIN): State.SCTP_NEW,
    (132, Event.DATA): State.SCTP_NEW,
}


def next_state(state: State, way: Direction, event: Event) -> State:
    return NEXT.get((state, way, event), state)


def packed() -> bytes:
    """:data:`NEXT` as the compiled engine reads it: a byte at ``(state * 2 + way) * 5 + event``."""
    return bytes(
        next_state(state, way, event) for state in State for way in Direction for event in Event
    )
