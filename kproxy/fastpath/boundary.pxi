# The Python boundary of the engine. What each thing does is told in _fastpath.pyi.

@cython.final
cdef class Batch:
    """Packets in memory of our own; the last bytes before each one are its virtio_net_hdr."""

    cdef uint8_t *memory
    cdef Packet *packets
    cdef readonly uint32_t size
    cdef readonly uint32_t room
    cdef readonly bint exact

    def __cinit__(self, uint32_t size=BATCH, uint32_t room=2048, bint exact=False):
        cdef uint32_t one
        self.size = size
        self.room = room
        self.exact = exact
        self.packets = <Packet *>calloc(size + 1, sizeof(Packet))
        if self.packets == NULL:
            raise MemoryError
        if not exact:
            self.memory = <uint8_t *>calloc(size + 1, self._stride())
            if self.memory == NULL:
                raise MemoryError
        for one in range(size):
            self.packets[one].capacity = room
            self.packets[one].offset = 0 if exact else one * self._stride() + 16

    cdef uint64_t _stride(self):
        return <uint64_t>self.room + 16

    def __dealloc__(self):
        cdef uint32_t one
        if self.exact and self.packets != NULL:
            for one in range(self.size):
                if self.packets[one].offset:
                    free(<void *>(<uintptr_t>self.packets[one].offset - 16))
        free(self.memory)
        free(self.packets)

    cdef uint8_t *_at(self, uint32_t index):
        return <uint8_t *>(<uintptr_t>self.memory + self.packets[index].offset)

    cdef _check(self, uint32_t index):
        if index >= self.size:
            raise IndexError(f"packet {index} of {self.size}")

    def put(self, uint32_t index, data, header=None, int64_t capacity=-1):
        cdef _Buffer packet = _Buffer(data)
        cdef _Buffer before
        cdef uint64_t room = self.room if capacity < 0 else <uint64_t>capacity
        cdef size_t length = packet.view.len
        cdef uint8_t *whole
        self._check(index)
        if length > room or room > self.room:
            raise ValueError(f"a packet of {length} bytes in {room} of {self.room}")
        if self.exact:
            # To the byte as large as is allowed, so that a sanitizer sees the first one too many.
            whole = <uint8_t *>malloc(16 + room)
            if whole == NULL:
                raise MemoryError
            if self.packets[index].offset:
                free(<void *>(<uintptr_t>self.packets[index].offset - 16))
            self.packets[index].offset = <uint64_t><uintptr_t>whole + 16
        memcpy(self._at(index), packet.cursor.at, length)
        self.packets[index].length = <uint32_t>length
        self.packets[index].capacity = <uint32_t>room
        self.packets[index].header = header is not None
        if header is not None:
            before = _Buffer(header)
            if before.view.len != VNET_HEADER:
                raise ValueError(f"a header has 10 bytes; got {before.view.len}")
            memcpy(self._at(index) - VNET_HEADER, before.cursor.at, VNET_HEADER)

    def get(self, uint32_t index):
        cdef Packet *packet
        cdef uint8_t *at
        self._check(index)
        packet = &self.packets[index]
        at = self._at(index)
        header = (at - VNET_HEADER)[:VNET_HEADER] if packet.header else b""
        return packet.code, packet.reason, at[:packet.length], header

    def service(self, uint32_t index):
        self._check(index)
        return self.packets[index].service - 1 if self.packets[index].service else None


cdef SipKey _sip_key(key, name) except *:
    cdef SipKey made
    cdef _Buffer buffer = _Buffer(key)
    if buffer.view.len != 16:
        raise ValueError(f"{name} has 16 bytes; got {buffer.view.len}")
    made.low = little64(buffer.cursor.at)
    made.high = little64(buffer.cursor.at + 8)
    return made


cdef struct Totals:
    uint64_t[5] codes
    uint64_t[12] drops
    uint32_t[2] flows
    uint32_t[2] affinities
    uint32_t endpoints
    uint32_t ways
    uint64_t recycled
    uint64_t expired


