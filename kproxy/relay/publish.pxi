"""What Python publishes to the workers, without Python objects: lists, affinity, rows."""


cdef bint rows_add(
    Rows *rows, const Address *client, const Address *endpoint, int64_t at
) noexcept nogil:
    """False, and remembered: no memory."""
    cdef size_t capacity
    cdef Row *wider
    if rows.size == rows.capacity:
        capacity = max(<size_t>64, rows.capacity * 2)
        wider = <Row *>realloc(rows.at, capacity * sizeof(Row))
        if wider == NULL:
            rows.no_memory = True
            return False
        rows.at = wider
        rows.capacity = capacity
    rows.at[rows.size].client = client[0]
    rows.at[rows.size].endpoint = endpoint[0]
    rows.at[rows.size].at = at
    rows.size += 1
    return True


# --- endpoint lists ----------------------------------------------------------------------------

# A service's endpoints by place while they are compared with new ones; open addressing.
cdef struct Index:
    Endpoint **slots
    size_t capacity


cdef Endpoint **index_slot(Index *index, const Address *place) noexcept nogil:
    """Where it is, or where it would go."""
    cdef size_t at = hash_address(hash_key, place, True) & (index.capacity - 1)
    while index.slots[at] != NULL and not same_place(&index.slots[at].address, place):
        at = (at + 1) & (index.capacity - 1)
    return &index.slots[at]


cdef bint index_build(Index *index, Service *service, size_t more) noexcept nogil:
    """With room for so many more, at most half full. False: no memory."""
    cdef Endpoint *endpoint = service.endpoints
    cdef size_t wanted = more
    while endpoint != NULL:
        wanted += 1
        endpoint = endpoint.after
    index.capacity = 4
    while index.capacity < 2 * wanted:
        index.capacity *= 2
    index.slots = <Endpoint **>calloc(index.capacity, sizeof(Endpoint *))
    if index.slots == NULL:
        return False
    endpoint = service.endpoints
    while endpoint != NULL:
        endpoint.lists_next = 0
        index_slot(index, &endpoint.address)[0] = endpoint
        endpoint = endpoint.after
    return True


cdef bint mark_endpoints(
    Service *service, const Address *places, const uint8_t *lists, const uint8_t *weights,
    size_t size,
) noexcept nogil:
    """Locked: each place has its endpoint, new ones made, and that says which lists it will be in.
    False: no memory; then some endpoints are in no list and end with the next try."""
    cdef Index index
    cdef Endpoint **slot
    cdef size_t which
    if not index_build(&index, service, size):
        return False
    for which in range(size):
        slot = index_slot(&index, &places[which])
        if slot[0] == NULL:
            slot[0] = endpoint_new(service, &places[which])
        if slot[0] == NULL:
            break
        slot[0].lists_next |= lists[which]
        slot[0].weight = weights[which]
    else:
        which = size
    free(index.slots)
    return which == size


cdef bint list_changes(Service *service, int use, uint32_t *size) noexcept nogil:
    """Locked: whether other endpoints will be in the list; how many."""
    cdef Endpoint *endpoint = service.endpoints
    cdef bint changes = False
    size[0] = 0
    while endpoint != NULL:
        size[0] += endpoint.lists_next >> use & 1
        changes |= (endpoint.lists_next ^ endpoint.lists) >> use & 1
        endpoint = endpoint.after
    return changes


cdef void list_replace(
    Service *service, int use, Endpoint **room, uint64_t *random
) noexcept nogil:
    """Locked: fill ``room`` with those of the list to be, shuffled, and let it be the list."""
    cdef EndpointList *places = &service.list[use]
    cdef Endpoint *endpoint = service.endpoints
    cdef uint32_t size = 0, at
    while endpoint != NULL:
        if endpoint.lists_next >> use & 1:
            # Fisher and Yates, inside out.
            at = <uint32_t>(draw(random) % (size + 1))
            room[size] = room[at]
            room[at] = endpoint
            size += 1
        endpoint = endpoint.after
    free(places.at)
    places.at = room
    places.size = size
    memset(&places.turns, 0, sizeof(Turns))
    memset(&places.retries, 0, sizeof(Turns))


