"""Which endpoint serves a client: affinity first, else round robin over a shuffled list.

Affinity is a table by client address with chains, its size bounded, hashed with a key of this
process so that nobody can choose addresses that meet in one slot. Its entries also stand in a list
by age: what is too old is found at its head, and each look-up takes at most two of them away, so
that nothing ever has to go through the table.
"""

cdef enum:
    MOST_AFFINITIES = 65536
    FEWEST_SLOTS = 16


# --- hashing -----------------------------------------------------------------------------------

cdef inline uint64_t rotate(uint64_t word, int by) noexcept nogil:
    return word << by | word >> (64 - by)


cdef inline void sip_round(uint64_t *v) noexcept nogil:
    v[0] += v[1]
    v[2] += v[3]
    v[1] = rotate(v[1], 13) ^ v[0]
    v[3] = rotate(v[3], 16) ^ v[2]
    v[0] = rotate(v[0], 32)
    v[2] += v[1]
    v[0] += v[3]
    v[1] = rotate(v[1], 17) ^ v[2]
    v[3] = rotate(v[3], 21) ^ v[0]
    v[2] = rotate(v[2], 32)


cdef uint64_t keyed_hash(const uint64_t *key, const uint64_t *words, int size) noexcept nogil:
    """SipHash-1-3 of whole words (Aumasson and Bernstein 2012; one round a word, three at the end
    are what hash tables use): without the key nobody can tell which inputs meet."""
    cdef uint64_t v[4]
    cdef uint64_t last = <uint64_t>size << 59
    cdef int which
    v[0] = key[0] ^ 0x736F6D6570736575ULL
    v[1] = key[1] ^ 0x646F72616E646F6DULL
    v[2] = key[0] ^ 0x6C7967656E657261ULL
    v[3] = key[1] ^ 0x7465646279746573ULL
    for which in range(size):
        v[3] ^= words[which]
        sip_round(v)
        v[0] ^= words[which]
    v[3] ^= last
    sip_round(v)
    v[0] ^= last
    v[2] ^= 0xFF
    for which in range(3):
        sip_round(v)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


cdef uint64_t hash_address(const uint64_t *key, const Address *address, bint port) noexcept nogil:
    """Of the host, and of its port if asked."""
    cdef uint64_t words[3]
    words[0] = <uint64_t>address.v4.sin_port if port else 0
    if address.any.sa_family == AF_INET:
        words[0] |= <uint64_t>address.v4.sin_addr.s_addr << 32
        return keyed_hash(key, words, 1)
    memcpy(&words[1], &address.v6.sin6_addr, 16)
    return keyed_hash(key, words, 3)


cdef uint64_t draw(uint64_t *state) noexcept nogil:
    """xorshift128+: for shuffling, not for secrets."""
    cdef uint64_t one = state[0], other = state[1]
    state[0] = other
    one ^= one << 23
    state[1] = one ^ other ^ (one >> 17) ^ (other >> 26)
    return state[1] + other


# --- affinity ----------------------------------------------------------------------------------

# All with the service's mutex held.

cdef uint64_t hash_key[2]


cdef inline Affinity **affinity_slot(AffinityTable *table, const Address *client) noexcept nogil:
    return &table.slots[hash_address(hash_key, client, False) & (table.capacity - 1)]


cdef Affinity *affinity_find(Service *service, const Address *client) noexcept nogil:
    cdef Affinity *entry
    if service.affinity.size == 0:
        return NULL
    entry = affinity_slot(&service.affinity, client)[0]
    while entry != NULL and not same_host(&entry.client, client):
        entry = entry.chain
    return entry


cdef void affinity_unlink_endpoint(Affinity *entry) noexcept nogil:
    if entry.endpoint_before != NULL:
        entry.endpoint_before.endpoint_after = entry.endpoint_after
    else:
        entry.endpoint.affinities = entry.endpoint_after
    if entry.endpoint_after != NULL:
        entry.endpoint_after.endpoint_before = entry.endpoint_before


