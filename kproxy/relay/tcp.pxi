"""TCP flows: events become events of the machine in flow.pxi, and what it says is carried out.

The fewest system calls win. A flow whose client speaks first costs, up to the answer: accept, recv,
connect, send, two epoll_ctl and one wake-up, because the three-way handshake over a virtual wire
is often over when connect returns. Descriptors are watched edge-triggered, from ADD to close; room
to write is watched from the first time that there was none.
"""

cdef enum:
    # What one event may move before others have their turn.
    MOST_ROUNDS = 8
    SPARE_FLOWS = 1024

cdef extern from *:
    """
    #define WATCHED ((uint32_t)(EPOLLIN | EPOLLRDHUP | EPOLLPRI | EPOLLET))
    #define WATCHED_WITH_ROOM (WATCHED | EPOLLOUT)
    /* After these a short read does not mean that all was read. */
    #define READ_ON ((uint32_t)(EPOLLRDHUP | EPOLLPRI | EPOLLHUP | EPOLLERR))
    #define READABLE (READ_ON | EPOLLIN)
    """
    const uint32_t WATCHED, WATCHED_WITH_ROOM, READ_ON, READABLE


cdef inline Side *opposite(Side *side) noexcept nogil:
    cdef Flow *flow = side.flow
    return &flow.server if side == &flow.client else &flow.client


cdef inline uint8_t ways_from(const Side *side) noexcept nogil:
    """The direction of what this side sends."""
    cdef const Flow *flow = side.flow
    return flow.state.up if side == &flow.client else flow.state.down


# --- what peers have not taken -----------------------------------------------------------------

cdef bint spill_add(Worker *worker, Spill *spill, const char *data, size_t size) noexcept nogil:
    """False: no memory."""
    cdef size_t needed = spill.end + size
    cdef char *wider
    if needed > spill.capacity:
        wider = <char *>realloc(spill.data, needed)
        if wider == NULL:
            return False
        spill.data = wider
        spill.capacity = <uint32_t>needed
    memcpy(spill.data + spill.end, data, size)
    spill.end += <uint32_t>size
    count(&worker.buffered, size)
    return True


cdef void spill_took(Worker *worker, Spill *spill, size_t size) noexcept nogil:
    spill.at += <uint32_t>size
    count(&worker.buffered, <uint64_t>0 - size)
    if spill.at == spill.end:
        free(spill.data)
        memset(spill, 0, sizeof(Spill))


cdef void spill_drop(Worker *worker, Spill *spill) noexcept nogil:
    spill_took(worker, spill, spill.end - spill.at)


# --- moving bytes ------------------------------------------------------------------------------

cdef void count_bytes(Flow *flow, const Side *sink, uint64_t size) noexcept nogil:
    if sink == &flow.server:
        count(&flow.service.bytes_in, size)
        if flow.endpoint != NULL:
            count(&flow.endpoint.bytes_in, size)
    else:
        count(&flow.service.bytes_out, size)
        if flow.endpoint != NULL:
            count(&flow.endpoint.bytes_out, size)


cdef void watch_room(Worker *worker, Side *side) noexcept nogil:
    if not side.watches_room:
        side.watches_room = True
        watch_for(worker, &side.handle, WATCHED_WITH_ROOM)


cdef inline void reset_by(Worker *worker, Side *side) noexcept nogil:
    cdef Flow *flow = side.flow
    if side == &flow.client:
        act(worker, flow, EVENT_CLIENT_RESET, 0)
        return
    if not flow.answered and flow.endpoint != NULL:
        tell(worker, flow.endpoint, OUTCOME_RESET)
    act(worker, flow, EVENT_SERVER_RESET, 0)


cdef void give(Worker *worker, Side *sink, const char *data, size_t size) noexcept nogil:
    """To the peer what it takes, the rest into its spill."""
    cdef Flow *flow = sink.flow
    cdef ssize_t taken = send(sink.handle.fd, data, size, MSG_NOSIGNAL)
    if taken < 0:
        if errno != EAGAIN:
            reset_by(worker, sink)
            return
        taken = 0
    count_bytes(flow, sink, taken)
    if <size_t>taken == size:
        return
    if not spill_add(worker, &sink.spill, data + taken, size - taken):
        act(worker, flow, EVENT_EXPIRED, 0)
        return
    watch_room(worker, sink)
    act(worker, flow, EVENT_SERVER_FULL if sink == &flow.server else EVENT_CLIENT_FULL,
        size - taken)


cdef void flush(Worker *worker, Side *sink) noexcept nogil:
    """What is kept for it, as far as it takes that now."""
    cdef Flow *flow = sink.flow
    cdef Spill *spill = &sink.spill
    cdef ssize_t taken
    if spill.data != NULL:
        taken = send(sink.handle.fd, spill.data + spill.at, spill.end - spill.at, MSG_NOSIGNAL)
        if taken < 0:
            if errno == EAGAIN:
                watch_room(worker, sink)
            else:
                reset_by(worker, sink)
            return
        count_bytes(flow, sink, taken)
        spill_took(worker, spill, taken)
        if spill.data != NULL:
            watch_room(worker, sink)
            return
    if sink.pipe == NULL or pipe_out(worker, sink):
        act(worker, flow, EVENT_SERVER_TOOK if sink == &flow.server else EVENT_CLIENT_TOOK, 0)


