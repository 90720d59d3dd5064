"""Receiving datagrams and sending them on, from clients to endpoints and back."""


# --- batches -----------------------------------------------------------------------------------

cdef void batch_init(Batch *batch, char *rooms) noexcept nogil:
    cdef int which
    for which in range(BATCH):
        batch.vector[which].iov_base = rooms + <size_t>which * STRIDE
        batch.vector[which].iov_len = ROOM
        batch.header[which].msg_hdr.msg_iov = &batch.vector[which]
        batch.header[which].msg_hdr.msg_iovlen = 1
        batch.header[which].msg_hdr.msg_name = &batch.name[which]
        batch.header[which].msg_hdr.msg_control = &batch.control[which]
    batch.size = BATCH
    batch_clear(batch)


cdef void batch_clear(Batch *batch) noexcept nogil:
    """The kernel wrote the sizes of what it told into the headers: tell it the room again."""
    cdef uint32_t which
    for which in range(batch.size):
        batch.header[which].msg_hdr.msg_namelen = sizeof(Address)
        batch.header[which].msg_hdr.msg_controllen = sizeof(Control)
    batch.size = 0


cdef int batch_receive(Batch *batch, int fd) noexcept nogil:
    """Fill what is left of it; returns how many came, -1: none, and errno says why."""
    cdef int came
    while True:
        came = receive_messages(fd, &batch.header[batch.size], BATCH - batch.size)
        if came >= 0 or errno != EINTR:
            return came


cdef Piece *batch_piece(Batch *batch, uint32_t which, Address *local) noexcept nogil:
    """One received message as a piece of no session yet; ``local`` is changed if the kernel told
    where it came to. NULL: it was longer than its room, which no datagram is."""
    cdef Piece *piece = &batch.piece[which]
    cdef mmsghdr *message = &batch.header[which]
    kp_check(not message.msg_hdr.msg_flags & MSG_TRUNC)
    if message.msg_hdr.msg_flags & MSG_TRUNC:
        return NULL
    piece.data = <char *>batch.vector[which].iov_base
    piece.size = piece.segment = message.msg_len
    kp_read_control(&message.msg_hdr, local, &piece.segment)
    if piece.segment > piece.size:
        piece.segment = piece.size
    return piece


# --- from clients to endpoints -----------------------------------------------------------------

cdef void wire_greet(Wire *wire, Cursor at, const Session *session) noexcept nogil:
    """One message: the PROXY header and the first datagram behind it."""
    cdef Piece *piece = at.piece
    cdef uint32_t size = min(piece.segment, piece.size - at.offset)
    cdef msghdr *header = &wire.header[0].msg_hdr
    wire.start[0] = at
    wire.vector[0].iov_base = wire.greeting
    wire.vector[0].iov_len = write_header(
        wire.greeting, &session.client, &session.local, TRANSPORT_DATAGRAM)
    wire.vector[1].iov_base = piece.data + at.offset
    wire.vector[1].iov_len = size
    memset(header, 0, sizeof(msghdr))
    header.msg_iov = wire.vector
    header.msg_iovlen = 2
    wire.datagrams[0] = 1
    wire.size = 1
    wire.rest = Cursor(piece, at.offset + size)
    if wire.rest.offset >= piece.size:
        wire.rest = Cursor(piece.after, 0)


cdef int send_some(Worker *worker, Session *session, Cursor at) noexcept nogil:
    """Send to the endpoint what one call takes; returns as wire_send does."""
    cdef Wire *wire = &worker.udp_own.wire
    cdef int sent
    if session.greeted:
        wire_fill(wire, at, False)
        return wire_send(wire, session.handle.fd)
    wire_greet(wire, at, session)
    sent = wire_send(wire, session.handle.fd)
    if sent > 0:
        session.greeted = True
    return sent


cdef void send_kept(Worker *worker, Session *session) noexcept nogil:
    """Once more, to the endpoint that it has now. An error is one of this datagram, and like a loss
    on the way; that an endpoint refuses it is not known yet."""
    cdef Piece piece
    piece.data = session.kept
    piece.size = piece.segment = session.kept_size
    piece.session = session
    piece.after = NULL
    if send_some(worker, session, Cursor(&piece, 0)) < 0:
        count(&session.service.datagrams_dropped, 1)


cdef inline bint unreachable(int problem) noexcept nogil:
    return problem == EHOSTUNREACH or problem == ENETUNREACH


cdef uint64_t send_up(Worker *worker, Session *session, Piece *first) noexcept nogil:
    """Send pieces to the session's endpoint, moving to another one as needed; returns how many
    datagrams were dropped. The session may have ended."""
    cdef Wire *wire = &worker.udp_own.wire
    cdef Cursor at = Cursor(first, 0)
    cdef uint64_t dropped = 0
    cdef bint again = False
    cdef int sent, problem
    while at.piece != NULL and session.handle.fd >= 0:
        sent = send_some(worker, session, at)
        if sent > 0:
            at = behind(wire, sent)
            again = False
            continue
        problem = errno
        if problem == EINTR or shorten_trains(wire, problem, False):
            continue
        if no_room(problem):
            break
        if problem == ECONNREFUSED or again and unreachable(problem):
            # Nothing of this burst was taken by an endpoint that never answered.
            if not session.answered:
                at = Cursor(first, 0)
            session_move(worker, session, outcome_of(problem))
            again = False
        elif not again:
            # A socket tells the error of an earlier datagram instead of sending this one.
            again = True
        else:
            dropped += wire.datagrams[0]
            at = behind(wire, 1)
            again = False
    return dropped + datagrams_left(at)


