"""The life of a session: an endpoint is chosen, a socket connected; it may move to another one, and
it ends when it is idle, evicted, or its endpoint or front is gone.
"""


# --- the datagram that may be lost -------------------------------------------------------------

cdef void session_unkeep(UdpWorker *own, Session *session) noexcept nogil:
    if session.kept != NULL:
        own.kept -= session.kept_size
        free(session.kept)
        session.kept = NULL


cdef void session_keep(
    UdpWorker *own, Session *session, const char *data, uint32_t size
) noexcept nogil:
    """In place of the one before. Nothing is kept when memory for that is used up: the datagram is
    then lost if its endpoint refuses it, as datagrams are."""
    if session.kept != NULL and session.kept_size == size:
        memcpy(session.kept, data, size)
        return
    session_unkeep(own, session)
    if own.kept + size > MOST_KEPT:
        return
    session.kept = <char *>malloc(size + 1)
    if session.kept == NULL:
        return
    memcpy(session.kept, data, size)
    session.kept_size = size
    own.kept += size


# --- its socket --------------------------------------------------------------------------------

cdef int session_connect(Worker *worker, Session *session) noexcept nogil:
    """A socket to ``session.endpoint``. 0 or an errno."""
    cdef Endpoint *endpoint = session.endpoint
    cdef int one = 1, room = ROOM_WANTED
    cdef int problem
    cdef int fd = socket(endpoint.address.any.sa_family, SOCK_DGRAM | SOCK_CLOEXEC, 0)
    if fd < 0:
        return errno
    # Neither is needed: before Linux 5.0 datagrams come one by one, and SO_RCVBUF is cut down to
    # what net.core.rmem_max allows.
    setsockopt(fd, IPPROTO_UDP, UDP_GRO, &one, sizeof(one))
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &room, sizeof(room))
    if connect(fd, &endpoint.address.any, address_size(&endpoint.address)):
        problem = errno
        close_fd(fd)
        return problem
    session.handle.fd = fd
    problem = watch(worker, &session.handle, EPOLLIN | EPOLLET)
    if problem:
        session.handle.fd = -1
        close_fd(fd)
        return problem
    session.longest_up = ROOM if worker.udp_own.cuts else 0
    session.answered = False
    session.greeted = not session.service.proxy_protocol
    count(&endpoint.connections, 1)
    return 0


cdef inline void session_disconnect(Session *session) noexcept nogil:
    if session.handle.fd >= 0:
        close_fd(session.handle.fd)
        session.handle.fd = -1


cdef inline bint lacks_room(int problem) noexcept nogil:
    """No descriptor, no memory, or (EAGAIN) no local port: another session must go first."""
    return problem == EMFILE or problem == ENFILE or no_room(problem)


cdef Session *oldest_unused(const SessionAges *ages, const Session *but) noexcept nogil:
    """Without messages that wait: those stand at the end, so few are passed over."""
    cdef Session *session = ages.oldest
    while session != NULL and (session == but or session.touched):
        session = session.after
    return session


cdef bint evict(Worker *worker, const Session *gains) noexcept nogil:
    """End the oldest session. ``gains`` is who needs the room: a session that has begun, or none.
    False: there is nobody to end."""
    cdef UdpWorker *own = worker.udp_own
    cdef Session *session = oldest_unused(&own.doubtful, gains)
    if session == NULL and gains == NULL and own.touched != NULL:
        # All are in use by the batch that is being sorted: send what has been sorted so far.
        forward_touched(worker)
        session = own.doubtful.oldest
    if session == NULL:
        session = oldest_unused(&own.proven, gains)
    if session == NULL:
        return False
    count(&worker.evicted, 1)
    session_end(worker, session)
    return True


# --- its endpoint ------------------------------------------------------------------------------

cdef void session_leave(Worker *worker, Session *session, Outcome outcome) noexcept nogil:
    """The endpoint does not take it."""
    tell(worker, session.endpoint, outcome)
    if session.tried.size < MOST_TRIES:
        session.tried.refused |= <uint8_t>(1 << session.tried.size)
        tried_add(&session.tried, session.endpoint)
    affinity_forget(session.service, &session.client, session.endpoint)
    endpoint_release(session.endpoint)
    session.endpoint = NULL
    session_disconnect(session)


cdef bint session_settle(Worker *worker, Session *session) noexcept nogil:
    """Find it an endpoint unless it has one, and connect; others are tried as far as the ladder
    goes. False: nobody takes it, or there is no room for a socket."""
    cdef int problem
    while session.tried.size < worker.engine.ladder_size:
        if session.endpoint == NULL:
            session.endpoint = choose(
                session.service, session.listener.use, &session.client, &session.tried, worker.now)
        if session.endpoint == NULL:
            session.nobody = session.tried.size == 0
            return False
        if session.tried.size:
            count(&session.service.retries, 1)
        problem = session_connect(worker, session)
        if lacks_room(problem) and evict(worker, session if session.aged_by != NULL else NULL):
            problem = session_connect(worker, session)
        if problem == 0:
            return True
        if lacks_room(problem):
            endpoint_release(session.endpoint)
            session.endpoint = NULL
            return False
        session_leave(worker, session, OUTCOME_UNREACHABLE)
    return False