cdef void keep_early(Worker *worker, Flow *flow) noexcept nogil:
    """Read the client before there is a server; up to EARLY_BYTES are kept for it."""
    cdef Spill *spill = &flow.server.spill
    cdef ssize_t got
    while flow.client.readable and spill.end < EARLY_BYTES and not flow.state.up & ENDED:
        got = recv(flow.client.handle.fd, worker.buffer, EARLY_BYTES - spill.end, 0)
        if got > 0:
            if not spill_add(worker, spill, worker.buffer, got):
                act(worker, flow, EVENT_EXPIRED, 0)
                return
            act(worker, flow, EVENT_SERVER_FULL, spill.end)
            if spill.end < EARLY_BYTES and not flow.client.read_on:
                flow.client.readable = False
        elif got == 0:
            act(worker, flow, EVENT_CLIENT_END, 0)
        elif errno == EAGAIN:
            flow.client.readable = False
        else:
            act(worker, flow, EVENT_CLIENT_RESET, 0)
            return


cdef void pull(Worker *worker, Side *source) noexcept nogil:
    """Move what the source has sent, as long as the other side takes it."""
    cdef Flow *flow = source.flow
    cdef Side *sink = opposite(source)
    cdef ssize_t got
    for _ in range(MOST_ROUNDS):
        if not source.readable or flow.state.phase != OPEN or ways_from(source) & (PENDING | ENDED):
            return
        got = move_once(worker, source, sink)
        if got > 0:
            if source == &flow.server:
                flow.answered = True
        elif got == 0:
            source.readable = False
            act(worker, flow,
                EVENT_CLIENT_END if source == &flow.client else EVENT_SERVER_END, 0)
        elif errno == EAGAIN:
            source.readable = False
        else:
            reset_by(worker, source)
            return
    queue_flow(worker, flow)


cdef inline void queue_flow(Worker *worker, Flow *flow) noexcept nogil:
    """Others first: edge-triggered epoll will not tell again of what is left."""
    if not flow.queued:
        flow.queued = True
        flow.next_queued = worker.queued
        worker.queued = flow


cdef void run_queued(Worker *worker) noexcept nogil:
    """Each of those that stood there when we began; who has still more waits for the next round."""
    cdef Flow *flow = worker.queued
    cdef Flow *after
    worker.queued = NULL
    while flow != NULL:
        after = flow.next_queued
        flow.queued = False
        pull(worker, &flow.client)
        pull(worker, &flow.server)
        flow = after


# --- what the machine says ---------------------------------------------------------------------

cdef void wait_with(Worker *worker, Flow *flow, TimerList *timers) noexcept nogil:
    flow.timed_by = timers
    timer_start(timers, &flow.timer, worker.now)


cdef void act(Worker *worker, Flow *flow, int event, int64_t value) noexcept nogil:
    """Let the machine decide, then do what it says."""
    cdef uint32_t acts = flow_decide(&flow.state, event, value)
    if acts & ACT_ABANDON:
        abandon(worker, flow)
    if acts & ACT_FAIL:
        count(&flow.service.failures, 1)
    if acts & ACT_CLOSE:
        flow_end(worker, flow, acts)
        return
    if acts & ACT_CONNECT:
        count(&flow.service.retries, 1)
        try_next(worker, flow, -1)
        return
    if acts & ACT_FINISH_SERVER:
        shutdown(flow.server.handle.fd, SHUT_WR)
    if acts & ACT_FINISH_CLIENT:
        shutdown(flow.client.handle.fd, SHUT_WR)
    if acts & ACT_WAIT_HALF:
        wait_with(worker, flow, &worker.half_open)
    elif acts & ACT_WAIT_IDLE:
        wait_with(worker, flow, &worker.idle)
    if acts & ACT_FLUSH:
        flush(worker, &flow.server)
    if acts & ACT_READ_CLIENT:
        pull(worker, &flow.client)
    if acts & ACT_READ_SERVER:
        pull(worker, &flow.server)


cdef void flow_due(Worker *worker, Timer *timer) noexcept nogil:
    """Idle or half open for too long."""
    act(worker, <Flow *>timer, EVENT_EXPIRED, 0)


cdef void ladder_due(Worker *worker, Timer *timer) noexcept nogil:
    cdef Flow *flow = <Flow *>timer
    if flow.endpoint != NULL and not flow.own_fault:
        if source_failed(worker, flow):
            flow.own_fault = True
        else:
            tell(worker, flow.endpoint, OUTCOME_TIMEOUT)
    act(worker, flow, EVENT_SILENT, 0)


cdef void look_for_reset(Worker *worker, Side *side) noexcept nogil:
    """Reading tells of a reset, but who has finished, or must wait, is not read."""
    cdef int problem = 0
    cdef socklen_t size = sizeof(problem)
    getsockopt(side.handle.fd, SOL_SOCKET, SO_ERROR, &problem, &size)
    if problem:
        reset_by(worker, side)


cdef void tcp_ready(Worker *worker, Side *side, uint32_t events) noexcept nogil:
    cdef Flow *flow = side.flow
    if events & READABLE:
        side.readable = True
        if events & READ_ON:
            side.read_on = True
    if flow.state.phase == CONNECTING:
        if side == &flow.server:
            connect_ready(worker, flow, events)
            return
        keep_early(worker, flow)
    else:
        timer_start(flow.timed_by, &flow.timer, worker.now)
        if events & EPOLLOUT and ways_from(opposite(side)) & PENDING:
            flush(worker, side)
        pull(worker, side)
    if events & EPOLLERR and flow.state.phase != DONE:
        look_for_reset(worker, side)