cdef void forward(Worker *worker, Session *session) noexcept nogil:
    """Send on what waits for a session's endpoint."""
    cdef Service *service = session.service
    cdef Piece *piece = session.waiting.first
    cdef Piece *last = session.waiting.last
    cdef uint64_t number = 0, size = 0, dropped
    cdef uint32_t tail
    while piece != NULL:
        number += datagrams_in(piece.size, piece.segment)
        size += piece.size
        piece = piece.after
    piece = session.waiting.first
    session.waiting.first = session.waiting.last = NULL
    session.touched = False
    # The service outlives the session: its listener, whose batch this is, has a reference.
    dropped = send_up(worker, session, piece)
    count(&service.datagrams_in, number)
    count(&service.bytes_in, size)
    if dropped:
        count(&service.datagrams_dropped, dropped)
    if session.handle.fd < 0:
        return
    count(&session.endpoint.bytes_in, size)
    if not session.answered:
        tail = last.size - (datagrams_in(last.size, last.segment) - 1) * last.segment
        session_keep(worker.udp_own, session, last.data + last.size - tail, tail)


cdef void forward_touched(Worker *worker) noexcept nogil:
    cdef UdpWorker *own = worker.udp_own
    cdef Session *session
    while own.touched != NULL:
        session = own.touched
        own.touched = session.next_touched
        forward(worker, session)


cdef void sort_batch(Worker *worker, Listener *listener) noexcept nogil:
    """Give each message of the batch to its client's session."""
    cdef UdpWorker *own = worker.udp_own
    cdef Batch *batch = &own.from_clients
    cdef Session *session = NULL
    cdef Piece *piece
    cdef Address *client
    cdef Address local
    cdef SessionKey key
    cdef uint64_t hashed, refused = 0, dropped = 0
    cdef uint32_t which
    cdef bint nobody
    for which in range(batch.size):
        local = listener.udp_own.bound
        piece = batch_piece(batch, which, &local)
        if piece == NULL:
            continue
        client = &batch.name[which]
        key_of(&key, client, &local, listener.front)
        # Datagrams of one client often come together.
        if session == NULL or not same_key(&session.key, &key):
            hashed = keyed_hash(hash_key, key.word, KEY_WORDS)
            session = table_find(own, &key, hashed)
            if session == NULL:
                session = session_new(worker, listener, &key, hashed, client, &local, &nobody)
            if session == NULL:
                if nobody:
                    refused += datagrams_in(piece.size, piece.segment)
                else:
                    dropped += datagrams_in(piece.size, piece.segment)
                continue
        if not session.touched:
            session.touched = True
            session.next_touched = own.touched
            own.touched = session
            session_used(session, &own.proven if session.answered else session.aged_by, worker.now)
        piece.session = session
        queue_add(&session.waiting, piece)
    if refused:
        count(&listener.service.refused, refused)
    if dropped:
        count(&listener.service.datagrams_dropped, dropped)


cdef void listener_ready(Worker *worker, Listener *listener) noexcept nogil:
    cdef Batch *batch = &worker.udp_own.from_clients
    cdef int came
    for _ in range(ROUNDS):
        came = batch_receive(batch, listener.handle.fd)
        if came <= 0:
            return
        batch.size = came
        sort_batch(worker, listener)
        forward_touched(worker)
        batch_clear(batch)
        if came < BATCH:
            return


# --- from endpoints to clients -----------------------------------------------------------------

cdef void queue_replies(Worker *worker, Session *session, uint32_t first) noexcept nogil:
    """Messages of the batch, from ``first`` on, are answers of a session's endpoint."""
    cdef UdpWorker *own = worker.udp_own
    cdef UdpListener *listener = session.listener.udp_own
    cdef Service *service = session.service
    cdef Piece *piece
    cdef uint64_t number = 0, size = 0
    cdef uint32_t which
    for which in range(first, own.to_clients.size):
        piece = batch_piece(&own.to_clients, which, NULL)
        if piece == NULL:
            continue
        number += datagrams_in(piece.size, piece.segment)
        size += piece.size
        piece.session = session
        if listener.replies.first == NULL:
            listener.next_answered = own.answered
            own.answered = listener
        queue_add(&listener.replies, piece)
    count(&service.datagrams_out, number)
    count(&service.bytes_out, size)
    count(&session.endpoint.bytes_out, size)
    session_used(session, session.aged_by, worker.now)
    if not session.answered:
        session.answered = True
        session.tried.size = session.tried.refused = 0
        session_unkeep(own, session)
    tell(worker, session.endpoint, OUTCOME_OK)


cdef void session_failed(Worker *worker, Session *session, int problem) noexcept nogil:
    """What ICMP said of an earlier datagram."""
    if problem == ECONNREFUSED or unreachable(problem):
        session_move(worker, session, outcome_of(problem))
    # Anything else is about one datagram: it was too long for the path (which the kernel remembers)
    # or a filter refused it.


cdef void session_ready(Worker *worker, Session *session, uint32_t events) noexcept nogil:
    """Told once for whatever has come since: all is read, or the rest is asked to be told."""
    cdef Batch *batch = &worker.udp_own.to_clients
    cdef int came
    cdef uint32_t asked
    for _ in range(ROUNDS):
        if batch.size == BATCH:
            flush_replies(worker)
        asked = BATCH - batch.size
        came = batch_receive(batch, session.handle.fd)
        if came < 0:
            if errno == EAGAIN:
                return
            session_failed(worker, session, errno)
            if session.handle.fd < 0:
                return
            continue
        batch.size += came
        queue_replies(worker, session, batch.size - came)
        if <uint32_t>came < asked:
            # An error that came behind a datagram is told by the next call only.
            if not events & EPOLLERR:
                return
            events &= ~EPOLLERR
    watch_for(worker, &session.handle, EPOLLIN | EPOLLET)
