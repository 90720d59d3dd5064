"""A flow's beginning and end: choosing an endpoint, reaching it or the next one, letting all go."""


# --- reaching an endpoint ----------------------------------------------------------------------

cdef Outcome outcome_of(int problem) noexcept nogil:
    if problem == ETIMEDOUT:
        return OUTCOME_TIMEOUT
    return OUTCOME_REFUSED if problem == ECONNREFUSED else OUTCOME_UNREACHABLE


cdef bint own_fault(int problem) noexcept nogil:
    """What connect says of this node and not of the endpoint: no local port left towards that
    place, no memory, a rule of ours that forbids it."""
    return (problem == EADDRNOTAVAIL or problem == EAGAIN or problem == ENOBUFS
            or problem == ENOMEM or problem == EPERM)


cdef void abandon(Worker *worker, Flow *flow) noexcept nogil:
    """The endpoint failed this flow: its client is not bound to it any more. Unless this node did:
    then it tries the same one again, if that is whom it is bound to."""
    timer_stop(&flow.timer)
    if flow.server.handle.fd >= 0:
        close_fd(flow.server.handle.fd)
        flow.server.handle.fd = -1
    flow.server.readable = flow.server.read_on = flow.server.watches_room = False
    if flow.endpoint != NULL:
        if not flow.own_fault:
            affinity_forget(flow.service, &flow.peer, flow.endpoint)
        endpoint_release(flow.endpoint)
        flow.endpoint = NULL
    flow.own_fault = False


cdef void attempt_failed(Worker *worker, Flow *flow, int problem) noexcept nogil:
    if own_fault(problem):
        # It may pass (a port's TIME_WAIT ends): the rung's time is for waiting, not for the client
        # to be reset.
        flow.own_fault = True
        wait_with(worker, flow, &worker.ladder[flow.state.tries])
        return
    if problem != ECONNREFUSED and source_failed(worker, flow):
        flow.own_fault = True
        act(worker, flow, EVENT_REFUSED, 0)
        return
    if flow.endpoint != NULL:
        tell(worker, flow.endpoint, outcome_of(problem))
    flow.tried.refused |= 1 << (flow.tried.size - 1 if flow.tried.size else 0)
    act(worker, flow, EVENT_REFUSED, 0)


cdef void established(Worker *worker, Flow *flow) noexcept nogil:
    timer_stop(&flow.timer)
    if flow.endpoint != NULL:
        source_worked(flow)
        count(&flow.endpoint.connections, 1)
        tell(worker, flow.endpoint, OUTCOME_OK)
    act(worker, flow, EVENT_ESTABLISHED, 0)


cdef void connect_ready(Worker *worker, Flow *flow, uint32_t events) noexcept nogil:
    cdef int problem = 0
    cdef socklen_t size = sizeof(problem)
    if events & (EPOLLERR | EPOLLHUP):
        getsockopt(flow.server.handle.fd, SOL_SOCKET, SO_ERROR, &problem, &size)
        # A server that took the connection and reset it at once has been reached.
        if problem != 0 and problem != ECONNRESET and problem != EPIPE:
            attempt_failed(worker, flow, problem)
            return
        if problem != 0:
            established(worker, flow)
            if flow.state.phase == OPEN:
                reset_by(worker, &flow.server)
            return
    elif not events & EPOLLOUT:
        return
    established(worker, flow)


cdef bint original_place(Flow *flow, Address *place) noexcept nogil:
    """Where the client wanted to go before translation; False: there was none, or it leads back
    to us. The node's loopback is exchanged for the endpoint's host: from elsewhere nobody could
    answer it."""
    cdef Address ours
    cdef socklen_t size = sizeof(Address)
    cdef bint six = flow.peer.any.sa_family == AF_INET6
    cdef Endpoint *instead = flow.endpoint
    if getsockopt(flow.client.handle.fd, IPPROTO_IPV6 if six else IPPROTO_IP, ORIGINAL_DST,
                  place, &size):
        return False
    size = sizeof(Address)
    if getsockname(flow.client.handle.fd, &ours.any, &size) or same_place(&ours, place):
        return False
    if instead != NULL and instead.address.any.sa_family == place.any.sa_family:
        if not six and ntohl(place.v4.sin_addr.s_addr) >> 24 == 127:
            place.v4.sin_addr = instead.address.v4.sin_addr
        elif six and is_loopback6(place):
            place.v6.sin6_addr = instead.address.v6.sin6_addr
    return True


