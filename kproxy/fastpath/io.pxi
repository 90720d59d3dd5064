# The engine's I/O: one queue of a TUN device, read and written in batches without the GIL.
#
# A TUN queue gives one packet a call, at most 64 KiB of it: with IFF_VNET_HDR a segment that TCP
# left whole is one packet, and its checksum the kernel's business. So a batch saves no calls; it
# lets the cache misses of its packets overlap, and takes the engine's lock once. A packet that
# comes alone is not kept waiting for a look whether there is another: each batch that was full lets
# the next one be twice as large, and when nothing waits they begin anew with one packet.
#
# A queue is served by a thread of its own that has a table of descriptors of its own: in a table
# that threads share, each call counts up and down who uses the descriptor. The calls are made
# without glibc's wrappers, which in a process with threads do the same for cancellation. Both
# together were a sixth of the thread's time.

cdef extern from *:
    """
    #include <errno.h>
    #include <poll.h>
    #include <pthread.h>
    #include <sched.h>
    #include <signal.h>
    #include <sys/eventfd.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    #define kp_read(fd, to, size) syscall(SYS_read, fd, to, size)
    #define kp_write(fd, at, size) syscall(SYS_write, fd, at, size)

    /* From here on the calling thread has a table of descriptors of its own, and in it these two.
       Whether it has: a kernel before Linux 5.9 cannot, and the shared table is only slower. */
    static int kp_own_descriptors(int one, int other) {
    #ifdef SYS_close_range
        const unsigned low = one < other ? one : other, high = one < other ? other : one;
        const unsigned unshare_first = 1u << 1;    /* CLOSE_RANGE_UNSHARE */
        if (syscall(SYS_close_range, high + 1, ~0u, unshare_first) != 0)
            return 0;
        if (high - low > 1)
            syscall(SYS_close_range, low + 1, high - 1, 0u);
        if (low > 0)
            syscall(SYS_close_range, 0u, low - 1, 0u);
        return 1;
    #else
        (void)one, (void)other;
        return 0;
    #endif
    }

    /* Run in a thread of its own, to its end; an errno. No signal is delivered there. */
    static int kp_in_thread(void *(*run)(void *), void *of) {
        pthread_t thread;
        sigset_t all, before;
        int failed;
        sigfillset(&all);
        pthread_sigmask(SIG_BLOCK, &all, &before);
        failed = pthread_create(&thread, NULL, run, of);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        return failed ? failed : pthread_join(thread, NULL);
    }
    #define kp_relaxed_read(flag) __atomic_load_n(&(flag), __ATOMIC_RELAXED)
    #define kp_relaxed_write(flag, value) __atomic_store_n(&(flag), value, __ATOMIC_RELAXED)
    #define kp_bump(counter, by) \
        __atomic_store_n(&(counter), (counter) + (by), __ATOMIC_RELAXED)
    """
    struct pollfd:
        int fd
        short events
        short revents
    enum: POLLIN, POLLERR, POLLHUP, POLLNVAL
    enum: EAGAIN, EINTR, EBADF, EBADFD, ENOMEM
    enum: EFD_CLOEXEC, EFD_NONBLOCK
    int errno
    int c_poll "poll"(pollfd *fds, unsigned long count, int milliseconds) noexcept nogil
    ssize_t c_read "kp_read"(int fd, void *to, size_t size) noexcept nogil
    ssize_t c_write "kp_write"(int fd, const void *at, size_t size) noexcept nogil
    int c_close "close"(int fd) noexcept nogil
    int c_eventfd "eventfd"(unsigned int count, int flags) noexcept nogil
    int c_yield "sched_yield"() noexcept nogil
    bint kp_own_descriptors(int one, int other) noexcept nogil
    int kp_in_thread(void *(*run)(void *) noexcept nogil, void *of) noexcept nogil
    int kp_relaxed_read(int flag) noexcept nogil
    void kp_relaxed_write(int flag, int value) noexcept nogil
    void kp_bump(uint64_t counter, uint64_t by) noexcept nogil


