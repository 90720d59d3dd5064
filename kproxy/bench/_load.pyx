# cython: language_level=3, freethreading_compatible=True, cdivision=True
"""The load generator: clients and a server that measure without Python in their way.

Nothing here takes the GIL while it runs: a side is an epoll loop over structs of its own. Parts:
``system`` (the kernel's calls), ``record`` (what is counted), ``wire`` (what both sides say),
``exchange`` (TCP requests), ``stream`` (TCP bulk), ``datagram`` (UDP), ``http`` (for clients of
others), ``server``. Times are
nanoseconds of CLOCK_MONOTONIC, which all namespaces of a machine share. The Python boundary is at
the end of this file and in :file:`_load.pyi`.
"""

from libc.errno cimport (
    EADDRINUSE,
    EADDRNOTAVAIL,
    EAGAIN,
    ECONNREFUSED,
    ECONNRESET,
    EHOSTUNREACH,
    EINPROGRESS,
    EINTR,
    EMFILE,
    ENETUNREACH,
    ENFILE,
    ENOBUFS,
    EPIPE,
    ETIMEDOUT,
    errno,
)
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

include "generator/system.pxi"
include "generator/record.pxi"
include "generator/wire.pxi"
include "generator/exchange.pxi"
include "generator/stream.pxi"
include "generator/datagram.pxi"
include "generator/http.pxi"
include "generator/server.pxi"


cdef class _Plan:
    """A :class:`Plan` and the memory that it points to."""

    cdef Plan plan

    def __cinit__(self):
        memset(&self.plan, 0, sizeof(Plan))

    def __dealloc__(self):
        free(self.plan.targets)
        free(self.plan.sources)

    def __init__(
        self,
        targets,
        sources,
        *,
        int connections,
        double rate,
        double seconds,
        uint64_t operations,
        double warmup,
        double timeout,
        uint32_t request_bytes,
        uint32_t response_bytes,
    ):
        if not targets:
            raise ValueError("no target")
        if seconds <= 0 and not operations:
            raise ValueError("neither seconds nor operations say when it ends")
        if connections < 1:
            raise ValueError("connections must be at least 1")
        if request_bytes < HEADER or 0 < response_bytes < HEADER:
            raise ValueError(f"a request or answer has at least {HEADER} bytes")
        families = {_family(host) for host, *_ in (*targets, *((each,) for each in sources))}
        if len(families) > 1:
            raise ValueError("targets and sources are of two families")
        self.plan.family = families.pop()
        self.plan.targets = _addresses(targets)
        self.plan.n_targets = len(targets)
        self.plan.sources = _addresses([(host, 0) for host in sources])
        self.plan.n_sources = len(sources)
        self.plan.connections = connections
        self.plan.rate = rate
        self.plan.seconds = <int64_t>(seconds * SECOND)
        self.plan.operations = operations
        self.plan.warmup = <int64_t>(warmup * SECOND)
        self.plan.timeout = <int64_t>(timeout * SECOND)
        self.plan.request_bytes = request_bytes
        self.plan.response_bytes = response_bytes


cdef int _family(str host):
    return AF_INET6 if ":" in host else AF_INET


cdef sockaddr_storage *_addresses(pairs) except? NULL:
    """Socket addresses of (host, port) pairs, to be freed; NULL for none."""
    cdef sockaddr_storage *made
    if not pairs:
        return NULL
    made = <sockaddr_storage *>calloc(len(pairs), sizeof(sockaddr_storage))
    if made == NULL:
        raise MemoryError
    try:
        for at, (host, port) in enumerate(pairs):
            _fill(&made[at], host, port)
    except BaseException:
        free(made)
        raise
    return made


cdef _fill(sockaddr_storage *to, str host, uint16_t port):
    cdef sockaddr_in *four = <sockaddr_in *>to
    cdef sockaddr_in6 *six = <sockaddr_in6 *>to
    cdef bytes text = host.encode()
    cdef int good
    to.ss_family = _family(host)
    if to.ss_family == AF_INET6:
        six.sin6_port = htons(port)
        good = inet_pton(AF_INET6, text, &six.sin6_addr)
    else:
        four.sin_port = htons(port)
        good = inet_pton(AF_INET, text, &four.sin_addr)
    if good != 1:
        raise ValueError(f"{host!r} is no address")


