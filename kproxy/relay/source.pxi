"""From which of the node's addresses an endpoint is connected to.

The kernel chooses by route, until no port of that address is left towards the endpoint: 28,000 of
them (ip_local_port_range), a minute each after a short connection. Then the next of the addresses
that Python named is bound to, and stays in use for that endpoint for a while.

Whether an endpoint's answers find their way back to such an address is not known before one has
come. So a silence that meets a connection from an address that never worked is put down to the
address: it is not used towards that endpoint for a while, and the endpoint is not blamed.
"""

cdef enum:
    # After that the kernel's choice has ports again (TIME_WAIT takes 60 s), and what failed may
    # work.
    SOURCE_NS = 60_000_000_000

cdef extern from *:
    Sources *load_sources "kp_load"(Sources **at) noexcept nogil
    void store_sources "kp_store"(Sources **at, Sources *to) noexcept nogil


# --- the addresses, as Python changes them --------------------------------------------------------

cdef void forget_sources(Service *service) noexcept nogil:
    """The addresses are others now: what is known of an endpoint's means nothing any more."""
    cdef Endpoint *endpoint
    pthread_mutex_lock(&service.mutex)
    endpoint = service.endpoints
    while endpoint != NULL:
        store_flag(&endpoint.source, 0)
        store_flag(&endpoint.proven, 0)
        endpoint.barred = 0
        endpoint = endpoint.after
    pthread_mutex_unlock(&service.mutex)


# --- which one -----------------------------------------------------------------------------------

cdef inline uint32_t sources_of(Worker *worker, const Address *place) noexcept nogil:
    cdef const Sources *sources = load_sources(&worker.engine.sources)
    return sources.size[place.any.sa_family == AF_INET6] if sources != NULL else 0


cdef int source_now(Worker *worker, Endpoint *endpoint, const Address *place) noexcept nogil:
    """The one in use for the endpoint; 0: the kernel's choice."""
    cdef int source = load_flag(&endpoint.source)
    if source == 0:
        return 0
    pthread_mutex_lock(&endpoint.service.mutex)
    if worker.now >= endpoint.source_until or <uint32_t>source > sources_of(worker, place):
        source = 0
        store_flag(&endpoint.source, 0)
    pthread_mutex_unlock(&endpoint.service.mutex)
    return source


cdef int source_after(
    Worker *worker, Endpoint *endpoint, const Address *place, int source, int first
) noexcept nogil:
    """The next one that may be used, round to the ``first`` that was tried, which means that none
    is left."""
    cdef int size = <int>sources_of(worker, place)
    pthread_mutex_lock(&endpoint.service.mutex)
    if worker.now >= endpoint.barred_until:
        endpoint.barred = 0
    for _ in range(size + 1):
        source = source + 1 if source < size else 0
        if source == first or not endpoint.barred >> source & 1:
            break
    else:
        source = first
    pthread_mutex_unlock(&endpoint.service.mutex)
    return source


cdef void source_use(Worker *worker, Endpoint *endpoint, int source) noexcept nogil:
    pthread_mutex_lock(&endpoint.service.mutex)
    store_flag(&endpoint.source, source)
    endpoint.source_until = worker.now + <int64_t>SOURCE_NS
    pthread_mutex_unlock(&endpoint.service.mutex)


cdef void source_bar(Worker *worker, Endpoint *endpoint, int source) noexcept nogil:
    """Not towards this endpoint, for a while."""
    pthread_mutex_lock(&endpoint.service.mutex)
    endpoint.barred |= 1 << source
    endpoint.barred_until = worker.now + <int64_t>SOURCE_NS
    if load_flag(&endpoint.source) == source:
        store_flag(&endpoint.source, 0)
    pthread_mutex_unlock(&endpoint.service.mutex)


cdef bint source_bind(Worker *worker, int fd, const Address *place, int source) noexcept nogil:
    """Only the address: its port is chosen by connect, which knows the other end. False: the node
    does not have it any more."""
    cdef const Sources *sources = load_sources(&worker.engine.sources)
    cdef bint six = place.any.sa_family == AF_INET6
    cdef int on = 1
    cdef const Address *address
    if sources == NULL or <uint32_t>source > sources.size[six]:
        return False
    address = &sources.at[six][source - 1]
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof(on))
    return bind(fd, &address.any, address_size(address)) == 0


# --- connecting ----------------------------------------------------------------------------------

cdef int connect_from(Worker *worker, Flow *flow, const Address *place, int source) noexcept nogil:
    """0 when it is under way, or an errno."""
    cdef int fd = flow.server.handle.fd
    flow.source = <uint8_t>source
    if source and not source_bind(worker, fd, place, source):
        return EADDRNOTAVAIL
    if connect(fd, &place.any, address_size(place)) and errno != EINPROGRESS:
        return errno
    return 0


cdef int reach(Worker *worker, Flow *flow, const Address *place) noexcept nogil:
    """Connect from the address that has ports. 0 when it is under way, or an errno: EADDRNOTAVAIL
    when no address has any."""
    # Where a flow goes to its original destination, nothing is kept of that place.
    cdef Endpoint *endpoint = flow.endpoint if flow.use != USE_ORIGINAL else NULL
    cdef int first = source_now(worker, endpoint, place) if endpoint != NULL else 0
    cdef int source = first
    cdef int problem
    for _ in range(MOST_SOURCES + 1):
        problem = connect_from(worker, flow, place, source)
        if problem == 0:
            if source:
                count(&worker.other_sources, 1)
            if source != first:
                source_use(worker, endpoint, source)
            return 0
        if problem != EADDRNOTAVAIL:
            if source == 0 or problem == ECONNREFUSED:
                return problem
            # No way leads there from that address.
            source_bar(worker, endpoint, source)
        if endpoint != NULL:
            source = source_after(worker, endpoint, place, source, first)
        if source == first:
            break
        # What connect has left of its choice in the socket depends on the kernel's version.
        close_fd(flow.server.handle.fd)
        flow.server.handle.fd = take_socket(worker, place.any.sa_family)
        if flow.server.handle.fd < 0:
            return ENOBUFS
    count(&worker.no_ports, 1)
    return EADDRNOTAVAIL


cdef inline void source_worked(Flow *flow) noexcept nogil:
    cdef Endpoint *endpoint = flow.endpoint
    if flow.source == 0 or endpoint == NULL or load_flag(&endpoint.proven) >> flow.source & 1:
        return
    pthread_mutex_lock(&endpoint.service.mutex)
    store_flag(&endpoint.proven, endpoint.proven | 1 << flow.source)
    pthread_mutex_unlock(&endpoint.service.mutex)


cdef bint source_failed(Worker *worker, Flow *flow) noexcept nogil:
    """Nothing came back: whether that is put down to the address, which is then left alone."""
    cdef Endpoint *endpoint = flow.endpoint
    if flow.source == 0 or endpoint == NULL or load_flag(&endpoint.proven) >> flow.source & 1:
        return False
    source_bar(worker, endpoint, flow.source)
    return True
