# The other side of every load: answers, sinks and sources over TCP, answers and counting over UDP,
# at any number of places, in one thread. What it does on a connection the client's header says.

cdef enum:
    SLOT = 10 * MILLISECOND
    #: Slots kept: ten minutes and a little.
    SLOTS = 61440
    MOST_PEERS = 1 << 17
    BACKLOG = 4096

cdef enum:
    NOBODY
    TCP_DOOR
    UDP_DOOR
    CLIENT
    WAKE

cdef struct Peer:
    uint8_t kind
    uint8_t family
    uint8_t head_taken
    uint8_t answering
    uint64_t wanted  # bytes of the request that have not come
    uint64_t answered  # bytes of the answer that have gone
    Header head
    Http http

cdef struct Slot:
    int64_t number  # which hundredth of a second this is about
    uint64_t bytes
    uint64_t datagrams

cdef struct ServerState:
    int poll
    int wake
    int stopped
    int deaf  # 1: listening is to end, 2: it has
    int n_peers
    Peer *peers  # by descriptor
    Slot *slots
    uint8_t *buffer
    uint8_t *scratch
    sockaddr_storage *names
    mmsghdr *messages
    iovec *parts
    int64_t now
    uint64_t accepted
    uint64_t open
    uint64_t requests
    uint64_t bytes_in
    uint64_t bytes_out
    uint64_t datagrams_in
    uint64_t datagrams_out
    uint64_t wrong
    uint64_t accept_failures


cdef bint server_make(ServerState *it) noexcept nogil:
    it.poll = epoll_create1(EPOLL_CLOEXEC)
    it.wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
    it.n_peers = MOST_PEERS
    it.peers = <Peer *>calloc(MOST_PEERS, sizeof(Peer))
    it.slots = <Slot *>calloc(SLOTS, sizeof(Slot))
    it.buffer = <uint8_t *>calloc(1, CHUNK)
    it.scratch = <uint8_t *>calloc(BATCH, MAX_DATAGRAM)
    it.names = <sockaddr_storage *>calloc(BATCH, sizeof(sockaddr_storage))
    it.messages = <mmsghdr *>calloc(BATCH, sizeof(mmsghdr))
    it.parts = <iovec *>calloc(BATCH, sizeof(iovec))
    if (
        it.poll < 0 or it.wake < 0 or it.peers == NULL or it.slots == NULL or it.buffer == NULL
        or it.scratch == NULL or it.names == NULL or it.messages == NULL or it.parts == NULL
    ):
        return False
    it.peers[it.wake].kind = WAKE
    return watch(it.poll, it.wake, EPOLLIN, <uint32_t>it.wake) == 0


cdef void server_free(ServerState *it) noexcept nogil:
    cdef int fd
    if it.peers != NULL:
        for fd in range(it.n_peers):
            if it.peers[fd].kind == CLIENT:
                close_reset(fd)
            elif it.peers[fd].kind in (TCP_DOOR, UDP_DOOR):
                close(fd)
    if it.poll >= 0:
        close(it.poll)
    if it.wake >= 0:
        close(it.wake)
    free(it.peers)
    free(it.slots)
    free(it.buffer)
    free(it.scratch)
    free(it.names)
    free(it.messages)
    free(it.parts)


cdef int server_listen(ServerState *it, const sockaddr_storage *at, bint is_tcp) noexcept nogil:
    """0, or the errno."""
    cdef int family = at.ss_family
    cdef int fd = socket(
        family, (SOCK_STREAM if is_tcp else SOCK_DGRAM) | SOCK_NONBLOCK | SOCK_CLOEXEC, 0
    )
    cdef int code
    if fd < 0:
        return errno
    set_option(fd, SOL_SOCKET, SO_REUSEADDR, 1)
    if family == AF_INET6:
        set_option(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1)
    if is_tcp:
        set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1)  # who is accepted inherits it
    else:
        set_option(fd, SOL_SOCKET, SO_RCVBUF, 1 << 22)
        set_option(fd, SOL_SOCKET, SO_SNDBUF, 1 << 22)
    if (
        bind(fd, <const sockaddr *>at, length_of(family)) < 0
        or (is_tcp and listen(fd, BACKLOG) < 0)
    ):
        code = errno
        close(fd)
        return code
    if fd >= it.n_peers:
        close(fd)
        return EMFILE
    it.peers[fd].kind = TCP_DOOR if is_tcp else UDP_DOOR
    it.peers[fd].family = <uint8_t>family
    return watch(it.poll, fd, EPOLLIN, <uint32_t>fd)


