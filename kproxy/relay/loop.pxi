"""A worker's loop: events to whom they concern, tasks from Python, timers, and what died.

What udp.pxi provides (each called by the worker itself, between or within events)::

    int     udp_worker_start(Worker *)               0 or an errno; once, before any other
    void    udp_stop(Worker *)                       every session ends, all is freed
    int     udp_front_open(Worker *, Listener *)     0 or an errno; it is in epoll afterwards
    void    udp_front_quiet(Worker *, Listener *)    read no more; replies go on
    void    udp_front_close(Worker *, Listener *)    its sessions end; the caller closes the socket
    void    udp_ready(Worker *, Handle *, uint32_t)  events of a UDP_LISTENER or UDP_SESSION
    void    udp_round(Worker *)                      after all events of a round
    void    udp_bury(Worker *)                       free what ended; nothing leads there any more
    void    udp_service_changed(Worker *, Service *) endpoints went: their sessions end
    int64_t udp_expire(Worker *, int64_t now)        end what is idle; when next (INT64_MAX: never)
    void    udp_list(Worker *, Service *, Rows *)    add a row (rows_add) for each living session
    int     udp_expect(Service *, const Address *client, Endpoint *)   mutex held; 0 or an errno
    void    udp_service_free(Service *)              when the last reference has gone
"""


# --- timers ------------------------------------------------------------------------------------

cdef void timer_list_init(
    TimerList *timers, int64_t duration, void (*fire)(Worker *, Timer *) noexcept nogil
) noexcept nogil:
    timers.duration = duration
    timers.fire = fire
    timers.head.before = timers.head.after = &timers.head


cdef inline void timer_stop(Timer *timer) noexcept nogil:
    if timer.after != NULL:
        timer.before.after = timer.after
        timer.after.before = timer.before
        timer.before = timer.after = NULL


cdef inline void timer_start(TimerList *timers, Timer *timer, int64_t now) noexcept nogil:
    """Begin, or begin again: it is then the last of its list to be due."""
    timer_stop(timer)
    timer.due = now + timers.duration
    timer.after = &timers.head
    timer.before = timers.head.before
    timers.head.before.after = timer
    timers.head.before = timer


cdef inline int64_t timer_list_due(const TimerList *timers) noexcept nogil:
    return INT64_MAX if timers.head.after == &timers.head else timers.head.after.due


cdef int64_t timer_list_run(Worker *worker, TimerList *timers) noexcept nogil:
    """Fire what is due; returns when to look again."""
    cdef Timer *timer
    while timer_list_due(timers) <= worker.now:
        timer = timers.head.after
        timer_stop(timer)
        timers.fire(worker, timer)
    return timer_list_due(timers)


cdef int64_t run_timers(Worker *worker) noexcept nogil:
    cdef int64_t due = timer_list_run(worker, &worker.idle)
    cdef uint32_t rung
    due = min(due, timer_list_run(worker, &worker.half_open))
    for rung in range(worker.engine.ladder_size):
        due = min(due, timer_list_run(worker, &worker.ladder[rung]))
    if worker.paused_until != 0:
        if worker.paused_until <= worker.now:
            resume_accepting(worker)
        else:
            due = min(due, worker.paused_until)
    return min(due, udp_expire(worker, worker.now))


# --- epoll -------------------------------------------------------------------------------------

cdef inline void must_work(int answer) noexcept nogil:
    """Of a call that cannot fail as we make it; the debug build makes sure."""
    kp_check(answer == 0)


cdef inline int watch(Worker *worker, Handle *handle, uint32_t events) noexcept nogil:
    """0 or an errno."""
    cdef epoll_event event
    event.events = events
    event.data.ptr = handle
    return errno if epoll_ctl(worker.epoll, EPOLL_CTL_ADD, handle.fd, &event) else 0


cdef inline void watch_for(Worker *worker, Handle *handle, uint32_t events) noexcept nogil:
    """Change what is told of a descriptor that is watched; what is the case now is told as well."""
    cdef epoll_event event
    event.events = events
    event.data.ptr = handle
    must_work(epoll_ctl(worker.epoll, EPOLL_CTL_MOD, handle.fd, &event))


cdef inline void unwatch(Worker *worker, Handle *handle) noexcept nogil:
    # Closing is not enough for a socket that somebody else holds a copy of.
    cdef epoll_event event
    epoll_ctl(worker.epoll, EPOLL_CTL_DEL, handle.fd, &event)


