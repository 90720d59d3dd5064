"""What Python asks of a worker, each a function that the worker runs between two events."""


cdef void task_open(Worker *worker, Task *task) noexcept nogil:
    task.problem = listener_open(worker, <Listener *>task.subject)


cdef void task_quiet(Worker *worker, Task *task) noexcept nogil:
    listener_quiet(worker, <Listener *>task.subject)


cdef void task_close(Worker *worker, Task *task) noexcept nogil:
    listener_close(worker, <Listener *>task.subject)


cdef void task_endpoints_went(Worker *worker, Task *task) noexcept nogil:
    udp_service_changed(worker, <Service *>task.subject)


cdef void task_sessions(Worker *worker, Task *task) noexcept nogil:
    udp_list(worker, <Service *>task.subject, task.rows)


cdef void task_nothing(Worker *worker, Task *task) noexcept nogil:
    """Whoever waits for it knows that the worker holds nothing any more that it held before."""


cdef void task_stop(Worker *worker, Task *task) noexcept nogil:
    worker.stopping = True
    end_all_flows(worker)
    while worker.listeners != NULL:
        listener_close(worker, worker.listeners)
    udp_stop(worker)


cdef void ask(Worker *worker, Task *task) noexcept nogil:
    """Post and wait."""
    post(worker, task)
    wait_for(worker, task)


cdef void ask_all(Engine *engine, Task *task) noexcept nogil:
    """One worker after the other, with one task: what all answer adds up in its rows."""
    cdef uint32_t which
    for which in range(engine.workers):
        ask(&engine.worker[which], task)


# --- workers and what they have in common -------------------------------------------------------

cdef int worker_init(Worker *worker, Engine *engine, uint32_t index) noexcept nogil:
    """0 or an errno."""
    cdef uint32_t rung
    worker.engine = engine
    worker.index = index
    worker.wake.worker = worker
    worker.wake.kind = WAKE
    pthread_mutex_init(&worker.mutex, NULL)
    kp_cond_init(&worker.finished)
    timer_list_init(&worker.idle, engine.idle_ns, flow_due)
    timer_list_init(&worker.half_open, engine.half_open_ns, flow_due)
    for rung in range(engine.ladder_size):
        timer_list_init(&worker.ladder[rung], engine.ladder_ns[rung], ladder_due)
    worker.buffer = <char *>malloc(engine.buffer_bytes)
    if worker.buffer == NULL:
        return ENOMEM
    worker.epoll = epoll_create1(EPOLL_CLOEXEC)
    if worker.epoll < 0:
        return errno
    worker.wake.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    if worker.wake.fd < 0:
        return errno
    cdef int problem = watch(worker, &worker.wake, EPOLLIN)
    return problem if problem else udp_worker_start(worker)


cdef void worker_close(Worker *worker) noexcept nogil:
    """Its descriptors; it runs no more."""
    close_spares(worker)
    close_pipes(worker)
    if worker.wake.fd >= 0:
        close_fd(worker.wake.fd)
    if worker.epoll >= 0:
        close_fd(worker.epoll)
    worker.wake.fd = worker.epoll = -1


cdef void worker_free(Worker *worker) noexcept nogil:
    cdef Flow *flow
    if worker.engine == NULL:
        return
    worker_close(worker)
    worker.queued = NULL
    bury(worker)
    while worker.free_flows != NULL:
        flow = worker.free_flows
        worker.free_flows = flow.after
        free(flow)
    free(worker.buffer)
    pthread_cond_destroy(&worker.finished)
    pthread_mutex_destroy(&worker.mutex)


cdef int engine_start(Engine *engine) noexcept nogil:
    """0 or an errno; the workers before the one that failed run."""
    cdef uint32_t which
    cdef int problem
    for which in range(engine.workers):
        engine.worker[which].running = True
        problem = kp_thread(&engine.worker[which].thread, worker_run, &engine.worker[which])
        if problem:
            engine.worker[which].running = False
            return problem
    return 0


cdef void engine_stop(Engine *engine) noexcept nogil:
    """Every worker ends what it has and is joined; one that never ran ends it here."""
    cdef Task task
    cdef uint32_t which
    cdef Worker *worker
    memset(&task, 0, sizeof(task))
    for which in range(engine.workers):
        worker = &engine.worker[which]
        task.run = task_stop
        post(worker, &task)
        if worker.running:
            pthread_join(worker.thread, NULL)
            worker.running = False
        bury(worker)
        worker_close(worker)


cdef uint64_t engine_left(Engine *engine) noexcept nogil:
    """Flows and sessions."""
    cdef uint64_t left = 0
    cdef uint32_t which
    for which in range(engine.workers):
        left += figure(&engine.worker[which].flow_count)
        left += figure(&engine.worker[which].session_count)
    return left


cdef uint64_t engine_wait_idle(Engine *engine, int64_t until) noexcept nogil:
    """How many are left when none is, or at that time."""
    cdef uint64_t left
    pthread_mutex_lock(&engine.mutex)
    left = engine_left(engine)
    while left and now_ns() < until:
        kp_cond_wait_until(&engine.idle, &engine.mutex, until)
        left = engine_left(engine)
    pthread_mutex_unlock(&engine.mutex)
    return left