cdef void server_stop(ServerState *it) noexcept nogil:
    it.stopped = 1
    server_wake(it)


cdef void server_wake(ServerState *it) noexcept nogil:
    cdef uint64_t one = 1
    # A full counter has woken it already.
    if write(it.wake, &one, sizeof(one)) < 0:
        return


cdef void server_deafen(ServerState *it) noexcept nogil:
    """Close the doors of TCP, in the thread that serves: it may be about to accept."""
    cdef uint64_t count
    cdef int fd
    for fd in range(it.n_peers):
        if it.peers[fd].kind == TCP_DOOR:
            it.peers[fd].kind = NOBODY
            close(fd)
    if read(it.wake, &count, sizeof(count)) < 0:
        return


cdef int server_run(ServerState *it) noexcept nogil:
    """Serve until told to stop. 0, or the errno that ended it."""
    cdef epoll_event events[EVENTS]
    cdef int at, got, fd
    while not it.stopped:
        got = kp_wait(it.poll, events, EVENTS, SECOND)
        if got < 0:
            if errno == EINTR:
                continue
            return errno
        it.now = now_ns()
        if it.deaf == 1:
            server_deafen(it)
            it.deaf = 2
        for at in range(got):
            fd = <int>events[at].data.u32
            if it.peers[fd].kind == CLIENT:
                server_serve(it, fd, events[at].events)
            elif it.peers[fd].kind == TCP_DOOR:
                server_accept(it, fd)
            elif it.peers[fd].kind == UDP_DOOR:
                server_datagrams(it, fd)
    return 0


cdef inline void server_count(ServerState *it, uint64_t amount, uint64_t datagrams) noexcept nogil:
    cdef int64_t number = it.now // SLOT
    cdef Slot *slot = &it.slots[number % SLOTS]
    if slot.number != number:
        slot.number = number
        slot.bytes = slot.datagrams = 0
    slot.bytes += amount
    slot.datagrams += datagrams
    it.bytes_in += amount
    it.datagrams_in += datagrams


# --- TCP ---------------------------------------------------------------------------------------


cdef void server_accept(ServerState *it, int door) noexcept nogil:
    cdef int fd
    while True:
        fd = accept4(door, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)
        if fd < 0:
            if errno == EINTR or errno == ECONNRESET:
                continue
            if errno != EAGAIN:
                it.accept_failures += 1
                sched_yield()  # no descriptor: those who hold them are somebody else
            return
        if fd >= it.n_peers:
            close_reset(fd)
            it.accept_failures += 1
            continue
        memset(&it.peers[fd], 0, sizeof(Peer))
        it.peers[fd].kind = CLIENT
        it.accepted += 1
        it.open += 1
        if watch(it.poll, fd, EPOLLIN | EPOLLRDHUP | EPOLLET, <uint32_t>fd):
            server_end(it, fd, True)


cdef void server_end(ServerState *it, int fd, bint reset) noexcept nogil:
    it.peers[fd].kind = NOBODY
    it.open -= 1
    if reset:
        close_reset(fd)
    else:
        close(fd)


cdef void server_serve(ServerState *it, int fd, uint32_t events) noexcept nogil:
    cdef Peer *peer = &it.peers[fd]
    if events & EPOLLERR:
        server_end(it, fd, True)
        return
    if peer.head_taken == HEADER and peer.head.wanted != ANSWER:
        server_bulk(it, fd, events)
        return
    if peer.answering:
        if not events & EPOLLOUT or not server_answer(it, fd):
            return
    server_read(it, fd, events)


