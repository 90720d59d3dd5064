"""What Python tells of a service, and what is told of it to a successor: objects here, rows there.

Each function takes the service's mutex for as long as the copying takes. The caller holds the lock
of the relay, and with it a reference to the service.
"""


cdef int ask_each(
    Engine *engine, Service *service, void (*run)(Worker *, Task *) noexcept nogil, Rows *rows
) except -1:
    """Of every worker, about a service (NULL: none)."""
    cdef Task task
    memset(&task, 0, sizeof(task))
    task.run = run
    task.subject = service
    task.rows = rows
    with nogil:
        ask_all(engine, &task)
    return 0


# --- its endpoints -----------------------------------------------------------------------------

cdef bint tell_endpoints(
    Service *service, endpoints, cluster, local, weights, uint64_t *random
) except -1:
    """Whether some went that had been in a list."""
    cdef size_t size = len(endpoints)
    # Of no list, and not gone either: nobody is sent there, and UDP sessions stay.
    cdef bytearray lists = bytearray(bytes((1 << USE_ORIGINAL,)) * size)
    cdef bytearray shares = bytearray(bytes((MOST_WEIGHT,)) * size)
    cdef bytearray room = bytearray(size * sizeof(Address))
    cdef Address *places = <Address *><char *>room
    cdef const uint8_t *bits = <const uint8_t *><char *>lists
    cdef const uint8_t *weighed = <const uint8_t *><char *>shares
    cdef int went
    for which, (host, port) in enumerate(endpoints):
        to_address(&places[<size_t>which], host, port)
    for use, members in ((USE_CLUSTER, cluster), (USE_LOCAL, local)):
        for which in members:
            if not 0 <= which < size:
                raise IndexError(f"no endpoint {which} among {size}")
            lists[which] |= 1 << use
    if weights and len(weights) != size:
        raise ValueError(f"{len(weights)} weights for {size} endpoints")
    for which, weight in enumerate(weights):
        if not 1 <= weight <= MOST_WEIGHT:
            raise ValueError(f"weight {weight} is not within 1 and {MOST_WEIGHT}")
        shares[which] = weight
    with nogil:
        pthread_mutex_lock(&service.mutex)
        went = replace_endpoints(service, places, bits, weighed, size, random)
        pthread_mutex_unlock(&service.mutex)
    if went < 0:
        raise MemoryError
    return went


cdef int tell_nobody(Service *service, uint64_t *random) except -1:
    """It is not served any more."""
    with nogil:
        pthread_mutex_lock(&service.mutex)
        replace_endpoints(service, NULL, NULL, NULL, 0, random)
        affinity_clear(service)
        pthread_mutex_unlock(&service.mutex)
    return 0


# --- its clients -------------------------------------------------------------------------------

cdef list told_affinities(Service *service):
    cdef Rows rows
    memset(&rows, 0, sizeof(rows))
    with nogil:
        pthread_mutex_lock(&service.mutex)
        affinity_rows(service, &rows, now_ns())
        pthread_mutex_unlock(&service.mutex)
    return [
        (client, address, port, age / 1e9) for client, _, address, port, age in rows_taken(&rows)
    ]


cdef int tell_affinities(Service *service, entries) except -1:
    cdef Rows rows
    cdef int64_t now = now_ns()
    memset(&rows, 0, sizeof(rows))
    try:
        # From the oldest to the newest.
        for client, address, port, age in sorted(entries, key=lambda entry: -entry[3]):
            row_from(&rows, client, 0, address, port, now - to_ns(age))
        with nogil:
            pthread_mutex_lock(&service.mutex)
            if service.affinity_ns:
                affinity_adopt(service, &rows)
            pthread_mutex_unlock(&service.mutex)
    finally:
        free(rows.at)
    return 0


cdef list told_sessions(Engine *engine, Service *service):
    cdef Rows rows
    memset(&rows, 0, sizeof(rows))
    if service.udp:
        ask_each(engine, service, task_sessions, &rows)
    return [row[:4] for row in rows_taken(&rows)]


cdef int tell_sessions(Service *service, entries) except -1:
    cdef Rows rows
    cdef Endpoint *endpoint
    cdef size_t which
    cdef int problem = 0
    if not service.udp:
        raise ValueError(f"service {service.id} has no UDP sessions")
    memset(&rows, 0, sizeof(rows))
    try:
        for client, client_port, address, port in entries:
            row_from(&rows, client, client_port, address, port, 0)
        with nogil:
            pthread_mutex_lock(&service.mutex)
            for which in range(rows.size):
                endpoint = endpoint_find(service, &rows.at[which].endpoint)
                if endpoint != NULL and endpoint.lists:
                    problem = udp_expect(service, &rows.at[which].client, endpoint)
                    if problem:
                        break
            pthread_mutex_unlock(&service.mutex)
        check(problem)
    finally:
        free(rows.at)
    return 0


# --- the node's addresses ----------------------------------------------------------------------

cdef Sources *sources_from(addresses) except NULL:
    """To be freed. ValueError: no address, or too many of one family."""
    cdef Sources *made = <Sources *>calloc(1, sizeof(Sources))
    cdef bint six
    if made == NULL:
        raise MemoryError
    try:
        for host in addresses:
            six = ":" in host
            if made.size[six] == MOST_SOURCES:
                raise ValueError(f"more than {MOST_SOURCES} addresses of one family")
            to_address(&made.at[six][made.size[six]], host, 0)
            made.size[six] += 1
    except BaseException:
        free(made)
        raise
    return made
