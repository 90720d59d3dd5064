# TCP requests and answers. With one request a connection (CRR) an operation begins with connect(2)
# and ends with the last byte of the answer; else connections are made first and an operation begins
# with its request.

cdef enum:
    FREE
    CONNECTING
    IDLE
    BUSY
    ENDING  # the answer is here, the server has yet to close

cdef struct Conn:
    int fd
    uint8_t state
    uint8_t operating  # an operation runs on it
    uint32_t sent
    uint32_t received
    uint64_t id
    uint64_t done
    int64_t intended
    int64_t opened
    int64_t deadline
    Header answer

cdef struct Exchange:
    Plan *plan
    Record *record
    int poll
    Conn *conns
    # Stacks of numbers of connections.
    uint32_t *unused
    int n_unused
    uint32_t *idle
    int n_idle
    int busy  # operations that run
    uint64_t opened
    int64_t rest_until
    uint8_t *out
    uint8_t *bin
    int code  # errno that ends the load

cdef enum:
    #: After a failure the closed loop pauses: it would do nothing else than fail, at full speed.
    REST = MILLISECOND
    #: Between two looks for operations that took too long.
    SWEEP = 20 * MILLISECOND


cdef int run_exchange(Plan *plan, Record *record) noexcept nogil:
    cdef Exchange it
    cdef epoll_event events[EVENTS]
    cdef int at, got
    cdef int64_t now, swept, finish, wait
    memset(&it, 0, sizeof(it))
    it.plan = plan
    it.record = record
    it.poll = epoll_create1(EPOLL_CLOEXEC)
    it.conns = <Conn *>calloc(<size_t>plan.connections, sizeof(Conn))
    it.unused = <uint32_t *>calloc(<size_t>plan.connections, sizeof(uint32_t))
    it.idle = <uint32_t *>calloc(<size_t>plan.connections, sizeof(uint32_t))
    it.out = <uint8_t *>calloc(1, CHUNK)
    it.bin = <uint8_t *>calloc(1, CHUNK)
    if (
        it.poll < 0 or it.conns == NULL or it.unused == NULL or it.idle == NULL
        or it.out == NULL or it.bin == NULL
    ):
        it.code = ENOBUFS
    else:
        for at in range(plan.connections):
            it.unused[at] = <uint32_t>(plan.connections - 1 - at)
        it.n_unused = plan.connections
        record_begin(record, plan)
        finish = record.until + plan.timeout
        swept = now = record.origin
        while not it.code:
            wait = exchange_start(&it, now)
            if wait < 0 and it.busy == 0:
                break
            if now >= finish:
                exchange_abandon(&it)
                break
            if wait < 0 or wait > swept + SWEEP - now:
                wait = swept + SWEEP - now
            got = kp_wait(it.poll, events, EVENTS, wait if wait > 0 else 0)
            if got < 0 and errno != EINTR:
                it.code = errno
            now = now_ns()
            for at in range(got):
                exchange_event(&it, events[at].data.u32, events[at].events)
            if now - swept >= SWEEP:
                exchange_sweep(&it, now)
                swept = now
        record_end(record, plan)
    if it.conns != NULL:
        for at in range(plan.connections):
            if it.conns[at].state != FREE:
                close_reset(it.conns[at].fd)
    if it.poll >= 0:
        close(it.poll)
    free(it.conns)
    free(it.unused)
    free(it.idle)
    free(it.out)
    free(it.bin)
    return it.code


cdef int64_t exchange_start(Exchange *it, int64_t now) noexcept nogil:
    """Start what is due and can be started. How long until the next is due; a second when a
    connection must become free first; -1 when no more will come."""
    cdef int64_t due
    cdef bint single = it.plan.per_connection == 1
    cdef int tries = it.n_unused
    if not single:
        # What is not connected connects, once a turn.
        while it.n_unused and tries and now >= it.rest_until and now < it.record.until:
            tries -= 1
            exchange_open(it, now, 0)
    tries = it.plan.connections
    while True:
        due = due_at(it.plan, it.record, now)
        if not may_start(it.plan, it.record, due):
            return -1
        if due > now:
            return due - now
        if it.plan.rate <= 0 and now < it.rest_until:
            return it.rest_until - now
        if not (it.n_unused if single else it.n_idle):
            return SECOND
        if not tries:
            return 0  # a turn is over: others have waited
        tries -= 1
        if it.plan.rate <= 0:
            due = now = now_ns()
        count_start(it.record, due)
        it.busy += 1
        if single:
            exchange_open(it, due, 1)
        else:
            exchange_ask(it, due)