cdef void server_read(ServerState *it, int fd, uint32_t events) noexcept nogil:
    """Requests, until nothing is left or an answer does not fit into the socket."""
    cdef Peer *peer = &it.peers[fd]
    cdef ssize_t got
    while True:
        got = recv(fd, it.buffer, CHUNK, 0)
        if got <= 0:
            if got == 0 or errno != EAGAIN:
                server_end(it, fd, got < 0)
            return
        server_count(it, <uint64_t>got, 0)
        if not server_take(it, fd, it.buffer, <uint64_t>got):
            return
        # A short read has emptied the socket (epoll(7)), unless the end is to be read as well.
        if got < CHUNK and not events & (EPOLLRDHUP | EPOLLHUP):
            return


cdef bint server_take(
    ServerState *it, int fd, const uint8_t *data, uint64_t length
) noexcept nogil:
    """Bytes of requests. Whether more may be read now."""
    cdef Peer *peer = &it.peers[fd]
    cdef uint64_t part
    if peer.http.speaks or (peer.head_taken == 0 and data[0] == HTTP_OPENS):
        return server_take_http(it, fd, data, length)
    while length:
        if peer.head_taken < HEADER:
            part = min(length, <uint64_t>(HEADER - peer.head_taken))
            memcpy(<uint8_t *>&peer.head + peer.head_taken, data, part)
            peer.head_taken += <uint8_t>part
            data += part
            length -= part
            if peer.head_taken < HEADER:
                return True
            if not server_understands(&peer.head):
                it.wrong += 1
                server_end(it, fd, True)
                return False
            if peer.head.wanted != ANSWER:
                # Told as long as it holds from here on, and of what it wants.
                server_rearm(
                    it, fd, (EPOLLIN if peer.head.wanted != SOURCE else <uint32_t>0)
                    | (EPOLLOUT if peer.head.wanted != SINK else <uint32_t>0) | EPOLLRDHUP,
                )
                return False
            peer.wanted = peer.head.request_bytes - HEADER
            if peer.wanted and not length:
                return True
        part = min(length, peer.wanted)
        peer.wanted -= part
        data += part
        length -= part
        if peer.wanted == 0:
            it.requests += 1
            if length:
                # No client of ours asks again before it has its answer.
                it.wrong += 1
                server_end(it, fd, True)
                return False
            peer.answering = 1
            peer.answered = 0
            if not server_answer(it, fd):
                return False
    return True


cdef bint server_take_http(
    ServerState *it, int fd, const uint8_t *data, uint64_t length
) noexcept nogil:
    """The same of HTTP."""
    cdef Peer *peer = &it.peers[fd]
    cdef uint64_t at
    cdef int ends
    peer.http.speaks = True
    for at in range(length):
        ends = http_take(&peer.http, data[at])
        if ends == 0:
            continue
        if ends < 0:
            it.wrong += 1
            server_end(it, fd, True)
            return False
        it.requests += 1
        peer.head.response_bytes = max(<uint32_t>HTTP_HEAD, peer.http.asked)
        peer.head.server_closes = peer.http.closes
        peer.head.wanted = ANSWER
        peer.answering = 1
        peer.answered = 0
        if not server_answer(it, fd):
            if peer.kind == CLIENT and at + 1 < length:
                # It asked for more before it took an answer that does not fit into its socket.
                it.wrong += 1
                server_end(it, fd, True)
            return False
    return True


cdef inline uint64_t server_begins(ServerState *it, const Peer *peer) noexcept nogil:
    """The beginning of an answer, made where it is sent from; how long it is."""
    if peer.http.speaks:
        http_head(
            <char *>it.scratch, peer.head.response_bytes - HTTP_HEAD, peer.head.server_closes
        )
        return HTTP_HEAD
    memcpy(it.scratch, &peer.head, HEADER)
    return HEADER


cdef inline bint server_understands(const Header *head) noexcept nogil:
    return head.magic == MAGIC and head.wanted <= DUPLEX and (
        head.wanted != ANSWER
        or (head.request_bytes >= HEADER and head.response_bytes >= HEADER)
    )


