"""The other ways to move bytes, kept to be measured beside copying (tcp.pxi): bench/bench_relay.py.

*Splice* moves pages between the sockets through a pipe for each direction. *Zero copy* reads into
buffers of the flow's own and has the kernel send from them; each is free again when the error queue
says so. Neither pays over a virtual wire: a received segment is copied or linked page by page into
a pipe of at most 256 pages, and what is sent with MSG_ZEROCOPY to a socket of the same machine is
copied after all (skb_orphan_frags_rx), with a notification to collect on top.
"""

cdef extern from *:
    """
    #include <linux/errqueue.h>
    #ifndef SO_EE_ORIGIN_ZEROCOPY
    #define SO_EE_ORIGIN_ZEROCOPY 5
    #endif

    /* The range of sends that are done with: 1; 0: nothing in the queue; -1: something else was. */
    static int kp_completed(int fd, uint32_t *first, uint32_t *last) {
        char control[128];
        struct msghdr message = {.msg_control = control, .msg_controllen = sizeof(control)};
        struct cmsghdr *part;
        if (recvmsg(fd, &message, MSG_ERRQUEUE | MSG_DONTWAIT) < 0)
            return 0;
        for (part = CMSG_FIRSTHDR(&message); part; part = CMSG_NXTHDR(&message, part)) {
            struct sock_extended_err told;
            memcpy(&told, CMSG_DATA(part), sizeof(told));
            if (told.ee_errno == 0 && told.ee_origin == SO_EE_ORIGIN_ZEROCOPY) {
                *first = told.ee_info;
                *last = told.ee_data;
                return 1;
            }
        }
        return -1;
    }
    """
    int kp_completed(int fd, uint32_t *first, uint32_t *last) noexcept nogil
    int pipe2(int *ends, int flags) noexcept nogil
    ssize_t splice(int fd, void *, int to, void *, size_t size, unsigned int flags) noexcept nogil
    const int O_CLOEXEC, F_SETPIPE_SZ
    const unsigned int SPLICE_F_MOVE, SPLICE_F_NONBLOCK

cdef enum:
    BY_COPY
    BY_SPLICE
    BY_ZEROCOPY

cdef enum:
    # fs.pipe-max-size as the kernel has it.
    PIPE_BYTES = 1 << 20
    ZC_BUFFERS = 8
    # Below this, pinning pages costs more than copying them (the kernel's own documentation).
    ZC_LEAST = 10240

# One direction of a flow: the pipe and what is in it, or the buffers and the sends they wait for.
cdef struct Channel:
    int pipe[2]
    uint32_t held
    char *buffer[ZC_BUFFERS]
    bint busy[ZC_BUFFERS]
    uint32_t send_number[ZC_BUFFERS]
    uint32_t sends

cdef struct BulkState:
    # By the side that receives: the server's, the client's.
    Channel way[2]


cdef bint bulk_begin(Worker *worker, Flow *flow) noexcept nogil:
    """False: no memory or no descriptors; then the flow copies."""
    cdef BulkState *bulk = <BulkState *>calloc(1, sizeof(BulkState))
    cdef int way
    if bulk == NULL:
        return False
    bulk.way[0].pipe[0] = bulk.way[1].pipe[0] = -1
    flow.bulk = bulk
    # A pipe can be full before the socket is empty: a short move proves nothing.
    flow.client.read_on = flow.server.read_on = True
    if worker.engine.bulk == BY_SPLICE:
        for way in range(2):
            if pipe2(bulk.way[way].pipe, O_NONBLOCK | O_CLOEXEC):
                bulk_end(flow)
                return False
            fcntl(bulk.way[way].pipe[1], F_SETPIPE_SZ, PIPE_BYTES)
    else:
        way = 1
        setsockopt(flow.client.handle.fd, SOL_SOCKET, SO_ZEROCOPY, &way, sizeof(way))
        setsockopt(flow.server.handle.fd, SOL_SOCKET, SO_ZEROCOPY, &way, sizeof(way))
    return True


cdef void bulk_end(Flow *flow) noexcept nogil:
    """The sockets are closed; pages that the kernel still sends from are its own references."""
    cdef BulkState *bulk = flow.bulk
    cdef int way, which
    if bulk == NULL:
        return
    flow.bulk = NULL
    for way in range(2):
        if bulk.way[way].pipe[0] >= 0:
            close_fd(bulk.way[way].pipe[0])
            close_fd(bulk.way[way].pipe[1])
        for which in range(ZC_BUFFERS):
            free(bulk.way[way].buffer[which])
    free(bulk)


cdef inline Channel *channel_to(Side *sink) noexcept nogil:
    return &sink.flow.bulk.way[0 if sink == &sink.flow.server else 1]