cdef void exchange_open(Exchange *it, int64_t intended, bint operating) noexcept nogil:
    cdef uint32_t number = it.unused[it.n_unused - 1]
    cdef Conn *conn = &it.conns[number]
    cdef int code
    it.n_unused -= 1
    conn.state = CONNECTING
    conn.operating = operating
    conn.intended = intended
    conn.opened = now_ns()
    conn.deadline = conn.opened + it.plan.timeout
    conn.done = 0
    conn.sent = conn.received = 0
    conn.id = it.record.issued
    it.opened += 1
    conn.fd = open_socket(it.plan, SOCK_STREAM, it.opened)
    if conn.fd < 0:
        exchange_lost(it, number, failure_of(-conn.fd), False)
        return
    code = connect_socket(it.plan, conn.fd, it.opened)
    if not code:
        # Both directions, told once each time they change: no second epoll_ctl for a connection.
        code = watch(it.poll, conn.fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, number)
    if code:
        exchange_lost(it, number, failure_of(code), True)


cdef void exchange_ask(Exchange *it, int64_t intended) noexcept nogil:
    """The next request on a connection that waits for one."""
    cdef uint32_t number = it.idle[it.n_idle - 1]
    cdef Conn *conn = &it.conns[number]
    it.n_idle -= 1
    conn.state = BUSY
    conn.operating = 1
    conn.intended = intended
    conn.deadline = now_ns() + it.plan.timeout
    conn.sent = conn.received = 0
    conn.id = it.record.issued
    exchange_send(it, number)


cdef void exchange_event(Exchange *it, uint32_t number, uint32_t events) noexcept nogil:
    cdef Conn *conn = &it.conns[number]
    cdef int code = 0
    cdef socklen_t size = sizeof(int)
    cdef int64_t now
    if conn.state == FREE:
        return
    if events & EPOLLERR:
        getsockopt(conn.fd, SOL_SOCKET, SO_ERROR, &code, &size)
        if code:
            exchange_lost(it, number, failure_of(code), True)
            return
    if conn.state == CONNECTING:
        if not events & EPOLLOUT:
            return
        now = now_ns()
        if conn.opened >= it.record.began:
            it.record.connect[bucket_of(now - conn.opened)] += 1
        if conn.operating:
            conn.state = BUSY
        else:
            conn.state = IDLE
            it.idle[it.n_idle] = number
            it.n_idle += 1
            return
    if conn.state == BUSY and conn.sent < it.plan.request_bytes:
        if not exchange_send(it, number):
            return
    if events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP):
        exchange_read(it, number, events)


cdef bint exchange_send(Exchange *it, uint32_t number) noexcept nogil:
    """Send what the socket takes; whether the connection lives."""
    cdef Conn *conn = &it.conns[number]
    cdef uint32_t left
    cdef ssize_t took
    while conn.sent < it.plan.request_bytes:
        make_header(<Header *>it.out, it.plan, ANSWER, conn.id)
        left = it.plan.request_bytes - conn.sent
        if conn.sent < HEADER:
            # The header is at the beginning of the buffer, what follows it is filling.
            if left > CHUNK - conn.sent:
                left = CHUNK - conn.sent
            took = send(conn.fd, it.out + conn.sent, left, MSG_NOSIGNAL)
        else:
            if left > CHUNK - HEADER:
                left = CHUNK - HEADER
            took = send(conn.fd, it.out + HEADER, left, MSG_NOSIGNAL)
        if took < 0:
            if errno == EAGAIN:
                return True
            exchange_lost(it, number, failure_of(errno), True)
            return False
        conn.sent += <uint32_t>took
        it.record.bytes_out += <uint64_t>took
    return True


