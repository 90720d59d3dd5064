# What becomes of each packet: kproxy.core.twin.engine, a batch at a time.

cdef enum:
    BATCH = 64


# One packet of a caller's buffer: 24 bytes. ``offset`` is that of its IP header; with ``header`` a
# virtio_net_hdr of 10 bytes stands right before. ``capacity`` counts from the offset on.
cdef struct Packet:
    uint64_t offset
    uint32_t length
    uint32_t capacity
    uint8_t code
    uint8_t reason
    uint8_t header
    uint8_t spare
    uint32_t service       # + 1; of a packet of a known service


cdef struct Engine_:
    pthread_mutex_t lock
    SipKey flow_key
    SipKey seed
    Slab slab
    FlowTable[2] flows
    Affinities[2] affinities
    Fragments[2] fragments
    WayTable ways
    Node[2] nodes
    ServiceSlot *services
    uint32_t service_limit
    uint32_t service_high
    Endpoint *endpoints
    uint32_t endpoint_limit
    uint32_t endpoint_high
    uint32_t endpoint_free
    uint32_t endpoint_count
    Copy *copies
    uint32_t copy_limit
    uint32_t copy_next
    Verdict *verdicts
    uint32_t verdict_count
    uint32_t version
    uint32_t serials
    uint64_t choices
    uint64_t patience
    uint32_t tries
    uint32_t drain
    uint32_t[13] timeouts
    uint8_t[130] transitions
    uint64_t[5] codes
    uint64_t[12] drops
    uint64_t recycled
    uint64_t expired


# How a new flow would be treated.
cdef struct Treatment:
    ServiceSlot *slot
    uint32_t number
    uint32_t kind
    uint8_t use
    uint8_t masquerade


cdef void run_batch(
    Engine_ *engine, uint8_t *memory, Packet *packets, uint32_t count, uint64_t now
) noexcept nogil:
    """Packets that come one after another are worked on stage by stage, so that the cache misses of
    one stage overlap: first the index, then the flow, then its endpoint."""
    cdef View[64] views
    cdef uint32_t first = 0, size, index
    cdef int family
    for family in range(2):
        engine.expired += flows_sweep(
            engine, &engine.flows[family], flows_due(&engine.flows[family], now), now
        )
    while first < count:
        size = count - first if count - first < BATCH else BATCH
        look_ahead(engine, memory, packets + first, views, size)
        for index in range(size):
            decide(engine, &packets[first + index], &views[index], now)
            engine.codes[packets[first + index].code] += 1
        first += size


# Whoever holds the lock takes nothing else, least of all the GIL: these do the whole of what is
# done under it, in a function without Python in it.

cdef void locked_batch(
    Engine_ *engine, uint8_t *memory, Packet *packets, uint32_t count, uint64_t now
) noexcept nogil:
    pthread_mutex_lock(&engine.lock)
    run_batch(engine, memory, packets, count, now)
    pthread_mutex_unlock(&engine.lock)


cdef uint32_t locked_due(
    Engine_ *engine, uint8_t *memory, Packet *packets, uint32_t count, uint64_t now
) noexcept nogil:
    cdef uint32_t sent
    pthread_mutex_lock(&engine.lock)
    sent = run_due(engine, memory, packets, count, now)
    pthread_mutex_unlock(&engine.lock)
    return sent


cdef uint32_t locked_sweep(Engine_ *engine, uint32_t count, uint64_t now) noexcept nogil:
    cdef uint32_t gone = 0
    cdef int family
    pthread_mutex_lock(&engine.lock)
    for family in range(2):
        gone += flows_sweep(engine, &engine.flows[family], count, now)
    engine.expired += gone
    pthread_mutex_unlock(&engine.lock)
    return gone