cdef class _Record:
    """A :class:`Record` and its memory."""

    cdef Record record

    def __cinit__(self):
        memset(&self.record, 0, sizeof(Record))

    def __init__(self, _Plan of):
        if not record_make(&self.record, &of.plan):
            raise MemoryError

    def __dealloc__(self):
        record_free(&self.record)

    cdef dict told(self, double cpu):
        cdef Record *record = &self.record
        return {
            "began": record.began,
            "ended": record.ended,
            "started": record.started,
            "completed": record.completed,
            "bytes_in": record.bytes_in,
            "bytes_out": record.bytes_out,
            "failures": {
                name: record.failures[at]
                for at, name in enumerate(FAILURES)
                if record.failures[at]
            },
            "latency": _sparse(record.latency),
            "connect": _sparse(record.connect),
            "series": [record.series[at] for at in range(record.n_series)],
            "cpu": cpu,
            "quiet": record.quiet,
            "lost": [
                (
                    record.lost[at].intended,
                    record.lost[at].at,
                    FAILURES[record.lost[at].failure],
                    bool(record.lost[at].connected),
                )
                for at in range(record.n_lost)
            ],
        }


cdef dict _sparse(const uint64_t *counts):
    return {at: counts[at] for at in range(BUCKETS) if counts[at]}


cdef enum:
    EXCHANGE
    STREAM
    DATAGRAM


cdef dict _run(_Plan of, int kind):
    """Run to the end without the GIL. OSError: what the client itself could not get."""
    cdef _Record record = _Record(of)
    cdef int code
    cdef double cpu = 0.0
    with nogil:
        cpu = cpu_seconds()
        if kind == EXCHANGE:
            code = run_exchange(&of.plan, &record.record)
        elif kind == STREAM:
            code = run_stream(&of.plan, &record.record)
        else:
            code = run_datagram(&of.plan, &record.record)
        cpu = cpu_seconds() - cpu
    if code:
        raise OSError(code, "the load generator cannot go on")
    return record.told(cpu)


def exchange(targets, sources=(), *, closer="client", uint64_t per_connection=1, **load):
    cdef _Plan of = _Plan(targets, sources, **load)
    of.plan.closer = CLOSERS.index(closer)
    of.plan.per_connection = per_connection
    return _run(of, EXCHANGE)


def stream(targets, sources=(), *, direction="down", **load):
    cdef _Plan of = _Plan(targets, sources, **load)
    of.plan.direction = DIRECTIONS.index(direction)
    return _run(of, STREAM)


def datagram(targets, sources=(), *, int window=1, **load):
    cdef _Plan of = _Plan(targets, sources, **load)
    if not 1 <= window <= MAX_WINDOW:
        raise ValueError(f"window must be between 1 and {MAX_WINDOW}")
    if max(of.plan.request_bytes, of.plan.response_bytes) > MAX_DATAGRAM:
        raise ValueError(f"a datagram has at most {MAX_DATAGRAM} bytes here")
    of.plan.window = window
    return _run(of, DATAGRAM)


def bucket(int64_t value):
    return bucket_of(value)


cdef class Server:
    cdef ServerState state

    def __cinit__(self):
        memset(&self.state, 0, sizeof(ServerState))
        self.state.poll = self.state.wake = -1

    def __init__(self, tcp=(), udp=()):
        cdef int code
        if not server_make(&self.state):
            raise MemoryError
        for is_tcp, places in ((True, tcp), (False, udp)):
            for host, port in places:
                code = self._listen(is_tcp, host, port)
                if code:
                    raise OSError(code, f"cannot listen at {host} port {port}")

    cdef int _listen(self, bint is_tcp, str host, uint16_t port) except? -1:
        cdef sockaddr_storage at
        memset(&at, 0, sizeof(at))
        _fill(&at, host, port)
        return server_listen(&self.state, &at, is_tcp)

    def __dealloc__(self):
        server_free(&self.state)

    def run(self):
        cdef int code
        with nogil:
            code = server_run(&self.state)
        if code:
            raise OSError(code, "the server of the load generator cannot go on")

    def stop(self):
        server_stop(&self.state)

    def deafen(self):
        self.state.deaf = 1
        server_wake(&self.state)
        with nogil:
            while self.state.deaf != 2 and not self.state.stopped:
                sched_yield()

    def counters(self):
        return {
            "accepted": self.state.accepted,
            "open": self.state.open,
            "requests": self.state.requests,
            "bytes_in": self.state.bytes_in,
            "bytes_out": self.state.bytes_out,
            "datagrams_in": self.state.datagrams_in,
            "datagrams_out": self.state.datagrams_out,
            "wrong": self.state.wrong,
            "accept_failures": self.state.accept_failures,
        }

    def series(self, int64_t since, int64_t until):
        cdef int64_t slot
        cdef Slot *at
        taken = []
        for slot in range((since + SLOT - 1) // SLOT, until // SLOT):
            at = &self.state.slots[slot % SLOTS]
            if at.number == slot:
                taken.append((at.bytes, at.datagrams))
            else:
                taken.append((0, 0))
        return taken
