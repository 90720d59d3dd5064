# The ring of first SYNs (kproxy.core.twin.retry).

cdef enum:
    LONGEST_SYN = 192
    MOST_TRIES = 8
    MOST_VERDICTS = 4096

cdef enum:
    FOUND_REFUSED = 0
    FOUND_TIMEOUT = 1
    FOUND_UNREACHABLE = 2
    FOUND_OK = 3


cdef struct Copy:
    uint64_t deadline
    uint32_t flow          # slot + 1; 0: free
    uint32_t generation
    uint32_t length
    uint32_t sequence
    uint8_t family
    uint8_t use
    uint8_t masquerade
    uint8_t pending
    uint8_t has_header
    uint8_t try_count
    uint32_t[8] tried      # endpoints
    uint8_t[10] header
    uint8_t[192] packet


cdef struct Verdict:
    uint32_t service
    uint8_t finding
    uint8_t place_bytes
    uint8_t[18] place


cdef inline void copy_keep(
    Engine_ *engine, FlowTable *flows, Flow *flow, int use, bint masquerade, const View *view,
    const uint8_t *header, uint64_t now,
) noexcept nogil:
    cdef Copy *copy
    cdef Flow *old
    if flow.state != SYN_SENT or view.in_parts or engine.copy_limit == 0:
        return
    if view.length > LONGEST_SYN:
        return
    copy = &engine.copies[engine.copy_next]
    if copy.flow:
        old = copy_flow(engine, copy)
        if old != NULL and old.copy == engine.copy_next + 1:
            old.copy = 0
    copy.deadline = now + engine.patience
    copy.flow = slot_of(flows, flow) + 1
    copy.generation = flow.generation
    copy.length = view.length
    copy.sequence = big32(part(view, view.transport + 4, 4))
    copy.family = view.family
    copy.use = <uint8_t>use
    copy.masquerade = masquerade
    copy.pending = 0
    copy.has_header = header != NULL
    copy.try_count = 1
    copy.tried[0] = flow.endpoint
    if header != NULL:
        memcpy(copy.header, header, VNET_HEADER)
    memcpy(copy.packet, view.at, view.length)
    flow.copy = <uint16_t>(engine.copy_next + 1)
    engine.copy_next = engine.copy_next + 1 if engine.copy_next + 1 < engine.copy_limit else 0


cdef inline Flow *copy_flow(Engine_ *engine, const Copy *copy) noexcept nogil:
    """Its flow, NULL when that is gone."""
    cdef Flow *flow = flow_at(&engine.flows[copy.family], copy.flow - 1)
    return flow if flow.flags and flow.generation == copy.generation else NULL


cdef inline void copy_release(Engine_ *engine, Flow *flow) noexcept nogil:
    if flow.copy:
        engine.copies[flow.copy - 1].flow = 0
        flow.copy = 0


cdef inline Copy *copy_waiting(Engine_ *engine, Flow *flow, int way) noexcept nogil:
    if flow.copy == 0 or flow.state != SYN_SENT or way != BACK:
        return NULL
    return &engine.copies[flow.copy - 1]


cdef bint syn_refused(
    Engine_ *engine, Flow *flow, int way, const View *view
) noexcept nogil:
    """Whether a packet is the endpoint's RST in answer to the first SYN."""
    cdef Copy *copy = copy_waiting(engine, flow, way)
    cdef const uint8_t *at
    if copy == NULL or view.protocol != PROTO_TCP or view.event != EVENT_ABORT:
        return False
    at = part(view, view.transport, 20)
    if not at[13] & FLAG_ACK or big32(at + 8) != <uint32_t>(copy.sequence + 1):
        return False
    note_failure(engine, flow.endpoint, FOUND_REFUSED)
    return True


cdef bint syn_unreachable(
    Engine_ *engine, Flow *flow, int way, const View *view
) noexcept nogil:
    """Whether an ICMP error says that the first SYN did not arrive."""
    cdef Copy *copy = copy_waiting(engine, flow, way)
    cdef const uint8_t *at = part(view, view.transport, 2)
    if copy == NULL or at[0] != (1 if view.family else 3):
        return False
    if not view.family and at[1] == 4:
        return False
    if big32(part(view, view.inner + 4, 4)) != copy.sequence:
        return False
    note_failure(engine, flow.endpoint, FOUND_UNREACHABLE)
    return True


