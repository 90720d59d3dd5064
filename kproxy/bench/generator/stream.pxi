# TCP bulk: so many connections, each sending or receiving as fast as it can. An operation here is a
# byte that arrived: downwards they are counted here, upwards by the server (Server.series), because
# what a socket took says nothing about what came through.

cdef struct Flow:
    int fd
    uint8_t state
    uint32_t sent  # of the request
    int64_t opened

cdef struct Bulk:
    Plan *plan
    Record *record
    int poll
    Flow *flows
    int alive
    uint8_t *buffer


cdef int run_stream(Plan *plan, Record *record) noexcept nogil:
    cdef Bulk it
    cdef epoll_event events[EVENTS]
    cdef int at, got, code = 0
    cdef int64_t now
    memset(&it, 0, sizeof(it))
    it.plan = plan
    it.record = record
    it.poll = epoll_create1(EPOLL_CLOEXEC)
    it.flows = <Flow *>calloc(<size_t>plan.connections, sizeof(Flow))
    it.buffer = <uint8_t *>calloc(1, CHUNK)
    if it.poll < 0 or it.flows == NULL or it.buffer == NULL:
        code = ENOBUFS
    else:
        record_begin(record, plan)
        for at in range(plan.connections):
            stream_open(&it, <uint32_t>at)
        now = record.origin
        while not code and now < record.until and it.alive:
            got = kp_wait(it.poll, events, EVENTS, min(record.until - now, SECOND))
            if got < 0 and errno != EINTR:
                code = errno
            now = now_ns()
            for at in range(got):
                stream_event(&it, events[at].data.u32, events[at].events)
        now = now_ns()
        for at in range(plan.connections):
            if it.flows[at].state == CONNECTING:
                stream_lost(&it, <uint32_t>at, UNFINISHED)
        record_end(record, plan)
    if it.flows != NULL:
        for at in range(plan.connections):
            if it.flows[at].state != FREE:
                close_reset(it.flows[at].fd)
    if it.poll >= 0:
        close(it.poll)
    free(it.flows)
    free(it.buffer)
    return code


cdef int stream_wanted(const Plan *plan) noexcept nogil:
    if plan.direction == DOWN:
        return SOURCE
    return SINK if plan.direction == UP else DUPLEX


cdef void stream_open(Bulk *it, uint32_t number) noexcept nogil:
    cdef Flow *flow = &it.flows[number]
    cdef int code
    flow.opened = now_ns()
    it.record.started += 1
    flow.fd = open_socket(it.plan, SOCK_STREAM, number)
    if flow.fd < 0:
        it.record.failures[failure_of(-flow.fd)] += 1
        return
    it.alive += 1
    flow.state = CONNECTING
    code = connect_socket(it.plan, flow.fd, number)
    if not code:
        # Told as long as it holds: nobody starves, whatever one socket has.
        code = watch(it.poll, flow.fd, EPOLLIN | EPOLLOUT, number)
    if code:
        stream_lost(it, number, failure_of(code))


cdef void stream_event(Bulk *it, uint32_t number, uint32_t events) noexcept nogil:
    cdef Flow *flow = &it.flows[number]
    cdef int code = 0
    cdef socklen_t size = sizeof(int)
    if flow.state == FREE:
        return
    if events & EPOLLERR:
        getsockopt(flow.fd, SOL_SOCKET, SO_ERROR, &code, &size)
        if code:
            stream_lost(it, number, failure_of(code))
            return
    if flow.state == CONNECTING:
        if not events & EPOLLOUT:
            return
        it.record.connect[bucket_of(now_ns() - flow.opened)] += 1
        flow.state = BUSY
    if events & EPOLLOUT and not stream_send(it, number):
        return
    if events & (EPOLLIN | EPOLLHUP):
        stream_read(it, number)


cdef bint stream_send(Bulk *it, uint32_t number) noexcept nogil:
    """The request, then bytes if they go upwards; whether the stream lives."""
    cdef Flow *flow = &it.flows[number]
    cdef Header header
    cdef epoll_event event
    cdef ssize_t took
    if flow.sent < HEADER:
        make_header(&header, it.plan, stream_wanted(it.plan), number)
        took = send(
            flow.fd, <uint8_t *>&header + flow.sent, HEADER - flow.sent, MSG_NOSIGNAL
        )
        if took > 0:
            flow.sent += <uint32_t>took
        if flow.sent == HEADER and it.plan.direction == DOWN:
            event.events = EPOLLIN
            event.data.u32 = number
            epoll_ctl(it.poll, EPOLL_CTL_MOD, flow.fd, &event)
    else:
        took = send(flow.fd, it.buffer, CHUNK, MSG_NOSIGNAL)
        if took > 0 and now_ns() >= it.record.began:
            it.record.bytes_out += <uint64_t>took
    if took < 0 and errno != EAGAIN:
        stream_lost(it, number, failure_of(errno))
        return False
    return True


cdef void stream_read(Bulk *it, uint32_t number) noexcept nogil:
    cdef ssize_t got = recv(it.flows[number].fd, it.buffer, CHUNK, 0)
    cdef int64_t now = now_ns()
    if got > 0:
        if it.record.began <= now <= it.record.until:
            it.record.bytes_in += <uint64_t>got
            count_series(it.record, now, <uint64_t>got)
    elif got == 0:
        stream_lost(it, number, EARLY_END)
    elif errno != EAGAIN:
        stream_lost(it, number, failure_of(errno))


cdef void stream_lost(Bulk *it, uint32_t number, int failure) noexcept nogil:
    it.record.failures[failure] += 1
    close_reset(it.flows[number].fd)
    it.flows[number].state = FREE
    it.alive -= 1
