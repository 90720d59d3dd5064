"""Services and their endpoints: made, replaced, counted, and freed with the last reference.

``choose`` and what it stands on are in choose.pxi. Everything here that says *locked* is called
with the service's mutex held.
"""


cdef Service *service_new(uint32_t number, bint udp) noexcept nogil:
    """NULL: no memory. The caller has the first reference."""
    cdef Service *service = <Service *>calloc(1, sizeof(Service))
    if service == NULL:
        return NULL
    service.id = number
    service.refs = 1
    service.udp = udp
    pthread_mutex_init(&service.mutex, NULL)
    return service


cdef void service_release(Service *service) noexcept nogil:
    cdef Endpoint *endpoint
    if not let_go(&service.refs):
        return
    udp_service_free(service)
    affinity_clear(service)
    for use in range(2):
        free(service.list[use].at)
    while service.endpoints != NULL:
        endpoint = service.endpoints
        service.endpoints = endpoint.after
        free(endpoint)
    pthread_mutex_destroy(&service.mutex)
    free(service)


cdef Endpoint *endpoint_new(Service *service, const Address *address) noexcept nogil:
    """Locked. NULL: no memory. It is in no list yet and has no reference."""
    cdef Endpoint *endpoint = <Endpoint *>calloc(1, sizeof(Endpoint))
    if endpoint == NULL:
        return NULL
    service.last_serial += 1
    endpoint.serial = service.last_serial
    endpoint.service = service
    endpoint.address = address[0]
    endpoint.after = service.endpoints
    if endpoint.after != NULL:
        endpoint.after.before = endpoint
    service.endpoints = endpoint
    return endpoint


cdef Endpoint *endpoint_find(Service *service, const Address *address) noexcept nogil:
    """Locked. Among those that are gone as well. NULL: never seen, or long gone."""
    cdef Endpoint *endpoint = service.endpoints
    while endpoint != NULL and not same_place(&endpoint.address, address):
        endpoint = endpoint.after
    return endpoint


cdef void endpoint_drop(Endpoint *endpoint) noexcept nogil:
    """Locked. One reference less."""
    kp_check(endpoint.refs > 0)
    endpoint.refs -= 1
    if endpoint.refs == 0:
        endpoint_free(endpoint)


cdef void endpoint_free(Endpoint *endpoint) noexcept nogil:
    """Locked. Nobody refers to it."""
    kp_check(endpoint.affinities == NULL)
    if endpoint.before != NULL:
        endpoint.before.after = endpoint.after
    else:
        endpoint.service.endpoints = endpoint.after
    if endpoint.after != NULL:
        endpoint.after.before = endpoint.before
    free(endpoint)


cdef void endpoint_release(Endpoint *endpoint) noexcept nogil:
    """A flow or a session is done with it."""
    cdef Service *service = endpoint.service
    count(&endpoint.active, <uint64_t>-1)
    pthread_mutex_lock(&service.mutex)
    endpoint_drop(endpoint)
    pthread_mutex_unlock(&service.mutex)


cdef void endpoint_gone(Endpoint *endpoint) noexcept nogil:
    """Locked. It is in no list any more: nobody is sent there by affinity."""
    endpoint.lists = 0
    endpoint.listed = False
    while endpoint.affinities != NULL:
        affinity_remove(endpoint.service, endpoint.affinities)
    endpoint_drop(endpoint)


cdef void tell(Worker *worker, Endpoint *endpoint, Outcome outcome) noexcept nogil:
    """Keep what happened to an endpoint for take_verdicts; a success only after a failure."""
    cdef Engine *engine = worker.engine
    cdef Verdict *verdict
    if outcome == OUTCOME_OK:
        if not load_flag(&endpoint.failing):
            return
    else:
        count(&endpoint.failures, 1)
    store_flag(&endpoint.failing, outcome != OUTCOME_OK)
    pthread_mutex_lock(&engine.mutex)
    verdict = &engine.verdicts[(engine.verdict_first + engine.verdict_size) % MOST_VERDICTS]
    verdict.service = endpoint.service.id
    verdict.outcome = outcome
    verdict.address = endpoint.address
    if engine.verdict_size < MOST_VERDICTS:
        engine.verdict_size += 1
    else:
        engine.verdict_first = (engine.verdict_first + 1) % MOST_VERDICTS
    pthread_mutex_unlock(&engine.mutex)
