# What one process leaves to the next: flows, and which client is bound to which endpoint.

cdef enum:
    LEFT_FLOW = 1
    LEFT_AFFINITY = 2


# 136 bytes in the machine's order: it is read on the same machine, before it is started again.
# ``tick`` is a flow's deadline, or that of a client's last connection: the clock is that of all
# processes.
cdef struct Left:
    uint32_t service
    uint32_t tick
    uint8_t kind
    uint8_t family
    uint8_t state
    uint8_t place_bytes
    uint8_t[20] place
    uint8_t[16] client
    Key there
    Key back
    uint64_t spare


cdef inline void left_place(Left *left_, const Endpoint *endpoint) noexcept nogil:
    left_.service = endpoint.service
    left_.place_bytes = endpoint.place_bytes
    memcpy(left_.place, endpoint.place, 18)


cdef uint64_t leave(Engine_ *engine, Left *records, uint64_t room, uint32_t tick) noexcept nogil:
    """How many records were written."""
    cdef uint64_t count = 0
    cdef uint32_t slot
    cdef int family
    cdef FlowTable *flows
    cdef Flow *flow
    cdef Affinities *known
    cdef Pinned *pinned
    cdef Endpoint *endpoint
    cdef Left *record
    for family in range(2):
        flows = &engine.flows[family]
        for slot in range(flows.high):
            flow = flow_at(flows, slot)
            if not flow.flags or tick >= flow.deadline or count >= room:
                continue
            record = &records[count]
            count += 1
            memset(record, 0, sizeof(Left))
            left_place(record, &engine.endpoints[flow.endpoint])
            record.kind = LEFT_FLOW
            record.family = <uint8_t>family
            record.state = flow.state
            record.tick = flow.deadline
            flow_key_of(flows, flow, THERE, &record.there)
            flow_key_of(flows, flow, BACK, &record.back)
        # The one that was used longest ago first, so that they come in again in their order.
        known = &engine.affinities[family]
        slot = known.head
        while slot:
            pinned = &known.slots[slot - 1]
            slot = pinned.next
            endpoint = &engine.endpoints[pinned.endpoint]
            if endpoint.serial != pinned.serial or count >= room:
                continue
            record = &records[count]
            count += 1
            memset(record, 0, sizeof(Left))
            left_place(record, endpoint)
            record.service = pinned.service
            record.kind = LEFT_AFFINITY
            record.family = <uint8_t>family
            record.tick = pinned.tick
            memcpy(record.client, pinned.client, 16)
    return count


cdef bint take_flow(Engine_ *engine, const Left *record, uint32_t endpoint) noexcept nogil:
    """Whether it could be had: neither of its tuples is known."""
    cdef FlowTable *flows = &engine.flows[record.family]
    cdef uint32_t there_tag, back_tag
    cdef uint8_t state = record.state
    cdef int way
    cdef Flow *flow
    there_tag = <uint32_t>key_hash(&engine.flow_key, &record.there, record.family)
    back_tag = <uint32_t>key_hash(&engine.flow_key, &record.back, record.family)
    if flow_find(flows, &record.there, there_tag, &way) != NULL:
        return False
    if flow_find(flows, &record.back, back_tag, &way) != NULL or flows.count >= flows.limit:
        return False
    # As the first state of all, so that lists and counts are led as for any other flow.
    flow = flow_add(
        engine, flows, &record.there, there_tag, &record.back, back_tag, endpoint, PICKED_UP
    )
    flow_enter(engine, flows, flow, state)
    flow.version = 0
    flow.deadline = record.tick
    return True


def leave_flows(Engine engine not None, uint64_t now):
    """All flows and affinities as bytes, for :func:`take_flows` of another process."""
    cdef Engine_ *inner = &engine.engine
    cdef uint64_t room, count
    cdef Left *records
    room = inner.flows[0].count + inner.flows[1].count
    room += inner.affinities[0].count + inner.affinities[1].count
    records = <Left *>malloc((room + 1) * sizeof(Left))
    if records == NULL:
        raise MemoryError
    try:
        with nogil:
            pthread_mutex_lock(&inner.lock)
            count = leave(inner, records, room, <uint32_t>(now // TICK))
            pthread_mutex_unlock(&inner.lock)
        return (<uint8_t *>records)[:count * sizeof(Left)]
    finally:
        free(records)


def take_flows(Engine engine not None, data, dict numbers, uint64_t now):
    """Take over what was left by an engine whose service ``n`` is ``numbers[n]`` here; others are
    passed over. Endpoints that are named by no table are gone, and drain. How many there were."""
    cdef Engine_ *inner = &engine.engine
    cdef _Buffer buffer = _Buffer(data)
    cdef uint32_t tick = <uint32_t>(now // TICK), endpoint
    cdef uint64_t one, taken = 0
    cdef Left record
    if buffer.view.len % sizeof(Left):
        raise ValueError(f"records have {sizeof(Left)} bytes; got {buffer.view.len}")
    for one in range(<uint64_t>buffer.view.len // sizeof(Left)):
        memcpy(&record, buffer.cursor.at + one * sizeof(Left), sizeof(Left))
        if record.family > 1 or record.state >= STATES:
            raise ValueError("no such family or state")
        if record.place_bytes != (18 if record.family else 6):
            raise ValueError("no such endpoint")
        number = numbers.get(record.service)
        if number is None or number >= inner.service_limit:
            continue
        place = record.place[:record.place_bytes]
        where = engine._places.get(number, {}).get(place)
        if record.kind == LEFT_AFFINITY:
            if where is not None and record.tick <= tick:
                endpoint = where
                pthread_mutex_lock(&inner.lock)
                keep_affinity(
                    inner, record.family, record.client, number, endpoint, record.tick
                )
                pthread_mutex_unlock(&inner.lock)
                taken += 1
            continue
        if record.tick <= tick:
            continue
        if where is None:
            if inner.endpoint_count >= inner.endpoint_limit:
                continue
            where = engine._new_endpoint(number, place)
            engine._places.setdefault(number, {})[place] = where
            engine._gone[where] = (number, place)
            endpoint = where
            pthread_mutex_lock(&inner.lock)
            retire(inner, endpoint, tick)
            pthread_mutex_unlock(&inner.lock)
        endpoint = where
        pthread_mutex_lock(&inner.lock)
        taken += take_flow(inner, &record, endpoint)
        pthread_mutex_unlock(&inner.lock)
    return taken
