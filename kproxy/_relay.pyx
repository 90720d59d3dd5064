# cython: language_level=3, freethreading_compatible=True, cdivision=True
# cython: boundscheck=False, wraparound=False, initializedcheck=False, linetrace=False
"""The relay of userspace mode: worker threads that carry TCP and UDP without the GIL.

One C unit, split by subject under ``relay/``. This file is the Python boundary: it checks what it
is given, turns it into C values and asks the workers. What each part does, from below:

==============  ================================================================================
sys, types      what is used of the C library; every struct, with who may touch it
service,        services and endpoints; affinity and round robin; replacing lists
choose, publish
flow            the decisions about one TCP flow, as a pure function
tcp, bulk,      carrying them out: bytes, pages, endpoints and retries, the PROXY header,
connect,        letting in
header, accept
udp             UDP sessions
loop, tasks     epoll, timers, and what Python asks of a worker
boundary        between Python objects and C values
==============  ================================================================================
"""

include "relay/sys.pxi"
include "relay/types.pxi"
include "relay/choose.pxi"
include "relay/service.pxi"
include "relay/publish.pxi"
include "relay/flow.pxi"
include "relay/loop.pxi"
include "relay/accept.pxi"
include "relay/bulk.pxi"
include "relay/tcp.pxi"
include "relay/connect.pxi"
include "relay/header.pxi"
include "relay/udp.pxi"
include "relay/tasks.pxi"
include "relay/boundary.pxi"

import os
import threading

from cpython.exc cimport PyErr_CheckSignals

DEBUG = bool(KP_DEBUG)

CLUSTER, LOCAL, ORIGINAL = USE_CLUSTER, USE_LOCAL, USE_ORIGINAL
COPY, SPLICE, ZEROCOPY, ADAPTIVE = BY_COPY, BY_SPLICE, BY_ZEROCOPY, BY_NEED

#: How often a wait looks whether a signal came for Python.
_SLICE_NS = 200_000_000