cdef void affinity_link_endpoint(Affinity *entry, Endpoint *endpoint) noexcept nogil:
    entry.endpoint = endpoint
    entry.endpoint_before = NULL
    entry.endpoint_after = endpoint.affinities
    if entry.endpoint_after != NULL:
        entry.endpoint_after.endpoint_before = entry
    endpoint.affinities = entry


cdef void affinity_unlink_age(AffinityTable *table, Affinity *entry) noexcept nogil:
    if entry.older != NULL:
        entry.older.newer = entry.newer
    else:
        table.oldest = entry.newer
    if entry.newer != NULL:
        entry.newer.older = entry.older
    else:
        table.newest = entry.older


cdef void affinity_link_newest(AffinityTable *table, Affinity *entry) noexcept nogil:
    entry.newer = NULL
    entry.older = table.newest
    if entry.older != NULL:
        entry.older.newer = entry
    else:
        table.oldest = entry
    table.newest = entry


cdef void affinity_remove(Service *service, Affinity *entry) noexcept nogil:
    cdef AffinityTable *table = &service.affinity
    cdef Affinity **at = affinity_slot(table, &entry.client)
    while at[0] != entry:
        at = &at[0].chain
    at[0] = entry.chain
    affinity_unlink_age(table, entry)
    affinity_unlink_endpoint(entry)
    free(entry)
    table.size -= 1


cdef void affinity_clear(Service *service) noexcept nogil:
    while service.affinity.oldest != NULL:
        affinity_remove(service, service.affinity.oldest)
    free(service.affinity.slots)
    memset(&service.affinity, 0, sizeof(AffinityTable))


cdef bint affinity_grow(AffinityTable *table) noexcept nogil:
    """As many slots as entries, by powers of two. False: no memory, and nothing changed."""
    cdef uint32_t capacity = max(<uint32_t>FEWEST_SLOTS, table.capacity * 2)
    cdef Affinity **slots = <Affinity **>calloc(capacity, sizeof(Affinity *))
    cdef Affinity *entry = table.oldest
    cdef Affinity **at
    if slots == NULL:
        return False
    free(table.slots)
    table.slots = slots
    table.capacity = capacity
    while entry != NULL:
        at = affinity_slot(table, &entry.client)
        entry.chain = at[0]
        at[0] = entry
        entry = entry.newer
    return True


cdef void affinity_expire(Service *service, int64_t now) noexcept nogil:
    cdef Affinity *oldest
    for _ in range(2):
        oldest = service.affinity.oldest
        if oldest == NULL or oldest.used + service.affinity_ns > now:
            return
        affinity_remove(service, oldest)


cdef Affinity *affinity_set(
    Service *service, const Address *client, Endpoint *endpoint, int64_t used
) noexcept nogil:
    """The newest entry now; ``used`` never falls from one call to the next. NULL: no memory; then
    the client has no affinity, and is served all the same."""
    cdef AffinityTable *table = &service.affinity
    cdef Affinity *entry = affinity_find(service, client)
    cdef Affinity **at
    if entry != NULL:
        affinity_unlink_age(table, entry)
        affinity_link_newest(table, entry)
        entry.used = used
        if entry.endpoint != endpoint:
            affinity_unlink_endpoint(entry)
            affinity_link_endpoint(entry, endpoint)
        return entry
    if table.size >= MOST_AFFINITIES:
        affinity_remove(service, table.oldest)
    if table.size >= table.capacity and not affinity_grow(table):
        return NULL
    entry = <Affinity *>calloc(1, sizeof(Affinity))
    if entry == NULL:
        return NULL
    entry.client = client[0]
    entry.used = used
    at = affinity_slot(table, client)
    entry.chain = at[0]
    at[0] = entry
    affinity_link_newest(table, entry)
    affinity_link_endpoint(entry, endpoint)
    table.size += 1
    return entry


cdef void affinity_forget(
    Service *service, const Address *client, const Endpoint *endpoint
) noexcept nogil:
    """After a failed try; takes the mutex. Another endpoint, chosen meanwhile, stays."""
    cdef Affinity *entry
    pthread_mutex_lock(&service.mutex)
    entry = affinity_find(service, client)
    if entry != NULL and entry.endpoint == endpoint:
        affinity_remove(service, entry)
    pthread_mutex_unlock(&service.mutex)