cdef bint session_move(Worker *worker, Session *session, Outcome outcome) noexcept nogil:
    """To another endpoint, with the datagram that was lost. False: it has ended instead."""
    session_leave(worker, session, outcome)
    if not session_settle(worker, session):
        count(&session.service.failures, 1)
        session_end(worker, session)
        return False
    if session.kept != NULL:
        send_kept(worker, session)
    return True


# --- beginning and end -------------------------------------------------------------------------

cdef Endpoint *expected_endpoint(
    Service *service, const Session *session, int64_t now
) noexcept nogil:
    """Where a predecessor had sent this client, with a reference, counted as active; NULL: it said
    nothing of it, or that endpoint does not serve here any more."""
    cdef UdpService *own
    cdef Expected *entry
    cdef Endpoint *endpoint = NULL
    pthread_mutex_lock(&service.mutex)
    own = service.udp_own
    if own != NULL and own.size:
        expected_expire(own, now)
        entry = expected_find(own, &session.client)
        if entry != NULL:
            if entry.endpoint.lists >> session.listener.use & 1:
                endpoint = entry.endpoint
                endpoint.refs += 1
            expected_drop(own, entry)
    pthread_mutex_unlock(&service.mutex)
    if endpoint != NULL:
        count(&endpoint.active, 1)
    return endpoint


cdef inline Session **sessions_of(Worker *worker, Service *service) noexcept nogil:
    """This worker's sessions of a service that has been served here."""
    return &service.udp_own.sessions[worker.index]


cdef Session *session_new(
    Worker *worker, Listener *listener, const SessionKey *key, uint64_t hashed,
    const Address *client, const Address *local, bint *nobody
) noexcept nogil:
    """NULL: there is none; ``nobody`` then says whether because there is no endpoint to try."""
    cdef UdpWorker *own = worker.udp_own
    cdef Service *service = listener.service
    cdef Session *session
    cdef Session **siblings
    nobody[0] = False
    while own.size >= worker.engine.max_sessions:
        if not evict(worker, NULL):
            return NULL
    session = <Session *>calloc(1, sizeof(Session))
    if session == NULL:
        return NULL
    session.handle.fd = -1
    session.handle.kind = UDP_SESSION
    session.handle.worker = worker
    session.listener = listener
    session.service = service
    session.client = client[0]
    session.local = local[0]
    session.key = key[0]
    session.hash = hashed
    session.longest_down = ROOM if own.cuts else 0
    session.endpoint = expected_endpoint(service, session, worker.now)
    if not session_settle(worker, session) or not table_add(own, session):
        nobody[0] = session.nobody
        if session.tried.size:
            count(&service.failures, 1)
        if session.endpoint != NULL:
            endpoint_release(session.endpoint)
        session_disconnect(session)
        free(session)
        return NULL
    session.used = worker.now
    ages_append(&own.doubtful, session)
    siblings = sessions_of(worker, service)
    session.service_after = siblings[0]
    if session.service_after != NULL:
        session.service_after.service_before = session
    siblings[0] = session
    hold(&service.refs)
    count(&service.connections, 1)
    count(&service.active, 1)
    count(&worker.session_count, 1)
    return session


cdef void session_end(Worker *worker, Session *session) noexcept nogil:
    """Freed after this round. What its endpoint has answered is sent first; what waits for the
    endpoint is dropped by who forwards it."""
    cdef UdpWorker *own = worker.udp_own
    cdef Service *service = session.service
    flush_replies(worker)
    table_remove(own, session)
    ages_unlink(session)
    if session.service_before != NULL:
        session.service_before.service_after = session.service_after
    else:
        sessions_of(worker, service)[0] = session.service_after
    if session.service_after != NULL:
        session.service_after.service_before = session.service_before
    session_unkeep(own, session)
    session_disconnect(session)
    if session.endpoint != NULL:
        endpoint_release(session.endpoint)
        session.endpoint = NULL
    session.after = own.dead
    own.dead = session
    count(&service.active, <uint64_t>-1)
    one_less(worker, &worker.session_count)
    session.service = NULL
    service_release(service)


cdef void end_sessions(Worker *worker, Service *service, const Listener *by) noexcept nogil:
    """Those by one listener; NULL: those whose endpoint is gone."""
    cdef Session *session = sessions_of(worker, service)[0]
    cdef Session *after
    cdef bint ends
    while session != NULL:
        after = session.service_after
        if by != NULL:
            ends = session.listener == by
        else:
            pthread_mutex_lock(&service.mutex)
            ends = session.endpoint.lists == 0
            pthread_mutex_unlock(&service.mutex)
        if ends:
            session_end(worker, session)
        session = after
