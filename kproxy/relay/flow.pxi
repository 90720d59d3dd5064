"""What becomes of one TCP flow: a state, an event, the next state and what is to be done.

No socket is touched here: the workers call :c:func:`flow_decide` and carry out what it says, and
tests call the very same function as ``flow_step``. *Up* is from the client to the server, *down*
the way back. Each direction is three bits: PENDING, bytes are kept for a receiver that does not
take them, so its sender is not read; ENDED, the sender has finished; TOLD, the receiver knows.

::

    CONNECTING ── established ─► OPEN ── both directions TOLD ─► DONE
        │  ▲                      │
        │  └ refused, silent      └── reset by either, expired ─► DONE
        └── no endpoint left, ladder at its end, client reset, expired ─► DONE
"""

cdef enum Phase:
    CONNECTING
    OPEN
    DONE

cdef enum Direction:
    PENDING = 1
    ENDED = 2
    TOLD = 4

cdef enum Event:
    EVENT_ESTABLISHED
    # The endpoint said no; it said nothing for as long as its rung of the ladder.
    EVENT_REFUSED
    EVENT_SILENT
    # There is nobody to try (any more).
    EVENT_NOBODY
    EVENT_CLIENT_END
    EVENT_SERVER_END
    EVENT_CLIENT_RESET
    EVENT_SERVER_RESET
    # Bytes are kept for that side; value: how many.
    EVENT_SERVER_FULL
    EVENT_CLIENT_FULL
    # That side took all that was kept for it.
    EVENT_SERVER_TOOK
    EVENT_CLIENT_TOOK
    # Nothing moved for the idle limit, or the half-open limit.
    EVENT_EXPIRED

EVENT_NAMES = (
    "established", "refused", "silent", "nobody", "client_end", "server_end", "client_reset",
    "server_reset", "server_full", "client_full", "server_took", "client_took", "expired",
)

# What is to be done, as bits, in the order in which it is done.
cdef enum Act:
    # Affinity of the client to the endpoint that failed goes; the attempt's socket too.
    ACT_ABANDON = 1 << 0
    # Choose an endpoint and connect to it; its patience is ladder[tries].
    ACT_CONNECT = 1 << 1
    ACT_FAIL = 1 << 2
    # Give what is kept to the server.
    ACT_FLUSH = 1 << 3
    ACT_READ_CLIENT = 1 << 4
    ACT_READ_SERVER = 1 << 5
    ACT_PAUSE_CLIENT = 1 << 6
    ACT_PAUSE_SERVER = 1 << 7
    ACT_FINISH_SERVER = 1 << 8
    ACT_FINISH_CLIENT = 1 << 9
    ACT_WAIT_IDLE = 1 << 10
    ACT_WAIT_HALF = 1 << 11
    ACT_RESET_CLIENT = 1 << 12
    ACT_RESET_SERVER = 1 << 13
    ACT_CLOSE = 1 << 14
    RESET_BOTH = ACT_RESET_CLIENT | ACT_RESET_SERVER | ACT_CLOSE

ACT_NAMES = (
    "abandon", "connect", "fail", "flush", "read_client", "read_server", "pause_client",
    "pause_server", "finish_server", "finish_client", "wait_idle", "wait_half", "reset_client",
    "reset_server", "close",
)

# How much of a client is read before there is a server to give it to: what a first packet train
# brings (ten segments of 1,448 bytes, RFC 6928), with room to spare.
cdef enum:
    EARLY_BYTES = 16384


cdef inline uint32_t tell_end(FlowState *state, uint8_t *ways, const uint8_t *other,
                              uint32_t finish) noexcept nogil:
    """The sender of ``ways`` has finished and nothing is kept: the receiver may know. When the
    other direction is over as well, closing both says it in the same breath."""
    ways[0] |= TOLD
    if other[0] & TOLD:
        state.phase = DONE
        return ACT_CLOSE
    return finish | ACT_WAIT_HALF


