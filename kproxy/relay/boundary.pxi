"""Between Python objects and C values: what comes in is checked, what goes out is copied first.

No Python object is touched while something is locked that a worker may wait for.
"""

import math

OUTCOME_NAMES = ("refused", "timeout", "unreachable", "reset", "ok")


cdef int check(int problem) except -1:
    """OSError for an errno; 0 is none."""
    if problem:
        raise OSError(problem, os.strerror(problem))
    return 0


# --- addresses ---------------------------------------------------------------------------------

cdef int to_address(Address *address, str host, port) except -1:
    """ValueError: not an address, or no port."""
    cdef bytes text = host.encode()
    if not 0 <= port <= 65535:
        raise ValueError(f"{port} is no port")
    memset(address, 0, sizeof(Address))
    if inet_pton(AF_INET, text, &address.v4.sin_addr) == 1:
        address.any.sa_family = AF_INET
    elif inet_pton(AF_INET6, text, &address.v6.sin6_addr) == 1:
        address.any.sa_family = AF_INET6
    else:
        raise ValueError(f"{host!r} is no IPv4 or IPv6 address")
    address.v4.sin_port = htons(port)
    return 0


cdef str host_of(const Address *address):
    cdef char text[64]
    if address.any.sa_family == AF_INET:
        inet_ntop(AF_INET, &address.v4.sin_addr, text, sizeof(text))
    else:
        inet_ntop(AF_INET6, &address.v6.sin6_addr, text, sizeof(text))
    return (<bytes>text).decode()


cdef int64_t to_ns(seconds) except -1:
    """ValueError for what is no duration. A hundred years are enough."""
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{seconds} seconds is no duration")
    return <int64_t>(min(seconds, 3.0e9) * 1e9)


# --- what the tables hold ----------------------------------------------------------------------

cdef class _Service:
    """The reference that the table of services has."""

    cdef Service *c

    def __dealloc__(self):
        if self.c != NULL:
            service_release(self.c)


# --- sockets -----------------------------------------------------------------------------------

cdef int check_socket(Service *service, int fd) except -1:
    """Nonblocking from now on; ValueError for one that cannot be served."""
    cdef int type, listens, flags
    cdef socklen_t size = sizeof(int)
    if getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size):
        check(errno)
    if getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size):
        check(errno)
    if type != (SOCK_DGRAM if service.udp else SOCK_STREAM) or bool(listens) == bool(service.udp):
        wanted = "bound UDP socket" if service.udp else "listening TCP socket"
        raise ValueError(f"descriptor {fd} is not a {wanted}")
    flags = fcntl(fd, F_GETFL)
    if flags < 0 or fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0:
        check(errno)
    return 0


# --- rows --------------------------------------------------------------------------------------

cdef int row_from(Rows *rows, client, client_port, address, port, int64_t at) except -1:
    cdef Address one, other
    to_address(&one, client, client_port)
    to_address(&other, address, port)
    if not rows_add(rows, &one, &other, at):
        raise MemoryError
    return 0


cdef list rows_taken(Rows *rows):
    """As tuples; the rows are freed. MemoryError if there was no room for all of them."""
    cdef size_t which
    try:
        if rows.no_memory:
            raise MemoryError
        return [
            (
                host_of(&rows.at[which].client),
                ntohs(rows.at[which].client.v4.sin_port),
                host_of(&rows.at[which].endpoint),
                ntohs(rows.at[which].endpoint.v4.sin_port),
                rows.at[which].at,
            )
            for which in range(rows.size)
        ]
    finally:
        free(rows.at)
        memset(rows, 0, sizeof(Rows))


# --- figures -----------------------------------------------------------------------------------