# --- the choice --------------------------------------------------------------------------------

cdef void tried_add(Tried *tried, const Endpoint *endpoint) noexcept nogil:
    if tried.size < MOST_TRIES:
        tried.serial[tried.size] = endpoint.serial
        tried.size += 1


cdef bint tried_has(const Tried *tried, const Endpoint *endpoint, bint refused) noexcept nogil:
    """Whether it was tried, or tried and said no."""
    cdef int which
    for which in range(tried.size):
        if tried.serial[which] == endpoint.serial:
            if not refused or tried.refused >> which & 1:
                return True
    return False


cdef inline bint has_turn(
    const EndpointList *places, const Turns *turns, uint32_t weight
) noexcept nogil:
    """Whether the one at the cursor is served in this round: in ``weight`` of ``most`` rounds, at
    even distances, which begin elsewhere for each place of the list."""
    if weight >= places.most:
        return True
    return (turns.round * weight + turns.cursor * places.most // places.size) % places.most < weight


cdef Endpoint *next_in_list(
    EndpointList *places, const Tried *tried, bint refused_only
) noexcept nogil:
    """Round robin by weight, past what was tried (or only past what said no). NULL: nobody is
    left."""
    # Further tries have a turn of their own: with one of two endpoints dead they would put the
    # other's turn forward each time, and every client met the dead one first.
    cdef Turns *turns = &places.turns if tried == NULL or not tried.size else &places.retries
    cdef Endpoint *endpoint
    cdef bint turn
    # Somebody in so many was not tried, or nobody is left. By weights, its turn may be rounds away.
    cdef uint32_t visits = min(places.size, <uint32_t>MOST_TRIES + 1)
    if places.most > 1:
        visits = places.size * places.most
    for _ in range(visits):
        if turns.cursor >= places.size:
            turns.cursor = 0
            turns.round = turns.round + 1 if turns.round + 1 < places.most else 0
        endpoint = places.at[turns.cursor]
        turn = has_turn(places, turns, endpoint.weight)
        turns.cursor += 1
        if turn and (tried == NULL or not tried_has(tried, endpoint, refused_only)):
            return endpoint
    return NULL


cdef Endpoint *pick(Service *service, int use, const Address *client, const Tried *tried,
                    int64_t now) noexcept nogil:
    """Locked: see :c:func:`choose`."""
    cdef EndpointList *places = &service.list[use]
    cdef Affinity *entry
    cdef Endpoint *endpoint = NULL
    if service.affinity_ns:
        affinity_expire(service, now)
        entry = affinity_find(service, client)
        if entry != NULL and entry.used + service.affinity_ns > now:
            endpoint = entry.endpoint
            if not endpoint.lists >> use & 1 or (
                    tried != NULL and tried_has(tried, endpoint, False)):
                endpoint = NULL
    if endpoint == NULL:
        endpoint = next_in_list(places, tried, False)
    if endpoint == NULL and tried != NULL and tried.size:
        # All were tried: one that did not answer may do so now, one that refused will not.
        endpoint = next_in_list(places, tried, True)
    if endpoint != NULL and service.affinity_ns:
        affinity_set(service, client, endpoint, now)
    return endpoint


cdef Endpoint *choose(Service *service, int use, const Address *client, const Tried *tried,
                      int64_t now) noexcept nogil:
    """An endpoint of the list ``use``, with a reference for the caller (endpoint_release) and
    counted as active; NULL if there is none to try. ``tried`` may be NULL."""
    cdef Endpoint *endpoint
    pthread_mutex_lock(&service.mutex)
    endpoint = pick(service, use, client, tried, now)
    if endpoint != NULL:
        endpoint.refs += 1
    pthread_mutex_unlock(&service.mutex)
    if endpoint != NULL:
        count(&endpoint.active, 1)
    return endpoint
