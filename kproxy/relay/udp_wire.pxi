"""Sending a queue of pieces in as few system calls as the kernel allows.

Pieces of one receiver whose datagrams have one size go as one message, a train, that the kernel
cuts as late as it can. If it refuses one (a datagram over the path's MTU, a device that computes no
checksums), the session remembers and sends shorter ones, or none.
"""


cdef inline void queue_add(Queue *queue, Piece *piece) noexcept nogil:
    piece.after = NULL
    if queue.last != NULL:
        queue.last.after = piece
    else:
        queue.first = piece
    queue.last = piece


cdef inline uint32_t datagrams_in(uint32_t size, uint32_t segment) noexcept nogil:
    # An empty datagram is one as well.
    return 1 if size <= segment else (size + segment - 1) / segment


cdef inline uint64_t datagrams_left(Cursor at) noexcept nogil:
    cdef uint64_t number = 0
    while at.piece != NULL:
        number += datagrams_in(at.piece.size - at.offset, at.piece.segment)
        at.piece = at.piece.after
        at.offset = 0
    return number


cdef inline bint joins(const Piece *piece, const Piece *first) noexcept nogil:
    """Whether it may stand in a train behind full datagrams of the first one's size: it has the
    same, or it is a single shorter one, which then is the last."""
    return piece != NULL and piece.session == first.session and piece.size > 0 and (
        piece.segment == first.segment
        or (piece.size < first.segment and piece.size == piece.segment))


cdef void wire_add(Wire *wire, bint down) noexcept nogil:
    """One more message, from ``wire.rest`` on, which moves behind it."""
    cdef Cursor *at = &wire.rest
    cdef Piece *first = at.piece
    cdef Session *session = first.session
    cdef msghdr *header = &wire.header[wire.size].msg_hdr
    cdef uint32_t segment = first.segment
    cdef uint32_t longest = session.longest_down if down else session.longest_up
    cdef uint32_t part = first.size - at.offset
    cdef uint32_t total = 0, number = 0, more
    wire.start[wire.size] = at[0]
    header.msg_iov = &wire.vector[wire.vectors]
    if segment > longest and part > segment:
        part = segment
    while True:
        wire.vector[wire.vectors].iov_base = at.piece.data + at.offset
        wire.vector[wire.vectors].iov_len = part
        wire.vectors += 1
        total += part
        number += datagrams_in(part, segment)
        at.offset += part
        if at.offset < at.piece.size:
            break
        at.piece = at.piece.after
        at.offset = 0
        if segment == 0 or segment > longest or total % segment or wire.vectors == BATCH or \
                not joins(at.piece, first):
            break
        part = at.piece.size
        more = datagrams_in(part, segment)
        if number + more > MOST_SEGMENTS or total + part > MOST_TRAIN:
            break
    header.msg_iovlen = &wire.vector[wire.vectors] - header.msg_iov
    wire.datagrams[wire.size] = number
    if number == 1:
        segment = 0
    if down:
        header.msg_name = &session.client
        header.msg_namelen = address_size(&session.client)
        header.msg_controllen = kp_write_control(
            &wire.control[wire.size], &session.local,
            session.client.v6.sin6_scope_id if session.client.any.sa_family == AF_INET6 else 0,
            segment)
    else:
        header.msg_name = NULL
        header.msg_namelen = 0
        header.msg_controllen = kp_write_control(&wire.control[wire.size], NULL, 0, segment)
    header.msg_control = &wire.control[wire.size] if header.msg_controllen else NULL
    wire.size += 1


cdef void wire_fill(Wire *wire, Cursor at, bint down) noexcept nogil:
    """As many messages as one call sends; what is over is at ``wire.rest``."""
    wire.rest = at
    wire.size = wire.vectors = 0
    while wire.rest.piece != NULL and wire.size < BATCH and wire.vectors < BATCH:
        wire_add(wire, down)


cdef inline int wire_send(Wire *wire, int fd) noexcept nogil:
    """How many messages were sent; -1: the first was not, and errno says why."""
    cdef msghdr *header = &wire.header[0].msg_hdr
    cdef int sent
    if wire.size > 1:
        return send_messages(fd, wire.header, wire.size)
    if header.msg_iovlen == 1 and header.msg_name == NULL and header.msg_control == NULL:
        # The common case upwards, and the cheapest for the kernel.
        sent = send_bytes(fd, header.msg_iov.iov_base, header.msg_iov.iov_len)
    else:
        sent = send_message(fd, header)
    return -1 if sent < 0 else 1


cdef inline Cursor behind(const Wire *wire, int sent) noexcept nogil:
    return wire.rest if <uint32_t>sent == wire.size else wire.start[sent]


cdef bint shorten_trains(Wire *wire, int problem, bint down) noexcept nogil:
    """Whether the first message was a train that the kernel would not cut; its session then tries
    no such again. EINVAL and EMSGSIZE: its datagrams are too long for the path. EIO: the device
    cannot compute checksums, so none will do."""
    cdef Session *session = wire.start[0].piece.session
    cdef uint32_t longest
    if wire.datagrams[0] == 1:
        return False
    if problem == EINVAL or problem == EMSGSIZE:
        longest = wire.start[0].piece.segment - 1
    elif problem == EIO or problem == EOPNOTSUPP:
        longest = 0
    else:
        return False
    if down:
        session.longest_down = longest
    else:
        session.longest_up = longest
    return True


cdef inline bint no_room(int problem) noexcept nogil:
    """The kernel has no room for more now: what is left is dropped, as a router would."""
    return problem == EAGAIN or problem == ENOBUFS or problem == ENOMEM


cdef void send_replies(Worker *worker, UdpListener *listener) noexcept nogil:
    """All replies that wait at a listener; what cannot be sent is dropped and counted."""
    cdef Wire *wire = &worker.udp_own.wire
    cdef Cursor at = Cursor(listener.replies.first, 0)
    cdef uint64_t dropped = 0
    cdef int sent, problem
    listener.replies.first = listener.replies.last = NULL
    while at.piece != NULL:
        wire_fill(wire, at, True)
        sent = wire_send(wire, listener.listener.handle.fd)
        if sent > 0:
            at = behind(wire, sent)
            continue
        problem = errno
        if problem == EINTR or shorten_trains(wire, problem, True):
            continue
        if no_room(problem):
            dropped += datagrams_left(at)
            break
        # This client cannot be reached; the next one may.
        dropped += wire.datagrams[0]
        at = behind(wire, 1)
    if dropped:
        count(&listener.listener.service.datagrams_dropped, dropped)


cdef void flush_replies(Worker *worker) noexcept nogil:
    """Send what was read from endpoints; the rooms are free again then."""
    cdef UdpWorker *own = worker.udp_own
    cdef UdpListener *listener
    while own.answered != NULL:
        listener = own.answered
        own.answered = listener.next_answered
        listener.next_answered = NULL
        send_replies(worker, listener)
    batch_clear(&own.to_clients)
