# Memory, hashes and the index that all tables of the engine are found by.

cdef extern from *:
    """
    #include <pthread.h>
    #include <stdlib.h>
    #include <sys/mman.h>

    /* Zeroed pages that cost nothing until they are touched. Huge pages where the table is large:
       at a million flows every look-up would miss the TLB as well as the caches. */
    static void *kp_map(size_t bytes) {
        void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (at == MAP_FAILED)
            return NULL;
    #ifdef MADV_HUGEPAGE
        if (bytes >= (size_t)8 << 20)
            madvise(at, bytes, MADV_HUGEPAGE);
    #endif
        return at;
    }
    static void kp_unmap(void *at, size_t bytes) { if (at) munmap(at, bytes); }
    #define kp_prefetch(at) __builtin_prefetch(at)
    #define kp_likely(yes) __builtin_expect(!!(yes), 1)
    """
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *lock, void *attributes) noexcept nogil
    int pthread_mutex_lock(pthread_mutex_t *lock) noexcept nogil
    int pthread_mutex_unlock(pthread_mutex_t *lock) noexcept nogil
    int pthread_mutex_destroy(pthread_mutex_t *lock) noexcept nogil
    void *aligned_alloc(size_t alignment, size_t size) noexcept nogil
    void *kp_map(size_t size) noexcept nogil
    void kp_unmap(void *at, size_t size) noexcept nogil
    void kp_prefetch(const void *at) noexcept nogil
    bint kp_likely(bint yes) noexcept nogil


cdef inline uint16_t raw16(const uint8_t *at) noexcept nogil:
    cdef uint16_t word
    memcpy(&word, at, 2)
    return word


cdef inline uint32_t raw32(const uint8_t *at) noexcept nogil:
    cdef uint32_t word
    memcpy(&word, at, 4)
    return word


cdef inline uint64_t raw64(const uint8_t *at) noexcept nogil:
    cdef uint64_t word
    memcpy(&word, at, 8)
    return word


cdef inline void put_raw16(uint8_t *at, uint16_t word) noexcept nogil:
    memcpy(at, &word, 2)


cdef inline uint16_t big16(const uint8_t *at) noexcept nogil:
    return <uint16_t>(at[0] << 8 | at[1])


cdef inline uint32_t big32(const uint8_t *at) noexcept nogil:
    return <uint32_t>at[0] << 24 | <uint32_t>at[1] << 16 | <uint32_t>at[2] << 8 | at[3]


cdef inline void put_big16(uint8_t *at, uint32_t value) noexcept nogil:
    at[0] = <uint8_t>(value >> 8 & 0xFF)
    at[1] = <uint8_t>(value & 0xFF)


cdef inline void put_big32(uint8_t *at, uint32_t value) noexcept nogil:
    put_big16(at, value >> 16)
    put_big16(at + 2, value & 0xFFFF)


cdef inline uint64_t little64(const uint8_t *at) noexcept nogil:
    """The value of 8 bytes, lowest first, on any machine."""
    cdef uint64_t word = raw64(at)
    cdef int shift
    if LITTLE_ENDIAN:
        return word
    word = 0
    for shift in range(8):
        word |= <uint64_t>at[shift] << (8 * shift)
    return word


# --- SipHash-1-3 -------------------------------------------------------------------------------

cdef struct SipKey:
    uint64_t low
    uint64_t high


cdef inline uint64_t rotate(uint64_t word, int by) noexcept nogil:
    return word << by | word >> (64 - by)


cdef inline void sip_round(uint64_t *v) noexcept nogil:
    v[0] += v[1]
    v[1] = rotate(v[1], 13) ^ v[0]
    v[0] = rotate(v[0], 32)
    v[2] += v[3]
    v[3] = rotate(v[3], 16) ^ v[2]
    v[0] += v[3]
    v[3] = rotate(v[3], 21) ^ v[0]
    v[2] += v[1]
    v[1] = rotate(v[1], 17) ^ v[2]
    v[2] = rotate(v[2], 32)


cdef inline uint64_t sip(const SipKey *key, const uint8_t *data, size_t length) noexcept nogil:
    """Where the length is a constant the compiler leaves no loop."""
    cdef uint64_t[4] v
    cdef uint64_t word
    cdef size_t at = 0, rest
    v[0] = key.low ^ 0x736F6D6570736575ULL
    v[1] = key.high ^ 0x646F72616E646F6DULL
    v[2] = key.low ^ 0x6C7967656E657261ULL
    v[3] = key.high ^ 0x7465646279746573ULL
    while at + 8 <= length:
        word = little64(data + at)
        v[3] ^= word
        sip_round(v)
        v[0] ^= word
        at += 8
    word = <uint64_t>(length & 0xFF) << 56
    for rest in range(length - at):
        word |= <uint64_t>data[at + rest] << (8 * rest)
    v[3] ^= word
    sip_round(v)
    v[0] ^= word
    v[2] ^= 0xFF
    sip_round(v)
    sip_round(v)
    sip_round(v)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


# --- the index ---------------------------------------------------------------------------------

# Open addressing with linear probing, at most half full: a look-up reads one cache line, seldom
# two. A cell holds 32 bits of hash, whose low ones say where it belongs, and a slot + 1; 0 is free.
cdef struct Index:
    uint64_t *cells
    uint32_t mask


cdef inline size_t index_bytes(const Index *index) noexcept nogil:
    return (<size_t>index.mask + 1) * 8


cdef bint index_open(Index *index, uint64_t entries) noexcept nogil:
    cdef uint64_t size = 16
    while size < entries * 2:
        size *= 2
    index.mask = <uint32_t>(size - 1)
    index.cells = <uint64_t *>kp_map(index_bytes(index))
    return index.cells != NULL


cdef inline void index_close(Index *index) noexcept nogil:
    if index.cells != NULL:
        kp_unmap(index.cells, index_bytes(index))


cdef inline void index_insert(Index *index, uint32_t tag, uint32_t slot) noexcept nogil:
    cdef uint32_t at = tag & index.mask
    while index.cells[at] != 0:
        at = (at + 1) & index.mask
    index.cells[at] = <uint64_t>tag << 32 | (slot + 1)


cdef inline void index_remove(Index *index, uint32_t tag, uint32_t slot) noexcept nogil:
    """Later cells move up, so that no tombstone ever lengthens a search."""
    cdef uint64_t wanted = <uint64_t>tag << 32 | (slot + 1)
    cdef uint32_t hole = tag & index.mask
    cdef uint32_t at, home
    while index.cells[hole] != wanted:
        hole = (hole + 1) & index.mask
    at = hole
    while True:
        at = (at + 1) & index.mask
        if index.cells[at] == 0:
            break
        home = <uint32_t>(index.cells[at] >> 32) & index.mask
        # It may move up unless its home lies after the hole (cyclically).
        if ((at - home) & index.mask) >= ((at - hole) & index.mask):
            index.cells[hole] = index.cells[at]
            hole = at
    index.cells[hole] = 0
