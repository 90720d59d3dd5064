# UDP. With an answer (response_bytes) each socket has up to `window` datagrams on their way, and
# one that is not answered in time is lost; without one they are sent as fast as the rate says, or
# as fast as it goes, and the server counts what arrives (Server.series).

cdef enum:
    #: Datagrams given or taken at once.
    BATCH = 64
    MAX_WINDOW = 4096
    #: Longest datagram of a load.
    MAX_DATAGRAM = 9216

cdef struct Asked:
    uint64_t id  # 0: free
    int64_t intended
    int64_t deadline

cdef struct Sockets:
    Plan *plan
    Record *record
    int poll
    int *fds
    Asked *asked  # plan.window for each socket
    uint32_t *free_slots  # stacks of free slots, plan.window for each socket
    uint16_t *n_free
    int turn  # whose turn it is to send
    int outstanding
    uint64_t number
    uint8_t *out  # BATCH datagrams
    uint8_t *bin
    mmsghdr *messages
    iovec *parts
    int code


cdef int run_datagram(Plan *plan, Record *record) noexcept nogil:
    cdef Sockets it
    cdef size_t slots = <size_t>plan.connections * <size_t>plan.window
    memset(&it, 0, sizeof(it))
    it.plan = plan
    it.record = record
    it.poll = epoll_create1(EPOLL_CLOEXEC)
    it.fds = <int *>calloc(<size_t>plan.connections, sizeof(int))
    it.asked = <Asked *>calloc(slots, sizeof(Asked))
    it.free_slots = <uint32_t *>calloc(slots, sizeof(uint32_t))
    it.n_free = <uint16_t *>calloc(<size_t>plan.connections, sizeof(uint16_t))
    it.out = <uint8_t *>calloc(BATCH, MAX_DATAGRAM)
    it.bin = <uint8_t *>calloc(BATCH, MAX_DATAGRAM)
    it.messages = <mmsghdr *>calloc(BATCH, sizeof(mmsghdr))
    it.parts = <iovec *>calloc(BATCH, sizeof(iovec))
    if (
        it.poll < 0 or it.fds == NULL or it.asked == NULL or it.free_slots == NULL
        or it.n_free == NULL or it.out == NULL or it.bin == NULL or it.messages == NULL
        or it.parts == NULL
    ):
        it.code = ENOBUFS
    else:
        datagram_open(&it)
        if not it.code:
            record_begin(record, plan)
            if plan.response_bytes:
                datagram_ask(&it)
            else:
                datagram_flood(&it)
            record_end(record, plan)
        datagram_close(&it)
    if it.poll >= 0:
        close(it.poll)
    free(it.fds)
    free(it.asked)
    free(it.free_slots)
    free(it.n_free)
    free(it.out)
    free(it.bin)
    free(it.messages)
    free(it.parts)
    return it.code


cdef void datagram_open(Sockets *it) noexcept nogil:
    """All sockets, connected. A socket that cannot be had ends the load."""
    cdef int at, slot, fd, code
    for at in range(it.plan.connections):
        it.fds[at] = -1
    for at in range(it.plan.connections):
        fd = open_socket(it.plan, SOCK_DGRAM, <uint64_t>at)
        if fd < 0:
            it.code = -fd
            return
        it.fds[at] = fd
        set_option(fd, SOL_SOCKET, SO_RCVBUF, 1 << 20)
        set_option(fd, SOL_SOCKET, SO_SNDBUF, 1 << 20)
        code = connect_socket(it.plan, fd, <uint64_t>at)
        if not code:
            code = watch(it.poll, fd, EPOLLIN, <uint32_t>at)
        if code:
            it.code = code
            return
        for slot in range(it.plan.window):
            it.free_slots[at * it.plan.window + slot] = <uint32_t>slot
        it.n_free[at] = <uint16_t>it.plan.window