cdef void dispatch(Worker *worker, Handle *handle, uint32_t events) noexcept nogil:
    if handle.fd < 0:
        return
    if handle.kind == TCP_CLIENT or handle.kind == TCP_SERVER:
        tcp_ready(worker, <Side *>handle, events)
    elif handle.kind == TCP_LISTENER:
        accept_ready(worker, <Listener *>handle)
    elif handle.kind == WAKE:
        run_tasks(worker)
    else:
        udp_ready(worker, handle, events)


# --- tasks -------------------------------------------------------------------------------------

cdef void run_tasks(Worker *worker) noexcept nogil:
    cdef uint64_t times
    cdef Task *task
    read(worker.wake.fd, &times, sizeof(times))
    pthread_mutex_lock(&worker.mutex)
    while worker.first_task != NULL:
        task = worker.first_task
        worker.first_task = task.next
        pthread_mutex_unlock(&worker.mutex)
        task.run(worker, task)
        pthread_mutex_lock(&worker.mutex)
        task.done = True
        pthread_cond_broadcast(&worker.finished)
    pthread_mutex_unlock(&worker.mutex)


cdef void post(Worker *worker, Task *task) noexcept nogil:
    """Have it run by the worker; wait with :c:func:`wait_for`. A worker that has not started, or
    has ended, is nobody's: then it runs here and now."""
    cdef uint64_t once = 1
    task.next = NULL
    task.done = False
    task.problem = 0
    pthread_mutex_lock(&worker.mutex)
    if not worker.running:
        pthread_mutex_unlock(&worker.mutex)
        worker.now = now_ns()
        task.run(worker, task)
        bury(worker)
        task.done = True
        return
    if worker.first_task == NULL:
        worker.first_task = task
        write(worker.wake.fd, &once, sizeof(once))
    else:
        worker.last_task.next = task
    worker.last_task = task
    pthread_mutex_unlock(&worker.mutex)


cdef void wait_for(Worker *worker, Task *task) noexcept nogil:
    pthread_mutex_lock(&worker.mutex)
    while not task.done:
        pthread_cond_wait(&worker.finished, &worker.mutex)
    pthread_mutex_unlock(&worker.mutex)


# --- the loop ----------------------------------------------------------------------------------

cdef int milliseconds_until(int64_t due, int64_t now) noexcept nogil:
    """For epoll_wait: rounded up, or it would return just before the time and be called again."""
    if due == INT64_MAX:
        return -1
    if due <= now:
        return 0
    return <int>min((due - now + 999999) // 1000000, 3600000)


cdef int next_events(Worker *worker, epoll_event *events, int64_t due) noexcept nogil:
    """What has happened; sleeps until something does, or until ``due``."""
    cdef int64_t began
    cdef int found
    if worker.queued != NULL:
        return epoll_wait(worker.epoll, events, EVENTS_AT_ONCE, 0)
    if worker.engine.spin_ns:
        began = now_ns()
        while True:
            found = epoll_wait(worker.epoll, events, EVENTS_AT_ONCE, 0)
            if found != 0 or now_ns() - began >= worker.engine.spin_ns:
                break
        if found != 0:
            return found
    return epoll_wait(worker.epoll, events, EVENTS_AT_ONCE, milliseconds_until(due, now_ns()))


cdef void *worker_run(void *of) noexcept nogil:
    cdef Worker *worker = <Worker *>of
    cdef epoll_event events[EVENTS_AT_ONCE]
    cdef int found, which
    cdef int64_t due = INT64_MAX
    while not worker.stopping:
        prepare_spares(worker)
        found = next_events(worker, events, due)
        worker.now = now_ns()
        worker.round += 1
        for which in range(found):
            dispatch(worker, <Handle *>events[which].data.ptr, events[which].events)
        udp_round(worker)
        run_queued(worker)
        due = run_timers(worker)
        bury(worker)
    return NULL


cdef void bury(Worker *worker) noexcept nogil:
    """Free what ended in this round; no event of it can lead there any more."""
    cdef Listener *listener
    while worker.dead_listeners != NULL:
        listener = worker.dead_listeners
        worker.dead_listeners = listener.after
        free(listener)
    bury_flows(worker)
    udp_bury(worker)


cdef inline void one_less(Worker *worker, uint64_t *figure_at) noexcept nogil:
    """A flow or a session has ended; who waits for the last one is told."""
    count(figure_at, <uint64_t>-1)
    if worker.flow_count == 0 and worker.session_count == 0:
        pthread_mutex_lock(&worker.engine.mutex)
        pthread_cond_broadcast(&worker.engine.idle)
        pthread_mutex_unlock(&worker.engine.mutex)
