# What the engine is told: services, ways in, endpoints, the node. Built off line by the boundary,
# put in force under the lock.

cdef enum:
    CODE_FORWARD = 0
    CODE_PASS = 1
    CODE_DROP = 2
    CODE_REPLY = 3
    CODE_STOLEN = 4
    CODES = 5

cdef enum:
    WHY_NONE = 0
    WHY_MALFORMED = 1
    WHY_FRAGMENT = 2
    WHY_SOURCE = 3
    WHY_NO_LOCAL = 4
    WHY_NO_FLOW = 5
    WHY_STALE = 6
    WHY_FULL = 7
    WHY_NO_PORT = 8
    WHY_NO_ROOM = 9
    WHY_REFUSED = 10
    WHY_DRAINED = 11
    REASONS = 12

cdef enum:
    WAY_CLUSTER_IP = 0
    WAY_EXTERNAL_IP = 1
    WAY_LOAD_BALANCER = 2
    WAY_NODE_PORT = 3

cdef enum:
    FATE_FORWARD = 0
    FATE_REFUSE = 1
    FATE_DROP = 2

cdef enum:
    MAGLEV = 0
    RANDOM = 1
    LEAST = 2

cdef enum:
    CLIENT_POD = 0
    CLIENT_NODE = 1
    CLIENT_OTHER = 2

# Flags of a member: in which sets it is, and whether it is on this node.
cdef enum:
    IN_CLUSTER = 1
    IN_LOCAL = 2
    NEAR = 4

cdef uint32_t NEVER = UINT32_MAX


# An endpoint of a service, for as long as a table or a flow names it. The first 64 bytes are what
# an established flow touches.
cdef struct Endpoint:
    uint64_t[2] packets
    uint64_t[2] bytes
    uint64_t flows
    uint32_t active
    uint32_t references
    uint32_t until
    uint32_t serial
    uint32_t service
    uint32_t failures
    uint8_t flags
    uint8_t suspect
    uint8_t used
    uint8_t place_bytes
    uint8_t[18] place
    uint32_t next_free
    uint8_t[36] spare


cdef struct Range:
    uint8_t[16] net
    uint32_t bits


cdef struct Entry:
    uint8_t[16] address
    uint16_t port          # network order
    uint8_t flags
    uint8_t spare
    uint32_t weight
    uint32_t endpoint
    uint32_t spare_too     # 32 bytes: two to a cache line


cdef struct Chosen:
    uint32_t count
    uint32_t size          # of the Maglev table
    int which              # its class in the slab
    uint32_t *members      # indices of entries
    uint32_t *sums         # of weights, up to and with each member
    uint8_t *narrow        # Maglev table: indices of entries, 8 or 16 bits each
    uint16_t *wide


cdef struct WayKey:
    uint8_t[16] address    # zeros for a node port
    uint16_t port          # network order
    uint8_t protocol
    uint8_t family         # 0 or 1; | NODE_PORT for a node port
    uint8_t[4] zeros       # what is hashed ends here: 24 bytes
    uint32_t service
    uint32_t kind


cdef enum:
    NODE_PORT = 0x80
    WAY_HASHED = 24


cdef struct Service:
    uint8_t family
    uint8_t protocol
    uint8_t algorithm
    uint8_t limited        # loadBalancerSourceRanges
    uint8_t sticky
    uint8_t[2] fates
    uint8_t[2][3] rows     # set | 2 for masquerade
    uint32_t affinity      # ticks
    uint32_t entry_count
    uint32_t range_count
    uint32_t way_count
    uint32_t shared        # the local set uses the cluster set's Maglev table
    Entry *entries
    Range *ranges
    WayKey *ways
    Chosen[2] sets


# What choosing an endpoint reads, in one cache line; the rest is in the table.
cdef struct ServiceSlot:
    Service *table
    Entry *entries
    uint8_t *narrow[2]     # Maglev tables of both sets: indices of entries
    uint32_t[2] sizes
    uint32_t affinity      # ticks
    uint8_t[2][3] rows     # set | 2 for masquerade
    uint8_t[2] fates
    uint8_t algorithm
    uint8_t limited
    uint8_t sticky
    uint8_t wide           # the tables hold 16 bits a slot
    uint8_t[8] spare
    uint64_t[12] drops     # by reason; REFUSED and DRAINED were answered
    uint64_t[4] spare_too


cdef struct Node:
    uint32_t local_count
    uint32_t node_port_count
    uint32_t pod_count
    uint32_t first_port
    uint32_t last_port
    uint8_t localhost
    uint8_t masquerades
    uint8_t[16] masquerade
    uint8_t *local         # 16 bytes each, sorted
    uint8_t *node_ports
    Range *pods