cdef inline void look_ahead(
    Engine_ *engine, uint8_t *memory, Packet *packets, View *views, uint32_t count
) noexcept nogil:
    """Parse all, and ask the memory for what deciding will read. It decides nothing: a packet may
    change what a later one of the batch finds."""
    cdef uint32_t one
    cdef View *view
    cdef FlowTable *flows
    cdef Flow *flow
    for one in range(count):
        view = &views[one]
        view.at = memory + packets[one].offset
        view.length = packets[one].length
        view.capacity = packets[one].capacity
        parse(view)
        view.slot = 0
        if view.kind == KIND_PORTS:
            key_of(view)
        elif view.kind == KIND_ERROR:
            inner_key_of(view)
        else:
            continue
        flows = &engine.flows[view.family]
        view.tag = <uint32_t>key_hash(&engine.flow_key, &view.key, view.family)
        kp_prefetch(&flows.index.cells[view.tag & flows.index.mask])
    for one in range(count):
        view = &views[one]
        if view.kind == KIND_PORTS or view.kind == KIND_ERROR:
            flows = &engine.flows[view.family]
            view.slot = flow_hint(flows, view.tag)
            if view.slot:
                flow = flow_at(flows, view.slot - 1)
                kp_prefetch(flow)
                if view.family:
                    kp_prefetch(<uint8_t *>flow + 64)
    cdef uint32_t[64] fresh
    cdef uint32_t fresh_count = 0
    for one in range(count):
        view = &views[one]
        if view.slot:
            flow = flow_at(&engine.flows[view.family], view.slot - 1)
            kp_prefetch(&engine.endpoints[flow.endpoint])
        elif view.kind == KIND_PORTS:
            fresh[fresh_count] = one
            fresh_count += 1
    if fresh_count:
        look_further(engine, views, fresh, fresh_count)


# What is on the way to being known of a first packet, for all first packets of the batch.
cdef struct Guess:
    WayKey wanted
    uint32_t tag
    WayKey *way
    ServiceSlot *slot      # NULL: not a service's, or found out later


cdef void look_further(
    Engine_ *engine, View *views, const uint32_t *fresh, uint32_t count
) noexcept nogil:
    """The same for packets that begin flows: way in, service, table, endpoint, and where in the
    index the answers' tuple belongs. Ways and services are as good as decided here."""
    cdef Guess[64] guesses
    cdef Guess *guess
    cdef View *view
    cdef uint32_t one
    for one in range(count):
        guess = &guesses[one]
        view = &views[fresh[one]]
        way_wanted(&guess.wanted, view.family, &view.key)
        guess.tag = way_tag(&engine.flow_key, &guess.wanted)
        kp_prefetch(&engine.ways.index.cells[guess.tag & engine.ways.index.mask])
    for one in range(count):
        guess = &guesses[one]
        guess.way = way_hint(&engine.ways, guess.tag)
        if guess.way != NULL:
            kp_prefetch(guess.way)
        view = &views[fresh[one]]
        view.word = key_hash(&engine.seed, &view.key, view.family)
        view.hashed = 1
    for one in range(count):
        guess = &guesses[one]
        guess.slot = NULL
        if guess.way != NULL and same_way(guess.way, &guess.wanted):
            guess.slot = &engine.services[guess.way.service]
            kp_prefetch(guess.slot)
    for one in range(count):
        guess = &guesses[one]
        if guess.slot != NULL:
            plan_ahead(engine, &views[fresh[one]], guess)
    for one in range(count):
        guess = &guesses[one]
        if guess.slot != NULL:
            view = &views[fresh[one]]
            view.entry = maglev_at(guess.slot, view.use, view.word)
            kp_prefetch(&guess.slot.entries[view.entry])
    for one in range(count):
        guess = &guesses[one]
        if guess.slot != NULL:
            back_ahead(engine, &views[fresh[one]], guess.slot)


cdef inline void plan_ahead(Engine_ *engine, View *view, Guess *guess) noexcept nogil:
    """The treatment, and where in the Maglev table to look, if that is how the service chooses."""
    cdef ServiceSlot *slot = guess.slot
    cdef Treatment treatment
    treat(engine, view.family, &view.key, guess.way, &treatment)
    view.planned = 1
    view.number = treatment.number
    view.way_kind = treatment.kind
    view.use = treatment.use
    view.masquerade = treatment.masquerade
    if slot.algorithm != MAGLEV or slot.sizes[view.use] == 0:
        guess.slot = NULL
        return
    kp_prefetch(
        slot.narrow[view.use] + (<uint32_t>(view.word % slot.sizes[view.use]) << slot.wide)
    )