cdef uint32_t decide_connecting(FlowState *state, int event, int64_t value) noexcept nogil:
    if event == EVENT_ESTABLISHED:
        state.phase = OPEN
        if state.up & PENDING:
            return ACT_FLUSH | ACT_READ_SERVER | ACT_WAIT_IDLE
        if state.up & ENDED:
            return tell_end(state, &state.up, &state.down, ACT_FINISH_SERVER) | ACT_READ_SERVER
        return ACT_READ_CLIENT | ACT_READ_SERVER | ACT_WAIT_IDLE
    if event == EVENT_REFUSED or event == EVENT_SILENT:
        state.tries += 1
        if state.tries < state.ladder:
            return ACT_ABANDON | ACT_CONNECT
        state.phase = DONE
        return ACT_ABANDON | ACT_FAIL | ACT_RESET_CLIENT | ACT_CLOSE
    if event == EVENT_NOBODY:
        state.phase = DONE
        return (ACT_FAIL if state.tries else 0) | ACT_RESET_CLIENT | ACT_CLOSE
    if event == EVENT_CLIENT_END:
        state.up |= ENDED
        return 0
    if event == EVENT_SERVER_FULL and not state.up & ENDED:
        state.up |= PENDING
        return ACT_PAUSE_CLIENT if value >= EARLY_BYTES else 0
    if event == EVENT_CLIENT_RESET or event == EVENT_EXPIRED:
        state.phase = DONE
        return RESET_BOTH
    return 0


cdef inline uint32_t decide_end(FlowState *state, uint8_t *ways, const uint8_t *other,
                                uint32_t finish) noexcept nogil:
    if ways[0] & ENDED:
        return 0
    ways[0] |= ENDED
    return 0 if ways[0] & PENDING else tell_end(state, ways, other, finish)


cdef inline uint32_t decide_full(uint8_t *ways, uint32_t pause) noexcept nogil:
    if ways[0] & ENDED:
        return 0
    ways[0] |= PENDING
    return pause


cdef inline uint32_t decide_took(FlowState *state, uint8_t *ways, const uint8_t *other,
                                 uint32_t finish, uint32_t read_on) noexcept nogil:
    if not ways[0] & PENDING:
        return 0
    ways[0] &= ~PENDING
    return tell_end(state, ways, other, finish) if ways[0] & ENDED else read_on


cdef uint32_t decide_open(FlowState *state, int event) noexcept nogil:
    cdef uint8_t *up = &state.up
    cdef uint8_t *down = &state.down
    if event == EVENT_CLIENT_END:
        return decide_end(state, up, down, ACT_FINISH_SERVER)
    if event == EVENT_SERVER_END:
        return decide_end(state, down, up, ACT_FINISH_CLIENT)
    if event == EVENT_SERVER_FULL:
        return decide_full(up, ACT_PAUSE_CLIENT)
    if event == EVENT_CLIENT_FULL:
        return decide_full(down, ACT_PAUSE_SERVER)
    if event == EVENT_SERVER_TOOK:
        return decide_took(state, up, down, ACT_FINISH_SERVER, ACT_READ_CLIENT)
    if event == EVENT_CLIENT_TOOK:
        return decide_took(state, down, up, ACT_FINISH_CLIENT, ACT_READ_SERVER)
    if event in (EVENT_CLIENT_RESET, EVENT_SERVER_RESET, EVENT_EXPIRED):
        state.phase = DONE
        return RESET_BOTH
    return 0


cdef uint32_t flow_decide(FlowState *state, int event, int64_t value) noexcept nogil:
    """Bits of Act. An event that means nothing in the state changes nothing."""
    if state.phase == CONNECTING:
        return decide_connecting(state, event, value)
    if state.phase == OPEN:
        return decide_open(state, event)
    return 0


def flow_step(state, str event, int value=0):
    """(state after, names of what is to be done in that order) of one flow, without any socket.

    ``state`` is (phase, tries, ladder, up, down) as integers: phase 0 connecting, 1 open, 2 done;
    up and down the sum of 1 (bytes kept), 2 (sender finished), 4 (receiver told). ValueError for
    an unknown event.
    """
    cdef FlowState after
    cdef uint32_t acts
    after.phase, after.tries, after.ladder, after.up, after.down = state
    acts = flow_decide(&after, EVENT_NAMES.index(event), value)
    return (
        (after.phase, after.tries, after.ladder, after.up, after.down),
        tuple(name for bit, name in enumerate(ACT_NAMES) if acts >> bit & 1),
    )
