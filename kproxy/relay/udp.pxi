"""UDP: datagrams between clients and endpoints, in batches, by a session for each client.

A client's first datagram at a front makes a session: an endpoint is chosen and a socket connected
to it. Datagrams are read from the front's socket by the batch, sorted by session and sent on;
answers are read from the sessions' sockets and leave by the front's socket, from the address that
the client had sent to, all of one round of events in as few calls as can be.

The parts: udp_sys.pxi (the kernel's words), udp_types.pxi, udp_table.pxi (finding and ageing),
udp_wire.pxi (sending), udp_session.pxi (beginning and end), udp_forward.pxi (both directions). Here
is what the loop calls; loop.pxi has the list.
"""

include "udp_sys.pxi"
include "udp_types.pxi"
include "udp_table.pxi"
include "udp_wire.pxi"
include "udp_session.pxi"
include "udp_forward.pxi"


# --- events ------------------------------------------------------------------------------------

cdef void udp_ready(Worker *worker, Handle *handle, uint32_t events) noexcept nogil:
    if handle.kind == UDP_LISTENER:
        listener_ready(worker, <Listener *>handle)
    else:
        session_ready(worker, <Session *>handle, events)


cdef void udp_round(Worker *worker) noexcept nogil:
    """All events of a round are dealt with."""
    if worker.udp_own != NULL and worker.udp_own.to_clients.size:
        flush_replies(worker)


cdef void udp_bury(Worker *worker) noexcept nogil:
    """No event leads to what has ended any more."""
    cdef UdpWorker *own = worker.udp_own
    cdef Session *session
    if own == NULL:
        return
    while own.dead != NULL:
        session = own.dead
        own.dead = session.after
        free(session)
    if own.stopped:
        if own.rooms != NULL:
            munmap(own.rooms, ROOMS_SIZE)
        free(own.slots)
        free(own)
        worker.udp_own = NULL


# --- workers, fronts and services ---------------------------------------------------------------

cdef int64_t expire_by(Worker *worker, const SessionAges *ages, int64_t now) noexcept nogil:
    cdef int64_t idle = worker.engine.udp_idle_ns
    while ages.oldest != NULL and ages.oldest.used + idle <= now:
        session_end(worker, ages.oldest)
    return INT64_MAX if ages.oldest == NULL else ages.oldest.used + idle


cdef int64_t udp_expire(Worker *worker, int64_t now) noexcept nogil:
    """End what is idle; returns when to look again."""
    cdef UdpWorker *own = worker.udp_own
    if own == NULL:
        return INT64_MAX
    return min(expire_by(worker, &own.doubtful, now), expire_by(worker, &own.proven, now))


cdef int udp_worker_start(Worker *worker) noexcept nogil:
    """0 or an errno. Rooms for messages are made when there is a front."""
    cdef int fd, none = 0
    worker.udp_own = <UdpWorker *>calloc(1, sizeof(UdpWorker))
    if worker.udp_own == NULL:
        return ENOMEM
    fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)
    if fd >= 0:
        worker.udp_own.cuts = setsockopt(fd, IPPROTO_UDP, UDP_SEGMENT, &none, sizeof(none)) == 0
        close_fd(fd)
    return 0


cdef int make_rooms(UdpWorker *own) noexcept nogil:
    """0 or an errno."""
    cdef void *rooms
    if own.rooms != NULL:
        return 0
    rooms = mmap(NULL, ROOMS_SIZE, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if rooms == MAP_FAILED:
        return errno
    own.rooms = <char *>rooms
    batch_init(&own.from_clients, own.rooms)
    batch_init(&own.to_clients, own.rooms + ROOMS_SIZE // 2)
    return 0


cdef int make_sessions(Worker *worker, Service *service) noexcept nogil:
    """Whichever worker comes first makes the lists of all. 0 or an errno."""
    cdef UdpService *own
    cdef int problem = 0
    pthread_mutex_lock(&service.mutex)
    own = udp_service(service)
    if own != NULL and own.sessions == NULL:
        own.sessions = <Session **>calloc(worker.engine.workers, sizeof(Session *))
    if own == NULL or own.sessions == NULL:
        problem = ENOMEM
    pthread_mutex_unlock(&service.mutex)
    return problem


cdef int udp_front_open(Worker *worker, Listener *listener) noexcept nogil:
    """0 or an errno; the listener is in epoll afterwards."""
    cdef int fd = listener.handle.fd
    cdef int one = 1, room = ROOM_WANTED
    cdef socklen_t size = sizeof(Address)
    cdef UdpListener *own
    cdef int problem = make_rooms(worker.udp_own)
    if problem == 0:
        problem = make_sessions(worker, listener.service)
    if problem:
        return problem
    if listener.family == AF_INET:
        problem = setsockopt(fd, IPPROTO_IP, IP_PKTINFO, &one, sizeof(one))
    else:
        problem = setsockopt(fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, &one, sizeof(one))
    if problem:
        return errno
    # As for sessions: good to have, not needed.
    setsockopt(fd, IPPROTO_UDP, UDP_GRO, &one, sizeof(one))
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &room, sizeof(room))
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &room, sizeof(room))
    own = <UdpListener *>calloc(1, sizeof(UdpListener))
    if own == NULL:
        return ENOMEM
    own.listener = listener
    if getsockname(fd, &own.bound.any, &size):
        problem = errno
    else:
        problem = watch(worker, &listener.handle, EPOLLIN)
    if problem:
        free(own)
        return problem
    listener.udp_own = own
    return 0


cdef void udp_front_quiet(Worker *worker, Listener *listener) noexcept nogil:
    """Read nothing more; replies of living sessions go on by its socket."""
    unwatch(worker, &listener.handle)


cdef void udp_front_close(Worker *worker, Listener *listener) noexcept nogil:
    """Its sessions end; the caller closes the socket, and takes it out of epoll."""
    if listener.udp_own == NULL:
        return
    flush_replies(worker)
    end_sessions(worker, listener.service, listener)
    free(listener.udp_own)
    listener.udp_own = NULL


cdef void udp_service_changed(Worker *worker, Service *service) noexcept nogil:
    """Endpoints went: their sessions end, and nobody is expected to go there."""
    cdef bint served
    pthread_mutex_lock(&service.mutex)
    served = service.udp_own != NULL and service.udp_own.sessions != NULL
    if service.udp_own != NULL:
        expected_forget_gone(service.udp_own)
    pthread_mutex_unlock(&service.mutex)
    if served:
        end_sessions(worker, service, NULL)


cdef void udp_list(Worker *worker, Service *service, Rows *rows) noexcept nogil:
    """A row for each of this worker's sessions of a service."""
    cdef Session *session = NULL
    pthread_mutex_lock(&service.mutex)
    if service.udp_own != NULL and service.udp_own.sessions != NULL:
        session = sessions_of(worker, service)[0]
    pthread_mutex_unlock(&service.mutex)
    while session != NULL:
        rows_add(rows, &session.client, &session.endpoint.address, session.used)
        session = session.service_after


cdef void udp_stop(Worker *worker) noexcept nogil:
    """Every session ends; all is freed after the round. Listeners have been closed before."""
    cdef UdpWorker *own = worker.udp_own
    if own == NULL:
        return
    while own.doubtful.oldest != NULL:
        session_end(worker, own.doubtful.oldest)
    while own.proven.oldest != NULL:
        session_end(worker, own.proven.oldest)
    own.stopped = True