cdef enum:
    MOST_BYTES = 65535
    LINE = 64
    # Room before a packet for its header, so that the packet begins with a line of the cache.
    FRONT = LINE
    # From one small packet to the next: what the engine may make of it (an ICMP error of 1,280
    # bytes) and the next one's front. An odd number of lines: else their first lines would share
    # some sets of the first cache.
    STRIDE = 25 * LINE
    # A batch takes no more packets when it has come this far: 64 small ones, or two segments of
    # 64 KiB, so that what was read is still in the second cache when it is written.
    FULL = BATCH * STRIDE
    ARENA = FULL + FRONT + MOST_BYTES + LINE


cdef struct Pump_:
    Engine_ *engine
    uint8_t *memory
    int queue
    int bell               # an eventfd: somebody wants us to end
    int ending
    int failed
    bint keeps_time
    uint32_t most          # packets of the next batch: a power of two
    uint64_t spin
    uint64_t due_at
    uint64_t sweep_at
    uint64_t busy_until    # there may be first SYNs to send again
    uint32_t copy_seen
    uint64_t packets_in
    uint64_t packets_out
    uint64_t bytes_in
    uint64_t bytes_out
    uint64_t batches
    uint64_t sleeps
    uint64_t unwritten
    Packet[64] packets


cdef enum:
    # Nanoseconds. The last of a first SYN's tries waits 8 times the engine's patience.
    DUE_EVERY = 25_000_000
    SWEEP_EVERY = 1_000_000_000
    SWEEP_COUNT = 4096
    # Another queue may have taken a first SYN meanwhile: half of the patience with it.
    IDLE_MS = 125


cdef int pump_run(Pump_ *pump) noexcept nogil:
    """Until it is told to end (0) or the queue fails (errno)."""
    cdef uint64_t now, last
    cdef uint32_t count
    cdef int failed = 0
    last = clock_now()
    while not kp_relaxed_read(pump.ending):
        count = pump_read(pump, &failed)
        if count:
            last = clock_now()
            pump_batch(pump, count, last)
            now = last
        elif failed:
            return failed
        else:
            now = clock_now()
            if now - last < pump.spin:
                c_yield()
            else:
                failed = pump_wait(pump, now)
                if failed:
                    return failed
                now = clock_now()
        if pump.keeps_time and now >= pump.due_at:
            pump_tick(pump, now)
    return 0


cdef inline uint32_t pump_read(Pump_ *pump, int *failed) noexcept nogil:
    """What waits, as far as it fits a batch. Packets lie one behind the other."""
    cdef uint32_t count = 0
    cdef uint64_t at = FRONT
    cdef ssize_t got
    while count < pump.most and at <= FULL:
        got = c_read(pump.queue, pump.memory + at - VNET_HEADER, MOST_BYTES + VNET_HEADER)
        if got < 0:
            if errno == EINTR:
                continue
            if errno != EAGAIN:
                failed[0] = errno
            break
        if got <= VNET_HEADER:
            continue
        at = pump_place(&pump.packets[count], at, <uint32_t>got - VNET_HEADER)
        kp_bump(pump.bytes_in, pump.packets[count].length)
        count += 1
    if count == 0:
        pump.most = 1
    elif count == pump.most and count < BATCH:
        pump.most = 2 * count
    return count


cdef inline uint64_t pump_place(Packet *packet, uint64_t at, uint32_t length) noexcept nogil:
    """Where the next packet goes."""
    packet.offset = at
    packet.length = length
    packet.capacity = length if length > STRIDE - FRONT else STRIDE - FRONT
    packet.header = 1
    return at + ((packet.capacity + LINE - 1) & ~<uint32_t>(LINE - 1)) + FRONT


cdef inline void pump_batch(Pump_ *pump, uint32_t count, uint64_t now) noexcept nogil:
    cdef uint32_t one
    pthread_mutex_lock(&pump.engine.lock)
    run_batch(pump.engine, pump.memory, pump.packets, count, now)
    pthread_mutex_unlock(&pump.engine.lock)
    kp_bump(pump.batches, 1)
    kp_bump(pump.packets_in, count)
    for one in range(count):
        if pump.packets[one].code != CODE_DROP and pump.packets[one].code != CODE_STOLEN:
            pump_write(pump, &pump.packets[one])


