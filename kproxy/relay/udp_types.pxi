"""What UDP keeps: sessions, the table that finds them, and the batches that messages cross in.

All of it belongs to one worker, but for :c:type:`UdpService`, which says who may touch what.
"""

cdef enum:
    # Messages that one system call receives or sends.
    BATCH = 64
    # Bytes of a message's room: no datagram is longer (RFC 768: a length of 16 bits), and the
    # kernel merges none beyond that.
    ROOM = 65536
    # From one room to the next. Rooms that begin at multiples of a page would all meet in the same
    # few sets of the processor's first cache.
    STRIDE = ROOM + 192
    # Bytes and datagrams that one message may be cut into: the longest payload in an IPv4 packet,
    # and UDP_MAX_SEGMENTS as it was before Linux 6.9 doubled it.
    MOST_TRAIN = 65507
    MOST_SEGMENTS = 64
    # Batches taken from one socket before it is the next one's turn.
    ROUNDS = 4
    # Bytes of unanswered datagrams that a worker keeps, to send them again.
    MOST_KEPT = 4194304
    # Both batches.
    ROOMS_SIZE = 2 * BATCH * STRIDE
    # SO_RCVBUF and SO_SNDBUF, before the kernel cuts them down.
    ROOM_WANTED = 4194304
    FEWEST_SESSION_SLOTS = 64

# One received message: a datagram, or several of one size (the last may be shorter) that crossed
# the kernel as one. `segment` is that size; of a single datagram it is the datagram's own.
cdef struct Piece:
    char *data
    uint32_t size
    uint32_t segment
    Session *session
    Piece *after

# The pieces for one receiver, in the order they came in.
cdef struct Queue:
    Piece *first
    Piece *last

# Where in a queue to go on.
cdef struct Cursor:
    Piece *piece
    uint32_t offset

# Messages received by one call, and what the kernel said beside them.
cdef struct Batch:
    mmsghdr header[BATCH]
    iovec vector[BATCH]
    Address name[BATCH]
    Control control[BATCH]
    Piece piece[BATCH]
    uint32_t size

# Messages to be sent by one call. A message of several datagrams is a *train*: its vectors are
# joined and cut again by the kernel (UDP_SEGMENT).
cdef struct Wire:
    mmsghdr header[BATCH]
    iovec vector[BATCH]
    Control control[BATCH]
    # Where each message begins, and how many datagrams it has.
    Cursor start[BATCH]
    uint32_t datagrams[BATCH]
    uint32_t size
    uint32_t vectors
    # What comes after the last message.
    Cursor rest
    # A PROXY header on its way.
    uint8_t greeting[LONGEST_HEADER]

# What a session is found by: client address, local address, client port and interface, front.
cdef enum:
    KEY_WORDS = 6

cdef struct SessionKey:
    uint64_t word[KEY_WORDS]

# One client address and port at one front, with a socket that is connected to its endpoint.
cdef struct Session:
    Handle handle
    uint64_t hash
    SessionKey key
    # In a list by age; `after` also links the dead.
    Session *before
    Session *after
    SessionAges *aged_by
    # In the list of its service on this worker.
    Session *service_before
    Session *service_after
    int64_t used
    # The endpoint has sent something.
    bint answered
    # It has been sent a PROXY header, or wants none.
    bint greeted
    # There was no endpoint to try.
    bint nobody
    # Has messages in `waiting`, and is in the worker's list of such.
    bint touched
    Session *next_touched
    Queue waiting
    Listener *listener
    Service *service
    Endpoint *endpoint
    Address client
    Address local
    # The longest datagrams that a train may have: the kernel refuses those over the path's MTU.
    uint32_t longest_up
    uint32_t longest_down
    Tried tried
    # The last datagram that went to an endpoint which has not answered yet; NULL: none.
    char *kept
    uint32_t kept_size

# By last use, the oldest first.
cdef struct SessionAges:
    Session *oldest
    Session *newest

# A slot is empty when `session` is NULL. Slots are probed one after the other.
cdef struct SessionSlot:
    uint64_t hash
    Session *session

cdef struct UdpWorker:
    SessionSlot *slots
    uint32_t capacity
    uint32_t size
    # Sessions of clients that have not spoken again after an answer, and of those that have: these
    # are no forged addresses. Both expire alike, but the doubtful ones are evicted first, so that a
    # flood from forged addresses pushes out its own kind (conntrack's ASSURED does the same).
    SessionAges doubtful
    SessionAges proven
    Session *touched
    # Ended in this round; events of the round may lead to them still.
    Session *dead
    uint64_t kept
    # Freed with the last of the dead.
    bint stopped
    # Whether the kernel cuts trains.
    bint cuts
    # Rooms of both batches: MAP_NORESERVE, of which only pages that were used take memory.
    char *rooms
    Batch from_clients
    Batch to_clients
    UdpListener *answered
    Wire wire

cdef struct UdpListener:
    Listener *listener
    # Replies not yet sent, and the next listener that has some.
    Queue replies
    UdpListener *next_answered
    Address bound

# A client whose next datagram goes to a known endpoint.
cdef struct Expected:
    Expected *chain
    Expected *before
    Expected *after
    Endpoint *endpoint
    int64_t until
    Address client

cdef struct UdpService:
    # By the worker's index; each worker touches its own only. Made under the service's mutex.
    Session **sessions
    # --- under the service's mutex ---
    Expected **slots
    uint32_t capacity
    uint32_t size
    # By age: they are all kept for the same time.
    Expected *oldest
    Expected *newest

# How long a client is expected: as long as a session is kept by default.
cdef int64_t EXPECTED_NS = 30000000000