cdef void datagram_close(Sockets *it) noexcept nogil:
    cdef int at
    for at in range(it.plan.connections):
        if it.fds[at] >= 0:
            close(it.fds[at])


# --- with answers ------------------------------------------------------------------------------


cdef void datagram_ask(Sockets *it) noexcept nogil:
    cdef epoll_event events[EVENTS]
    cdef int at, got
    cdef int64_t now = it.record.origin, swept = it.record.origin, wait
    cdef int64_t finish = it.record.until + it.plan.timeout
    cdef int64_t sweep = min(it.plan.timeout // 4 + 1, SWEEP)
    while not it.code:
        wait = datagram_start(it, now)
        if wait < 0 and not it.outstanding:
            break
        if now >= finish:
            break
        if wait < 0 or wait > swept + sweep - now:
            wait = swept + sweep - now
        got = kp_wait(it.poll, events, EVENTS, wait if wait > 0 else 0)
        if got < 0 and errno != EINTR:
            it.code = errno
        now = now_ns()
        for at in range(got):
            datagram_read(it, events[at].data.u32, now)
        if now - swept >= sweep:
            datagram_sweep(it, now)
            swept = now
    datagram_sweep(it, finish + it.plan.timeout)


cdef int64_t datagram_start(Sockets *it, int64_t now) noexcept nogil:
    """Send what is due on sockets that have room; see exchange_start() for what it returns."""
    cdef int64_t due
    cdef int socket_at, batch, tries = it.plan.connections
    while tries:
        tries -= 1
        socket_at = it.turn
        it.turn = it.turn + 1 if it.turn + 1 < it.plan.connections else 0
        batch = 0
        while batch < BATCH and it.n_free[socket_at]:
            due = due_at(it.plan, it.record, now)
            if not may_start(it.plan, it.record, due) or due > now:
                break
            count_start(it.record, due)
            datagram_prepare(it, socket_at, batch, due, now)
            batch += 1
            if it.plan.rate > 0:
                break  # in turn: at a rate no socket gets a burst that is not meant
        if batch:
            datagram_send(it, socket_at, batch)
    due = due_at(it.plan, it.record, now)
    if not may_start(it.plan, it.record, due):
        return -1
    if due > now:
        return due - now
    if it.plan.rate > 0 and it.outstanding < it.plan.connections * it.plan.window:
        return 0
    return SECOND


cdef void datagram_prepare(
    Sockets *it, int socket_at, int batch, int64_t intended, int64_t now
) noexcept nogil:
    """Write one datagram with a slot of its own at its place in the batch."""
    cdef uint32_t slot
    cdef Asked *asked
    it.n_free[socket_at] -= 1
    slot = it.free_slots[socket_at * it.plan.window + it.n_free[socket_at]]
    asked = &it.asked[<size_t>socket_at * <size_t>it.plan.window + slot]
    it.number += 1
    # The slot is found by the number: MAX_WINDOW is below 2^16.
    asked.id = (it.number << 16) | slot
    asked.intended = intended
    asked.deadline = now + it.plan.timeout
    it.outstanding += 1
    datagram_write(it, batch, asked.id)


cdef inline void datagram_write(Sockets *it, int batch, uint64_t number) noexcept nogil:
    cdef uint8_t *at = it.out + batch * MAX_DATAGRAM
    make_header(<Header *>at, it.plan, ANSWER, number)
    it.parts[batch].iov_base = at
    it.parts[batch].iov_len = it.plan.request_bytes
    it.messages[batch].msg_hdr.msg_iov = &it.parts[batch]
    it.messages[batch].msg_hdr.msg_iovlen = 1


cdef int datagram_send(Sockets *it, int socket_at, int batch) noexcept nogil:
    """How many the socket took; what it did not take is lost like anything else on the way."""
    cdef int took, done = 0
    while done < batch:
        took = sendmmsg(
            it.fds[socket_at], it.messages + done, <unsigned int>(batch - done), MSG_NOSIGNAL
        )
        if took < 0:
            if errno == ECONNREFUSED:
                it.record.failures[REFUSED] += 1
                continue  # what was told is an older one's fate; it is told once
            if errno == EINTR:
                continue
            break
        done += took
    if done:
        it.record.bytes_out += <uint64_t>done * it.plan.request_bytes
    return done


cdef void datagram_read(Sockets *it, uint32_t socket_at, int64_t now) noexcept nogil:
    cdef int at, got
    for at in range(BATCH):
        it.parts[at].iov_base = it.bin + at * MAX_DATAGRAM
        it.parts[at].iov_len = MAX_DATAGRAM
        it.messages[at].msg_hdr.msg_iov = &it.parts[at]
        it.messages[at].msg_hdr.msg_iovlen = 1
    got = recvmmsg(it.fds[socket_at], it.messages, BATCH, MSG_DONTWAIT, NULL)
    if got < 0:
        if errno == ECONNREFUSED:
            it.record.failures[REFUSED] += 1
        return
    for at in range(got):
        datagram_answered(it, socket_at, at, it.messages[at].msg_len, now)


cdef void datagram_answered(
    Sockets *it, uint32_t socket_at, int at, uint32_t length, int64_t now
) noexcept nogil:
    cdef Header *header = <Header *>(it.bin + at * MAX_DATAGRAM)
    cdef uint32_t slot
    cdef Asked *asked
    if length != it.plan.response_bytes or header.magic != MAGIC:
        it.record.failures[WRONG] += 1
        return
    slot = <uint32_t>(header.id & 0xFFFF)
    if slot >= <uint32_t>it.plan.window:
        it.record.failures[WRONG] += 1
        return
    asked = &it.asked[<size_t>socket_at * <size_t>it.plan.window + slot]
    if asked.id != header.id:
        return  # given up before: it counts as lost
    it.record.bytes_in += length
    count_done(it.record, asked.intended, now)
    datagram_free(it, <int>socket_at, slot)


cdef inline void datagram_free(Sockets *it, int socket_at, uint32_t slot) noexcept nogil:
    it.asked[<size_t>socket_at * <size_t>it.plan.window + slot].id = 0
    it.free_slots[socket_at * it.plan.window + it.n_free[socket_at]] = slot
    it.n_free[socket_at] += 1
    it.outstanding -= 1


cdef void datagram_sweep(Sockets *it, int64_t now) noexcept nogil:
    cdef int at, slot
    cdef Asked *asked
    for at in range(it.plan.connections):
        for slot in range(it.plan.window):
            asked = &it.asked[<size_t>at * <size_t>it.plan.window + <size_t>slot]
            if asked.id and asked.deadline < now:
                count_failure(it.record, asked.intended, LOST)
                datagram_free(it, at, <uint32_t>slot)


# --- without answers ---------------------------------------------------------------------------


cdef void datagram_flood(Sockets *it) noexcept nogil:
    """`completed` is what the sockets took."""
    cdef int batch, took
    cdef int64_t now, due
    cdef epoll_event event
    while True:
        now = now_ns()
        due = due_at(it.plan, it.record, now)
        if not may_start(it.plan, it.record, due):
            return
        if due > now:
            kp_wait(it.poll, &event, 1, due - now)
            continue
        batch = 0
        while batch < BATCH and may_start(it.plan, it.record, due) and due <= now:
            count_start(it.record, due)
            it.number += 1
            datagram_write(it, batch, it.number << 16)
            batch += 1
            due = due_at(it.plan, it.record, now)
        took = datagram_send(it, it.turn, batch)
        if took < batch:
            sched_yield()  # the queue is full: give way to whoever empties it
        if now >= it.record.began:
            it.record.completed += <uint64_t>took
            it.record.ended = now
            count_series(it.record, now, <uint64_t>took)
        it.turn = it.turn + 1 if it.turn + 1 < it.plan.connections else 0
