# What a load is (Plan) and what is counted of it (Record).

cdef enum:
    # A log-linear histogram of three significant digits: values below 2,048 exactly, then 1,024
    # steps for each doubling, so that a step is at most 1/1,024 of its value. 2^41 ns are 36
    # minutes: longer waits count as that. bench/histogram.py is the slow twin.
    EXACT_BITS = 11
    STEPS = 1024
    MOST_BITS = 41
    BUCKETS = 2048 + STEPS * (MOST_BITS - EXACT_BITS)


cdef inline int bucket_of(int64_t value) noexcept nogil:
    cdef int shift
    if value < 0:
        value = 0
    if value >= (<int64_t>1 << MOST_BITS):
        value = (<int64_t>1 << MOST_BITS) - 1
    if value < 2048:
        return <int>value
    shift = 64 - __builtin_clzll(<unsigned long long>value) - EXACT_BITS
    return 2048 + (shift - 1) * STEPS + <int>((value >> shift) - STEPS)


cdef extern from *:
    int __builtin_clzll(unsigned long long) noexcept nogil


cdef enum:
    REFUSED
    RESET
    TIMEOUT
    UNREACHABLE
    NO_PORT
    NO_DESCRIPTOR
    EARLY_END
    WRONG
    LOST
    UNFINISHED
    OTHER
    N_FAILURES

#: Names in the order of Failure.
FAILURES = (
    "refused",
    "reset",
    "timeout",
    "unreachable",
    "no_port",
    "no_descriptor",
    "early_end",
    "wrong",
    "lost",
    "unfinished",
    "other",
)

cdef enum:
    BY_CLIENT
    BY_RESET
    BY_SERVER
    BY_BOTH

CLOSERS = ("client", "reset", "server", "both")

cdef enum:
    DOWN
    UP
    BOTH

DIRECTIONS = ("down", "up", "both")


cdef struct Plan:
    int family
    sockaddr_storage *targets
    int n_targets
    sockaddr_storage *sources
    int n_sources
    int connections
    uint64_t per_connection  # 0: as many as it lives
    double rate  # a second; 0: closed loop
    int64_t seconds  # ns after the warm-up; 0: until `operations` are done
    uint64_t operations  # 0: until `seconds` are over
    int64_t warmup
    int64_t timeout
    int closer
    int direction
    int window
    uint32_t request_bytes
    uint32_t response_bytes


cdef enum:
    #: Failures that are kept one by one; all of them are counted.
    MOST_LOST = 1 << 16


cdef struct Lost:
    int64_t intended
    int64_t at  # when it was given up
    uint8_t failure
    uint8_t connected  # the connection had been made


cdef struct Record:
    uint64_t *latency
    uint64_t *connect
    uint64_t *series
    int n_series
    int64_t origin  # when the loop began
    int64_t began  # when counting began
    int64_t until  # when it ends; INT64_MAX while only operations end it
    int64_t ended
    uint64_t issued  # warm-up included
    uint64_t started
    uint64_t completed
    uint64_t bytes_in
    uint64_t bytes_out
    uint64_t failures[16]
    Lost *lost
    int n_lost
    int64_t done_at  # the last completion
    int64_t quiet  # the longest time without one


cdef enum:
    #: Seconds of a load that only its number of operations ends.
    MOST_SECONDS = 3600


