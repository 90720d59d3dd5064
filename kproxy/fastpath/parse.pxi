# What a packet is: kproxy.core.twin.parse, in place.

cdef enum:
    KIND_BAD = 0
    KIND_OTHER = 1
    KIND_PORTS = 2
    KIND_LATER = 3
    KIND_ERROR = 4

cdef enum:
    EVENT_BEGIN = 0
    EVENT_AGREE = 1
    EVENT_DATA = 2
    EVENT_FINISH = 3
    EVENT_ABORT = 4

cdef enum:
    PROTO_TCP = 6
    PROTO_UDP = 17
    PROTO_SCTP = 132
    PROTO_ICMP = 1
    PROTO_ICMP6 = 58

cdef enum:
    FLAG_FIN = 0x01
    FLAG_SYN = 0x02
    FLAG_RST = 0x04
    FLAG_ACK = 0x10

cdef enum:
    ICMP_HEADER = 8
    VNET_HEADER = 10
    NEEDS_CSUM = 1


# A tuple as it stands in a packet: both addresses, both ports, the protocol, three zero bytes. 16
# bytes for IPv4 and 40 for IPv6; these are the bytes that are hashed.
cdef struct Key:
    uint64_t[5] words


# Offsets count from `at`, the first byte of the IP header.
cdef struct View:
    uint8_t *at
    uint32_t length
    uint32_t capacity
    uint32_t transport
    uint32_t end
    uint32_t ip            # where the IP header begins; not 0 for what an ICMP error speaks of
    uint32_t fragment
    uint32_t tag
    uint32_t slot          # what the index says before anything of the batch was done
    uint32_t inner         # where the packet within an ICMP error has its ports
    uint32_t inner_end
    uint8_t kind
    uint8_t family         # 0: IPv4, 1: IPv6
    uint8_t protocol
    uint8_t event
    uint8_t in_parts
    uint8_t inner_protocol
    Key key                # of an ICMP error: that of the answers to the packet within
    # What was found in looking further ahead, so that deciding need not find it again. Tables do
    # not change within a batch, flows do.
    uint8_t hashed         # 1: the word; 2: the entry, and the answers' tuple with its tag, as well
    uint8_t planned        # the treatment
    uint8_t use
    uint8_t masquerade
    uint32_t number
    uint32_t way_kind
    uint32_t entry
    uint32_t back_tag
    uint64_t word
    Key back


cdef inline uint32_t address_bytes(const View *view) noexcept nogil:
    return 16 if view.family else 4


cdef inline uint8_t *source_of(const View *view) noexcept nogil:
    return view.at + view.ip + (8 if view.family else 12)


cdef inline uint8_t *destination_of(const View *view) noexcept nogil:
    return view.at + view.ip + (24 if view.family else 16)


cdef inline uint8_t *part(const View *view, uint32_t offset, uint32_t length) noexcept nogil:
    """``length`` bytes of the packet that are known to be there."""
    kp_inside(offset + length <= view.length)
    return view.at + offset


cdef inline uint32_t least_header(uint8_t protocol) noexcept nogil:
    """0 for a protocol without ports."""
    if protocol == PROTO_TCP:
        return 20
    if protocol == PROTO_UDP:
        return 8
    return 12 if protocol == PROTO_SCTP else 0


cdef void parse(View *view) noexcept nogil:
    """Everything but ``at``, ``length`` and ``capacity`` is found here."""
    view.ip = 0
    view.hashed = 0
    view.planned = 0
    parse_ip(view, view.length, False)


cdef void parse_ip(View *view, uint32_t limit, bint within) noexcept nogil:
    """``within``: it is the packet in an ICMP error, of which only the beginning need be there."""
    cdef uint8_t version
    view.kind = KIND_BAD
    view.in_parts = 0
    view.event = EVENT_DATA
    if limit - view.ip < 1:
        return
    version = part(view, view.ip, 1)[0] >> 4
    if version == 4:
        parse4(view, limit, within)
    elif version == 6:
        parse6(view, limit, within)


cdef void parse4(View *view, uint32_t limit, bint within) noexcept nogil:
    cdef uint32_t room = limit - view.ip
    cdef uint32_t header, total, word
    cdef const uint8_t *at
    if room < 20:
        return
    at = part(view, view.ip, 20)
    header = (at[0] & 15) * 4
    total = big16(at + 2)
    if header < 20 or header > room or total < header or (total > room and not within):
        return
    view.family = 0
    view.protocol = at[9]
    view.transport = view.ip + header
    view.end = view.ip + (total if total < room else room)
    word = big16(at + 6)
    view.kind = KIND_OTHER
    if word & 0x3FFF:
        view.in_parts = 1
        view.fragment = big16(at + 4)
        if word & 0x1FFF:
            view.kind = KIND_LATER
            return
    parse_transport(view, within)