cdef void exchange_read(Exchange *it, uint32_t number, uint32_t events) noexcept nogil:
    cdef Conn *conn = &it.conns[number]
    cdef ssize_t got
    cdef size_t head
    while True:
        got = recv(conn.fd, it.bin, CHUNK, 0)
        if got < 0:
            if errno != EAGAIN:
                exchange_lost(it, number, failure_of(errno), True)
            return
        if got == 0:
            exchange_closed(it, number)
            return
        if conn.state != BUSY or conn.received + <uint64_t>got > it.plan.response_bytes:
            exchange_lost(it, number, WRONG, True)
            return
        if conn.received < HEADER:
            head = HEADER - conn.received
            if head > <size_t>got:
                head = <size_t>got
            memcpy(<uint8_t *>&conn.answer + conn.received, it.bin, head)
        conn.received += <uint32_t>got
        it.record.bytes_in += <uint64_t>got
        if conn.received == it.plan.response_bytes:
            if not exchange_done(it, number):
                return
        # A short read has emptied the socket (epoll(7)), unless the end is to be read as well.
        if got < CHUNK and conn.state != ENDING and not events & (EPOLLRDHUP | EPOLLHUP):
            return


cdef bint exchange_done(Exchange *it, uint32_t number) noexcept nogil:
    """The whole answer is here. Whether the connection is still to be read."""
    cdef Conn *conn = &it.conns[number]
    cdef int64_t now = now_ns()
    if conn.answer.magic != MAGIC or conn.answer.id != conn.id or (
        conn.sent < it.plan.request_bytes
    ):
        exchange_lost(it, number, WRONG, True)
        return False
    count_done(it.record, conn.intended, now)
    conn.operating = 0
    conn.done += 1
    it.busy -= 1
    if it.plan.per_connection == 0 or conn.done < it.plan.per_connection:
        conn.state = IDLE
        it.idle[it.n_idle] = number
        it.n_idle += 1
        return True
    if it.plan.closer == BY_SERVER:
        conn.state = ENDING
        return True
    exchange_free(it, number, it.plan.closer == BY_RESET)
    return False


cdef void exchange_closed(Exchange *it, uint32_t number) noexcept nogil:
    """The server has closed: as it was told to, or too early."""
    if it.conns[number].state == ENDING:
        exchange_free(it, number, False)
    else:
        exchange_lost(it, number, EARLY_END, True)


cdef void exchange_lost(
    Exchange *it, uint32_t number, int failure, bint has_socket
) noexcept nogil:
    """A connection failed, and the operation on it, if any. One that fails without an operation
    counts all the same: to whoever measures it is a connection that broke."""
    cdef Conn *conn = &it.conns[number]
    cdef int at
    count_lost(
        it.record, conn.intended if conn.operating else conn.opened, now_ns(), failure,
        conn.state != CONNECTING,
    )
    if conn.operating:
        conn.operating = 0
        it.busy -= 1
    if conn.state == IDLE:
        for at in range(it.n_idle):
            if it.idle[at] == number:
                it.n_idle -= 1
                it.idle[at] = it.idle[it.n_idle]
                break
    it.rest_until = now_ns() + REST
    if has_socket:
        exchange_free(it, number, True)
    else:
        conn.state = FREE
        it.unused[it.n_unused] = number
        it.n_unused += 1


cdef void exchange_free(Exchange *it, uint32_t number, bint reset) noexcept nogil:
    cdef Conn *conn = &it.conns[number]
    if reset:
        close_reset(conn.fd)
    else:
        close(conn.fd)
    conn.state = FREE
    it.unused[it.n_unused] = number
    it.n_unused += 1


cdef void exchange_sweep(Exchange *it, int64_t now) noexcept nogil:
    cdef int at
    cdef uint8_t state
    for at in range(it.plan.connections):
        state = it.conns[at].state
        if state != FREE and state != IDLE and it.conns[at].deadline < now:
            exchange_lost(it, <uint32_t>at, TIMEOUT, True)


cdef void exchange_abandon(Exchange *it) noexcept nogil:
    """Time is up: what runs and what should have been started are failures."""
    cdef int at
    cdef int64_t due
    for at in range(it.plan.connections):
        if it.conns[at].operating:
            count_lost(
                it.record, it.conns[at].intended, now_ns(), UNFINISHED,
                it.conns[at].state != CONNECTING,
            )
    if it.plan.rate > 0:
        while True:
            due = due_at(it.plan, it.record, 0)
            if not may_start(it.plan, it.record, due):
                break
            count_start(it.record, due)
            count_lost(it.record, due, now_ns(), UNFINISHED, False)
