# From the flat bytes of kproxy.backends.fastpath.tables to what the engine reads.

cdef enum:
    BLOB_HEAD = 32
    BLOB_WAY = 20
    BLOB_MEMBER = 24
    BLOB_RANGE = 20


cdef inline uint32_t little32(const uint8_t *at) noexcept nogil:
    return little16(at) | little16(at + 2) << 16


cdef object read_service(const uint8_t *at, size_t length, Service **made):
    """A service without endpoints' slots; None, or what is wrong with the bytes."""
    cdef Service *service
    cdef size_t ways, members, ranges
    cdef int client
    made[0] = NULL
    if length < BLOB_HEAD:
        return f"{length} bytes are no service"
    ways, members, ranges = little32(at + 20), little32(at + 24), little32(at + 28)
    if length != BLOB_HEAD + ways * BLOB_WAY + members * BLOB_MEMBER + ranges * BLOB_RANGE:
        return f"{length} bytes do not hold {ways} ways, {members} members and {ranges} ranges"
    if at[0] > 1 or at[2] > LEAST or at[5] > FATE_DROP or at[6] > FATE_DROP or members > 65535:
        return "a field is out of range"
    for client in range(6):
        if at[7 + client] > 3:
            return "a row is out of range"
    service = <Service *>calloc(1, sizeof(Service))
    if service == NULL:
        raise MemoryError
    service.family = at[0]
    service.protocol = at[1]
    service.algorithm = at[2]
    service.limited = at[3] != 0
    service.sticky = at[4] != 0
    service.fates[0] = at[5]
    service.fates[1] = at[6]
    for client in range(3):
        service.rows[0][client] = at[7 + client]
        service.rows[1][client] = at[10 + client]
    service.affinity = little32(at + 16)
    service.way_count = <uint32_t>ways
    service.entry_count = <uint32_t>members
    service.range_count = <uint32_t>ranges
    service.ways = <WayKey *>calloc(ways + 1, sizeof(WayKey))
    # Two to a cache line, and none in two.
    service.entries = <Entry *>aligned_alloc(64, (members // 2 + 1) * 2 * sizeof(Entry))
    service.ranges = <Range *>calloc(ranges + 1, sizeof(Range))
    made[0] = service
    if service.ways == NULL or service.entries == NULL or service.ranges == NULL:
        raise MemoryError
    return read_parts(service, at + BLOB_HEAD)


cdef object read_parts(Service *service, const uint8_t *at):
    cdef uint32_t one, most = 128 if service.family else 32
    cdef WayKey *way
    cdef Entry *entry
    for one in range(service.way_count):
        way = &service.ways[one]
        way.kind = at[0]
        put_big16(<uint8_t *>&way.port, little16(at + 2))
        way.protocol = service.protocol
        way.family = service.family
        if way.kind > WAY_NODE_PORT:
            return "a way is of no kind"
        if way.kind == WAY_NODE_PORT:
            way.family |= NODE_PORT
        else:
            memcpy(way.address, at + 4, 16)
        at += BLOB_WAY
    memset(service.entries, 0, service.entry_count * sizeof(Entry))
    for one in range(service.entry_count):
        entry = &service.entries[one]
        memcpy(entry.address, at, 16)
        put_big16(<uint8_t *>&entry.port, little16(at + 16))
        entry.flags = at[18]
        entry.weight = little32(at + 20)
        if entry.weight == 0 or entry.weight > 65535:
            return "a weight is not within 1 and 65535"
        at += BLOB_MEMBER
    for one in range(service.range_count):
        memcpy(service.ranges[one].net, at, 16)
        service.ranges[one].bits = little32(at + 16)
        if service.ranges[one].bits > most:
            return f"a range has more than {most} bits"
        at += BLOB_RANGE
    return None


cdef bint fill_sets(Slab *slab, Service *service, const SipKey *seed) noexcept nogil:
    """Both sets with their tables; False without memory. The heavy part, off line."""
    cdef uint32_t one, in_both = 0, in_any = 0
    for one in range(service.entry_count):
        if service.entries[one].flags & (IN_CLUSTER | IN_LOCAL):
            in_any += 1
        if service.entries[one].flags & (IN_CLUSTER | IN_LOCAL) == (IN_CLUSTER | IN_LOCAL):
            in_both += 1
    service.shared = in_both == in_any
    return fill_set(slab, service, 0, IN_CLUSTER, seed) and fill_set(
        slab, service, 1, IN_LOCAL, seed
    )


cdef bint fill_set(
    Slab *slab, Service *service, int which, uint8_t flag, const SipKey *seed
) noexcept nogil:
    cdef Chosen *chosen = &service.sets[which]
    cdef uint32_t one, sum_ = 0
    chosen.members = <uint32_t *>calloc(service.entry_count + 1, 4)
    chosen.sums = <uint32_t *>calloc(service.entry_count + 1, 4)
    if chosen.members == NULL or chosen.sums == NULL:
        return False
    for one in range(service.entry_count):
        if service.entries[one].flags & flag:
            sum_ += service.entries[one].weight
            chosen.members[chosen.count] = one
            chosen.sums[chosen.count] = sum_
            chosen.count += 1
    if chosen.count == 0 or service.algorithm != MAGLEV:
        return True
    if which == 1 and service.shared:
        chosen.size = service.sets[0].size
        chosen.narrow = service.sets[0].narrow
        chosen.wide = service.sets[0].wide
        return True
    return fill_table(slab, service, chosen, seed)


cdef bint fill_table(
    Slab *slab, Service *service, Chosen *chosen, const SipKey *seed
) noexcept nogil:
    cdef int which = maglev_which(chosen.count)
    cdef Turn *turns = <Turn *>calloc(chosen.count, sizeof(Turn))
    cdef uint8_t[18] place
    cdef uint32_t one, size = 16 if service.family else 4
    cdef Entry *entry
    cdef uint64_t word
    chosen.size = MAGLEV_SIZES[which]
    chosen.which = which * 2 + (service.entry_count > 256)
    if service.entry_count <= 256:
        chosen.narrow = <uint8_t *>slab_take(slab, chosen.which)
    else:
        chosen.wide = <uint16_t *>slab_take(slab, chosen.which)
    if turns == NULL or (chosen.narrow == NULL and chosen.wide == NULL):
        free(turns)
        return False
    for one in range(chosen.count):
        entry = &service.entries[chosen.members[one]]
        memcpy(place, entry.address, size)
        memcpy(place + size, &entry.port, 2)
        word = sip(seed, place, size + 2)
        turns[one].offset = <uint32_t>word
        turns[one].skip = <uint32_t>(word >> 32)
        turns[one].weight = entry.weight
        turns[one].entry = chosen.members[one]
    maglev_fill(which, turns, chosen.count, chosen.narrow, chosen.wide)
    free(turns)
    return True


cdef size_t service_bytes(const Service *service) noexcept nogil:
    """Memory of a service's tables."""
    cdef size_t total = sizeof(Service)
    cdef int which
    total += (service.way_count + 1) * sizeof(WayKey)
    total += (service.entry_count + 1) * (sizeof(Entry) + 16) + service.range_count * sizeof(Range)
    for which in range(2):
        if which == 0 or not service.shared:
            total += <size_t>service.sets[which].size * (
                1 if service.sets[which].narrow != NULL else 2
            )
    return total


# --- in force ----------------------------------------------------------------------------------

cdef void withdraw(Engine_ *engine, Service *service) noexcept nogil:
    cdef uint32_t one
    for one in range(service.way_count):
        way_take(&engine.ways, &engine.flow_key, &service.ways[one])


cdef void put_in_force(Engine_ *engine, uint32_t number, Service *service) noexcept nogil:
    cdef uint32_t one
    cdef Endpoint *endpoint
    for one in range(service.entry_count):
        endpoint = &engine.endpoints[service.entries[one].endpoint]
        endpoint.until = NEVER
        endpoint.flags = service.entries[one].flags
    show_service(&engine.services[number], service)
    for one in range(service.way_count):
        service.ways[one].service = number
        way_put(&engine.ways, &engine.flow_key, &service.ways[one])


# What is to be put in force at once: numbers of services, endpoints' slots, tables.
cdef struct Change:
    uint32_t old_count
    uint32_t removed_count
    uint32_t retired_count
    uint32_t made_count
    Service **old
    uint32_t *removed
    uint32_t *retired
    uint32_t *numbers
    Service **made


cdef bint change_open(
    Change *change, size_t old, size_t removed, size_t retired, size_t made
) noexcept nogil:
    memset(change, 0, sizeof(Change))
    change.old = <Service **>calloc(old + 1, sizeof(Service *))
    change.removed = <uint32_t *>calloc(removed + 1, 4)
    change.retired = <uint32_t *>calloc(retired + 1, 4)
    change.numbers = <uint32_t *>calloc(made + 1, 4)
    change.made = <Service **>calloc(made + 1, sizeof(Service *))
    return (
        change.old != NULL
        and change.removed != NULL
        and change.retired != NULL
        and change.numbers != NULL
        and change.made != NULL
    )


cdef void change_close(Change *change) noexcept nogil:
    free(change.old)
    free(change.removed)
    free(change.retired)
    free(change.numbers)
    free(change.made)


cdef void locked_change(Engine_ *engine, Change *change, uint32_t tick) noexcept nogil:
    cdef uint32_t one
    pthread_mutex_lock(&engine.lock)
    for one in range(change.old_count):
        withdraw(engine, change.old[one])
    for one in range(change.removed_count):
        show_service(&engine.services[change.removed[one]], NULL)
    for one in range(change.retired_count):
        retire(engine, change.retired[one], tick)
    for one in range(change.made_count):
        put_in_force(engine, change.numbers[one], change.made[one])
    engine.version += 1
    pthread_mutex_unlock(&engine.lock)


cdef bint locked_reap(Engine_ *engine, uint32_t slot) noexcept nogil:
    """Whether an endpoint that is gone had no flow left; its slot is free then."""
    cdef Endpoint *endpoint = &engine.endpoints[slot]
    cdef bint idle
    pthread_mutex_lock(&engine.lock)
    idle = endpoint.references == 0
    if idle:
        endpoint.used = 0
        endpoint.next_free = engine.endpoint_free
        engine.endpoint_free = slot + 1
        engine.endpoint_count -= 1
    pthread_mutex_unlock(&engine.lock)
    return idle


cdef void show_service(ServiceSlot *slot, Service *service) noexcept nogil:
    """``service`` in the slot where packets look; NULL: none."""
    cdef int which
    slot.table = service
    if service == NULL:
        return
    slot.entries = service.entries
    for which in range(2):
        slot.narrow[which] = service.sets[which].narrow
        slot.sizes[which] = service.sets[which].size
        if service.sets[which].wide != NULL:
            slot.narrow[which] = <uint8_t *>service.sets[which].wide
    slot.wide = service.entry_count > 256
    slot.affinity = service.affinity
    memcpy(slot.rows, service.rows, sizeof(slot.rows))
    memcpy(slot.fates, service.fates, sizeof(slot.fates))
    slot.algorithm = service.algorithm
    slot.limited = service.limited
    slot.sticky = service.sticky


cdef void retire(Engine_ *engine, uint32_t slot, uint32_t tick) noexcept nogil:
    cdef Endpoint *endpoint = &engine.endpoints[slot]
    if endpoint.until != NEVER:
        return
    engine.serials += 1
    endpoint.serial = engine.serials
    endpoint.until = tick + engine.drain
    endpoint.flags = 0