cdef void server_rearm(ServerState *it, int fd, uint32_t events) noexcept nogil:
    cdef epoll_event event
    event.events = events
    event.data.u32 = <uint32_t>fd
    epoll_ctl(it.poll, EPOLL_CTL_MOD, fd, &event)


cdef bint server_answer(ServerState *it, int fd) noexcept nogil:
    """Send the answer. Whether it has gone and the connection lives."""
    cdef Peer *peer = &it.peers[fd]
    cdef uint64_t left
    cdef ssize_t took
    cdef uint64_t begins = server_begins(it, peer)
    while peer.answered < peer.head.response_bytes:
        left = peer.head.response_bytes - peer.answered
        if peer.answered < begins:
            took = send(
                fd, it.scratch + peer.answered,
                min(left, <uint64_t>CHUNK - peer.answered), MSG_NOSIGNAL,
            )
        else:
            took = send(
                fd, it.scratch + begins, min(left, <uint64_t>CHUNK - begins), MSG_NOSIGNAL
            )
        if took < 0:
            if errno == EAGAIN:
                # Rare: only answers that do not fit into a socket ask to be told.
                server_rearm(it, fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET)
            else:
                server_end(it, fd, True)
            return False
        peer.answered += <uint64_t>took
        it.bytes_out += <uint64_t>took
    peer.answering = peer.head_taken = 0
    if peer.head.server_closes:
        server_end(it, fd, False)
        return False
    return True


cdef void server_bulk(ServerState *it, int fd, uint32_t events) noexcept nogil:
    cdef Peer *peer = &it.peers[fd]
    cdef ssize_t got
    if events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP):
        got = recv(fd, it.buffer, CHUNK, 0)
        if got > 0:
            server_count(it, <uint64_t>got, 0)
        elif got == 0 or errno != EAGAIN:
            server_end(it, fd, True)
            return
    if events & EPOLLOUT and peer.head.wanted != SINK:
        got = send(fd, it.scratch, CHUNK, MSG_NOSIGNAL)
        if got > 0:
            it.bytes_out += <uint64_t>got
        elif errno != EAGAIN:
            server_end(it, fd, True)


# --- UDP ---------------------------------------------------------------------------------------


cdef void server_datagrams(ServerState *it, int fd) noexcept nogil:
    cdef int at, got, answers = 0
    cdef uint64_t arrived = 0
    cdef Header *header
    for at in range(BATCH):
        it.parts[at].iov_base = it.scratch + at * MAX_DATAGRAM
        it.parts[at].iov_len = MAX_DATAGRAM
        it.messages[at].msg_hdr.msg_iov = &it.parts[at]
        it.messages[at].msg_hdr.msg_iovlen = 1
        it.messages[at].msg_hdr.msg_name = &it.names[at]
        it.messages[at].msg_hdr.msg_namelen = sizeof(sockaddr_storage)
    got = recvmmsg(fd, it.messages, BATCH, MSG_DONTWAIT, NULL)
    if got <= 0:
        return
    for at in range(got):
        header = <Header *>(it.scratch + at * MAX_DATAGRAM)
        arrived += it.messages[at].msg_len
        if it.messages[at].msg_len < HEADER or header.magic != MAGIC or (
            header.request_bytes != it.messages[at].msg_len
            or header.response_bytes > MAX_DATAGRAM
        ):
            it.wrong += 1
        elif header.response_bytes:
            # The answer is the same datagram, as long as it should be: answers move forward in the
            # batch, over those that want none.
            it.messages[answers].msg_hdr.msg_name = &it.names[at]
            it.messages[answers].msg_hdr.msg_namelen = it.messages[at].msg_hdr.msg_namelen
            it.parts[answers].iov_base = header
            it.parts[answers].iov_len = header.response_bytes
            answers += 1
    server_count(it, arrived, <uint64_t>got)
    at = 0
    while at < answers:
        got = sendmmsg(fd, it.messages + at, <unsigned int>(answers - at), MSG_NOSIGNAL)
        if got < 0:
            if errno == EINTR:
                continue
            return
        at += got
        it.datagrams_out += <uint64_t>got