cdef bint record_make(Record *record, const Plan *plan) noexcept nogil:
    cdef int64_t seconds = plan.seconds if plan.seconds else <int64_t>MOST_SECONDS * SECOND
    record.n_series = <int>((seconds + SECOND - 1) // SECOND)
    record.latency = <uint64_t *>calloc(BUCKETS, sizeof(uint64_t))
    record.connect = <uint64_t *>calloc(BUCKETS, sizeof(uint64_t))
    record.series = <uint64_t *>calloc(<size_t>record.n_series, sizeof(uint64_t))
    record.lost = <Lost *>calloc(MOST_LOST, sizeof(Lost))
    return (
        record.latency != NULL and record.connect != NULL and record.series != NULL
        and record.lost != NULL
    )


cdef void record_free(Record *record) noexcept nogil:
    free(record.latency)
    free(record.connect)
    free(record.series)
    free(record.lost)


cdef void record_begin(Record *record, const Plan *plan) noexcept nogil:
    # Default timer slack lets the kernel wake us 50 us late: a quarter of an interval at 5,000/s.
    prctl(PR_SET_TIMERSLACK, 1)
    record.origin = now_ns()
    record.began = record.origin + plan.warmup
    if plan.seconds:
        record.until = record.began + plan.seconds
    else:
        record.until = record.began + <int64_t>MOST_SECONDS * SECOND
    record.ended = record.done_at = record.began


cdef void record_end(Record *record, const Plan *plan) noexcept nogil:
    """A load of so many operations ended with the last of them, one of seconds when they were."""
    if plan.seconds and not plan.operations:
        record.ended = record.until
    count_quiet(record, record.ended)
    if record.ended > record.began:
        record.n_series = <int>((record.ended - record.began + SECOND - 1) // SECOND)
    else:
        record.n_series = 0


cdef inline void count_series(Record *record, int64_t now, uint64_t amount) noexcept nogil:
    cdef int64_t second = (now - record.began) // SECOND
    if now >= record.began and second < record.n_series:
        record.series[second] += amount


cdef inline void count_quiet(Record *record, int64_t now) noexcept nogil:
    if now - record.done_at > record.quiet:
        record.quiet = now - record.done_at
    record.done_at = now


cdef inline void count_done(Record *record, int64_t intended, int64_t now) noexcept nogil:
    """An operation is complete. What was begun in time and ended late has a latency, but is no
    part of what was done in time."""
    if intended < record.began:
        return
    record.latency[bucket_of(now - intended)] += 1
    if now <= record.until:
        record.completed += 1
        record.ended = now
        count_quiet(record, now)
        count_series(record, now, 1)


cdef inline void count_failure(Record *record, int64_t intended, int failure) noexcept nogil:
    if intended >= record.began:
        record.failures[failure] += 1


cdef inline void count_lost(
    Record *record, int64_t intended, int64_t now, int failure, bint connected
) noexcept nogil:
    """A failure of a TCP operation, kept with when it was."""
    cdef Lost *lost
    count_failure(record, intended, failure)
    if intended < record.began or record.n_lost >= MOST_LOST:
        return
    lost = &record.lost[record.n_lost]
    record.n_lost += 1
    lost.intended = intended
    lost.at = now
    lost.failure = <uint8_t>failure
    lost.connected = connected


cdef inline int failure_of(int code) noexcept nogil:
    if code == ECONNREFUSED:
        return REFUSED
    if code == ECONNRESET or code == EPIPE:
        return RESET
    if code == ETIMEDOUT:
        return TIMEOUT
    if code == EHOSTUNREACH or code == ENETUNREACH:
        return UNREACHABLE
    if code == EADDRNOTAVAIL or code == EADDRINUSE or code == EAGAIN:
        return NO_PORT  # IPv6 says EADDRNOTAVAIL, an unbound connect(2) may say EAGAIN
    if code == EMFILE or code == ENFILE:
        return NO_DESCRIPTOR
    return OTHER


# --- when operations are due -------------------------------------------------------------------


cdef inline int64_t due_at(const Plan *plan, const Record *record, int64_t now) noexcept nogil:
    """When the next operation is meant to start. In the closed loop that is whenever it can."""
    if plan.rate <= 0:
        return now
    return record.origin + <int64_t>(<double>record.issued / plan.rate * SECOND)


cdef inline bint may_start(const Plan *plan, const Record *record, int64_t due) noexcept nogil:
    """Whether an operation that is due then belongs to the load at all."""
    return due < record.until and not (plan.operations and record.started >= plan.operations)


cdef inline void count_start(Record *record, int64_t intended) noexcept nogil:
    record.issued += 1
    if intended >= record.began:
        record.started += 1
