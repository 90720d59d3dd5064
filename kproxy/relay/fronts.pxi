"""The listeners of one front, as the table of fronts has them: made, asked, lent.

The caller holds the lock of the relay.
"""


cdef class _Front:
    """The listeners of one front. A worker frees them when they are closed."""

    cdef Listener **listener
    cdef size_t size
    cdef readonly int service

    def __dealloc__(self):
        free(self.listener)

    cdef int room(self, size_t most) except -1:
        self.listener = <Listener **>calloc(most, sizeof(Listener *))
        if self.listener == NULL:
            raise MemoryError
        return 0

    cdef bint udp(self) noexcept:
        return self.size > 0 and self.listener[0].service.udp

    cdef int listen(
        self, Engine *engine, Service *service, uint32_t number, int use, int fd
    ) except -1:
        """One more socket, served from now on; the descriptor is still the caller's when it
        raises."""
        cdef Task task
        cdef int family
        cdef socklen_t size = sizeof(int)
        # With fewer sockets than workers, fronts still spread over all of them.
        cdef Worker *worker = &engine.worker[(number + <uint32_t>self.size) % engine.workers]
        cdef Listener *listener = <Listener *>calloc(1, sizeof(Listener))
        if listener == NULL:
            raise MemoryError
        getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &family, &size)
        listener.handle.fd = fd
        listener.handle.worker = worker
        listener.front = number
        listener.family = family
        listener.use = use
        listener.service = service
        memset(&task, 0, sizeof(task))
        task.run = task_open
        task.subject = listener
        with nogil:
            ask(worker, &task)
        if task.problem:
            free(listener)
            check(task.problem)
        self.listener[self.size] = listener
        self.size += 1
        return 0

    cdef int ask(self, void (*run)(Worker *, Task *) noexcept nogil) except -1:
        """The worker of each listener, about it."""
        cdef Task task
        cdef size_t which
        memset(&task, 0, sizeof(task))
        task.run = run
        for which in range(self.size):
            task.subject = self.listener[which]
            with nogil:
                ask(self.listener[which].handle.worker, &task)
        return 0

    cdef int close(self) except -1:
        self.ask(task_close)
        self.size = 0
        return 0

    cdef tuple copies(self):
        """Of the descriptors; the caller closes them."""
        cdef size_t which
        cdef int fd
        copies = []
        for which in range(self.size):
            fd = fcntl(self.listener[which].handle.fd, F_DUPFD_CLOEXEC, 0)
            if fd < 0:
                problem = errno
                for copy in copies:
                    close_fd(copy)
                check(problem)
            copies.append(fd)
        return tuple(copies)
