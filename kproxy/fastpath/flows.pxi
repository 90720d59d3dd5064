# Flows: kproxy.core.twin.flows, in 64 bytes each (IPv4; 128 for IPv6) and two cells of the index.

cdef enum:
    SYN_SENT = 0
    SYN_RECEIVED = 1
    PICKED_UP = 2
    ESTABLISHED = 3
    CLIENT_FINISHED = 4
    SERVER_FINISHED = 5
    CLOSED = 6
    RESET = 7
    UDP_NEW = 8
    UDP_ANSWERED = 9
    SCTP_NEW = 10
    SCTP_OPEN = 11
    SCTP_CLOSED = 12
    STATES = 13
    NO_STATE = 255

cdef enum:
    THERE = 0
    BACK = 1

# Lists of flows, in the order in which they came to be so.
cdef enum:
    LIST_UNCONFIRMED = 0
    LIST_ENDED = 1
    LIST_NONE = 2

cdef enum:
    FLOW_FREE = 0
    FLOW_USED = 1
    FLOW_DRAINING = 2

cdef uint64_t SWEEP = 4000000000ULL
cdef uint64_t MOST_SWEPT = 1024
cdef uint64_t TICK = 100000000ULL


# Its tuples by direction as its packets arrive, cut in two: ports here, addresses at the end (8 or
# 32 bytes a direction), so that IPv4 needs one cache line. What arrives one way leaves as the other
# way's tuple, turned round.
cdef struct Flow:
    uint16_t[4] ports      # network order: source and destination of each direction
    uint32_t[2] tags
    uint32_t deadline
    uint32_t version
    uint32_t endpoint
    uint32_t previous      # slot + 1
    uint32_t next          # slot + 1; of a free slot too
    uint32_t generation
    uint16_t copy          # of its first SYN, + 1
    uint8_t flags
    uint8_t protocol
    uint8_t state
    uint8_t[3] spare
    uint64_t[8] ends       # cut off after the second word for IPv4


cdef struct FlowTable:
    uint8_t *slots
    uint32_t stride
    uint32_t pair          # bytes of two addresses
    uint32_t limit
    uint32_t high
    uint32_t count
    uint32_t free
    uint32_t hand
    uint32_t[2] heads
    uint32_t[2] tails
    uint64_t swept
    Index index


cdef inline uint8_t list_of(uint8_t state) noexcept nogil:
    if (
        state == SYN_SENT
        or state == SYN_RECEIVED
        or state == PICKED_UP
        or state == UDP_NEW
        or state == SCTP_NEW
    ):
        return LIST_UNCONFIRMED
    if state == CLOSED or state == RESET or state == SCTP_CLOSED:
        return LIST_ENDED
    return LIST_NONE


cdef inline Flow *flow_at(const FlowTable *flows, uint32_t slot) noexcept nogil:
    return <Flow *>(flows.slots + <size_t>slot * flows.stride)