cdef class Relay:
    cdef Engine *engine
    cdef dict services
    cdef dict fronts
    cdef object lock
    cdef uint32_t last_service
    cdef uint32_t last_front
    cdef bint started
    cdef bint stopped
    cdef uint64_t random[2]

    def __cinit__(self):
        self.engine = <Engine *>calloc(1, sizeof(Engine))
        if self.engine == NULL:
            raise MemoryError
        pthread_mutex_init(&self.engine.mutex, NULL)
        kp_cond_init(&self.engine.idle)

    def __init__(
        self,
        *,
        workers=1,
        max_flows=65536,
        max_sessions=65536,
        idle_seconds=86400.0,
        half_open_seconds=300.0,
        udp_idle_seconds=30.0,
        ladder=(0.25, 0.5, 1.0, 2.0),
        buffer_bytes=262144,
        bulk=BY_NEED,
        spin_seconds=0.0,
    ):
        cdef Engine *engine = self.engine
        if engine.worker != NULL:
            raise ValueError("a relay is set up once")
        if not 1 <= workers <= 256:
            raise ValueError(f"{workers} workers: 1 to 256 are possible")
        if not 1 <= len(ladder) <= MOST_TRIES:
            raise ValueError(f"a ladder has 1 to {MOST_TRIES} rungs, this one {len(ladder)}")
        if not EARLY_BYTES <= buffer_bytes <= 1 << 26:
            raise ValueError(f"{buffer_bytes} buffer_bytes: {EARLY_BYTES} to {1 << 26} are fine")
        if bulk not in (COPY, SPLICE, ZEROCOPY, ADAPTIVE):
            raise ValueError(f"bulk {bulk} is none of COPY, SPLICE, ZEROCOPY, ADAPTIVE")
        self.services = {}
        self.fronts = {}
        self.lock = threading.RLock()
        engine.max_flows = max_flows
        engine.max_sessions = max_sessions
        engine.idle_ns = to_ns(idle_seconds)
        engine.half_open_ns = to_ns(half_open_seconds)
        engine.udp_idle_ns = to_ns(udp_idle_seconds)
        engine.spin_ns = to_ns(spin_seconds)
        for rung, seconds in enumerate(ladder):
            engine.ladder_ns[rung] = to_ns(seconds)
        engine.ladder_size = len(ladder)
        engine.buffer_bytes = buffer_bytes
        engine.bulk = bulk
        self._draw_seeds()
        engine.verdicts = <Verdict *>malloc(MOST_VERDICTS * sizeof(Verdict))
        engine.worker = <Worker *>calloc(workers, sizeof(Worker))
        if engine.verdicts == NULL or engine.worker == NULL:
            raise MemoryError
        for index in range(workers):
            engine.workers = index + 1
            engine.worker[index].epoll = engine.worker[index].wake.fd = -1
            check(worker_init(&engine.worker[index], engine, index))

    def __dealloc__(self):
        cdef uint32_t which
        if self.engine == NULL:
            return
        if self.engine.worker != NULL:
            if not self.stopped:
                with nogil:
                    engine_stop(self.engine)
            for which in range(self.engine.workers):
                worker_free(&self.engine.worker[which])
        pthread_cond_destroy(&self.engine.idle)
        pthread_mutex_destroy(&self.engine.mutex)
        free(self.engine.worker)
        free(self.engine.verdicts)
        free(self.engine)

    cdef _draw_seeds(self):
        cdef bytes seed = os.urandom(16)
        memcpy(self.random, <const char *>seed, 16)
        self.random[0] |= 1  # all zero, it would stay so

    cdef int _alive(self) except -1:
        if self.stopped:
            raise ValueError("the relay has been stopped")
        return 0

    cdef Service *_service(self, number) except NULL:
        self._alive()
        return (<_Service>self.services[number]).c

    # --- life ---

    def start(self):
        with self.lock:
            self._alive()
            if self.started:
                raise ValueError("the relay runs already")
            self.started = True
            check(engine_start(self.engine))

    def stop(self):
        with self.lock:
            if self.stopped:
                return
            self.stopped = True
            with nogil:
                engine_stop(self.engine)
            self.fronts.clear()
            self.services.clear()

    def drain(self, seconds):
        cdef int64_t deadline = now_ns() + to_ns(seconds)
        cdef int64_t until
        cdef uint64_t left
        with self.lock:
            self._alive()
            for number in list(self.fronts):
                if self._is_udp(number):
                    self._ask_front(number, task_quiet)
                else:
                    self._ask_front(number, task_close)
                    del self.fronts[number]
        while True:
            until = min(deadline, now_ns() + <int64_t>_SLICE_NS)
            with nogil:
                left = engine_wait_idle(self.engine, until)
            if left == 0 or now_ns() >= deadline:
                return left
            PyErr_CheckSignals()

    # --- services ---

    def add_service(self, *, udp=False, affinity_seconds=0, proxy_protocol=False):
        cdef _Service service = _Service()
        with self.lock:
            self._alive()
            self.last_service += 1
            service.c = service_new(self.last_service, udp)
            if service.c == NULL:
                raise MemoryError
            service.c.affinity_ns = to_ns(affinity_seconds)
            service.c.proxy_protocol = bool(proxy_protocol)
            self.services[self.last_service] = service
            return self.last_service

    def set_service(self, service, *, affinity_seconds=0, proxy_protocol=False):
        cdef Service *c
        cdef int64_t affinity = to_ns(affinity_seconds)
        with self.lock:
            c = self._service(service)
            store_flag(&c.proxy_protocol, bool(proxy_protocol))
            pthread_mutex_lock(&c.mutex)
            c.affinity_ns = affinity
            if affinity == 0:
                affinity_clear(c)
            pthread_mutex_unlock(&c.mutex)

    def set_endpoints(self, service, endpoints, cluster, local):
        cdef Service *c
        cdef size_t size = len(endpoints)
        # Of no list, and not gone either: nobody is sent there, and UDP sessions stay.
        cdef bytearray lists = bytearray(bytes((1 << USE_ORIGINAL,)) * size)
        cdef bytearray room = bytearray(size * sizeof(Address))
        cdef Address *places = <Address *><char *>room
        cdef const uint8_t *bits = <const uint8_t *><char *>lists
        cdef int went
        for which, (host, port) in enumerate(endpoints):
            to_address(&places[<size_t>which], host, port)
        for use, members in ((USE_CLUSTER, cluster), (USE_LOCAL, local)):
            for which in members:
                if not 0 <= which < size:
                    raise IndexError(f"no endpoint {which} among {size}")
                lists[which] |= 1 << use
        with self.lock:
            c = self._service(service)
            with nogil:
                pthread_mutex_lock(&c.mutex)
                went = replace_endpoints(c, places, bits, size, self.random)
                pthread_mutex_unlock(&c.mutex)
            if went < 0:
                raise MemoryError
            if went and c.udp:
                self._ask_all(c, task_endpoints_went, NULL)

    def remove_service(self, service):
        cdef Service *c
        with self.lock:
            c = self._service(service)
            for number, front in list(self.fronts.items()):
                if front.service == service:
                    self.close(number)
            store_flag(&c.removed, True)
            with nogil:
                pthread_mutex_lock(&c.mutex)
                replace_endpoints(c, NULL, NULL, 0, self.random)
                affinity_clear(c)
                pthread_mutex_unlock(&c.mutex)
            if c.udp:
                self._ask_all(c, task_endpoints_went, NULL)
            del self.services[service]

    cdef _ask_all(self, Service *c, void (*run)(Worker *, Task *) noexcept nogil, Rows *rows):
        cdef Task task
        memset(&task, 0, sizeof(task))
        task.run = run
        task.subject = c
        task.rows = rows
        with nogil:
            ask_all(self.engine, &task)

    # --- fronts ---

    def open(self, service, use, fds):
        cdef _Front front = _Front()
        cdef Service *c
        fds = list(fds)
        with self.lock:
            try:
                c = self._service(service)
                if use not in (USE_CLUSTER, USE_LOCAL, USE_ORIGINAL) or not fds:
                    raise ValueError("a front has a use and at least one socket")
                if use == USE_ORIGINAL and c.udp:
                    raise ValueError("the original destination is known of TCP only")
                for fd in fds:
                    check_socket(c, fd)
                front.service = service
                front.listener = <Listener **>calloc(len(fds), sizeof(Listener *))
                if front.listener == NULL:
                    raise MemoryError
                self.last_front += 1
                while fds:
                    self._listen(front, c, use, fds[0])
                    del fds[0]
            except BaseException:
                for fd in fds:
                    close_fd(fd)
                self._close_front(front)
                raise
            self.fronts[self.last_front] = front
            return self.last_front

    cdef int _listen(self, _Front front, Service *c, int use, int fd) except -1:
        cdef Task task
        cdef int family
        cdef socklen_t size = sizeof(int)
        # With fewer sockets than workers, fronts still spread over all of them.
        cdef uint32_t which = (self.last_front + <uint32_t>front.size) % self.engine.workers
        cdef Worker *worker = &self.engine.worker[which]
        cdef Listener *listener = <Listener *>calloc(1, sizeof(Listener))
        if listener == NULL:
            raise MemoryError
        getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &family, &size)
        listener.handle.fd = fd
        listener.handle.worker = worker
        listener.front = self.last_front
        listener.family = family
        listener.use = use
        listener.service = c
        memset(&task, 0, sizeof(task))
        task.run = task_open
        task.subject = listener
        with nogil:
            ask(worker, &task)
        if task.problem:
            free(listener)
            check(task.problem)
        front.listener[front.size] = listener
        front.size += 1
        return 0

    cdef bint _is_udp(self, number) except -1:
        cdef _Front front = self.fronts[number]
        return front.size > 0 and front.listener[0].service.udp

    cdef int _ask_front(self, number, void (*run)(Worker *, Task *) noexcept nogil) except -1:
        return self._ask_listeners(self.fronts[number], run)

    cdef int _ask_listeners(
        self, _Front front, void (*run)(Worker *, Task *) noexcept nogil
    ) except -1:
        cdef Task task
        cdef size_t which
        memset(&task, 0, sizeof(task))
        task.run = run
        for which in range(front.size):
            task.subject = front.listener[which]
            with nogil:
                ask(front.listener[which].handle.worker, &task)
        return 0

    cdef int _close_front(self, _Front front) except -1:
        self._ask_listeners(front, task_close)
        front.size = 0
        return 0

    def close(self, front):
        with self.lock:
            self._alive()
            self._close_front(self.fronts[front])
            del self.fronts[front]

    def lend(self, front):
        cdef _Front f
        cdef size_t which
        cdef int fd
        copies = []
        with self.lock:
            self._alive()
            f = self.fronts[front]
            for which in range(f.size):
                fd = fcntl(f.listener[which].handle.fd, F_DUPFD_CLOEXEC, 0)
                if fd < 0:
                    problem = errno
                    for copy in copies:
                        close_fd(copy)
                    check(problem)
                copies.append(fd)
        return tuple(copies)

    def quiet(self, front):
        with self.lock:
            self._alive()
            self._ask_front(front, task_quiet)

    # --- for a successor ---

    def affinities(self, service):
        cdef Service *c
        cdef Rows rows
        memset(&rows, 0, sizeof(rows))
        with self.lock:
            c = self._service(service)
            with nogil:
                pthread_mutex_lock(&c.mutex)
                affinity_rows(c, &rows, now_ns())
                pthread_mutex_unlock(&c.mutex)
        return [
            (client, address, port, age / 1e9)
            for client, _, address, port, age in rows_taken(&rows)
        ]

    def set_affinities(self, service, entries):
        cdef Service *c
        cdef Rows rows
        cdef int64_t now = now_ns()
        # From the oldest to the newest.
        found = sorted(entries, key=lambda entry: -entry[3])
        memset(&rows, 0, sizeof(rows))
        try:
            for client, address, port, age in found:
                row_from(&rows, client, 0, address, port, now - to_ns(age))
            with self.lock:
                c = self._service(service)
                with nogil:
                    pthread_mutex_lock(&c.mutex)
                    if c.affinity_ns:
                        affinity_adopt(c, &rows)
                    pthread_mutex_unlock(&c.mutex)
        finally:
            free(rows.at)

    def sessions(self, service):
        cdef Service *c
        cdef Rows rows
        memset(&rows, 0, sizeof(rows))
        with self.lock:
            c = self._service(service)
            if c.udp:
                self._ask_all(c, task_sessions, &rows)
        return [row[:4] for row in rows_taken(&rows)]

    def set_sessions(self, service, entries):
        cdef Service *c
        cdef Rows rows
        cdef Endpoint *endpoint
        cdef size_t which
        cdef int problem = 0
        memset(&rows, 0, sizeof(rows))
        try:
            for client, client_port, address, port in entries:
                row_from(&rows, client, client_port, address, port, 0)
            with self.lock:
                c = self._service(service)
                if not c.udp:
                    raise ValueError(f"service {service} has no UDP sessions")
                with nogil:
                    pthread_mutex_lock(&c.mutex)
                    for which in range(rows.size):
                        endpoint = endpoint_find(c, &rows.at[which].endpoint)
                        if endpoint != NULL and endpoint.lists:
                            problem = udp_expect(c, &rows.at[which].client, endpoint)
                            if problem:
                                break
                    pthread_mutex_unlock(&c.mutex)
                check(problem)
        finally:
            free(rows.at)

    # --- figures ---

    def service_counters(self, service):
        with self.lock:
            return service_figures(self._service(service))

    def endpoint_counters(self, service):
        with self.lock:
            return endpoint_figures(self._service(service))

    def totals(self):
        with self.lock:
            self._alive()
            return engine_figures(self.engine)

    def take_verdicts(self):
        with self.lock:
            self._alive()
            return verdicts_taken(self.engine)


cdef _draw_hash_key():
    cdef bytes seed = os.urandom(16)
    memcpy(hash_key, <const char *>seed, 16)


_draw_hash_key()