# --- splice ------------------------------------------------------------------------------------

cdef bint pipe_out(Worker *worker, Side *sink) noexcept nogil:
    """What is in the pipe, as far as the peer takes it; True: all."""
    cdef Channel *channel = channel_to(sink)
    cdef ssize_t taken
    while channel.held:
        taken = splice(channel.pipe[0], NULL, sink.handle.fd, NULL, channel.held,
                       SPLICE_F_MOVE | SPLICE_F_NONBLOCK)
        if taken <= 0:
            if taken < 0 and errno == EAGAIN:
                watch_room(worker, sink)
            else:
                reset_by(worker, sink)
            return False
        count_bytes(sink.flow, sink, taken)
        channel.held -= <uint32_t>taken
    return True


cdef ssize_t splice_once(Worker *worker, Side *source, Side *sink) noexcept nogil:
    """As recv answers; what came has gone on, or is in the pipe and the machine knows."""
    cdef Flow *flow = source.flow
    cdef ssize_t got = splice(source.handle.fd, NULL, channel_to(sink).pipe[1], NULL, PIPE_BYTES,
                              SPLICE_F_MOVE | SPLICE_F_NONBLOCK)
    if got > 0:
        channel_to(sink).held = <uint32_t>got
        if not pipe_out(worker, sink) and flow.state.phase == OPEN:
            act(worker, flow, EVENT_SERVER_FULL if sink == &flow.server else EVENT_CLIENT_FULL,
                channel_to(sink).held)
    return got


# --- zero copy ---------------------------------------------------------------------------------

cdef void zc_collect(Side *sink) noexcept nogil:
    """Buffers whose sends are done are free again. Numbers wrap round: compared by distance."""
    cdef Channel *channel = channel_to(sink)
    cdef uint32_t first, last
    cdef int which, answer
    while True:
        answer = kp_completed(sink.handle.fd, &first, &last)
        if answer == 0:
            return
        if answer == 1:
            for which in range(ZC_BUFFERS):
                if channel.busy[which] and channel.send_number[which] - first <= last - first:
                    channel.busy[which] = False


cdef int zc_buffer(Worker *worker, Channel *channel) noexcept nogil:
    """One that nobody sends from; -1: there is none."""
    cdef int which
    for which in range(ZC_BUFFERS):
        if channel.busy[which]:
            continue
        if channel.buffer[which] == NULL:
            channel.buffer[which] = <char *>malloc(worker.engine.buffer_bytes)
        return which if channel.buffer[which] != NULL else -1
    return -1


cdef ssize_t zc_once(Worker *worker, Side *source, Side *sink) noexcept nogil:
    cdef Channel *channel = channel_to(sink)
    cdef int which
    cdef char *buffer = worker.buffer
    cdef ssize_t got, taken = 0
    zc_collect(sink)
    which = zc_buffer(worker, channel)
    if which >= 0:
        buffer = channel.buffer[which]
    got = recv(source.handle.fd, buffer, worker.engine.buffer_bytes, 0)
    if got <= 0:
        return got
    if which >= 0 and got >= ZC_LEAST:
        taken = send(sink.handle.fd, buffer, got, MSG_NOSIGNAL | MSG_ZEROCOPY)
        if taken > 0:
            channel.busy[which] = True
            channel.send_number[which] = channel.sends
            channel.sends += 1
            count_bytes(sink.flow, sink, taken)
        else:
            # ENOBUFS: more is pinned than optmem_max allows. Copying tells of any other fault.
            taken = 0
    if taken < got:
        give(worker, sink, buffer + taken, got - taken)
    return got


# --- which one ---------------------------------------------------------------------------------

cdef ssize_t move_once(Worker *worker, Side *source, Side *sink) noexcept nogil:
    """Some of what the source has sent, to the sink; answers as recv does about the source."""
    cdef Flow *flow = source.flow
    cdef ssize_t got
    if worker.engine.bulk != BY_COPY and (flow.bulk != NULL or bulk_begin(worker, flow)):
        if worker.engine.bulk == BY_SPLICE:
            return splice_once(worker, source, sink)
        return zc_once(worker, source, sink)
    got = recv(source.handle.fd, worker.buffer, worker.engine.buffer_bytes, 0)
    if got > 0:
        give(worker, sink, worker.buffer, got)
    return got


cdef bint give_rest(Worker *worker, Side *sink) noexcept nogil:
    """What is kept elsewhere than in the spill; True: nothing is, or all was taken."""
    return worker.engine.bulk != BY_SPLICE or sink.flow.bulk == NULL or pipe_out(worker, sink)