cdef inline void back_ahead(
    Engine_ *engine, View *view, const ServiceSlot *slot
) noexcept nogil:
    cdef FlowTable *flows = &engine.flows[view.family]
    cdef const Node *node = &engine.nodes[view.family]
    cdef const Entry *entry = &slot.entries[view.entry]
    cdef const uint8_t *raw = <const uint8_t *>view.key.words
    cdef const uint8_t *hidden = <const uint8_t *>node.masquerade
    cdef uint16_t sport = raw16(raw + flows.pair)
    cdef uint32_t port
    kp_prefetch(&engine.endpoints[entry.endpoint])
    if not view.masquerade:
        hidden = raw
    else:
        port = node.first_port + <uint32_t>(
            (view.word >> 32) % (node.last_port - node.first_port + 1)
        )
        put_big16(<uint8_t *>&sport, port)
    put_key(&view.back, view.family, entry.address, hidden, entry.port, sport, raw[flows.pair + 4])
    view.back_tag = <uint32_t>key_hash(&engine.flow_key, &view.back, view.family)
    view.hashed = 2
    kp_prefetch(&flows.index.cells[view.back_tag & flows.index.mask])


cdef inline void drop(
    Engine_ *engine, Packet *packet, uint8_t why, Treatment *treatment
) noexcept nogil:
    packet.code = CODE_DROP
    packet.reason = why
    engine.drops[why] += 1
    if treatment != NULL:
        engine.services[treatment.number].drops[why] += 1


cdef inline uint8_t *header_of(const Packet *packet, const View *view) noexcept nogil:
    return view.at - VNET_HEADER if packet.header else NULL


cdef inline void decide(
    Engine_ *engine, Packet *packet, View *view, uint64_t now
) noexcept nogil:
    packet.code = CODE_PASS
    packet.reason = WHY_NONE
    packet.service = 0
    if kp_likely(view.kind == KIND_PORTS):
        decide_ports(engine, packet, view, now)
    elif view.kind == KIND_OTHER:
        not_ours(engine, view, now)
    elif view.kind == KIND_LATER:
        decide_later(engine, packet, view, now)
    elif view.kind == KIND_ERROR:
        decide_error(engine, packet, view, now)
    else:
        drop(engine, packet, WHY_MALFORMED, NULL)


