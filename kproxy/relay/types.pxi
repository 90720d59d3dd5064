"""The values that workers share and those that one worker owns, with who may touch what.

Shared: :c:type:`Service`, :c:type:`Endpoint`, the verdicts. A service's mutex guards its lists, its
affinity and the references to its endpoints; it is held for some tens of nanoseconds and never
while the kernel is asked for anything. Figures are counted without it.

Owned by one worker: listeners, flows, UDP sessions, timers. Nobody else reads them; what Python
wants of a worker, it asks by a :c:type:`Task`, which the worker runs between two events.
"""

cdef struct Affinity
cdef struct Engine
cdef struct Flow
cdef struct Listener
cdef struct Pipe
cdef struct Service
cdef struct Sources
cdef struct Task
cdef struct Worker
cdef struct ZeroCopy
# Those of udp.pxi.
cdef struct UdpListener
cdef struct UdpService
cdef struct UdpWorker

# Whom an event is for: every descriptor in a worker's epoll belongs to a struct that begins with a
# Handle, and that is where the event's pointer leads.
cdef enum Kind:
    WAKE
    TCP_LISTENER
    TCP_CLIENT
    TCP_SERVER
    UDP_LISTENER
    UDP_SESSION

cdef struct Handle:
    # -1: closed in this very round; events of the same round that lead here mean nothing.
    int fd
    uint8_t kind
    Worker *worker

# --- timers ---

cdef struct Timer:
    # Both NULL: not running.
    Timer *before
    Timer *after
    int64_t due

# All timers of one duration, so the oldest is the first: starting, stopping and renewing are O(1).
cdef struct TimerList:
    int64_t duration
    Timer head
    # Which struct a timer sits in is known by the list: what is due goes to this function.
    void (*fire)(Worker *, Timer *) noexcept nogil

# --- services ---

# What a service can be asked to use.
cdef enum:
    USE_CLUSTER = 0
    USE_LOCAL = 1
    USE_ORIGINAL = 2

cdef enum Outcome:
    OUTCOME_REFUSED
    OUTCOME_TIMEOUT
    OUTCOME_UNREACHABLE
    OUTCOME_RESET
    OUTCOME_OK

cdef struct Endpoint:
    Service *service
    Endpoint *before
    Endpoint *after
    # Under the service's mutex. One for being in lists, one for each flow or session.
    uint32_t refs
    # Tells this endpoint from all others of the service that ever were.
    uint32_t serial
    # Bit 1 << USE_…: the lists that it is in. 0: gone, kept for its flows.
    uint8_t lists
    # One of the references is the lists'.
    bint listed
    # `lists` as it is about to be.
    uint8_t lists_next
    # 1 to MOST_WEIGHT.
    uint8_t weight
    # It failed since it last worked: its next success is worth telling.
    int failing
    # From which of the node's addresses it is connected to, and from which it has answered (a bit
    # each); 0 is the kernel's choice. Read without the mutex, each as one word.
    int source
    int proven
    # When `source` ends; the addresses not to be used towards it, and until when.
    int64_t source_until
    uint32_t barred
    int64_t barred_until
    Address address
    Affinity *affinities
    uint64_t connections
    uint64_t active
    uint64_t failures
    uint64_t bytes_in
    uint64_t bytes_out

cdef enum:
    MOST_WEIGHT = 100

# Whose turn it is, and in which round through the list.
cdef struct Turns:
    uint32_t cursor
    uint32_t round

cdef struct EndpointList:
    Endpoint **at
    uint32_t size
    # The largest weight in it; 1 where all have the same.
    uint32_t most
    # At the first try, and at further ones.
    Turns turns
    Turns retries

# One client of a service with affinity; in the table by address, in the list of the service by age,
# in the list of its endpoint so that an endpoint that goes takes its own along.
cdef struct Affinity:
    Affinity *chain
    Affinity *older
    Affinity *newer
    Affinity *endpoint_before
    Affinity *endpoint_after
    Endpoint *endpoint
    int64_t used
    Address client

cdef struct AffinityTable:
    Affinity **slots
    uint32_t capacity
    uint32_t size
    Affinity *oldest
    Affinity *newest

cdef struct Service:
    uint32_t id
    # Atomic: one for the table of services, one for each listener, flow and session.
    uint32_t refs
    bint udp
    # Read without the mutex, each as one word.
    int proxy_protocol
    int removed
    pthread_mutex_t mutex
    # --- under the mutex ---
    int64_t affinity_ns
    uint32_t last_serial
    Endpoint *endpoints
    EndpointList list[2]
    AffinityTable affinity
    # What udp.pxi keeps for a service as a whole (clients that a predecessor told of).
    UdpService *udp_own
    # --- figures, atomic ---
    uint64_t connections
    uint64_t active
    uint64_t retries
    uint64_t failures
    uint64_t refused
    uint64_t bytes_in
    uint64_t bytes_out
    uint64_t datagrams_in
    uint64_t datagrams_out
    uint64_t datagrams_dropped

# Endpoints that one flow has tried, by serial; bit i of `refused`: the i-th said no.
cdef enum:
    MOST_TRIES = 8

cdef struct Tried:
    uint8_t size
    uint8_t refused
    uint32_t serial[MOST_TRIES]

# --- fronts ---

