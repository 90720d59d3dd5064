# Which endpoint serves a new flow, and by which port a hidden client is told apart
# (kproxy.core.twin.choice).

cdef enum:
    PORT_TRIES = 256


cdef inline uint32_t choose(
    Engine_ *engine, const ServiceSlot *slot, int use, uint64_t word
) noexcept nogil:
    """The index of an entry; the set is not empty."""
    cdef const Chosen *chosen
    engine.choices += 1
    if slot.algorithm == MAGLEV:
        return maglev_at(slot, use, word)
    chosen = &slot.table.sets[use]
    if slot.algorithm == RANDOM:
        return chosen.members[choose_random(engine, chosen, word)]
    return chosen.members[choose_least(engine, slot.table, chosen, word)]


cdef inline uint32_t maglev_at(const ServiceSlot *slot, int use, uint64_t word) noexcept nogil:
    cdef uint32_t at = <uint32_t>(word % slot.sizes[use])
    return (<const uint16_t *>slot.narrow[use])[at] if slot.wide else slot.narrow[use][at]


cdef uint32_t choose_random(
    Engine_ *engine, const Chosen *chosen, uint64_t word
) noexcept nogil:
    cdef uint8_t[16] data
    cdef uint32_t drawn, low = 0, high = chosen.count - 1, middle
    put_little64(data, word)
    put_little64(data + 8, engine.choices)
    drawn = <uint32_t>(sip(&engine.seed, data, 16) % chosen.sums[chosen.count - 1])
    while low < high:
        middle = (low + high) // 2
        if drawn < chosen.sums[middle]:
            high = middle
        else:
            low = middle + 1
    return low


cdef inline void put_little64(uint8_t *to, uint64_t value) noexcept nogil:
    cdef int byte
    for byte in range(8):
        to[byte] = <uint8_t>(value >> (8 * byte) & 0xFF)


cdef uint32_t choose_least(
    Engine_ *engine, const Service *service, const Chosen *chosen, uint64_t word
) noexcept nogil:
    """Fewest flows for its weight. Who looks first is chance, or all clients of an idle service
    would go to the same one."""
    cdef uint32_t first = <uint32_t>(word % chosen.count)
    cdef uint32_t best = first, at = first, step
    cdef const Entry *entry = &service.entries[chosen.members[first]]
    cdef uint64_t active = engine.endpoints[entry.endpoint].active, weight = entry.weight
    for step in range(1, chosen.count):
        at = at + 1 if at + 1 < chosen.count else 0
        entry = &service.entries[chosen.members[at]]
        if engine.endpoints[entry.endpoint].active * weight < active * entry.weight:
            best = at
            active = engine.endpoints[entry.endpoint].active
            weight = entry.weight
    return best


# --- the tuple of the answers ------------------------------------------------------------------

cdef inline void put_key(
    Key *key, uint8_t family, const uint8_t *source, const uint8_t *destination, uint16_t sport,
    uint16_t dport, uint8_t protocol,
) noexcept nogil:
    """Ports in network order."""
    cdef uint8_t *to = <uint8_t *>key.words
    cdef uint32_t size = 16 if family else 4
    memcpy(to, source, size)
    memcpy(to + size, destination, size)
    put_tail(to + 2 * size, two_ports(sport, dport), protocol)


cdef inline uint32_t two_ports(uint16_t first, uint16_t second) noexcept nogil:
    """Both as they stand in memory one after the other."""
    if LITTLE_ENDIAN:
        return first | <uint32_t>second << 16
    return <uint32_t>first << 16 | second


cdef inline uint32_t back_hash(
    Engine_ *engine, uint8_t family, const View *view, const Key *back
) noexcept nogil:
    """Its tag, taken from ``view`` (or NULL) when it was guessed right."""
    if view != NULL and view.hashed == 2:
        if memcmp(&view.back, back, 40 if family else 16) == 0:
            return view.back_tag
    return <uint32_t>key_hash(&engine.flow_key, back, family)


cdef bint find_back(
    Engine_ *engine, FlowTable *flows, uint8_t family, const Key *there, const Entry *entry,
    bint masquerade, uint64_t word, uint32_t tick, const View *view, Key *back, uint32_t *tag,
) noexcept nogil:
    """False when no port is left, or nothing to hide the client behind."""
    cdef const uint8_t *raw = <const uint8_t *>there.words
    cdef uint32_t size = 16 if family else 4
    cdef const Node *node = &engine.nodes[family]
    cdef uint16_t sport = raw16(raw + 2 * size)
    cdef uint8_t protocol = raw[2 * size + 4]
    cdef Flow *found
    cdef int way
    # What arrives at this node itself does not pass the hook where the other modes masquerade.
    if masquerade and in_addresses(node.local, node.local_count, entry.address):
        masquerade = is_ours(node, family, raw)
    if not masquerade and memcmp(entry.address, raw, size) != 0:
        put_key(back, family, entry.address, raw, entry.port, sport, protocol)
        tag[0] = back_hash(engine, family, view, back)
        found = flow_find(flows, back, tag[0], &way)
        if found != NULL and (list_of(found.state) == LIST_ENDED or tick >= found.deadline):
            flow_remove(engine, flows, found)
            found = NULL
        if found == NULL:
            return True
        return find_port(
            engine, flows, family, there, entry, raw, 1024, 65535, word, tick, view, back, tag
        )
    if not node.masquerades:
        return False
    return find_port(
        engine, flows, family, there, entry, node.masquerade, node.first_port, node.last_port,
        word, tick, view, back, tag,
    )


cdef bint find_port(
    Engine_ *engine, FlowTable *flows, uint8_t family, const Key *there, const Entry *entry,
    const uint8_t *hidden, uint32_t first_port, uint32_t last_port, uint64_t word, uint32_t tick,
    const View *view, Key *back, uint32_t *tag,
) noexcept nogil:
    """A free port in ``back``; if there is none, that of the flow which ended first, else of the
    oldest that is unconfirmed."""
    cdef uint32_t size = last_port - first_port + 1
    cdef uint32_t start = <uint32_t>((word >> 32) % size)
    cdef uint32_t step, port, bytes_ = 40 if family else 16
    cdef uint32_t[2] taken
    cdef Flow *oldest[2]   # by list
    cdef uint8_t which
    cdef uint8_t *dport = <uint8_t *>back.words + bytes_ - 6
    cdef Flow *found
    cdef int way
    oldest[LIST_UNCONFIRMED] = oldest[LIST_ENDED] = NULL
    put_key(
        back, family, entry.address, hidden, entry.port, 0,
        (<const uint8_t *>there.words)[bytes_ - 4],
    )
    for step in range(size if size < PORT_TRIES else PORT_TRIES):
        port = start + step
        if port >= size:
            port -= size
        port += first_port
        put_big16(dport, port)
        if memcmp(back, there, bytes_) == 0:
            continue
        tag[0] = back_hash(engine, family, view, back)
        found = flow_find(flows, back, tag[0], &way)
        if found == NULL:
            return True
        if tick >= found.deadline:
            flow_remove(engine, flows, found)
            return True
        which = list_of(found.state)
        if which != LIST_NONE:
            if oldest[which] == NULL or found.deadline < oldest[which].deadline:
                oldest[which] = found
                taken[which] = port
    which = LIST_ENDED if oldest[LIST_ENDED] != NULL else LIST_UNCONFIRMED
    if oldest[which] == NULL:
        return False
    flow_remove(engine, flows, oldest[which])
    put_big16(dport, taken[which])
    tag[0] = <uint32_t>key_hash(&engine.flow_key, back, family)
    return True