cdef inline uint32_t slot_of(const FlowTable *flows, const Flow *flow) noexcept nogil:
    return <uint32_t>((<const uint8_t *>flow - flows.slots) // flows.stride)


cdef inline uint8_t *ends_of(const FlowTable *flows, Flow *flow, int way) noexcept nogil:
    """Source and destination address of one direction."""
    return <uint8_t *>flow.ends + flows.pair * way


cdef inline bint flow_is(
    const FlowTable *flows, Flow *flow, int way, const Key *key
) noexcept nogil:
    cdef const uint8_t *wanted = <const uint8_t *>key.words
    cdef const uint8_t *ends = ends_of(flows, flow, way)
    cdef const uint8_t *ports = <const uint8_t *>&flow.ports[2 * way]
    if flows.pair == 8:
        return (
            raw64(ends) == raw64(wanted)
            and raw32(ports) == raw32(wanted + 8)
            and flow.protocol == wanted[12]
        )
    return (
        memcmp(ends, wanted, 32) == 0
        and raw32(ports) == raw32(wanted + 32)
        and flow.protocol == wanted[36]
    )


cdef inline Flow *flow_find(
    const FlowTable *flows, const Key *key, uint32_t tag, int *way
) noexcept nogil:
    cdef uint32_t at = tag & flows.index.mask
    cdef uint64_t cell
    cdef Flow *flow
    while True:
        cell = flows.index.cells[at]
        if cell == 0:
            return NULL
        if <uint32_t>(cell >> 32) == tag:
            flow = flow_at(flows, <uint32_t>cell - 1)
            if flow_is(flows, flow, THERE, key):
                way[0] = THERE
                return flow
            if flow_is(flows, flow, BACK, key):
                way[0] = BACK
                return flow
        at = (at + 1) & flows.index.mask


cdef inline uint32_t flow_hint(const FlowTable *flows, uint32_t tag) noexcept nogil:
    """The slot that the index most likely means, + 1; 0 for none. For prefetching only."""
    cdef uint32_t at = tag & flows.index.mask
    cdef uint64_t cell
    cdef int step
    for step in range(8):
        cell = flows.index.cells[at]
        if cell == 0 or <uint32_t>(cell >> 32) == tag:
            return <uint32_t>cell
        at = (at + 1) & flows.index.mask
    return 0


# --- lists -------------------------------------------------------------------------------------

cdef inline void list_append(FlowTable *flows, int which, Flow *flow) noexcept nogil:
    cdef uint32_t me = slot_of(flows, flow) + 1
    flow.previous = flows.tails[which]
    flow.next = 0
    if flows.tails[which]:
        flow_at(flows, flows.tails[which] - 1).next = me
    else:
        flows.heads[which] = me
    flows.tails[which] = me


cdef inline void list_remove(FlowTable *flows, int which, Flow *flow) noexcept nogil:
    if flow.previous:
        flow_at(flows, flow.previous - 1).next = flow.next
    else:
        flows.heads[which] = flow.next
    if flow.next:
        flow_at(flows, flow.next - 1).previous = flow.previous
    else:
        flows.tails[which] = flow.previous


# --- in and out --------------------------------------------------------------------------------

cdef void flow_remove(Engine_ *engine, FlowTable *flows, Flow *flow) noexcept nogil:
    """Both directions at once: half a flow would catch packets of the next one."""
    cdef uint32_t slot = slot_of(flows, flow)
    cdef Endpoint *endpoint = &engine.endpoints[flow.endpoint]
    cdef uint8_t which = list_of(flow.state)
    index_remove(&flows.index, flow.tags[THERE], slot)
    index_remove(&flows.index, flow.tags[BACK], slot)
    endpoint.references -= 1
    if which != LIST_ENDED:
        endpoint.active -= 1
    if which != LIST_NONE:
        list_remove(flows, which, flow)
    flow.flags = FLOW_FREE
    flow.copy = 0
    flow.generation += 1
    flow.next = flows.free
    flows.free = slot + 1
    flows.count -= 1


cdef bint flow_make_room(Engine_ *engine, FlowTable *flows) noexcept nogil:
    """Whether there is a slot, if need be one that was taken from another flow."""
    cdef Flow *next_
    if flows.count < flows.limit:
        return True
    if flows.heads[LIST_ENDED]:
        flow_remove(engine, flows, flow_at(flows, flows.heads[LIST_ENDED] - 1))
        engine.recycled += 1
        return True
    if flows.heads[LIST_UNCONFIRMED]:
        flow_remove(engine, flows, flow_at(flows, flows.heads[LIST_UNCONFIRMED] - 1))
        engine.recycled += 1
        # Under a flood the next one goes with the next packet: have its cells at hand then.
        if flows.heads[LIST_UNCONFIRMED]:
            next_ = flow_at(flows, flows.heads[LIST_UNCONFIRMED] - 1)
            kp_prefetch(&flows.index.cells[next_.tags[THERE] & flows.index.mask])
            kp_prefetch(&flows.index.cells[next_.tags[BACK] & flows.index.mask])
        return True
    return False


cdef Flow *flow_add(
    Engine_ *engine,
    FlowTable *flows,
    const Key *there,
    uint32_t there_tag,
    const Key *back,
    uint32_t back_tag,
    uint32_t endpoint,
    uint8_t state,
) noexcept nogil:
    """Room was made before; neither tuple is in the table."""
    cdef uint32_t slot
    cdef Flow *flow
    if flows.free:
        slot = flows.free - 1
        flow = flow_at(flows, slot)
        flows.free = flow.next
        if flows.free:
            kp_prefetch(flow_at(flows, flows.free - 1))
    else:
        slot = flows.high
        flow = flow_at(flows, slot)
        flows.high += 1
    flows.count += 1
    flow.flags = FLOW_USED
    flow.copy = 0
    flow.protocol = (<const uint8_t *>there.words)[flows.pair + 4]
    flow.state = state
    flow.endpoint = endpoint
    flow_set_end(flows, flow, THERE, there, there_tag, slot)
    flow_set_end(flows, flow, BACK, back, back_tag, slot)
    engine.endpoints[endpoint].references += 1
    engine.endpoints[endpoint].active += 1
    if list_of(state) == LIST_UNCONFIRMED:
        list_append(flows, LIST_UNCONFIRMED, flow)
    return flow


cdef inline void flow_set_end(
    FlowTable *flows, Flow *flow, int way, const Key *key, uint32_t tag, uint32_t slot
) noexcept nogil:
    cdef const uint8_t *raw = <const uint8_t *>key.words
    if flows.pair == 8:
        memcpy(ends_of(flows, flow, way), raw, 8)
        memcpy(&flow.ports[2 * way], raw + 8, 4)
    else:
        memcpy(ends_of(flows, flow, way), raw, 32)
        memcpy(&flow.ports[2 * way], raw + 32, 4)
    flow.tags[way] = tag
    index_insert(&flows.index, tag, slot)


cdef inline void flow_enter(
    Engine_ *engine, FlowTable *flows, Flow *flow, uint8_t state
) noexcept nogil:
    cdef uint8_t before = list_of(flow.state), after = list_of(state)
    if flow.state == state:
        return
    flow.state = state
    if before == after:
        return
    if before == LIST_UNCONFIRMED:
        list_remove(flows, LIST_UNCONFIRMED, flow)
    if after == LIST_ENDED:
        list_append(flows, LIST_ENDED, flow)
        engine.endpoints[flow.endpoint].active -= 1


cdef void flow_retarget(
    Engine_ *engine, FlowTable *flows, Flow *flow, const Key *back, uint32_t tag, uint32_t endpoint
) noexcept nogil:
    """An unanswered flow goes to another endpoint; ``back`` is not in the table."""
    cdef uint32_t slot = slot_of(flows, flow)
    index_remove(&flows.index, flow.tags[BACK], slot)
    flow_set_end(flows, flow, BACK, back, tag, slot)
    engine.endpoints[flow.endpoint].references -= 1
    engine.endpoints[flow.endpoint].active -= 1
    engine.endpoints[endpoint].references += 1
    engine.endpoints[endpoint].active += 1
    flow.endpoint = endpoint


cdef uint64_t flows_due(FlowTable *flows, uint64_t now) noexcept nogil:
    cdef uint64_t elapsed = now - flows.swept
    cdef uint64_t count
    if elapsed > SWEEP:
        elapsed = SWEEP
    count = elapsed * flows.high // SWEEP
    if count or not flows.high:
        flows.swept = now
    return count if count < MOST_SWEPT else MOST_SWEPT


cdef uint32_t flows_sweep(
    Engine_ *engine, FlowTable *flows, uint64_t count, uint64_t now
) noexcept nogil:
    """Look at the next slots; returns how many flows were past their deadline."""
    cdef uint32_t tick = <uint32_t>(now // TICK), gone = 0
    cdef uint64_t step
    cdef Flow *flow
    if count > flows.high:
        count = flows.high
    for step in range(count):
        flows.hand = flows.hand + 1 if flows.hand + 1 < flows.high else 0
        flow = flow_at(flows, flows.hand)
        if flow.flags and tick >= flow.deadline:
            flow_remove(engine, flows, flow)
            gone += 1
    return gone
