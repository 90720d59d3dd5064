"""How sessions are found and how they age; how clients are expected. No system call is made here.

Sessions stand in an open hash with linear probing, half full at most, by a keyed hash. Two lists
by age make expiry and eviction O(1).
"""


# --- by key ------------------------------------------------------------------------------------

cdef void key_of(
    SessionKey *key, const Address *client, const Address *local, uint32_t front
) noexcept nogil:
    """The local address is part of it: replies leave from where the client sent to, and a client
    may use two addresses of one service from one port."""
    memset(key, 0, sizeof(SessionKey))
    if client.any.sa_family == AF_INET:
        key.word[0] = client.v4.sin_addr.s_addr
        key.word[2] = local.v4.sin_addr.s_addr
    else:
        memcpy(&key.word[0], &client.v6.sin6_addr, 16)
        memcpy(&key.word[2], &local.v6.sin6_addr, 16)
        key.word[4] = client.v6.sin6_scope_id
    key.word[4] |= <uint64_t>client.v4.sin_port << 32
    key.word[5] = front


cdef inline bint same_key(const SessionKey *one, const SessionKey *other) noexcept nogil:
    return memcmp(one, other, sizeof(SessionKey)) == 0


cdef Session *table_find(
    const UdpWorker *own, const SessionKey *key, uint64_t hashed
) noexcept nogil:
    cdef uint32_t mask = own.capacity - 1
    cdef uint32_t at = <uint32_t>hashed & mask
    if own.capacity == 0:
        return NULL
    while own.slots[at].session != NULL:
        if own.slots[at].hash == hashed and same_key(&own.slots[at].session.key, key):
            return own.slots[at].session
        at = (at + 1) & mask
    return NULL


cdef inline void slot_fill(
    SessionSlot *slots, uint32_t mask, Session *session
) noexcept nogil:
    cdef uint32_t at = <uint32_t>session.hash & mask
    while slots[at].session != NULL:
        at = (at + 1) & mask
    slots[at].hash = session.hash
    slots[at].session = session


cdef bint table_grow(UdpWorker *own) noexcept nogil:
    """Twice the slots. False: no memory, and nothing changed."""
    cdef uint32_t capacity = max(<uint32_t>FEWEST_SESSION_SLOTS, own.capacity * 2)
    cdef SessionSlot *slots = <SessionSlot *>calloc(capacity, sizeof(SessionSlot))
    cdef uint32_t at
    if slots == NULL:
        return False
    for at in range(own.capacity):
        if own.slots[at].session != NULL:
            slot_fill(slots, capacity - 1, own.slots[at].session)
    free(own.slots)
    own.slots = slots
    own.capacity = capacity
    return True


cdef bint table_add(UdpWorker *own, Session *session) noexcept nogil:
    """False: no memory."""
    if own.size * 2 >= own.capacity and not table_grow(own):
        return False
    slot_fill(own.slots, own.capacity - 1, session)
    own.size += 1
    return True


cdef void table_remove(UdpWorker *own, const Session *session) noexcept nogil:
    """Those behind it move up, so that no probe ever stops at a hole before its aim (Knuth,
    The Art of Computer Programming vol. 3, 6.4, algorithm R)."""
    cdef uint32_t mask = own.capacity - 1
    cdef uint32_t hole = <uint32_t>session.hash & mask
    cdef uint32_t at, home
    while own.slots[hole].session != session:
        hole = (hole + 1) & mask
    at = (hole + 1) & mask
    while own.slots[at].session != NULL:
        home = <uint32_t>own.slots[at].hash & mask
        # It may fill the hole unless its home lies behind the hole, on its own way there.
        if (at - home & mask) >= (at - hole & mask):
            own.slots[hole] = own.slots[at]
            hole = at
        at = (at + 1) & mask
    own.slots[hole].session = NULL
    own.size -= 1


# --- by age ------------------------------------------------------------------------------------

cdef inline void ages_unlink(Session *session) noexcept nogil:
    cdef SessionAges *ages = session.aged_by
    if session.before != NULL:
        session.before.after = session.after
    else:
        ages.oldest = session.after
    if session.after != NULL:
        session.after.before = session.before
    else:
        ages.newest = session.before


cdef inline void ages_append(SessionAges *ages, Session *session) noexcept nogil:
    session.aged_by = ages
    session.after = NULL
    session.before = ages.newest
    if ages.newest != NULL:
        ages.newest.after = session
    else:
        ages.oldest = session
    ages.newest = session


