# What both sides say: each request and each datagram begins with a header that tells the server
# what is wanted, so one server serves every load. An answer begins with the same header, by which
# the client knows that it is the answer to its own question. Both sides are one machine: the
# numbers are in its own order.

cdef enum:
    MAGIC = 0x646C706B  # "kpld"
    HEADER = 24
    #: Bytes given to or taken from a socket at once.
    CHUNK = 128 * 1024

cdef enum:
    ANSWER  # response_bytes for each request
    SINK  # read all that comes
    SOURCE  # send without end
    DUPLEX  # both

cdef struct Header:
    uint32_t magic
    uint8_t wanted
    uint8_t server_closes
    uint16_t unused
    uint32_t request_bytes
    uint32_t response_bytes
    uint64_t id


cdef inline void make_header(
    Header *header, const Plan *plan, int wanted, uint64_t number
) noexcept nogil:
    header.magic = MAGIC
    header.wanted = <uint8_t>wanted
    header.server_closes = plan.closer == BY_SERVER or plan.closer == BY_BOTH
    header.unused = 0
    header.request_bytes = plan.request_bytes
    header.response_bytes = plan.response_bytes
    header.id = number


cdef int open_socket(const Plan *plan, int kind, uint64_t number) noexcept nogil:
    """A socket at its source, not connected; -errno. Sources and targets are taken in turn."""
    cdef int fd = socket(plan.family, kind | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
    cdef int code
    if fd < 0:
        return -errno
    if kind == SOCK_STREAM:
        set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1)
    if plan.n_sources:
        # The port is chosen by connect(2), which may use one for many targets; bind(2) may not.
        set_option(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        if bind(
            fd,
            <sockaddr *>&plan.sources[number % <uint64_t>plan.n_sources],
            length_of(plan.family),
        ) < 0:
            code = -errno
            close(fd)
            return code
    return fd


cdef inline int connect_socket(const Plan *plan, int fd, uint64_t number) noexcept nogil:
    """0 when connected or on its way, else the errno."""
    if connect(
        fd, <sockaddr *>&plan.targets[number % <uint64_t>plan.n_targets], length_of(plan.family)
    ) < 0 and errno != EINPROGRESS:
        return errno
    return 0