cdef struct WayTable:
    WayKey *slots
    Index index
    uint32_t limit
    uint32_t count
    uint32_t high
    uint32_t free          # slot + 1; the next one is in `service`


cdef void free_service(Slab *slab, Service *service) noexcept nogil:
    cdef int which
    if service == NULL:
        return
    for which in range(2):
        free(service.sets[which].members)
        free(service.sets[which].sums)
        if which == 0 or not service.shared:
            slab_give(slab, service.sets[which].which, service.sets[which].narrow)
            slab_give(slab, service.sets[which].which, service.sets[which].wide)
    free(service.entries)
    free(service.ranges)
    free(service.ways)
    free(service)


cdef inline bint in_range(const Range *range_, const uint8_t *address) noexcept nogil:
    cdef uint32_t whole = range_.bits >> 3, rest = range_.bits & 7
    if memcmp(range_.net, address, whole) != 0:
        return False
    return rest == 0 or (range_.net[whole] ^ address[whole]) >> (8 - rest) == 0


cdef bint in_ranges(const Range *ranges, uint32_t count, const uint8_t *address) noexcept nogil:
    cdef uint32_t one
    for one in range(count):
        if in_range(&ranges[one], address):
            return True
    return False


cdef bint in_addresses(
    const uint8_t *sorted_, uint32_t count, const uint8_t *address
) noexcept nogil:
    cdef uint32_t low = 0, high = count, middle
    cdef int order
    if count <= 16:
        for middle in range(count):
            if raw64(sorted_) == raw64(address) and raw64(sorted_ + 8) == raw64(address + 8):
                return True
            sorted_ += 16
        return False
    while low < high:
        middle = (low + high) // 2
        order = memcmp(sorted_ + 16 * <size_t>middle, address, 16)
        if order == 0:
            return True
        if order < 0:
            low = middle + 1
        else:
            high = middle
    return False


# --- ways in -----------------------------------------------------------------------------------

cdef inline uint32_t way_tag(const SipKey *key, const WayKey *way) noexcept nogil:
    return <uint32_t>sip(key, <const uint8_t *>way, WAY_HASHED)


cdef inline bint same_way(const WayKey *one, const WayKey *other) noexcept nogil:
    cdef const uint8_t *at = <const uint8_t *>one
    cdef const uint8_t *to = <const uint8_t *>other
    return (
        raw64(at) == raw64(to)
        and raw64(at + 8) == raw64(to + 8)
        and raw64(at + 16) == raw64(to + 16)
    )


cdef WayKey *way_find(const WayTable *ways, uint32_t tag, const WayKey *wanted) noexcept nogil:
    cdef uint32_t at = tag & ways.index.mask
    cdef uint64_t cell
    cdef WayKey *found
    while True:
        cell = ways.index.cells[at]
        if cell == 0:
            return NULL
        if <uint32_t>(cell >> 32) == tag:
            found = &ways.slots[<uint32_t>cell - 1]
            if same_way(found, wanted):
                return found
        at = (at + 1) & ways.index.mask


cdef inline WayKey *way_hint(const WayTable *ways, uint32_t tag) noexcept nogil:
    """Most likely the one with this hash; NULL. For prefetching only."""
    cdef uint32_t at = tag & ways.index.mask
    cdef uint64_t cell
    cdef int step
    for step in range(8):
        cell = ways.index.cells[at]
        if cell == 0:
            return NULL
        if <uint32_t>(cell >> 32) == tag:
            return &ways.slots[<uint32_t>cell - 1]
        at = (at + 1) & ways.index.mask
    return NULL


cdef void way_put(WayTable *ways, const SipKey *key, const WayKey *way) noexcept nogil:
    """A way that is there already changes its owner. There is room."""
    cdef uint32_t tag = way_tag(key, way)
    cdef WayKey *found = way_find(ways, tag, way)
    cdef uint32_t slot
    if found != NULL:
        found[0] = way[0]
        return
    if ways.free:
        slot = ways.free - 1
        ways.free = ways.slots[slot].service
    else:
        slot = ways.high
        ways.high += 1
    ways.slots[slot] = way[0]
    ways.count += 1
    index_insert(&ways.index, tag, slot)


cdef void way_take(WayTable *ways, const SipKey *key, const WayKey *way) noexcept nogil:
    """Only if it is this service's still."""
    cdef uint32_t tag = way_tag(key, way)
    cdef WayKey *found = way_find(ways, tag, way)
    cdef uint32_t slot
    if found == NULL or found.service != way.service:
        return
    slot = <uint32_t>(found - ways.slots)
    index_remove(&ways.index, tag, slot)
    found.service = ways.free
    ways.free = slot + 1
    ways.count -= 1