cdef dict service_figures(Service *service):
    return {
        "connections": figure(&service.connections),
        "active": figure(&service.active),
        "retries": figure(&service.retries),
        "failures": figure(&service.failures),
        "refused": figure(&service.refused),
        "bytes_in": figure(&service.bytes_in),
        "bytes_out": figure(&service.bytes_out),
        "datagrams_in": figure(&service.datagrams_in),
        "datagrams_out": figure(&service.datagrams_out),
        "datagrams_dropped": figure(&service.datagrams_dropped),
    }


cdef struct EndpointFigures:
    Address address
    uint64_t connections
    uint64_t active
    uint64_t failures
    uint64_t bytes_in
    uint64_t bytes_out


cdef EndpointFigures *copy_figures(Service *service, size_t *size) noexcept nogil:
    """Of all its endpoints, to be freed; NULL: no memory."""
    cdef Endpoint *endpoint
    cdef EndpointFigures *copies
    size[0] = 0
    pthread_mutex_lock(&service.mutex)
    endpoint = service.endpoints
    while endpoint != NULL:
        size[0] += 1
        endpoint = endpoint.after
    copies = <EndpointFigures *>malloc((size[0] + 1) * sizeof(EndpointFigures))
    endpoint = service.endpoints if copies != NULL else NULL
    size[0] = 0
    while endpoint != NULL:
        copies[size[0]].address = endpoint.address
        copies[size[0]].connections = figure(&endpoint.connections)
        copies[size[0]].active = figure(&endpoint.active)
        copies[size[0]].failures = figure(&endpoint.failures)
        copies[size[0]].bytes_in = figure(&endpoint.bytes_in)
        copies[size[0]].bytes_out = figure(&endpoint.bytes_out)
        size[0] += 1
        endpoint = endpoint.after
    pthread_mutex_unlock(&service.mutex)
    return copies


cdef dict endpoint_figures(Service *service):
    cdef size_t size, which
    cdef EndpointFigures *copies
    with nogil:
        copies = copy_figures(service, &size)
    if copies == NULL:
        raise MemoryError
    try:
        return {
            (host_of(&copies[which].address), ntohs(copies[which].address.v4.sin_port)): {
                "connections": copies[which].connections,
                "active": copies[which].active,
                "failures": copies[which].failures,
                "bytes_in": copies[which].bytes_in,
                "bytes_out": copies[which].bytes_out,
            }
            for which in range(size)
        }
    finally:
        free(copies)


cdef dict engine_figures(Engine *engine):
    cdef uint32_t which
    cdef Worker *worker
    names = ("flows", "sessions", "accept_pauses", "evicted", "buffered", "other_sources")
    sums = dict.fromkeys((*names, "no_ports"), 0)
    for which in range(engine.workers):
        worker = &engine.worker[which]
        sums["flows"] += figure(&worker.flow_count)
        sums["sessions"] += figure(&worker.session_count)
        sums["accept_pauses"] += figure(&worker.accept_pauses)
        sums["evicted"] += figure(&worker.evicted)
        sums["buffered"] += figure(&worker.buffered)
        sums["other_sources"] += figure(&worker.other_sources)
        sums["no_ports"] += figure(&worker.no_ports)
    sums["workers"] = engine.workers
    return sums


cdef list verdicts_taken(Engine *engine):
    """From the oldest; there are none afterwards."""
    cdef uint32_t size = 0, which
    cdef Verdict *taken
    with nogil:
        taken = <Verdict *>malloc(MOST_VERDICTS * sizeof(Verdict))
        if taken != NULL:
            pthread_mutex_lock(&engine.mutex)
            size = engine.verdict_size
            for which in range(size):
                taken[which] = engine.verdicts[(engine.verdict_first + which) % MOST_VERDICTS]
            engine.verdict_size = 0
            pthread_mutex_unlock(&engine.mutex)
    if taken == NULL:
        raise MemoryError
    try:
        return [
            (
                taken[which].service,
                host_of(&taken[which].address),
                ntohs(taken[which].address.v4.sin_port),
                OUTCOME_NAMES[taken[which].outcome],
            )
            for which in range(size)
        ]
    finally:
        free(taken)
