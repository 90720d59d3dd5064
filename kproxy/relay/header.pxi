"""The PROXY protocol header, version 2, binary: who the client is, for a backend that asks.

https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt section 2.2::

    0d 0a 0d 0a 00 0d 0a 51 55 49 54 0a   signature
    21            version 2, command PROXY
    1|2 << 4 | 1  family (1: IPv4, 2: IPv6), transport (1: stream, 2: datagram)
    length        of what follows, big-endian: 12 or 36
    source address, destination address, source port, destination port
"""

cdef enum:
    TRANSPORT_STREAM = 1
    TRANSPORT_DATAGRAM = 2
    LONGEST_HEADER = 16 + 36

cdef uint8_t SIGNATURE[12]
SIGNATURE[:] = [0x0D, 0x0A, 0x0D, 0x0A, 0x00, 0x0D, 0x0A, 0x51, 0x55, 0x49, 0x54, 0x0A]


cdef uint32_t write_header(
    uint8_t *to, const Address *client, const Address *asked, uint8_t transport
) noexcept nogil:
    """Its length. Both addresses are of one family; ``to`` has room for LONGEST_HEADER."""
    cdef bint six = client.any.sa_family == AF_INET6
    cdef uint32_t host = 16 if six else 4
    cdef uint32_t length = 2 * host + 4
    memcpy(to, SIGNATURE, 12)
    to[12] = 0x21
    to[13] = (0x20 if six else 0x10) | transport
    to[14] = 0
    to[15] = <uint8_t>length
    if six:
        memcpy(to + 16, &client.v6.sin6_addr, 16)
        memcpy(to + 32, &asked.v6.sin6_addr, 16)
    else:
        memcpy(to + 16, &client.v4.sin_addr, 4)
        memcpy(to + 20, &asked.v4.sin_addr, 4)
    memcpy(to + 16 + 2 * host, &client.v4.sin_port, 2)
    memcpy(to + 18 + 2 * host, &asked.v4.sin_port, 2)
    return 16 + length


cdef bint header_add(Worker *worker, Flow *flow) noexcept nogil:
    """Before anything that the client sends. The destination is what the client asked for, where
    the kernel still knows that; else the address at which it was let in. False: no memory."""
    cdef Address asked
    cdef uint8_t header[LONGEST_HEADER]
    cdef uint32_t length
    cdef socklen_t size = sizeof(Address)
    cdef int level = IPPROTO_IPV6 if flow.peer.any.sa_family == AF_INET6 else IPPROTO_IP
    if getsockopt(flow.client.handle.fd, level, ORIGINAL_DST, &asked, &size):
        size = sizeof(Address)
        if getsockname(flow.client.handle.fd, &asked.any, &size):
            return False
    length = write_header(header, &flow.peer, &asked, TRANSPORT_STREAM)
    if not spill_add(worker, &flow.server.spill, <char *>header, length):
        return False
    act(worker, flow, EVENT_SERVER_FULL, length)
    return True