cdef void not_ours(Engine_ *engine, View *view, uint64_t now) noexcept nogil:
    if view.in_parts:
        datagram_keep(
            &engine.fragments[view.family], &engine.flow_key, view, 0, 0, THERE,
            <uint32_t>(now // TICK),
        )


cdef void decide_later(
    Engine_ *engine, Packet *packet, View *view, uint64_t now
) noexcept nogil:
    cdef Fragments *known = &engine.fragments[view.family]
    cdef FlowTable *flows = &engine.flows[view.family]
    cdef Datagram wanted
    cdef Datagram *found
    cdef Flow *flow
    cdef Endpoint *endpoint
    cdef const uint8_t *ends
    cdef uint32_t size = address_bytes(view)
    datagram_key(view, &wanted)
    found = datagram_find(known, &engine.flow_key, &wanted)
    if found == NULL or <uint32_t>(now // TICK) >= found.until:
        drop(engine, packet, WHY_FRAGMENT, NULL)
        return
    if found.flow == 0:
        return
    flow = flow_at(flows, found.flow - 1)
    if not flow.flags or flow.generation != found.generation:
        drop(engine, packet, WHY_FRAGMENT, NULL)
        return
    endpoint = &engine.endpoints[flow.endpoint]
    endpoint.packets[found.way] += 1
    endpoint.bytes[found.way] += view.end
    ends = ends_of(flows, flow, 1 - <int>found.way)
    move_addresses(view, ends + size, ends)
    packet.code = CODE_FORWARD
    packet.service = endpoint.service + 1


cdef void decide_error(
    Engine_ *engine, Packet *packet, View *view, uint64_t now
) noexcept nogil:
    cdef FlowTable *flows = &engine.flows[view.family]
    cdef int way = THERE, state
    cdef Flow *flow = flow_find(flows, &view.key, view.tag, &way)
    cdef uint32_t size = address_bytes(view)
    cdef const uint8_t *ends
    cdef const uint8_t *sent
    cdef const uint8_t *source
    cdef bint own
    if flow == NULL or <uint32_t>(now // TICK) >= flow.deadline:
        return
    ends = ends_of(flows, flow, way)
    if memcmp(destination_of(view), ends + size, size) != 0:
        return
    state = checksum_state(view, header_of(packet, view))
    if state == 2:
        drop(engine, packet, WHY_MALFORMED, NULL)
        return
    if syn_unreachable(engine, flow, way, view) and syn_again(engine, flow, packet, view, now):
        return
    # A router on the way keeps its own address: traceroute wants to see it.
    own = memcmp(source_of(view), ends, size) == 0
    sent = ends_of(flows, flow, 1 - way)
    source = sent + size if own else source_of(view)
    translate_error(
        view, source, sent, sent, sent + size, flow.ports[2 * (1 - way)],
        flow.ports[2 * (1 - way) + 1], state == 1,
    )
    packet.code = CODE_FORWARD
    packet.service = engine.endpoints[flow.endpoint].service + 1


cdef inline void decide_ports(
    Engine_ *engine, Packet *packet, View *view, uint64_t now
) noexcept nogil:
    cdef FlowTable *flows = &engine.flows[view.family]
    cdef uint32_t tick = <uint32_t>(now // TICK)
    cdef int way = THERE
    cdef Flow *flow = flow_find(flows, &view.key, view.tag, &way)
    if flow != NULL and tick >= flow.deadline:
        flow_remove(engine, flows, flow)
        flow = NULL
    if flow == NULL:
        first_packet(engine, packet, view, now)
        return
    if view.event == EVENT_BEGIN and way == THERE and list_of(flow.state) == LIST_ENDED:
        flow_remove(engine, flows, flow)
        first_packet(engine, packet, view, now)
        return
    if flow.version != engine.version and not check_again(engine, flows, flow):
        flow_remove(engine, flows, flow)
        if way == BACK:
            drop(engine, packet, WHY_STALE, NULL)
        else:
            first_packet(engine, packet, view, now)
        return
    flow_hit(engine, packet, view, flows, flow, way, now)


# --- packets of a flow -------------------------------------------------------------------------

cdef inline void flow_hit(
    Engine_ *engine, Packet *packet, View *view, FlowTable *flows, Flow *flow, int way,
    uint64_t now,
) noexcept nogil:
    cdef uint32_t tick = <uint32_t>(now // TICK)
    cdef uint8_t state
    if packet.header and checksum_state(view, header_of(packet, view)) == 2:
        drop(engine, packet, WHY_MALFORMED, NULL)
        return
    if flow.flags & FLOW_DRAINING and tick >= engine.endpoints[flow.endpoint].until:
        drained(engine, packet, view, flows, flow)
        return
    if flow.copy and way == BACK and syn_refused(engine, flow, way, view):
        if syn_again(engine, flow, packet, view, now):
            return
    state = engine.transitions[(flow.state * 2 + way) * 5 + view.event]
    if state != flow.state:
        if flow.state == SYN_SENT:
            copy_release(engine, flow)
            if view.event == EVENT_AGREE:
                note_success(engine, flow.endpoint)
        flow_enter(engine, flows, flow, state)
    flow.deadline = tick + engine.timeouts[state]
    send_on(engine, packet, view, flow, way, now)


cdef inline void send_on(
    Engine_ *engine, Packet *packet, View *view, Flow *flow, int way, uint64_t now
) noexcept nogil:
    cdef FlowTable *flows = &engine.flows[view.family]
    cdef Endpoint *endpoint = &engine.endpoints[flow.endpoint]
    cdef uint32_t size = address_bytes(view)
    cdef const uint8_t *ends = ends_of(flows, flow, 1 - way)
    cdef const uint16_t *ports = &flow.ports[2 * (1 - way)]
    cdef bint partial = packet.header and checksum_state(view, header_of(packet, view)) == 1
    endpoint.packets[way] += 1
    endpoint.bytes[way] += view.end
    if view.in_parts:
        datagram_keep(
            &engine.fragments[view.family], &engine.flow_key, view, slot_of(flows, flow) + 1,
            flow.generation, way, <uint32_t>(now // TICK),
        )
    translate(view, ends + size, ends, ports[1], ports[0], partial)
    packet.code = CODE_FORWARD
    packet.reason = WHY_NONE
    packet.service = endpoint.service + 1


cdef void drained(
    Engine_ *engine, Packet *packet, View *view, FlowTable *flows, Flow *flow
) noexcept nogil:
    cdef Treatment treatment
    treatment.number = engine.endpoints[flow.endpoint].service
    flow_remove(engine, flows, flow)
    if view.protocol != PROTO_TCP or view.event == EVENT_ABORT:
        drop(engine, packet, WHY_STALE, &treatment)
        return
    answer(engine, packet, view, WHY_DRAINED, &treatment)


cdef void answer(
    Engine_ *engine, Packet *packet, View *view, uint8_t why, Treatment *treatment
) noexcept nogil:
    """RST for TCP, port unreachable for all else, in place of the packet."""
    cdef uint32_t length
    if not answerable(view):
        drop(engine, packet, WHY_MALFORMED, treatment)
        return
    length = build_reset(view) if view.protocol == PROTO_TCP else build_unreachable(view)
    if length == 0:
        drop(engine, packet, WHY_NO_ROOM, treatment)
        return
    if packet.header:
        memset(view.at - VNET_HEADER, 0, VNET_HEADER)
    packet.length = length
    packet.code = CODE_REPLY
    packet.reason = why
    packet.service = treatment.number + 1
    engine.services[treatment.number].drops[why] += 1


cdef bint check_again(Engine_ *engine, FlowTable *flows, Flow *flow) noexcept nogil:
    """A flow that was judged by older tables: may it go on?"""
    if flow.protocol == PROTO_UDP and not still_right(engine, flows, flow):
        return False
    flow.flags = FLOW_USED
    if engine.endpoints[flow.endpoint].until != NEVER:
        flow.flags |= FLOW_DRAINING
    flow.version = engine.version
    return True


cdef bint still_right(Engine_ *engine, FlowTable *flows, Flow *flow) noexcept nogil:
    cdef Endpoint *endpoint = &engine.endpoints[flow.endpoint]
    cdef uint8_t family = 0 if flows.pair == 8 else 1
    cdef Treatment treatment
    cdef Key there
    if endpoint.until != NEVER:
        return False
    flow_key_of(flows, flow, THERE, &there)
    if not find_treatment(engine, family, &there, &treatment):
        return False
    if treatment.number != endpoint.service:
        return False
    if fate_of(&treatment, <const uint8_t *>there.words) != WHY_NONE:
        return False
    return treatment.use == 0 or (endpoint.flags & NEAR) != 0


# --- first packets -----------------------------------------------------------------------------

cdef bint find_treatment(
    Engine_ *engine, uint8_t family, const Key *there, Treatment *treatment
) noexcept nogil:
    """False when nobody here is asked for."""
    cdef WayKey wanted
    cdef WayKey *way
    way_wanted(&wanted, family, there)
    way = way_find(&engine.ways, way_tag(&engine.flow_key, &wanted), &wanted)
    if way == NULL:
        if not answers_node_ports(&engine.nodes[family], family, wanted.address):
            return False
        memset(wanted.address, 0, 16)
        wanted.family = family | NODE_PORT
        way = way_find(&engine.ways, way_tag(&engine.flow_key, &wanted), &wanted)
        if way == NULL:
            return False
    treat(engine, family, there, way, treatment)
    return True


cdef inline void treat(
    Engine_ *engine, uint8_t family, const Key *there, const WayKey *way, Treatment *treatment
) noexcept nogil:
    cdef ServiceSlot *slot = &engine.services[way.service]
    cdef uint8_t row = slot.rows[0 if way.kind == WAY_CLUSTER_IP else 1][
        client_of(&engine.nodes[family], family, <const uint8_t *>there.words)
    ]
    treatment.slot = slot
    treatment.number = way.service
    treatment.kind = way.kind
    treatment.use = row & 1
    treatment.masquerade = row >> 1


cdef inline void way_wanted(WayKey *wanted, uint8_t family, const Key *there) noexcept nogil:
    """The way that a packet comes in by, if its destination is an address of a service."""
    cdef const uint8_t *raw = <const uint8_t *>there.words
    cdef uint64_t[2] address
    cdef uint64_t tail
    # In whole words, as put_tail: port, protocol, family, four zero bytes.
    if family:
        memcpy(address, raw + 16, 16)
        raw += 34
    else:
        memset(address, 0, 16)
        memcpy(address, raw + 4, 4)
        raw += 10
    memcpy(wanted.address, address, 16)
    if LITTLE_ENDIAN:
        tail = raw16(raw) | <uint64_t>raw[2] << 16 | <uint64_t>family << 24
        memcpy(<uint8_t *>wanted + 16, &tail, 8)
    else:
        memset(<uint8_t *>wanted + 16, 0, 8)
        wanted.port = raw16(raw)
        wanted.protocol = raw[2]
        wanted.family = family


cdef inline bint answers_node_ports(
    const Node *node, uint8_t family, const uint8_t *address
) noexcept nogil:
    """``address`` is 16 bytes, zeros after an IPv4 one."""
    if not family and address[0] == 127:
        return node.localhost
    return in_addresses(node.node_ports, node.node_port_count, address)


cdef int client_of(const Node *node, uint8_t family, const uint8_t *source) noexcept nogil:
    """Pod first: a node's address inside the pods' range cannot be told from a pod's."""
    if in_ranges(node.pods, node.pod_count, source):
        return CLIENT_POD
    return CLIENT_NODE if is_ours(node, family, source) else CLIENT_OTHER


cdef bint is_ours(const Node *node, uint8_t family, const uint8_t *source) noexcept nogil:
    """Whether this node sends from an address."""
    cdef uint8_t[16] padded
    cdef int byte
    memset(padded, 0, 16)
    memcpy(padded, source, 16 if family else 4)
    if family:
        for byte in range(15):
            if padded[byte]:
                break
        else:
            if padded[15] == 1:
                return True
    elif padded[0] == 127:
        return True
    return in_addresses(node.local, node.local_count, padded)


cdef inline uint8_t fate_of(const Treatment *treatment, const uint8_t *source) noexcept nogil:
    """Why a flow cannot begin."""
    cdef const Service *service = treatment.slot.table
    cdef uint8_t fate = treatment.slot.fates[treatment.use]
    if fate == FATE_REFUSE:
        return WHY_REFUSED
    if treatment.slot.limited and treatment.kind == WAY_LOAD_BALANCER:
        if not in_ranges(service.ranges, service.range_count, source):
            return WHY_SOURCE
    return WHY_NO_LOCAL if fate == FATE_DROP else WHY_NONE


cdef inline uint8_t first_state(uint8_t protocol, uint8_t event) noexcept nogil:
    if protocol == PROTO_TCP:
        if event == EVENT_BEGIN:
            return SYN_SENT
        if event == EVENT_DATA or event == EVENT_FINISH:
            return PICKED_UP
        return NO_STATE
    if protocol == PROTO_UDP:
        return UDP_NEW
    if event == EVENT_BEGIN or event == EVENT_DATA:
        return SCTP_NEW
    return NO_STATE


cdef void first_packet(
    Engine_ *engine, Packet *packet, View *view, uint64_t now
) noexcept nogil:
    cdef Treatment treatment
    cdef const uint8_t *header = header_of(packet, view)
    cdef uint8_t why, state
    cdef Flow *flow
    if view.planned:
        treatment.slot = &engine.services[view.number]
        treatment.number = view.number
        treatment.kind = view.way_kind
        treatment.use = view.use
        treatment.masquerade = view.masquerade
    elif not find_treatment(engine, view.family, &view.key, &treatment):
        not_ours(engine, view, now)
        return
    packet.service = treatment.number + 1
    if checksum_state(view, header) == 2:
        drop(engine, packet, WHY_MALFORMED, &treatment)
        return
    why = fate_of(&treatment, <const uint8_t *>view.key.words)
    if why == WHY_REFUSED and view.event != EVENT_ABORT:
        answer(engine, packet, view, why, &treatment)
        return
    if why != WHY_NONE:
        drop(engine, packet, why, &treatment)
        return
    state = first_state(view.protocol, view.event)
    if state == NO_STATE:
        drop(engine, packet, WHY_NO_FLOW, &treatment)
        return
    flow = begin(engine, view, &treatment, state, now, &why)
    if flow == NULL:
        drop(engine, packet, why, &treatment)
        return
    copy_keep(
        engine, &engine.flows[view.family], flow, treatment.use, treatment.masquerade, view,
        header, now,
    )
    send_on(engine, packet, view, flow, THERE, now)


cdef Flow *begin(
    Engine_ *engine, View *view, Treatment *treatment, uint8_t state, uint64_t now, uint8_t *why
) noexcept nogil:
    """A new flow; NULL and the reason when there can be none."""
    cdef FlowTable *flows = &engine.flows[view.family]
    cdef ServiceSlot *slot = treatment.slot
    cdef uint32_t tick = <uint32_t>(now // TICK)
    cdef uint64_t word
    cdef const uint8_t *client = <const uint8_t *>view.key.words
    cdef Entry *entry = pinned_entry(engine, view.family, client, treatment, tick)
    cdef Key back
    cdef uint32_t tag = 0
    cdef Flow *flow
    word = view.word if view.hashed else key_hash(&engine.seed, &view.key, view.family)
    if entry == NULL:
        if view.hashed == 2:
            engine.choices += 1
            entry = &slot.entries[view.entry]
        else:
            entry = &slot.entries[choose(engine, slot, treatment.use, word)]
    if not find_back(
        engine, flows, view.family, &view.key, entry, treatment.masquerade, word, tick, view,
        &back, &tag,
    ):
        why[0] = WHY_NO_PORT
        return NULL
    if not flow_make_room(engine, flows):
        why[0] = WHY_FULL
        return NULL
    flow = flow_add(
        engine, flows, &view.key, view.tag, &back, tag, entry.endpoint, state
    )
    flow.deadline = tick + engine.timeouts[state]
    flow.version = engine.version
    engine.endpoints[entry.endpoint].flows += 1
    if slot.sticky:
        keep_affinity(engine, view.family, client, treatment.number, entry.endpoint, tick)
    return flow


cdef Entry *pinned_entry(
    Engine_ *engine, uint8_t family, const uint8_t *client, const Treatment *treatment,
    uint32_t tick,
) noexcept nogil:
    """The endpoint that the client had last, if this way in may send it there; else NULL."""
    cdef Service *service
    cdef uint8_t[16] padded
    cdef Pinned *pinned
    cdef Endpoint *endpoint
    cdef uint32_t one
    if not treatment.slot.sticky:
        return NULL
    service = treatment.slot.table
    memset(padded, 0, 16)
    memcpy(padded, client, 16 if family else 4)
    pinned = pinned_find(
        &engine.affinities[family], padded, treatment.number,
        pinned_tag(&engine.flow_key, padded, treatment.number),
    )
    if pinned == NULL or tick - pinned.tick >= service.affinity:
        return NULL
    endpoint = &engine.endpoints[pinned.endpoint]
    if not endpoint.used or endpoint.serial != pinned.serial or endpoint.until != NEVER:
        return NULL
    if not endpoint.flags & (IN_LOCAL if treatment.use else IN_CLUSTER):
        return NULL
    for one in range(service.entry_count):
        if service.entries[one].endpoint == pinned.endpoint:
            return &service.entries[one]
    return NULL


cdef void keep_affinity(
    Engine_ *engine, uint8_t family, const uint8_t *client, uint32_t service, uint32_t endpoint,
    uint32_t tick,
) noexcept nogil:
    cdef uint8_t[16] padded
    memset(padded, 0, 16)
    memcpy(padded, client, 16 if family else 4)
    pinned_keep(
        &engine.affinities[family], &engine.flow_key, padded, service, endpoint,
        engine.endpoints[endpoint].serial, tick,
    )
