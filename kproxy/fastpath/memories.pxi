# What is remembered besides flows: affinity, and datagrams in parts (kproxy.core.twin.memory).

cdef struct Pinned:
    uint8_t[16] client
    uint32_t service
    uint32_t endpoint
    uint32_t serial
    uint32_t tick
    uint32_t tag
    uint32_t previous      # slot + 1
    uint32_t next
    uint32_t spare


cdef struct Affinities:
    Pinned *slots
    Index index
    uint32_t limit
    uint32_t count
    uint32_t head
    uint32_t tail


cdef inline uint32_t pinned_tag(
    const SipKey *key, const uint8_t *client, uint32_t service
) noexcept nogil:
    cdef uint8_t[24] data
    memcpy(data, client, 16)
    memset(data + 16, 0, 8)
    memcpy(data + 16, &service, 4)
    return <uint32_t>sip(key, data, 24)


cdef Pinned *pinned_find(
    const Affinities *known, const uint8_t *client, uint32_t service, uint32_t tag
) noexcept nogil:
    cdef uint32_t at = tag & known.index.mask
    cdef uint64_t cell
    cdef Pinned *pinned
    while True:
        cell = known.index.cells[at]
        if cell == 0:
            return NULL
        if <uint32_t>(cell >> 32) == tag:
            pinned = &known.slots[<uint32_t>cell - 1]
            if pinned.service == service and memcmp(pinned.client, client, 16) == 0:
                return pinned
        at = (at + 1) & known.index.mask


cdef inline void pinned_unlink(Affinities *known, Pinned *pinned) noexcept nogil:
    if pinned.previous:
        known.slots[pinned.previous - 1].next = pinned.next
    else:
        known.head = pinned.next
    if pinned.next:
        known.slots[pinned.next - 1].previous = pinned.previous
    else:
        known.tail = pinned.previous


cdef void pinned_keep(
    Affinities *known, const SipKey *key, const uint8_t *client, uint32_t service,
    uint32_t endpoint, uint32_t serial, uint32_t tick,
) noexcept nogil:
    """``client`` is 16 bytes, zeros after an IPv4 address. The oldest goes when room is short."""
    cdef uint32_t tag = pinned_tag(key, client, service)
    cdef Pinned *pinned
    cdef uint32_t slot
    if known.limit == 0:
        return
    pinned = pinned_find(known, client, service, tag)
    if pinned != NULL:
        slot = <uint32_t>(pinned - known.slots)
        pinned_unlink(known, pinned)
    else:
        if known.count < known.limit:
            slot = known.count
            known.count += 1
            pinned = &known.slots[slot]
        else:
            slot = known.head - 1
            pinned = &known.slots[slot]
            pinned_unlink(known, pinned)
            index_remove(&known.index, pinned.tag, slot)
        memcpy(pinned.client, client, 16)
        pinned.service = service
        pinned.tag = tag
        index_insert(&known.index, tag, slot)
    pinned.endpoint = endpoint
    pinned.serial = serial
    pinned.tick = tick
    pinned.previous = known.tail
    pinned.next = 0
    if known.tail:
        known.slots[known.tail - 1].next = slot + 1
    else:
        known.head = slot + 1
    known.tail = slot + 1


# --- datagrams in parts ------------------------------------------------------------------------

cdef struct Datagram:
    uint8_t[32] ends
    uint32_t id
    uint32_t protocol      # 0 for IPv6: options may stand between, in the first part only
    uint32_t tag
    uint32_t flow          # slot + 1; 0: it was none of ours
    uint32_t generation
    uint32_t way
    uint32_t until
    uint32_t spare


cdef struct Fragments:
    Datagram *slots
    Index index
    uint32_t limit
    uint32_t count
    uint32_t oldest


cdef inline void datagram_key(const View *view, Datagram *key) noexcept nogil:
    memset(key, 0, sizeof(Datagram))
    memcpy(key.ends, source_of(view), 2 * address_bytes(view))
    key.id = view.fragment
    key.protocol = 0 if view.family else view.protocol


cdef Datagram *datagram_find(
    const Fragments *known, const SipKey *key, Datagram *wanted
) noexcept nogil:
    """Fills in the tag of ``wanted``."""
    cdef uint32_t at
    cdef uint64_t cell
    cdef Datagram *found
    wanted.tag = <uint32_t>sip(key, <const uint8_t *>wanted, 40)
    at = wanted.tag & known.index.mask
    while True:
        cell = known.index.cells[at]
        if cell == 0:
            return NULL
        if <uint32_t>(cell >> 32) == wanted.tag:
            found = &known.slots[<uint32_t>cell - 1]
            if memcmp(found, wanted, 40) == 0:
                return found
        at = (at + 1) & known.index.mask


cdef void datagram_keep(
    Fragments *known, const SipKey *key, const View *view, uint32_t flow, uint32_t generation,
    int way, uint32_t tick,
) noexcept nogil:
    cdef Datagram wanted
    cdef Datagram *found
    cdef uint32_t slot
    if known.limit == 0:
        return
    datagram_key(view, &wanted)
    found = datagram_find(known, key, &wanted)
    if found == NULL:
        if known.count < known.limit:
            slot = known.count
            known.count += 1
        else:
            slot = known.oldest
            known.oldest = (known.oldest + 1) % known.limit
            index_remove(&known.index, known.slots[slot].tag, slot)
        found = &known.slots[slot]
        found[0] = wanted
        index_insert(&known.index, wanted.tag, slot)
    found.flow = flow
    found.generation = generation
    found.way = <uint32_t>way
    found.until = tick + 300
