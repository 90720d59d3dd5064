"""Moving bytes from one side to the other: by copying, by splicing, by zero copy.

*Copy* reads into the worker's buffer and sends from there: best for short messages. *Splice* moves
pages between the sockets through a pipe that the worker lends: half the processor time for streams.
*Adaptive*, what runs, copies until a read brings much at once, splices as long as reads do, and
copies again. *Zero copy* reads into buffers of the flow's own and has the kernel send from them;
each is free again when the error queue says so. It is there to be measured: what is sent with
MSG_ZEROCOPY to a socket of the same machine is copied after all (skb_orphan_frags_rx), with a
notification to collect on top. Figures: bench/README.md.
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
    BY_NEED

cdef enum:
    # A pipe has a slot for each piece of a page; 256 of them (1 MiB in pages, fs.pipe-max-size as
    # the kernel has it) hold a buffer's worth also of pieces of 1,448 bytes.
    PIPE_BYTES = 1 << 20
    SPARE_PIPES = 16
    # BY_NEED: a read of so much makes a stream of it, one of less than the second ends that.
    STREAM_BEGINS = 32768
    STREAM_ENDS = 8192
    ZC_BUFFERS = 8
    # Below this, pinning pages costs more than copying them (the kernel's own documentation).
    ZC_LEAST = 10240

# Lent by the worker for one move; kept by the side that did not take all, until it has.
cdef struct Pipe:
    int ends[2]
    uint32_t held
    Pipe *next

# Buffers for what goes to one side, and the sends that they wait for.
cdef struct Channel:
    char *buffer[ZC_BUFFERS]
    bint busy[ZC_BUFFERS]
    uint32_t send_number[ZC_BUFFERS]
    uint32_t sends

cdef struct ZeroCopy:
    # By the side that receives: the server's, the client's.
    Channel way[2]


# --- copy --------------------------------------------------------------------------------------

cdef ssize_t copy_once(Worker *worker, Side *source, Side *sink) noexcept nogil:
    cdef uint32_t most = worker.engine.buffer_bytes
    cdef ssize_t got = recv(source.handle.fd, worker.buffer, most, 0)
    if got > 0:
        if <uint32_t>got < most and not source.read_on:
            # Edge-triggered or not: a short read has emptied the socket.
            source.readable = False
        if got >= STREAM_BEGINS and worker.engine.bulk == BY_NEED:
            source.streams = True
        give(worker, sink, worker.buffer, got)
    return got


# --- splice ------------------------------------------------------------------------------------

cdef Pipe *pipe_take(Worker *worker) noexcept nogil:
    """An empty one; NULL: no memory or no descriptors."""
    cdef Pipe *pipe = worker.pipes
    if pipe != NULL:
        worker.pipes = pipe.next
        worker.pipe_count -= 1
        return pipe
    pipe = <Pipe *>calloc(1, sizeof(Pipe))
    if pipe == NULL:
        return NULL
    if pipe2(pipe.ends, O_NONBLOCK | O_CLOEXEC):
        free(pipe)
        return NULL
    # Not so large when fs.pipe-user-pages-soft is used up: it works all the same.
    fcntl(pipe.ends[1], F_SETPIPE_SZ, PIPE_BYTES)
    return pipe


cdef void pipe_close(Pipe *pipe) noexcept nogil:
    close_fd(pipe.ends[0])
    close_fd(pipe.ends[1])
    free(pipe)


cdef void pipe_give_back(Worker *worker, Pipe *pipe) noexcept nogil:
    if worker.pipe_count >= SPARE_PIPES:
        pipe_close(pipe)
        return
    pipe.next = worker.pipes
    worker.pipes = pipe
    worker.pipe_count += 1


cdef void pipe_drop(Worker *worker, Side *side) noexcept nogil:
    """With what is in it."""
    if side.pipe != NULL:
        count(&worker.buffered, <uint64_t>0 - side.pipe.held)
        pipe_close(side.pipe)
        side.pipe = NULL


cdef void close_pipes(Worker *worker) noexcept nogil:
    cdef Pipe *pipe
    while worker.pipes != NULL:
        pipe = worker.pipes
        worker.pipes = pipe.next
        pipe_close(pipe)
    worker.pipe_count = 0


cdef bint pipe_out(Worker *worker, Side *sink) noexcept nogil:
    """What is in its pipe, as far as the peer takes it; True: all, and the pipe is given back."""
    cdef Pipe *pipe = sink.pipe
    cdef ssize_t taken
    while pipe.held:
        taken = splice(pipe.ends[0], NULL, sink.handle.fd, NULL, pipe.held, SPLICE_F_NONBLOCK)
        if taken <= 0:
            if taken < 0 and errno == EAGAIN:
                watch_room(worker, sink)
            else:
                reset_by(worker, sink)
            return False
        count_bytes(sink.flow, sink, taken)
        count(&worker.buffered, <uint64_t>0 - taken)
        pipe.held -= <uint32_t>taken
    sink.pipe = NULL
    pipe_give_back(worker, pipe)
    return True


cdef ssize_t splice_once(Worker *worker, Side *source, Side *sink) noexcept nogil:
    """A short move proves nothing here: the pipe may have been full before the socket was empty."""
    cdef Flow *flow = source.flow
    cdef Pipe *pipe = pipe_take(worker)
    cdef ssize_t got
    cdef int problem
    if pipe == NULL:
        return copy_once(worker, source, sink)
    got = splice(source.handle.fd, NULL, pipe.ends[1], NULL, worker.engine.buffer_bytes,
                 SPLICE_F_NONBLOCK)
    if got <= 0:
        problem = errno
        pipe_give_back(worker, pipe)
        errno_set(problem)
        return got
    if got < STREAM_ENDS:
        source.streams = False
    pipe.held = <uint32_t>got
    sink.pipe = pipe
    count(&worker.buffered, got)
    if not pipe_out(worker, sink) and flow.state.phase == OPEN:
        act(worker, flow, EVENT_SERVER_FULL if sink == &flow.server else EVENT_CLIENT_FULL,
            pipe.held)
    return got


# --- zero copy ---------------------------------------------------------------------------------

cdef bint zc_begin(Flow *flow) noexcept nogil:
    """False: no memory; then it copies."""
    cdef int on = 1
    if flow.zero_copy == NULL:
        flow.zero_copy = <ZeroCopy *>calloc(1, sizeof(ZeroCopy))
        setsockopt(flow.client.handle.fd, SOL_SOCKET, SO_ZEROCOPY, &on, sizeof(on))
        setsockopt(flow.server.handle.fd, SOL_SOCKET, SO_ZEROCOPY, &on, sizeof(on))
    return flow.zero_copy != NULL


cdef void zc_end(Flow *flow) noexcept nogil:
    """The kernel holds references of its own to pages that it still sends from."""
    cdef int way, which
    if flow.zero_copy == NULL:
        return
    for way in range(2):
        for which in range(ZC_BUFFERS):
            free(flow.zero_copy.way[way].buffer[which])
    free(flow.zero_copy)
    flow.zero_copy = NULL


cdef inline Channel *channel_to(Side *sink) noexcept nogil:
    return &sink.flow.zero_copy.way[0 if sink == &sink.flow.server else 1]


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
    if <uint32_t>got < worker.engine.buffer_bytes and not source.read_on:
        source.readable = False
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
    """Some of what the source has sent, to the sink; answers as recv does about the source. What
    the sink did not take is kept for it, and the machine knows."""
    if source.streams or worker.engine.bulk == BY_SPLICE:
        return splice_once(worker, source, sink)
    if worker.engine.bulk == BY_ZEROCOPY and zc_begin(source.flow):
        return zc_once(worker, source, sink)
    return copy_once(worker, source, sink)