cdef void parse6(View *view, uint32_t limit, bint within) noexcept nogil:
    cdef uint32_t room = limit - view.ip
    cdef uint32_t total, place, length, word
    cdef const uint8_t *at
    cdef bint later = False, through = False
    cdef int seen
    cdef uint8_t protocol, following
    if room < 40:
        return
    at = part(view, view.ip, 40)
    total = 40 + <uint32_t>big16(at + 4)
    if total > room and not within:
        return
    view.end = view.ip + (total if total < room else room)
    place = view.ip + 40
    protocol = at[6]
    for seen in range(8):
        if protocol != 0 and protocol != 43 and protocol != 60 and protocol != 44:
            break
        if view.end - place < 8:
            return
        at = part(view, place, 8)
        following = at[0]
        if protocol == 44:
            word = big16(at + 2)
            later = word >> 3 != 0
            if word & 1 or later:
                view.in_parts = 1
                view.fragment = big32(at + 4)
            length = 8
        else:
            length = (<uint32_t>at[1] + 1) * 8
            through = through or (protocol == 43 and at[3] != 0)
        if view.end - place < length:
            return
        place += length
        protocol = following
        if later:
            break
    else:
        return
    view.family = 1
    view.protocol = protocol
    view.transport = place
    view.kind = KIND_OTHER
    if through:
        return
    if later:
        view.kind = KIND_LATER
        return
    parse_transport(view, within)


cdef inline void parse_transport(View *view, bint within) noexcept nogil:
    cdef uint32_t left = view.end - view.transport
    cdef uint32_t least = least_header(view.protocol)
    cdef uint32_t header
    cdef const uint8_t *at
    if least == 0:
        if not within and view.protocol == (PROTO_ICMP6 if view.family else PROTO_ICMP):
            parse_error(view)
        return
    if left < (8 if within else least):
        view.kind = KIND_BAD
        return
    view.kind = KIND_PORTS
    if within:
        return
    at = part(view, view.transport, least)
    if view.protocol == PROTO_TCP:
        header = (at[12] >> 4) * 4
        if header < 20 or header > left:
            view.kind = KIND_BAD
            return
        view.event = tcp_event(at[13])
    elif view.protocol == PROTO_SCTP and left > 12:
        view.event = chunk_event(part(view, view.transport, 13)[12])


cdef inline uint8_t tcp_event(uint8_t flags) noexcept nogil:
    if flags & FLAG_RST:
        return EVENT_ABORT
    if flags & FLAG_SYN:
        return EVENT_AGREE if flags & FLAG_ACK else EVENT_BEGIN
    return EVENT_FINISH if flags & FLAG_FIN else EVENT_DATA


cdef inline uint8_t chunk_event(uint8_t chunk) noexcept nogil:
    if chunk == 1:
        return EVENT_BEGIN
    if chunk == 2:
        return EVENT_AGREE
    if chunk == 6:
        return EVENT_ABORT
    return EVENT_FINISH if chunk == 7 or chunk == 8 or chunk == 14 else EVENT_DATA


cdef void parse_error(View *view) noexcept nogil:
    cdef View inner
    cdef uint8_t kind
    if view.in_parts:
        return
    if view.end - view.transport < ICMP_HEADER:
        view.kind = KIND_BAD
        return
    kind = part(view, view.transport, 1)[0]
    if view.family:
        if kind < 1 or kind > 4:
            return
    elif kind != 3 and kind != 11 and kind != 12:
        return
    inner.at = view.at
    inner.length = view.length
    inner.ip = view.transport + ICMP_HEADER
    inner.family = 1 - view.family
    parse_ip(&inner, view.end, True)
    if inner.kind != KIND_PORTS or inner.family != view.family:
        return
    view.kind = KIND_ERROR
    view.inner = inner.transport
    view.inner_end = inner.end
    view.inner_protocol = inner.protocol


cdef inline void key_of(View *view) noexcept nogil:
    """The tuple of a packet with ports, in network order."""
    cdef uint8_t *to = <uint8_t *>view.key.words
    cdef const uint8_t *ports = part(view, view.transport, 4)
    if view.family:
        memcpy(to, source_of(view), 32)
        to += 32
    else:
        memcpy(to, source_of(view), 8)
        to += 8
    put_tail(to, raw32(ports), view.protocol)


cdef inline void put_tail(uint8_t *to, uint32_t ports, uint8_t protocol) noexcept nogil:
    """The last word of a key in one store: the hash reads it in one load, which would have to wait
    for several stores to reach the cache."""
    cdef uint64_t word = ports | <uint64_t>protocol << 32
    if LITTLE_ENDIAN:
        memcpy(to, &word, 8)
    else:
        memcpy(to, &ports, 4)
        to[4] = protocol
        memset(to + 5, 0, 3)


cdef void inner_key_of(View *view) noexcept nogil:
    """The tuple of an answer to the packet within an ICMP error: its own, turned round."""
    cdef uint8_t *to = <uint8_t *>view.key.words
    cdef uint32_t size = address_bytes(view)
    cdef uint32_t start = view.transport + ICMP_HEADER + (8 if view.family else 12)
    cdef const uint8_t *ends = part(view, start, size * 2)
    cdef const uint8_t *ports = part(view, view.inner, 4)
    memcpy(to, ends + size, size)
    memcpy(to + size, ends, size)
    to += size * 2
    memcpy(to, ports + 2, 2)
    memcpy(to + 2, ports, 2)
    to[4] = view.inner_protocol
    memset(to + 5, 0, 3)


cdef inline uint64_t key_hash(const SipKey *sip_key, const Key *key, uint8_t family) noexcept nogil:
    if family:
        return sip(sip_key, <const uint8_t *>key.words, 40)
    return sip(sip_key, <const uint8_t *>key.words, 16)