# One socket that is served: a listening one, or a bound one for UDP.
cdef struct Listener:
    Handle handle
    uint32_t front
    uint16_t family
    uint8_t use
    # It waits in the worker's list of paused ones, and epoll tells nothing of it.
    bint paused
    # A successor serves it.
    bint quiet
    # How many to accept at a wake-up, and in which round the last one was: a listener that wakes
    # us round after round is asked more often each time.
    uint32_t burst
    uint64_t round
    Service *service
    Listener *before
    Listener *after
    Listener *next_paused
    UdpListener *udp_own

# --- flows ---

# Bytes that a peer has not taken; allocated when there are any, freed when there are none.
cdef struct Spill:
    char *data
    uint32_t at
    uint32_t end
    uint32_t capacity

cdef struct Side:
    Handle handle
    Flow *flow
    # The kernel may have something to read; a short read is no proof that it has no more (the
    # sender has finished, or urgent data makes reads stop short); epoll tells of room to write.
    uint8_t readable
    uint8_t read_on
    uint8_t watches_room
    # It sends much at once: pages are moved, not bytes (bulk.pxi).
    uint8_t streams
    # What came from the other side for this one and was not taken: bytes, and pages after them.
    Spill spill
    Pipe *pipe

cdef struct FlowState:
    uint8_t phase
    uint8_t tries
    uint8_t ladder
    # Bits of Direction.
    uint8_t up
    uint8_t down

cdef struct Flow:
    # First, so that the timer that is due is the flow.
    Timer timer
    TimerList *timed_by
    Side client
    Side server
    FlowState state
    uint8_t use
    # The server has sent something.
    uint8_t answered
    # The attempt failed for want of something of this node's, and waits.
    uint8_t own_fault
    # Which of the node's addresses the attempt is made from; 0: the kernel's choice.
    uint8_t source
    # In the worker's list of those that were left with something to read.
    uint8_t queued
    Service *service
    Endpoint *endpoint
    Flow *before
    Flow *after
    Flow *next_queued
    Tried tried
    Address peer
    # USE_ORIGINAL: where to.
    Address original
    # Of bulk.pxi, where that is measured.
    ZeroCopy *zero_copy

# --- workers ---

# Something to be done by a worker between two events. `done` is set, and the worker's condition
# told, when it is over; whoever posted it waits for that and owns it.
cdef struct Task:
    void (*run)(Worker *, Task *) noexcept nogil
    Task *next
    int done
    # What it is about: a Listener, a Service.
    void *subject
    # Where an answer goes.
    Rows *rows
    # An errno.
    int problem

# What is answered about UDP sessions, and what Python hands over about clients: rows that are
# copied while something is locked, to be made objects of when it no longer is.
cdef struct Row:
    Address client
    Address endpoint
    int64_t at

cdef struct Rows:
    Row *at
    size_t size
    size_t capacity
    bint no_memory

cdef enum:
    EVENTS_AT_ONCE = 256
    SPARES = 4

cdef struct Worker:
    Engine *engine
    uint32_t index
    int epoll
    Handle wake
    pthread_t thread
    int running
    # --- under the mutex ---
    pthread_mutex_t mutex
    pthread_cond_t finished
    Task *first_task
    Task *last_task
    # --- its own ---
    bint stopping
    # The time of this round of events, and its number.
    int64_t now
    uint64_t round
    char *buffer
    Listener *listeners
    Flow *flows
    Flow *queued
    # Accepting is paused until then, or until a flow ends; 0: it is not.
    int64_t paused_until
    Listener *paused
    Listener *last_paused
    # What died in this round: freed after it, because events of the round may lead there.
    Flow *dead_flows
    Flow *free_flows
    uint32_t free_count
    Listener *dead_listeners
    # Empty ones, to lend.
    Pipe *pipes
    uint32_t pipe_count
    # Unconnected sockets with their options set, by whether the family is AF_INET6.
    int spare[2][SPARES]
    uint32_t spares[2]
    bint spares_wanted[2]
    TimerList idle
    TimerList half_open
    TimerList ladder[MOST_TRIES]
    UdpWorker *udp_own
    uint64_t random[2]
    # --- figures ---
    uint64_t flow_count
    uint64_t session_count
    uint64_t accept_pauses
    uint64_t evicted
    uint64_t buffered
    uint64_t other_sources
    uint64_t no_ports

cdef struct Verdict:
    uint32_t service
    uint8_t outcome
    Address address

cdef enum:
    MOST_VERDICTS = 65536

cdef enum:
    MOST_SOURCES = 16

# Addresses of this node to connect from when the kernel's choice has no port left, by whether the
# family is AF_INET6. Never changed: there is a new one instead.
cdef struct Sources:
    uint32_t size[2]
    Address at[2][MOST_SOURCES]

# What all workers have in common; set before the first one starts and then only read, but for the
# verdicts, which have a mutex of their own (failures are rare), and the pointer to the sources.
cdef struct Engine:
    uint32_t workers
    Worker *worker
    uint64_t max_flows
    uint64_t max_sessions
    int64_t idle_ns
    int64_t half_open_ns
    int64_t udp_idle_ns
    int64_t ladder_ns[MOST_TRIES]
    uint8_t ladder_size
    uint32_t buffer_bytes
    int bulk
    int64_t spin_ns
    # NULL: none.
    Sources *sources
    # Told when a worker has no flow and no session left.
    pthread_mutex_t mutex
    pthread_cond_t idle
    Verdict *verdicts
    uint32_t verdict_first
    uint32_t verdict_size
