"""Letting clients in, and not letting them in when there is no room for more."""

cdef enum:
    MOST_AT_ONCE = 64
    # How long to wait at most for a descriptor, when none of ours is given back.
    PAUSE_NS = 100_000_000


# --- sockets towards endpoints -----------------------------------------------------------------

cdef int new_socket(int family) noexcept nogil:
    """-1: errno. What is set here could be set later, but not while a client waits for it."""
    cdef int fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
    cdef int on = 1
    # Low and high half: the narrower one of this and of ip_local_port_range counts.
    cdef uint32_t any_port = 0xFFFF0001
    if fd >= 0:
        # None can fail on a TCP socket of a kernel that knows it; all only make it better.
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on))
        setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on))
        # connect looks at every second port of the range first, and at the others only after all
        # of those: with tcp_tw_reuse, which needs a second for a port, one endpoint would take
        # 14,000 connections a second and each more would cost a walk through 14,000 ports. For a
        # socket with a range of its own (Linux 6.3) every port is as good as any other.
        setsockopt(fd, IPPROTO_IP, IP_LOCAL_PORT_RANGE, &any_port, sizeof(any_port))
    return fd


cdef void prepare_spares(Worker *worker) noexcept nogil:
    """Sockets made ahead: while the worker has nothing to do, and not when a client waits."""
    cdef int which, fd
    for which in range(2):
        while worker.spares_wanted[which] and worker.spares[which] < SPARES:
            fd = new_socket(AF_INET6 if which else AF_INET)
            if fd < 0:
                break
            worker.spare[which][worker.spares[which]] = fd
            worker.spares[which] += 1


cdef int take_socket(Worker *worker, int family) noexcept nogil:
    """-1: errno."""
    cdef int which = family == AF_INET6
    worker.spares_wanted[which] = True
    if worker.spares[which] == 0:
        return new_socket(family)
    worker.spares[which] -= 1
    return worker.spare[which][worker.spares[which]]


cdef void give_back_socket(Worker *worker, int family, int fd) noexcept nogil:
    cdef int which = family == AF_INET6
    if worker.spares[which] == SPARES:
        close_fd(fd)
        return
    worker.spare[which][worker.spares[which]] = fd
    worker.spares[which] += 1


cdef void close_spares(Worker *worker) noexcept nogil:
    cdef int which
    for which in range(2):
        while worker.spares[which]:
            worker.spares[which] -= 1
            close_fd(worker.spare[which][worker.spares[which]])


# --- pausing -----------------------------------------------------------------------------------

cdef inline bint exhausted(int problem) noexcept nogil:
    """Trying again at once would fail again. All else that accept says is about one client."""
    return (problem == EMFILE or problem == ENFILE or problem == ENOBUFS or problem == ENOMEM)


cdef void pause_accepting(Worker *worker, Listener *listener) noexcept nogil:
    """This listener waits for a flow to end. The others find out for themselves, so that pausing
    costs what is busy and not what is there."""
    if worker.paused_until == 0:
        count(&worker.accept_pauses, 1)
    worker.paused_until = worker.now + PAUSE_NS
    if listener.paused:
        return
    watch_for(worker, &listener.handle, 0)
    listener.paused = True
    listener.next_paused = NULL
    if worker.paused == NULL:
        worker.paused = listener
    else:
        worker.last_paused.next_paused = listener
    worker.last_paused = listener


cdef void resume_one(Worker *worker) noexcept nogil:
    """There is room for one more: the listener that has waited longest may try."""
    cdef Listener *listener = worker.paused
    if listener == NULL:
        worker.paused_until = 0
        return
    worker.paused = listener.next_paused
    listener.paused = False
    watch_for(worker, &listener.handle, EPOLLIN)


cdef void resume_accepting(Worker *worker) noexcept nogil:
    while worker.paused != NULL:
        resume_one(worker)
    worker.paused_until = 0


cdef void forget_paused(Worker *worker, Listener *listener) noexcept nogil:
    cdef Listener **at = &worker.paused
    cdef Listener *before = NULL
    if not listener.paused:
        return
    while at[0] != listener:
        before = at[0]
        at = &before.next_paused
    at[0] = listener.next_paused
    if worker.last_paused == listener:
        worker.last_paused = before
    listener.paused = False


# --- accepting ---------------------------------------------------------------------------------

cdef bint accept_one(Worker *worker, Listener *listener) noexcept nogil:
    """False: no more for now. The socket towards the endpoint comes first: a client that is let
    in when there is no descriptor left for its server could only be reset."""
    cdef Address peer
    cdef socklen_t size = sizeof(peer)
    cdef int upstream, client
    if worker.flow_count >= worker.engine.max_flows:
        pause_accepting(worker, listener)
        return False
    upstream = take_socket(worker, listener.family)
    if upstream < 0:
        pause_accepting(worker, listener)
        return False
    client = accept4(listener.handle.fd, &peer.any, &size, SOCK_NONBLOCK | SOCK_CLOEXEC)
    if client >= 0:
        flow_begin(worker, listener, client, &peer, upstream)
        return True
    give_back_socket(worker, listener.family, upstream)
    if errno == EAGAIN:
        listener.burst = 1
        return False
    if exhausted(errno):
        pause_accepting(worker, listener)
        return False
    # ECONNABORTED and the network errors that accept passes on: that client is gone.
    return True


cdef void accept_ready(Worker *worker, Listener *listener) noexcept nogil:
    if listener.round + 1 == worker.round:
        listener.burst = min(listener.burst * 2, <uint32_t>MOST_AT_ONCE)
    else:
        listener.burst = 1
    listener.round = worker.round
    for _ in range(listener.burst):
        if not accept_one(worker, listener):
            return


# --- listeners ---------------------------------------------------------------------------------

cdef int listener_open(Worker *worker, Listener *listener) noexcept nogil:
    """0 or an errno; the socket is then still the caller's."""
    cdef int problem
    listener.handle.worker = worker
    listener.burst = 1
    if listener.service.udp:
        listener.handle.kind = UDP_LISTENER
        problem = udp_front_open(worker, listener)
    else:
        listener.handle.kind = TCP_LISTENER
        problem = watch(worker, &listener.handle, EPOLLIN)
    if problem:
        return problem
    hold(&listener.service.refs)
    listener.after = worker.listeners
    listener.before = NULL
    if listener.after != NULL:
        listener.after.before = listener
    worker.listeners = listener
    return 0


cdef void listener_quiet(Worker *worker, Listener *listener) noexcept nogil:
    if listener.quiet:
        return
    listener.quiet = True
    if listener.service.udp:
        udp_front_quiet(worker, listener)
        return
    forget_paused(worker, listener)
    unwatch(worker, &listener.handle)
    close_fd(listener.handle.fd)
    listener.handle.fd = -1


cdef void listener_close(Worker *worker, Listener *listener) noexcept nogil:
    if listener.service.udp:
        udp_front_close(worker, listener)
    if listener.handle.fd >= 0:
        forget_paused(worker, listener)
        unwatch(worker, &listener.handle)
        close_fd(listener.handle.fd)
        listener.handle.fd = -1
    if listener.before != NULL:
        listener.before.after = listener.after
    else:
        worker.listeners = listener.after
    if listener.after != NULL:
        listener.after.before = listener.before
    service_release(listener.service)
    listener.after = worker.dead_listeners
    worker.dead_listeners = listener