cdef void locked_totals(Engine_ *engine, Totals *totals) noexcept nogil:
    cdef int family
    pthread_mutex_lock(&engine.lock)
    memcpy(totals.codes, engine.codes, sizeof(totals.codes))
    memcpy(totals.drops, engine.drops, sizeof(totals.drops))
    for family in range(2):
        totals.flows[family] = engine.flows[family].count
        totals.affinities[family] = engine.affinities[family].count
    totals.endpoints = engine.endpoint_count
    totals.ways = engine.ways.count
    totals.recycled = engine.recycled
    totals.expired = engine.expired
    pthread_mutex_unlock(&engine.lock)


cdef uint32_t locked_verdicts(Engine_ *engine, Verdict *taken) noexcept nogil:
    cdef uint32_t count
    pthread_mutex_lock(&engine.lock)
    count = engine.verdict_count
    memcpy(taken, engine.verdicts, count * sizeof(Verdict))
    engine.verdict_count = 0
    pthread_mutex_unlock(&engine.lock)
    return count


cdef void locked_endpoint(Engine_ *engine, uint32_t slot, Endpoint *endpoint) noexcept nogil:
    pthread_mutex_lock(&engine.lock)
    endpoint[0] = engine.endpoints[slot]
    pthread_mutex_unlock(&engine.lock)


cdef int locked_flow(Engine_ *engine, View *view, int *way, Endpoint *endpoint) noexcept nogil:
    """The state of the flow that a packet belongs to, -1 for none."""
    cdef FlowTable *flows = &engine.flows[view.family]
    cdef Flow *found
    cdef int state = -1
    view.tag = <uint32_t>key_hash(&engine.flow_key, &view.key, view.family)
    pthread_mutex_lock(&engine.lock)
    found = flow_find(flows, &view.key, view.tag, way)
    if found != NULL:
        state = found.state
        endpoint[0] = engine.endpoints[found.endpoint]
    pthread_mutex_unlock(&engine.lock)
    return state


cdef void locked_node(Engine_ *engine, int family, Node *node) noexcept nogil:
    """Exchanges them: the old one is in ``node`` afterwards."""
    cdef Node old
    pthread_mutex_lock(&engine.lock)
    old = engine.nodes[family]
    engine.nodes[family] = node[0]
    engine.version += 1
    pthread_mutex_unlock(&engine.lock)
    node[0] = old


