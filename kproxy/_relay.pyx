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
tcp, bulk,      carrying them out: bytes, pages, endpoints and retries, the node's addresses to
connect,        connect from, the PROXY header, letting in
source,
header, accept
udp             UDP sessions
loop, tasks     epoll, timers, and what Python asks of a worker
boundary,       between Python objects and C values; a front's sockets; what is told of a service,
fronts, told    and to a successor
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
include "relay/source.pxi"
include "relay/connect.pxi"
include "relay/header.pxi"
include "relay/udp.pxi"
include "relay/tasks.pxi"
include "relay/boundary.pxi"
include "relay/fronts.pxi"
include "relay/told.pxi"

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
        free(self.engine.sources)
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
            for number, front in list(self.fronts.items()):
                if (<_Front>front).udp():
                    (<_Front>front).ask(task_quiet)
                else:
                    (<_Front>front).close()
                    del self.fronts[number]
        while True:
            until = min(deadline, now_ns() + <int64_t>_SLICE_NS)
            with nogil:
                left = engine_wait_idle(self.engine, until)
            if left == 0 or now_ns() >= deadline:
                return left
            PyErr_CheckSignals()

    def set_sources(self, addresses):
        cdef Sources *wanted = sources_from(addresses)
        cdef Sources *before
        with self.lock:
            before = self.engine.sources
            if self.stopped:
                free(wanted)
            self._alive()
            store_sources(&self.engine.sources, wanted)
            # No worker looks at those of before any more.
            ask_each(self.engine, NULL, task_nothing, NULL)
            free(before)
            for service in self.services.values():
                forget_sources((<_Service>service).c)

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

    def set_endpoints(self, service, endpoints, cluster, local, weights=()):
        cdef Service *c
        with self.lock:
            c = self._service(service)
            if tell_endpoints(c, endpoints, cluster, local, weights, self.random) and c.udp:
                ask_each(self.engine, c, task_endpoints_went, NULL)

    def remove_service(self, service):
        cdef Service *c
        with self.lock:
            c = self._service(service)
            for number, front in list(self.fronts.items()):
                if front.service == service:
                    self.close(number)
            store_flag(&c.removed, True)
            tell_nobody(c, self.random)
            if c.udp:
                ask_each(self.engine, c, task_endpoints_went, NULL)
            del self.services[service]

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
                front.room(len(fds))
                self.last_front += 1
                while fds:
                    front.listen(self.engine, c, self.last_front, use, fds[0])
                    del fds[0]
            except BaseException:
                for fd in fds:
                    close_fd(fd)
                front.close()
                raise
            self.fronts[self.last_front] = front
            return self.last_front

    def close(self, front):
        with self.lock:
            self._alive()
            (<_Front>self.fronts[front]).close()
            del self.fronts[front]

    def lend(self, front):
        with self.lock:
            self._alive()
            return (<_Front>self.fronts[front]).copies()

    def quiet(self, front):
        with self.lock:
            self._alive()
            (<_Front>self.fronts[front]).ask(task_quiet)

    # --- for a successor ---

    def affinities(self, service):
        with self.lock:
            return told_affinities(self._service(service))

    def set_affinities(self, service, entries):
        with self.lock:
            tell_affinities(self._service(service), entries)

    def sessions(self, service):
        with self.lock:
            return told_sessions(self.engine, self._service(service))

    def set_sessions(self, service, entries):
        with self.lock:
            tell_sessions(self._service(service), entries)

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
