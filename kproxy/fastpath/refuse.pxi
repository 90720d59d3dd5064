# Answers built in place of the packet that they answer (kproxy.core.twin.refuse).

cdef bint answerable(const View *view) noexcept nogil:
    """Nobody is answered who cannot be a single host."""
    cdef const uint8_t *source = source_of(view)
    cdef int byte
    if not view.family:
        return 0 < source[0] < 224
    if source[0] == 0xFF:
        return False
    for byte in range(16):
        if source[byte]:
            return True
    return False


cdef uint16_t sum_with_pseudo(
    const View *view, const uint8_t *ends, uint8_t protocol, const uint8_t *payload, uint32_t length
) noexcept nogil:
    cdef uint8_t[8] tail
    cdef Cursor cursor
    cdef uint16_t total
    cursor.at = ends
    cursor.end = ends + 2 * address_bytes(view)
    total = sum_words(cursor, 0)
    put_big32(tail, length)
    put_big32(tail + 4, protocol)
    cursor.at = tail
    cursor.end = cursor.at + 8
    total = sum_words(cursor, total)
    cursor.at = payload
    cursor.end = payload + length
    return sum_words(cursor, total)


cdef uint32_t put_ip_header(
    View *view, const uint8_t *ends, uint8_t protocol, uint32_t payload, uint8_t tos
) noexcept nogil:
    cdef uint8_t *to = view.at
    cdef Cursor cursor
    if view.family:
        put_big32(to, 0x60000000U | <uint32_t>tos << 20)
        put_big16(to + 4, payload)
        to[6] = protocol
        to[7] = 64
        memcpy(to + 8, ends, 32)
        return 40
    to[0] = 0x45
    to[1] = tos
    put_big16(to + 2, 20 + payload)
    put_big32(to + 4, 0x4000)
    to[8] = 64
    to[9] = protocol
    put_big16(to + 10, 0)
    memcpy(to + 12, ends, 8)
    cursor.at = to
    cursor.end = to + 20
    put_big16(to + 10, sum_words(cursor, 0) ^ 0xFFFF)
    return 20


cdef inline void turned_ends(const View *view, uint8_t *ends) noexcept nogil:
    cdef uint32_t size = address_bytes(view)
    memcpy(ends, destination_of(view), size)
    memcpy(ends + size, source_of(view), size)


cdef uint32_t build_reset(View *view) noexcept nogil:
    """RFC 9293 section 3.10.7.1. Returns its length, 0 when it does not fit."""
    cdef uint8_t[32] ends
    cdef uint8_t[20] segment
    cdef const uint8_t *at = part(view, view.transport, 20)
    cdef uint8_t flags = at[13]
    cdef uint32_t header = 40 if view.family else 20
    cdef uint32_t length
    if header + 20 > view.capacity:
        return 0
    turned_ends(view, ends)
    memset(segment, 0, 20)
    memcpy(segment, at + 2, 2)
    memcpy(segment + 2, at, 2)
    segment[12] = 0x50
    if flags & FLAG_ACK:
        memcpy(segment + 4, at + 8, 4)
        segment[13] = FLAG_RST
    else:
        length = view.end - view.transport - (at[12] >> 4) * 4
        length += (1 if flags & FLAG_SYN else 0) + (1 if flags & FLAG_FIN else 0)
        put_big32(segment + 8, big32(at + 4) + length)
        segment[13] = FLAG_RST | FLAG_ACK
    put_big16(segment + 16, sum_with_pseudo(view, ends, PROTO_TCP, segment, 20) ^ 0xFFFF)
    put_ip_header(view, ends, PROTO_TCP, 20, 0)
    memcpy(view.at + header, segment, 20)
    return header + 20


cdef uint32_t build_unreachable(View *view) noexcept nogil:
    """Port unreachable, with the beginning of the packet; 0 when it does not fit."""
    cdef uint8_t[32] ends
    cdef uint32_t header = 40 if view.family else 20
    cdef uint32_t quoted = (1280 if view.family else 576) - header - 8
    cdef uint8_t protocol = PROTO_ICMP6 if view.family else PROTO_ICMP
    cdef uint8_t *message
    cdef Cursor cursor
    cdef uint16_t total
    if quoted > view.end:
        quoted = view.end
    if header + 8 + quoted > view.capacity:
        return 0
    turned_ends(view, ends)
    memmove(view.at + header + 8, view.at, quoted)
    message = view.at + header
    memset(message, 0, 8)
    message[0] = 1 if view.family else 3
    message[1] = 4 if view.family else 3
    if view.family:
        total = sum_with_pseudo(view, ends, protocol, message, quoted + 8)
    else:
        cursor.at = message
        cursor.end = message + quoted + 8
        total = sum_words(cursor, 0)
    put_big16(message + 2, total ^ 0xFFFF)
    put_ip_header(view, ends, protocol, quoted + 8, 0xC0)
    return header + 8 + quoted