cdef inline void pump_write(Pump_ *pump, Packet *packet) noexcept nogil:
    """Into the node's own way of packets, which runs to its end within this call."""
    cdef ssize_t put
    while True:
        put = c_write(
            pump.queue, pump.memory + packet.offset - VNET_HEADER, packet.length + VNET_HEADER
        )
        if put >= 0:
            kp_bump(pump.packets_out, 1)
            kp_bump(pump.bytes_out, packet.length)
            return
        if errno != EINTR:
            # The device is down, or this is no packet that the kernel takes.
            kp_bump(pump.unwritten, 1)
            return


cdef int pump_wait(Pump_ *pump, uint64_t now) noexcept nogil:
    cdef pollfd[2] waited
    cdef int timeout = -1
    if pump.keeps_time:
        timeout = DUE_EVERY // 1_000_000 if now < pump.busy_until else IDLE_MS
    waited[0].fd = pump.queue
    waited[0].events = POLLIN
    waited[0].revents = 0
    waited[1].fd = pump.bell
    waited[1].events = POLLIN
    waited[1].revents = 0
    kp_bump(pump.sleeps, 1)
    c_poll(waited, 2, timeout)
    # A device that was deleted says so; one that is down may come up again.
    if waited[0].revents & (POLLHUP | POLLNVAL):
        return EBADFD
    return 0


cdef void pump_tick(Pump_ *pump, uint64_t now) noexcept nogil:
    """First SYNs that nobody has answered, and flows that have expired while nothing came."""
    cdef uint32_t sent, one
    cdef uint64_t at = FRONT
    cdef int family
    pump.due_at = now + DUE_EVERY
    for one in range(<uint32_t>BATCH):
        at = pump_place(&pump.packets[one], at, 0)
    pthread_mutex_lock(&pump.engine.lock)
    sent = run_due(pump.engine, pump.memory, pump.packets, BATCH, now)
    if now >= pump.sweep_at:
        pump.sweep_at = now + SWEEP_EVERY
        for family in range(2):
            pump.engine.expired += flows_sweep(
                pump.engine, &pump.engine.flows[family], SWEEP_COUNT, now
            )
    pthread_mutex_unlock(&pump.engine.lock)
    for one in range(sent):
        pump_write(pump, &pump.packets[one])
    if pump.engine.copy_next != pump.copy_seen:
        pump.copy_seen = pump.engine.copy_next
        pump.busy_until = now + (pump.engine.patience << 4)


cdef void *pump_thread(void *of) noexcept nogil:
    """What :meth:`Pump.run` waits for."""
    cdef Pump_ *pump = <Pump_ *>of
    cdef bint owned = kp_own_descriptors(pump.queue, pump.bell)
    pump.failed = pump_run(pump)
    if owned:
        # A thread is joined before the kernel takes its table away, and as long as that holds the
        # queue the device has a reader.
        c_close(pump.queue)
        c_close(pump.bell)
    return NULL


@cython.final
cdef class Pump:
    cdef Pump_ pump
    cdef Engine _engine
    cdef bint _running

    def __cinit__(
        self, Engine engine not None, int queue, *, uint64_t spin=0, bint keeps_time=False
    ):
        self._engine = engine
        self.pump.bell = -1
        self.pump.engine = &engine.engine
        self.pump.queue = queue
        self.pump.spin = spin
        self.pump.keeps_time = keeps_time
        self.pump.most = 1
        self.pump.memory = <uint8_t *>kp_map(<size_t>ARENA)
        self.pump.bell = c_eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if self.pump.memory == NULL or self.pump.bell < 0:
            raise MemoryError

    def __dealloc__(self):
        kp_unmap(self.pump.memory, <size_t>ARENA)
        if self.pump.bell >= 0:
            c_close(self.pump.bell)

    def run(self):
        cdef int failed
        if self._running:
            raise RuntimeError("a pump runs in one thread")
        self._running = True
        with nogil:
            failed = kp_in_thread(pump_thread, &self.pump)
        self._running = False
        return failed or self.pump.failed

    def stop(self):
        cdef uint64_t one = 1
        kp_relaxed_write(self.pump.ending, 1)
        c_write(self.pump.bell, &one, 8)

    def figures(self):
        return {
            "packets_in": self.pump.packets_in,
            "packets_out": self.pump.packets_out,
            "bytes_in": self.pump.bytes_in,
            "bytes_out": self.pump.bytes_out,
            "batches": self.pump.batches,
            "sleeps": self.pump.sleeps,
            "unwritten": self.pump.unwritten,
        }