cdef void list_weigh(EndpointList *places) noexcept nogil:
    """Locked: as its endpoints weigh by now. Whose turn it is stays as it is."""
    cdef uint32_t which, weight, least = MOST_WEIGHT, most = 1
    for which in range(places.size):
        weight = places.at[which].weight
        least = min(least, weight)
        most = max(most, weight)
    places.most = most if least < most else 1


cdef bint settle_endpoints(Service *service) noexcept nogil:
    """Locked: what was to be is. True: some that were in a list are gone."""
    cdef Endpoint *endpoint = service.endpoints
    cdef Endpoint *after
    cdef bint went = False
    while endpoint != NULL:
        after = endpoint.after
        if endpoint.lists_next == 0 and endpoint.listed:
            went = True
            endpoint_gone(endpoint)
        elif endpoint.lists_next == 0 and endpoint.refs == 0:
            endpoint_free(endpoint)
        elif endpoint.lists_next:
            if not endpoint.listed:
                endpoint.listed = True
                endpoint.refs += 1
            endpoint.lists = endpoint.lists_next
        endpoint = after
    return went


cdef int replace_endpoints(
    Service *service, const Address *places, const uint8_t *lists, const uint8_t *weights,
    size_t size, uint64_t *random,
) noexcept nogil:
    """Locked. 1: endpoints went; 0: none did; -1: no memory, and the lists are as they were."""
    cdef Endpoint **room[2]
    cdef bint changes[2]
    cdef uint32_t wanted
    cdef int use
    room[0] = room[1] = NULL
    if not mark_endpoints(service, places, lists, weights, size):
        return -1
    for use in range(2):
        changes[use] = list_changes(service, use, &wanted)
        if changes[use]:
            room[use] = <Endpoint **>malloc(max(<size_t>1, wanted) * sizeof(Endpoint *))
            if room[use] == NULL:
                free(room[0])
                return -1
    for use in range(2):
        if changes[use]:
            list_replace(service, use, room[use], random)
        list_weigh(&service.list[use])
    return settle_endpoints(service)


# --- affinity handed over ----------------------------------------------------------------------

cdef void affinity_rows(Service *service, Rows *rows, int64_t now) noexcept nogil:
    """Locked: every client that is still bound; ``at`` is how long ago its last connection was."""
    cdef Affinity *entry = service.affinity.oldest
    while entry != NULL:
        if entry.used + service.affinity_ns > now:
            if not rows_add(rows, &entry.client, &entry.endpoint.address, now - entry.used):
                return
        entry = entry.newer


cdef void affinity_place(
    AffinityTable *table, Affinity *entry, Affinity *newer
) noexcept nogil:
    """From the end of the list by age to before ``newer``."""
    affinity_unlink_age(table, entry)
    entry.newer = newer
    entry.older = newer.older
    if entry.older != NULL:
        entry.older.newer = entry
    else:
        table.oldest = entry
    newer.older = entry


cdef void affinity_adopt(Service *service, const Rows *rows) noexcept nogil:
    """Locked: rows from the oldest to the newest, ``at`` being when. A client that we know already
    has been here since. One pass along the list keeps it in the order of age."""
    cdef AffinityTable *table = &service.affinity
    cdef Affinity *newer = table.oldest
    cdef Affinity *entry
    cdef Endpoint *endpoint
    cdef size_t which
    for which in range(rows.size):
        endpoint = endpoint_find(service, &rows.at[which].endpoint)
        if endpoint == NULL or not endpoint.lists or table.size >= MOST_AFFINITIES:
            continue
        if affinity_find(service, &rows.at[which].client) != NULL:
            continue
        while newer != NULL and newer.used <= rows.at[which].at:
            newer = newer.newer
        entry = affinity_set(service, &rows.at[which].client, endpoint, rows.at[which].at)
        if newer != NULL and entry != NULL:
            affinity_place(table, entry, newer)