cdef bint is_loopback6(const Address *address) noexcept nogil:
    cdef int which
    for which in range(15):
        if address.v6.sin6_addr.s6_addr[which]:
            return False
    return address.v6.sin6_addr.s6_addr[15] == 1


cdef bint find_place(Worker *worker, Flow *flow, Address *place) noexcept nogil:
    """Choose; False: there is nobody to try."""
    cdef bint original = flow.use == USE_ORIGINAL
    flow.endpoint = choose(flow.service, USE_CLUSTER if original else flow.use, &flow.peer,
                           NULL if original else &flow.tried, worker.now)
    if original:
        if flow.state.tries and flow.tried.refused:
            return False
        return original_place(flow, place)
    if flow.endpoint == NULL:
        return False
    tried_add(&flow.tried, flow.endpoint)
    place[0] = flow.endpoint.address
    return True


cdef void try_next(Worker *worker, Flow *flow, int fd) noexcept nogil:
    """Choose and connect. ``fd``: a socket of the listener's family that may be used, or -1."""
    cdef Address place
    cdef int problem
    if not find_place(worker, flow, &place):
        if fd >= 0:
            give_back_socket(worker, flow.peer.any.sa_family, fd)
        if flow.state.tries == 0:
            count(&flow.service.refused, 1)
        act(worker, flow, EVENT_NOBODY, 0)
        return
    if fd >= 0 and place.any.sa_family != flow.peer.any.sa_family:
        give_back_socket(worker, flow.peer.any.sa_family, fd)
        fd = -1
    if fd < 0:
        fd = take_socket(worker, place.any.sa_family)
    if fd < 0:
        # No descriptor, no fault of an endpoint: the client may come again.
        act(worker, flow, EVENT_NOBODY, 0)
        return
    flow.server.handle.fd = fd
    problem = reach(worker, flow, &place)
    if problem:
        attempt_failed(worker, flow, problem)
        return
    connect_started(worker, flow)


cdef void connect_started(Worker *worker, Flow *flow) noexcept nogil:
    """Over a virtual wire the answer often came within connect: what is kept goes at once."""
    cdef Spill *spill = &flow.server.spill
    cdef ssize_t taken = -1
    cdef int problem
    if spill.data != NULL:
        taken = send(flow.server.handle.fd, spill.data + spill.at, spill.end - spill.at,
                     MSG_NOSIGNAL)
        if taken < 0 and errno != EAGAIN:
            attempt_failed(worker, flow, errno)
            return
    flow.server.watches_room = taken < 0
    problem = watch(worker, &flow.server.handle, WATCHED if taken >= 0 else WATCHED_WITH_ROOM)
    if problem:
        # ENOMEM or ENOSPC (fs.epoll.max_user_watches): not a fault of the endpoint.
        act(worker, flow, EVENT_NOBODY, 0)
        return
    if taken < 0:
        wait_with(worker, flow, &worker.ladder[flow.state.tries])
        return
    count_bytes(flow, &flow.server, taken)
    spill_took(worker, spill, taken)
    established(worker, flow)


# --- flows -------------------------------------------------------------------------------------

cdef Flow *flow_new(Worker *worker) noexcept nogil:
    cdef Flow *flow = worker.free_flows
    if flow == NULL:
        return <Flow *>calloc(1, sizeof(Flow))
    worker.free_flows = flow.after
    worker.free_count -= 1
    memset(flow, 0, sizeof(Flow))
    return flow