cdef inline void session_used(Session *session, SessionAges *ages, int64_t now) noexcept nogil:
    """It is the newest of ``ages`` now."""
    session.used = now
    if ages.newest == session:
        return
    ages_unlink(session)
    ages_append(ages, session)


# --- clients that are expected -----------------------------------------------------------------

# All with the service's mutex held.

cdef UdpService *udp_service(Service *service) noexcept nogil:
    """Made at the first call. NULL: no memory."""
    if service.udp_own == NULL:
        service.udp_own = <UdpService *>calloc(1, sizeof(UdpService))
    return service.udp_own


cdef inline Expected **expected_slot(UdpService *own, const Address *client) noexcept nogil:
    return &own.slots[hash_address(hash_key, client, True) & (own.capacity - 1)]


cdef Expected *expected_find(UdpService *own, const Address *client) noexcept nogil:
    cdef Expected *entry
    if own == NULL or own.size == 0:
        return NULL
    entry = expected_slot(own, client)[0]
    while entry != NULL and not same_place(&entry.client, client):
        entry = entry.chain
    return entry


cdef void expected_remove(UdpService *own, Expected *entry) noexcept nogil:
    """The caller drops the endpoint's reference."""
    cdef Expected **at = expected_slot(own, &entry.client)
    while at[0] != entry:
        at = &at[0].chain
    at[0] = entry.chain
    if entry.before != NULL:
        entry.before.after = entry.after
    else:
        own.oldest = entry.after
    if entry.after != NULL:
        entry.after.before = entry.before
    else:
        own.newest = entry.before
    own.size -= 1
    free(entry)


cdef void expected_drop(UdpService *own, Expected *entry) noexcept nogil:
    cdef Endpoint *endpoint = entry.endpoint
    expected_remove(own, entry)
    endpoint_drop(endpoint)


cdef void expected_expire(UdpService *own, int64_t now) noexcept nogil:
    while own.oldest != NULL and own.oldest.until <= now:
        expected_drop(own, own.oldest)


cdef void expected_forget_gone(UdpService *own) noexcept nogil:
    cdef Expected *entry = own.oldest
    cdef Expected *after
    while entry != NULL:
        after = entry.after
        if not entry.endpoint.lists:
            expected_drop(own, entry)
        entry = after


cdef bint expected_grow(UdpService *own) noexcept nogil:
    """False: no memory, and nothing changed."""
    cdef uint32_t capacity = max(<uint32_t>FEWEST_SLOTS, own.capacity * 2)
    cdef Expected **slots = <Expected **>calloc(capacity, sizeof(Expected *))
    cdef Expected *entry = own.oldest
    cdef Expected **at
    if slots == NULL:
        return False
    free(own.slots)
    own.slots = slots
    own.capacity = capacity
    while entry != NULL:
        at = expected_slot(own, &entry.client)
        entry.chain = at[0]
        at[0] = entry
        entry = entry.after
    return True


cdef int udp_expect(Service *service, const Address *client, Endpoint *endpoint) noexcept nogil:
    """The client's next datagram goes to that endpoint, if it comes while a session would have
    lived. 0 or an errno. The table is as large as what is told: the caller bounds it."""
    cdef UdpService *own = udp_service(service)
    cdef Expected *entry
    cdef Expected **at
    if own == NULL:
        return ENOMEM
    entry = expected_find(own, client)
    if entry != NULL:
        expected_drop(own, entry)
    if own.size >= own.capacity and not expected_grow(own):
        return ENOMEM
    entry = <Expected *>calloc(1, sizeof(Expected))
    if entry == NULL:
        return ENOMEM
    entry.client = client[0]
    entry.endpoint = endpoint
    endpoint.refs += 1
    entry.until = now_ns() + EXPECTED_NS
    at = expected_slot(own, client)
    entry.chain = at[0]
    at[0] = entry
    entry.before = own.newest
    if own.newest != NULL:
        own.newest.after = entry
    else:
        own.oldest = entry
    own.newest = entry
    own.size += 1
    return 0


cdef void udp_service_free(Service *service) noexcept nogil:
    """Nobody else knows the service any more."""
    cdef UdpService *own = service.udp_own
    if own == NULL:
        return
    while own.oldest != NULL:
        expected_drop(own, own.oldest)
    free(own.slots)
    free(own.sessions)
    free(own)
    service.udp_own = NULL
