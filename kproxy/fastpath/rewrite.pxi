# New addresses and ports in place, checksums corrected by what changed (kproxy.core.twin.rewrite).

# Sums are of words as the machine reads them, which one's complement sums do not mind (RFC 1071
# section 2B).

cdef inline uint64_t sum_raw(const uint8_t *at, uint32_t length) noexcept nogil:
    """Of a multiple of 4 bytes; not folded."""
    cdef uint64_t total = 0
    cdef uint32_t offset = 0
    while offset < length:
        total += raw32(at + offset)
        offset += 4
    return total


cdef inline uint64_t change_raw(
    const uint8_t *old, const uint8_t *new, uint32_t length
) noexcept nogil:
    """What RFC 1624 adds: ~m + m' for every 32-bit word; not folded."""
    cdef uint64_t total = 0
    cdef uint32_t offset = 0
    while offset < length:
        total += <uint64_t>(raw32(old + offset) ^ UINT32_MAX) + raw32(new + offset)
        offset += 4
    return total


cdef inline void correct(uint8_t *check, uint64_t change) noexcept nogil:
    put_raw16(check, fold(<uint64_t>(raw16(check) ^ 0xFFFF) + change) ^ 0xFFFF)


cdef inline void correct_partial(uint8_t *check, uint64_t change) noexcept nogil:
    """The field holds a sum that is not inverted."""
    put_raw16(check, fold(<uint64_t>raw16(check) + change))


cdef inline uint32_t check_offset(uint8_t protocol) noexcept nogil:
    return 16 if protocol == PROTO_TCP else 6


# Of a virtio_net_hdr: 0 complete, 1 partial, 2 it speaks of a checksum that is not ours.
cdef inline int checksum_state(const View *view, const uint8_t *header) noexcept nogil:
    cdef uint32_t offset
    if header == NULL or not header[0] & NEEDS_CSUM:
        return 0
    if view.protocol == PROTO_TCP:
        offset = 16
    elif view.protocol == PROTO_UDP:
        offset = 6
    elif view.protocol == PROTO_SCTP:
        offset = 8
    else:
        offset = 2
    if little16(header + 6) == view.transport and little16(header + 8) == offset:
        return 1
    return 2


cdef inline uint32_t little16(const uint8_t *at) noexcept nogil:
    return at[0] | <uint32_t>at[1] << 8


cdef void translate(
    View *view, const uint8_t *source, const uint8_t *destination, uint16_t sport, uint16_t dport,
    bint partial,
) noexcept nogil:
    """A packet with ports, under another tuple; ports in network order."""
    cdef uint32_t size = address_bytes(view)
    cdef uint8_t[32] ends
    cdef uint16_t[2] ports
    cdef uint8_t *at = part(view, view.transport, 4)
    cdef uint8_t *check
    cdef uint64_t moved, renamed
    cdef uint32_t before
    memcpy(ends, source, size)
    memcpy(ends + size, destination, size)
    ports[0] = sport
    ports[1] = dport
    moved = change_raw(source_of(view), ends, size * 2)
    if not view.family:
        correct(view.at + 10, moved)
    if view.protocol == PROTO_SCTP:
        if not partial and not view.in_parts and memcmp(ports, at, 4) != 0:
            before = sctp_sum(view)
            memcpy(at, ports, 4)
            sctp_correct(view, before)
        else:
            memcpy(at, ports, 4)
    else:
        check = part(view, view.transport + check_offset(view.protocol), 2)
        if partial:
            correct_partial(check, moved)
        elif view.protocol == PROTO_TCP or raw16(check) != 0:
            renamed = change_raw(at, <const uint8_t *>ports, 4)
            correct(check, moved + renamed)
            if view.protocol == PROTO_UDP and raw16(check) == 0:
                put_raw16(check, 0xFFFF)
        memcpy(at, ports, 4)
    memcpy(source_of(view), ends, size * 2)


cdef void move_addresses(
    View *view, const uint8_t *source, const uint8_t *destination
) noexcept nogil:
    """Addresses alone, and the IP header's own checksum."""
    cdef uint32_t size = address_bytes(view)
    cdef uint8_t[32] ends
    memcpy(ends, source, size)
    memcpy(ends + size, destination, size)
    if not view.family:
        correct(view.at + view.ip + 10, change_raw(source_of(view), ends, size * 2))
    memcpy(source_of(view), ends, size * 2)


# CRCs are linear: the difference between two packets is the difference between their sums, also
# when what was in the field was wrong.
cdef uint32_t sctp_sum(const View *view) noexcept nogil:
    cdef Cursor cursor
    cdef uint32_t register = UINT32_MAX
    cdef uint32_t zeros = 0
    cursor.at = view.at + view.transport
    cursor.end = cursor.at + 8
    register = run_crc(register, cursor, HARDWARE_CRC)
    cursor.at = <const uint8_t *>&zeros
    cursor.end = cursor.at + 4
    register = run_crc(register, cursor, HARDWARE_CRC)
    cursor.at = view.at + view.transport + 12
    cursor.end = view.at + view.end
    return run_crc(register, cursor, HARDWARE_CRC)


cdef void sctp_correct(View *view, uint32_t before) noexcept nogil:
    cdef uint32_t change = before ^ sctp_sum(view)
    cdef uint8_t *field = part(view, view.transport + 8, 4)
    cdef int byte
    for byte in range(4):
        field[byte] ^= <uint8_t>(change >> (8 * byte) & 0xFF)


cdef void translate_error(
    View *view,
    const uint8_t *source,
    const uint8_t *destination,
    const uint8_t *inner_source,
    const uint8_t *inner_destination,
    uint16_t sport,
    uint16_t dport,
    bint partial,
) noexcept nogil:
    """An ICMP error under other addresses, about a packet under another tuple."""
    cdef uint32_t size = address_bytes(view)
    cdef uint32_t start = view.transport + ICMP_HEADER
    cdef uint64_t outer = 0, moved
    cdef uint8_t[32] ends
    cdef uint16_t[2] ports
    cdef uint16_t before, after
    cdef uint8_t *check
    cdef uint8_t *at
    cdef View inner
    cdef Cursor body
    body.at = view.at + start
    body.end = view.at + view.end
    before = sum_words(body, 0)
    inner = view[0]
    inner.ip = start
    moved = change_raw(source_of(&inner), inner_source, size)
    moved += change_raw(source_of(&inner) + size, inner_destination, size)
    move_addresses(&inner, inner_source, inner_destination)
    ports[0] = sport
    ports[1] = dport
    at = part(view, view.inner, 4)
    moved += change_raw(at, <const uint8_t *>ports, 4)
    memcpy(at, ports, 4)
    if view.inner_protocol != PROTO_SCTP:
        if view.inner + check_offset(view.inner_protocol) + 2 <= view.inner_end:
            check = part(view, view.inner + check_offset(view.inner_protocol), 2)
            if view.inner_protocol == PROTO_TCP or raw16(check) != 0:
                correct(check, moved)
                if view.inner_protocol == PROTO_UDP and raw16(check) == 0:
                    put_raw16(check, 0xFFFF)
    after = sum_words(body, 0)
    if view.family:
        memcpy(ends, source, size)
        memcpy(ends + size, destination, size)
        outer = change_raw(source_of(view), ends, size * 2)
    check = part(view, view.transport + 2, 2)
    if partial:
        correct_partial(check, outer)
    else:
        outer += <uint64_t>(host_order(before) ^ 0xFFFF) + host_order(after)
        correct(check, outer)
    move_addresses(view, source, destination)