cdef void side_init(Worker *worker, Flow *flow, Side *side, int kind, int fd) noexcept nogil:
    side.handle.fd = fd
    side.handle.kind = kind
    side.handle.worker = worker
    side.flow = flow


cdef void reset_socket(int fd) noexcept nogil:
    cdef linger now
    now.l_onoff = 1
    now.l_linger = 0
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now))


cdef void flow_begin(
    Worker *worker, Listener *listener, int client, const Address *peer, int upstream
) noexcept nogil:
    """A client was let in; both descriptors are ours now."""
    cdef Flow *flow = flow_new(worker)
    if flow == NULL:
        reset_socket(client)
        close_fd(client)
        close_fd(upstream)
        return
    side_init(worker, flow, &flow.client, TCP_CLIENT, client)
    side_init(worker, flow, &flow.server, TCP_SERVER, -1)
    flow.state.ladder = worker.engine.ladder_size
    flow.use = listener.use
    flow.peer = peer[0]
    flow.service = listener.service
    hold(&flow.service.refs)
    count(&flow.service.connections, 1)
    count(&flow.service.active, 1)
    count(&worker.flow_count, 1)
    flow.after = worker.flows
    if flow.after != NULL:
        flow.after.before = flow
    worker.flows = flow
    if flow.service.proxy_protocol and not header_add(worker, flow):
        give_back_socket(worker, listener.family, upstream)
        act(worker, flow, EVENT_EXPIRED, 0)
        return
    # Often the request came with the packet that made the connection.
    flow.client.readable = True
    keep_early(worker, flow)
    if flow.state.phase != CONNECTING:
        give_back_socket(worker, listener.family, upstream)
        return
    if watch(worker, &flow.client.handle, WATCHED):
        give_back_socket(worker, listener.family, upstream)
        act(worker, flow, EVENT_EXPIRED, 0)
        return
    try_next(worker, flow, upstream)


cdef void side_close(Worker *worker, Side *side, bint reset) noexcept nogil:
    if side.spill.data != NULL:
        spill_drop(worker, &side.spill)
    pipe_drop(worker, side)
    if side.handle.fd < 0:
        return
    if reset:
        reset_socket(side.handle.fd)
    close_fd(side.handle.fd)
    side.handle.fd = -1


cdef void flow_end(Worker *worker, Flow *flow, uint32_t acts) noexcept nogil:
    timer_stop(&flow.timer)
    side_close(worker, &flow.server, acts & ACT_RESET_SERVER)
    side_close(worker, &flow.client, acts & ACT_RESET_CLIENT)
    zc_end(flow)
    if flow.endpoint != NULL:
        endpoint_release(flow.endpoint)
        flow.endpoint = NULL
    count(&flow.service.active, <uint64_t>-1)
    service_release(flow.service)
    flow.service = NULL
    if flow.before != NULL:
        flow.before.after = flow.after
    else:
        worker.flows = flow.after
    if flow.after != NULL:
        flow.after.before = flow.before
    flow.after = worker.dead_flows
    worker.dead_flows = flow
    if worker.paused_until != 0:
        resume_one(worker)
    one_less(worker, &worker.flow_count)


cdef void bury_flows(Worker *worker) noexcept nogil:
    cdef Flow *flow
    cdef Flow *kept = NULL
    while worker.dead_flows != NULL:
        flow = worker.dead_flows
        worker.dead_flows = flow.after
        if flow.queued:
            # Still in that list; the round that empties it finds nothing to do.
            flow.after = kept
            kept = flow
        elif worker.free_count < SPARE_FLOWS:
            flow.after = worker.free_flows
            worker.free_flows = flow
            worker.free_count += 1
        else:
            free(flow)
    worker.dead_flows = kept


cdef void end_all_flows(Worker *worker) noexcept nogil:
    while worker.flows != NULL:
        act(worker, worker.flows, EVENT_EXPIRED, 0)