@cython.final
cdef class Engine:
    cdef Engine_ engine
    cdef dict _places      # service -> {place: slot of its endpoint}
    cdef dict _gone        # slot -> (service, place) of endpoints that no table names
    cdef set _in_force     # numbers of services

    def __cinit__(
        self,
        *,
        flow_key,
        seed,
        transitions,
        timeouts,
        uint32_t max_flows,
        uint32_t max_affinities,
        uint32_t max_fragments,
        uint32_t syn_copies,
        uint64_t patience,
        uint32_t tries,
        uint32_t drain,
        uint32_t max_services=65_536,
        uint32_t max_endpoints=1_048_576,
        uint32_t max_ways=262_144,
    ):
        cdef Engine_ *engine = &self.engine
        cdef _Buffer table = _Buffer(transitions)
        cdef int one
        if pthread_mutex_init(&engine.lock, NULL):
            raise MemoryError
        engine.flow_key = _sip_key(flow_key, "flow_key")
        engine.seed = _sip_key(seed, "seed")
        if table.view.len != sizeof(engine.transitions) or len(timeouts) != STATES:
            raise ValueError(
                f"{STATES} states need {STATES} timeouts and {STATES * 10} transitions"
            )
        memcpy(engine.transitions, table.cursor.at, sizeof(engine.transitions))
        for one in range(STATES * 10):
            if engine.transitions[one] >= STATES:
                raise ValueError("a transition leads to no state")
        for one in range(STATES):
            engine.timeouts[one] = timeouts[one]
        if not 1 <= tries <= MOST_TRIES or syn_copies > 65_534:
            raise ValueError(f"tries must be within 1 and {MOST_TRIES}, syn_copies below 65535")
        if not 1 <= max_flows <= 1 << 28:
            raise ValueError(f"max_flows must be within 1 and {1 << 28}; got {max_flows}")
        engine.patience = patience
        engine.tries = tries
        engine.drain = drain
        engine.version = 1
        engine.service_limit = max_services
        engine.endpoint_limit = max_endpoints
        engine.ways.limit = max_ways
        engine.copy_limit = syn_copies
        self._open_tables(max_flows, max_affinities, max_fragments)
        self._places, self._gone, self._in_force = {}, {}, set()

    cdef _open_tables(self, uint32_t max_flows, uint32_t max_affinities, uint32_t max_fragments):
        cdef Engine_ *engine = &self.engine
        cdef FlowTable *flows
        cdef bint fine = True
        cdef int family
        for family in range(2):
            flows = &engine.flows[family]
            flows.pair = 32 if family else 8
            flows.stride = 128 if family else 64
            flows.limit = max_flows
            # One slot more: what is prefetched may lie behind the last one.
            flows.slots = <uint8_t *>kp_map((<size_t>max_flows + 1) * flows.stride)
            fine = index_open(&flows.index, <uint64_t>max_flows * 2) and fine
            fine = fine and flows.slots != NULL
            engine.affinities[family].limit = max_affinities
            engine.affinities[family].slots = <Pinned *>kp_map(
                (<size_t>max_affinities + 1) * sizeof(Pinned)
            )
            fine = index_open(&engine.affinities[family].index, max_affinities) and fine
            engine.fragments[family].limit = max_fragments
            engine.fragments[family].slots = <Datagram *>kp_map(
                (<size_t>max_fragments + 1) * sizeof(Datagram)
            )
            fine = index_open(&engine.fragments[family].index, max_fragments) and fine
            fine = fine and engine.affinities[family].slots != NULL
            fine = fine and engine.fragments[family].slots != NULL
        engine.ways.slots = <WayKey *>kp_map(
            (<size_t>engine.ways.limit + 1) * sizeof(WayKey)
        )
        fine = index_open(&engine.ways.index, engine.ways.limit) and fine
        engine.services = <ServiceSlot *>kp_map(
            (<size_t>engine.service_limit + 1) * sizeof(ServiceSlot)
        )
        engine.endpoints = <Endpoint *>kp_map(
            (<size_t>engine.endpoint_limit + 1) * sizeof(Endpoint)
        )
        engine.copies = <Copy *>calloc(engine.copy_limit + 1, sizeof(Copy))
        engine.verdicts = <Verdict *>calloc(MOST_VERDICTS, sizeof(Verdict))
        if not fine or engine.ways.slots == NULL or engine.services == NULL:
            raise MemoryError
        if engine.endpoints == NULL or engine.copies == NULL or engine.verdicts == NULL:
            raise MemoryError

    def __dealloc__(self):
        cdef Engine_ *engine = &self.engine
        cdef uint32_t number
        cdef int family
        if engine.services != NULL:
            for number in range(engine.service_high):
                free_service(&engine.slab, engine.services[number].table)
        for family in range(2):
            kp_unmap(
                engine.flows[family].slots,
                (<size_t>engine.flows[family].limit + 1) * engine.flows[family].stride,
            )
            kp_unmap(
                engine.affinities[family].slots,
                (<size_t>engine.affinities[family].limit + 1) * sizeof(Pinned),
            )
            kp_unmap(
                engine.fragments[family].slots,
                (<size_t>engine.fragments[family].limit + 1) * sizeof(Datagram),
            )
            index_close(&engine.flows[family].index)
            index_close(&engine.affinities[family].index)
            index_close(&engine.fragments[family].index)
            free_node(&engine.nodes[family])
        slab_close(&engine.slab)
        kp_unmap(engine.ways.slots, (<size_t>engine.ways.limit + 1) * sizeof(WayKey))
        index_close(&engine.ways.index)
        kp_unmap(engine.services, (<size_t>engine.service_limit + 1) * sizeof(ServiceSlot))
        kp_unmap(engine.endpoints, (<size_t>engine.endpoint_limit + 1) * sizeof(Endpoint))
        free(engine.copies)
        free(engine.verdicts)
        pthread_mutex_destroy(&engine.lock)

    # --- tables ---

    def set_node(
        self,
        int family,
        local,
        node_ports,
        pods,
        *,
        bint localhost=False,
        masquerade=b"",
        ports=(49152, 65535),
    ):
        cdef _Buffer ours = _Buffer(local)
        cdef _Buffer answering = _Buffer(node_ports)
        cdef _Buffer ranges = _Buffer(pods)
        cdef _Buffer hidden = _Buffer(masquerade)
        cdef int which = {4: 0, 6: 1}[family]
        cdef Node made
        cdef uint32_t one
        memset(&made, 0, sizeof(Node))
        first, last = ports
        if ours.view.len % 16 or answering.view.len % 16 or ranges.view.len % BLOB_RANGE:
            raise ValueError("addresses have 16 bytes each, ranges 20")
        if hidden.view.len not in (0, 16 if which else 4) or not 1 <= first <= last <= 65535:
            raise ValueError("no such masquerade address or ports")
        made.local_count = <uint32_t>(ours.view.len // 16)
        made.node_port_count = <uint32_t>(answering.view.len // 16)
        made.pod_count = <uint32_t>(ranges.view.len // BLOB_RANGE)
        made.first_port = first
        made.last_port = last
        made.localhost = localhost
        made.masquerades = hidden.view.len != 0
        memcpy(made.masquerade, hidden.cursor.at, hidden.view.len)
        made.local = <uint8_t *>malloc(ours.view.len + 16)
        made.node_ports = <uint8_t *>malloc(answering.view.len + 16)
        made.pods = <Range *>calloc(made.pod_count + 1, sizeof(Range))
        if made.local == NULL or made.node_ports == NULL or made.pods == NULL:
            free_node(&made)
            raise MemoryError
        memcpy(made.local, ours.cursor.at, ours.view.len)
        memcpy(made.node_ports, answering.cursor.at, answering.view.len)
        for one in range(made.pod_count):
            memcpy(made.pods[one].net, ranges.cursor.at + one * BLOB_RANGE, 16)
            made.pods[one].bits = little32(ranges.cursor.at + one * BLOB_RANGE + 16)
            if made.pods[one].bits > (128 if which else 32):
                free_node(&made)
                raise ValueError("a range has too many bits")
        locked_node(&self.engine, which, &made)
        free_node(&made)

    def commit(self, changed, removed, uint64_t now):
        cdef list made = []
        cdef bint done = False
        changed = list(changed)
        removed = [number for number in removed if number in self._in_force]
        try:
            for number, blob in changed:
                made.append(self._build(number, blob))
            self._check_room(made)
            self._put(made, removed, <uint32_t>(now // TICK))
            done = True
        finally:
            if not done:
                for _, pointer, _ in made:
                    free_service(&self.engine.slab, <Service *><uintptr_t>pointer)

    cdef tuple _build(self, number, blob):
        """(number, service, places of its endpoints); nothing is in force yet."""
        cdef _Buffer buffer = _Buffer(blob)
        cdef Service *service = NULL
        cdef bint fine = False
        cdef const uint8_t *at
        cdef uint32_t one
        if not 0 <= number < self.engine.service_limit:
            raise OverflowError(f"service {number} of {self.engine.service_limit}")
        try:
            wrong = read_service(buffer.cursor.at, buffer.view.len, &service)
            if wrong is not None:
                raise ValueError(f"service {number}: {wrong}")
            with nogil:
                fine = fill_sets(&self.engine.slab, service, &self.engine.seed)
            if not fine:
                raise MemoryError
            for one in range(2):
                if service.fates[one] == FATE_FORWARD and service.sets[one].count == 0:
                    if _uses(service, one):
                        fine = False
                        raise ValueError(f"service {number}: forwards to an empty set")
        finally:
            if not fine:
                free_service(&self.engine.slab, service)
        places = []
        for one in range(service.entry_count):
            at = service.entries[one].address
            port = (<uint8_t *>&service.entries[one].port)[:2]
            places.append(at[:16 if service.family else 4] + port)
        return number, <uintptr_t>service, places

    cdef _check_room(self, list made):
        cdef uint64_t ways = 0, endpoints = 0
        for _, pointer, places in made:
            ways += (<Service *><uintptr_t>pointer).way_count
            endpoints += len(places)
        if self.engine.ways.high + ways > self.engine.ways.limit:
            # Few of them may be new: count again, exactly, before giving up.
            if self.engine.ways.count + ways > self.engine.ways.limit:
                raise OverflowError(f"more than {self.engine.ways.limit} addresses and ports")
        if self.engine.endpoint_count + endpoints > self.engine.endpoint_limit:
            new = sum(
                place not in self._places.get(number, ()) for number, _, places in made
                for place in places
            )
            if self.engine.endpoint_count + new > self.engine.endpoint_limit:
                raise OverflowError(f"more than {self.engine.endpoint_limit} endpoints")

    cdef _put(self, list made, list removed, uint32_t tick):
        cdef Engine_ *engine = &self.engine
        cdef Service *service
        cdef Change change
        cdef uint32_t one
        old, retired = [], []
        for number in removed:
            old.append(<uintptr_t>engine.services[<uint32_t>number].table)
            for place, where in self._places[number].items():
                retired.append((number, place, where))
        for number, pointer, places in made:
            service = <Service *><uintptr_t>pointer
            known = self._places.setdefault(number, {})
            if number in self._in_force:
                old.append(<uintptr_t>engine.services[<uint32_t>number].table)
                fresh = set(places)
                for place, where in known.items():
                    if place not in fresh:
                        retired.append((number, place, where))
            one = 0
            for place in places:
                where = known.get(place)
                if where is None:
                    where = known[place] = self._new_endpoint(number, place)
                elif self._gone:
                    self._gone.pop(where, None)
                service.entries[one].endpoint = where
                one += 1
        try:
            if not change_open(&change, len(old), len(removed), len(retired), len(made)):
                raise MemoryError
            for pointer in old:
                change.old[change.old_count] = <Service *><uintptr_t>pointer
                change.old_count += 1
            for number in removed:
                change.removed[change.removed_count] = number
                change.removed_count += 1
            for _, _, where in retired:
                change.retired[change.retired_count] = where
                change.retired_count += 1
            for number, pointer, _ in made:
                change.numbers[change.made_count] = number
                change.made[change.made_count] = <Service *><uintptr_t>pointer
                change.made_count += 1
                if number >= engine.service_high:
                    engine.service_high = number + 1
            with nogil:
                locked_change(engine, &change, tick)
        finally:
            change_close(&change)
        self._in_force.difference_update(removed)
        self._in_force.update([number for number, _, _ in made])
        for number, place, where in retired:
            self._gone[where] = (number, place)
        for pointer in old:
            free_service(&self.engine.slab, <Service *><uintptr_t>pointer)

    cdef uint32_t _new_endpoint(self, number, place):
        """A slot that no worker knows yet."""
        cdef Engine_ *engine = &self.engine
        cdef _Buffer raw = _Buffer(place)
        cdef uint32_t slot
        cdef Endpoint *endpoint
        if engine.endpoint_free:
            slot = engine.endpoint_free - 1
            engine.endpoint_free = engine.endpoints[slot].next_free
        else:
            slot = engine.endpoint_high
            engine.endpoint_high += 1
        engine.endpoint_count += 1
        endpoint = &engine.endpoints[slot]
        memset(endpoint, 0, sizeof(Endpoint))
        engine.serials += 1
        endpoint.serial = engine.serials
        endpoint.service = number
        endpoint.until = NEVER
        endpoint.used = 1
        endpoint.place_bytes = <uint8_t>raw.view.len
        memcpy(endpoint.place, raw.cursor.at, raw.view.len)
        return slot

    def reap(self):
        for where, (number, place) in list(self._gone.items()):
            if locked_reap(&self.engine, where):
                del self._gone[where]
                del self._places[number][place]
                if not self._places[number] and number not in self._in_force:
                    del self._places[number]
        return len(self._gone)

    def known(self, number):
        return number in self._in_force or bool(self._places.get(number))

    # --- packets ---

    def process(self, Batch batch, uint32_t count, uint64_t now, uint32_t first=0):
        cdef Engine_ *engine = &self.engine
        if first + <uint64_t>count > batch.size:
            raise IndexError(f"packets {first} to {first + count} of {batch.size}")
        with nogil:
            locked_batch(engine, batch.memory, batch.packets + first, count, now)

    def due(self, Batch batch, uint32_t count, uint64_t now):
        cdef Engine_ *engine = &self.engine
        cdef uint32_t sent
        cdef uint32_t one
        if count > batch.size or (batch.exact and count):
            raise IndexError(f"{count} packets of {batch.size}")
        for one in range(count):
            batch.packets[one].capacity = batch.room
        with nogil:
            sent = locked_due(engine, batch.memory, batch.packets, count, now)
        return sent

    def sweep(self, uint32_t count, uint64_t now):
        cdef Engine_ *engine = &self.engine
        cdef uint32_t gone
        with nogil:
            gone = locked_sweep(engine, count, now)
        return gone

    def take_verdicts(self):
        cdef Engine_ *engine = &self.engine
        cdef uint32_t one, count
        cdef Verdict *verdict
        cdef Verdict *taken = <Verdict *>malloc(MOST_VERDICTS * sizeof(Verdict))
        if taken == NULL:
            raise MemoryError
        with nogil:
            count = locked_verdicts(engine, taken)
        found = []
        for one in range(count):
            verdict = &taken[one]
            found.append((verdict.service, verdict.place[:verdict.place_bytes], verdict.finding))
        free(taken)
        return found

    # --- figures ---

    def totals(self):
        cdef Totals totals
        with nogil:
            locked_totals(&self.engine, &totals)
        return {
            "codes": tuple(totals.codes),
            "drops": tuple(totals.drops),
            "flows": tuple(totals.flows),
            "affinities": tuple(totals.affinities),
            "endpoints": totals.endpoints,
            "ways": totals.ways,
            "recycled": totals.recycled,
            "expired": totals.expired,
        }

    def service_counters(self, uint32_t number):
        if number not in self._in_force:
            raise KeyError(number)
        return tuple(self.engine.services[number].drops)

    def endpoint_counters(self, number):
        cdef Endpoint endpoint
        found = {}
        for place, where in self._places.get(number, {}).items():
            locked_endpoint(&self.engine, where, &endpoint)
            found[place] = {
                "packets_in": endpoint.packets[THERE],
                "packets_out": endpoint.packets[BACK],
                "bytes_in": endpoint.bytes[THERE],
                "bytes_out": endpoint.bytes[BACK],
                "flows": endpoint.flows,
                "active": endpoint.active,
                "failures": endpoint.failures,
                "gone": endpoint.until != NEVER,
            }
        return found

    def memory(self):
        cdef Engine_ *engine = &self.engine
        cdef size_t services = 0
        cdef uint32_t number
        cdef int family
        flows = []
        for family in range(2):
            flows.append(
                <size_t>engine.flows[family].limit * engine.flows[family].stride
                + index_bytes(&engine.flows[family].index)
            )
        for number in range(engine.service_high):
            if engine.services[number].table != NULL:
                services += service_bytes(engine.services[number].table)
        return {
            "flows_ipv4": flows[0],
            "flows_ipv6": flows[1],
            "services": services,
            "ways": engine.ways.count * sizeof(WayKey) + index_bytes(&engine.ways.index),
            "endpoints": engine.endpoint_count * sizeof(Endpoint),
        }

    def flow(self, int family, data):
        """For tests and for looking: (state, endpoint's place, direction) of a packet's flow."""
        cdef View view
        cdef _Buffer buffer = _Buffer(data)
        cdef Endpoint endpoint
        cdef int way = THERE, state
        view.at = <uint8_t *>buffer.cursor.at
        view.length = <uint32_t>buffer.view.len
        view.capacity = view.length
        parse(&view)
        if view.kind != KIND_PORTS or view.family != {4: 0, 6: 1}[family]:
            return None
        key_of(&view)
        state = locked_flow(&self.engine, &view, &way, &endpoint)
        return None if state < 0 else (state, endpoint.place[:endpoint.place_bytes], way)


cdef bint _uses(const Service *service, uint32_t which):
    cdef int kind, client
    for kind in range(2):
        for client in range(3):
            if service.rows[kind][client] & 1 == which:
                return True
    return False


cdef void free_node(Node *node) noexcept nogil:
    free(node.local)
    free(node.node_ports)
    free(node.pods)


def siphash(key, data):
    cdef SipKey made = _sip_key(key, "key")
    cdef _Buffer buffer = _Buffer(data)
    return sip(&made, buffer.cursor.at, buffer.view.len)


def maglev(key, names, weights):
    cdef SipKey made = _sip_key(key, "key")
    cdef size_t count = len(names)
    cdef int which = maglev_which(count)
    cdef Turn *turns
    cdef uint16_t *table
    cdef _Buffer name
    cdef uint64_t word
    cdef size_t one
    if count == 0:
        return ()
    if count > 65535:
        raise ValueError(f"at most 65535 endpoints; got {count}")
    turns = <Turn *>calloc(count, sizeof(Turn))
    table = <uint16_t *>malloc(MAGLEV_SIZES[which] * <size_t>2)
    try:
        if turns == NULL or table == NULL:
            raise MemoryError
        for one in range(count):
            name = _Buffer(names[one])
            word = sip(&made, name.cursor.at, name.view.len)
            turns[one].offset = <uint32_t>word
            turns[one].skip = <uint32_t>(word >> 32)
            turns[one].weight = weights[one]
            turns[one].entry = <uint32_t>one
            if turns[one].weight == 0:
                raise ValueError("a weight is 1 at least")
        with nogil:
            maglev_fill(which, turns, <uint32_t>count, NULL, table)
        return tuple([table[one] for one in range(MAGLEV_SIZES[which])])
    finally:
        free(turns)
        free(table)


def measure(Engine engine, Batch source, uint32_t size, uint64_t now):
    """Run all packets of ``source`` in batches of ``size``; the engine's nanoseconds for each.

    The packets are copied first, as a device would hand them over: warm.
    """
    cdef Batch batch = Batch(size, source.room)
    cdef uint64_t before
    cdef uint32_t first = 0, one, count, done = 0
    cdef uint64_t *taken = <uint64_t *>calloc(source.size // size + 1, 8)
    if taken == NULL:
        raise MemoryError
    with nogil:
        while first < source.size:
            count = source.size - first if source.size - first < size else size
            for one in range(count):
                batch.packets[one].length = source.packets[first + one].length
                batch.packets[one].header = source.packets[first + one].header
                memcpy(
                    batch.memory + batch.packets[one].offset - 16,
                    source.memory + source.packets[first + one].offset - 16,
                    source.packets[first + one].length + 16,
                )
            # Or the engine would wait for what the copy has not read yet.
            fence()
            before = clock_now()
            locked_batch(&engine.engine, batch.memory, batch.packets, count, now)
            taken[done] = clock_now() - before
            done += 1
            first += count
    times = [taken[one] for one in range(done)]
    free(taken)
    return times


def measure_floor(Batch source, uint32_t size):
    """What any packet loop has to do at least: copy, and sum every byte."""
    cdef Batch batch = Batch(size, source.room)
    cdef uint64_t before, sums = 0
    cdef uint32_t first = 0, one, count, done = 0
    cdef Cursor cursor
    cdef uint64_t *taken = <uint64_t *>calloc(source.size // size + 1, 8)
    if taken == NULL:
        raise MemoryError
    with nogil:
        while first < source.size:
            count = source.size - first if source.size - first < size else size
            before = clock_now()
            for one in range(count):
                memcpy(
                    batch.memory + batch.packets[one].offset,
                    source.memory + source.packets[first + one].offset,
                    source.packets[first + one].length,
                )
                cursor.at = batch.memory + batch.packets[one].offset
                cursor.end = cursor.at + source.packets[first + one].length
                sums += sum_words(cursor, 0)
            taken[done] = clock_now() - before + (sums & 0)
            done += 1
            first += count
    times = [taken[one] for one in range(done)]
    free(taken)
    return times


cdef extern from *:
    """
    #include <time.h>
    static inline uint64_t kp_clock_now(void) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    }
    """
    uint64_t clock_now "kp_clock_now"() noexcept nogil
    void fence "__sync_synchronize"() noexcept nogil