cdef bint syn_retarget(
    Engine_ *engine, Copy *copy, Flow *flow, uint64_t now
) noexcept nogil:
    """The flow goes to an endpoint that was not tried; False when there is none."""
    cdef FlowTable *flows = &engine.flows[copy.family]
    cdef uint32_t number = engine.endpoints[flow.endpoint].service
    cdef Service *service = engine.services[number].table
    cdef uint32_t tick = <uint32_t>(now // TICK)
    cdef Key there, back
    cdef uint32_t tag = 0
    cdef uint64_t word
    cdef Entry *entry
    cdef Endpoint *endpoint
    if service == NULL or copy.try_count >= engine.tries:
        return False
    if service.fates[copy.use] != FATE_FORWARD:
        return False
    flow_key_of(flows, flow, THERE, &there)
    word = key_hash(&engine.seed, &there, copy.family)
    entry = untried(service, copy, word)
    if entry == NULL:
        return False
    if not find_back(
        engine, flows, copy.family, &there, entry, copy.masquerade, word, tick, NULL, &back, &tag
    ):
        return False
    flow_retarget(engine, flows, flow, &back, tag, entry.endpoint)
    flow.version = engine.version
    flow.flags = FLOW_USED
    flow.deadline = tick + engine.timeouts[flow.state]
    endpoint = &engine.endpoints[entry.endpoint]
    endpoint.flows += 1
    copy.deadline = now + (engine.patience << copy.try_count)
    copy.tried[copy.try_count] = entry.endpoint
    copy.try_count += 1
    if service.sticky:
        keep_affinity(engine, copy.family, <const uint8_t *>there.words, number, entry.endpoint,
                      tick)
    return True


cdef Entry *untried(Service *service, const Copy *copy, uint64_t word) noexcept nogil:
    cdef const Chosen *chosen = &service.sets[copy.use]
    cdef uint32_t step, at
    cdef uint8_t one
    cdef bint known
    cdef Entry *entry
    if chosen.count == 0:
        return NULL
    at = <uint32_t>((word >> 32) % chosen.count)
    for step in range(chosen.count):
        entry = &service.entries[chosen.members[at]]
        known = False
        for one in range(copy.try_count):
            known = known or copy.tried[one] == entry.endpoint
        if not known:
            return entry
        at = at + 1 if at + 1 < chosen.count else 0
    return NULL


cdef void flow_key_of(FlowTable *flows, Flow *flow, int way, Key *key) noexcept nogil:
    cdef uint8_t *to = <uint8_t *>key.words
    memcpy(to, ends_of(flows, flow, way), flows.pair)
    put_tail(to + flows.pair, raw32(<const uint8_t *>&flow.ports[2 * way]), flow.protocol)


cdef void syn_send(
    Engine_ *engine, Copy *copy, Flow *flow, Packet *packet, uint8_t *at, uint64_t now
) noexcept nogil:
    """The first SYN in a buffer that it fits, as it is to go out now."""
    cdef View view
    copy.pending = 0
    memcpy(at, copy.packet, copy.length)
    view.at = at
    view.length = copy.length
    view.capacity = packet.capacity
    parse(&view)
    packet.length = copy.length
    if copy.has_header:
        memcpy(at - VNET_HEADER, copy.header, VNET_HEADER)
    send_on(engine, packet, &view, flow, THERE, now)


cdef bint syn_again(
    Engine_ *engine, Flow *flow, Packet *packet, View *view, uint64_t now
) noexcept nogil:
    """The packet becomes the first SYN, to another endpoint; False when there is none."""
    cdef Copy *copy = &engine.copies[flow.copy - 1]
    # A checksum that is unfinished can go out only with a header that says so.
    if copy.has_header != packet.header or not syn_retarget(engine, copy, flow, now):
        return False
    if copy.length > view.capacity:
        copy.pending = 1
        packet.code = CODE_STOLEN
        return True
    syn_send(engine, copy, flow, packet, view.at, now)
    return True


cdef uint32_t run_due(
    Engine_ *engine, uint8_t *memory, Packet *packets, uint32_t count, uint64_t now
) noexcept nogil:
    """First SYNs that go to another endpoint now, into so many packets; how many there were."""
    cdef uint32_t place, sent = 0
    cdef Copy *copy
    cdef Flow *flow
    for place in range(engine.copy_limit):
        if sent >= count:
            break
        copy = &engine.copies[place]
        if not copy.flow or (not copy.pending and now < copy.deadline):
            continue
        flow = copy_flow(engine, copy)
        if flow == NULL or flow.copy != place + 1 or flow.state != SYN_SENT:
            copy.flow = 0
            continue
        if <uint32_t>(now // TICK) >= flow.deadline:
            copy_release(engine, flow)
            continue
        if packets[sent].capacity < copy.length:
            break
        if not copy.pending:
            note_failure(engine, flow.endpoint, FOUND_TIMEOUT)
            if not syn_retarget(engine, copy, flow, now):
                copy_release(engine, flow)
                continue
        packets[sent].header = copy.has_header
        packets[sent].code = CODE_FORWARD
        packets[sent].reason = WHY_NONE
        syn_send(engine, copy, flow, &packets[sent], memory + packets[sent].offset, now)
        sent += 1
    return sent


# --- what was found out about endpoints --------------------------------------------------------

cdef void note(Engine_ *engine, uint32_t endpoint, uint8_t finding) noexcept nogil:
    cdef Verdict *verdict
    cdef Endpoint *known = &engine.endpoints[endpoint]
    if engine.verdict_count >= MOST_VERDICTS:
        return
    verdict = &engine.verdicts[engine.verdict_count]
    engine.verdict_count += 1
    verdict.service = known.service
    verdict.finding = finding
    verdict.place_bytes = known.place_bytes
    memcpy(verdict.place, known.place, 18)


cdef void note_failure(Engine_ *engine, uint32_t endpoint, uint8_t finding) noexcept nogil:
    engine.endpoints[endpoint].failures += 1
    engine.endpoints[endpoint].suspect = 1
    note(engine, endpoint, finding)


cdef void note_success(Engine_ *engine, uint32_t endpoint) noexcept nogil:
    if engine.endpoints[endpoint].suspect:
        engine.endpoints[endpoint].suspect = 0
        note(engine, endpoint, FOUND_OK)
