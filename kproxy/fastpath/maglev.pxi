# Maglev's tables: what kproxy.core.hashing says, filled fast.

cdef uint32_t[5] MAGLEV_SIZES = [251, 1021, 4093, 16381, 65537]
cdef uint32_t *SHUFFLES[5]
cdef uint32_t[87283] SHUFFLE_SPACE  # all five sizes together


cdef void fill_shuffles() noexcept nogil:
    cdef uint32_t *order = SHUFFLE_SPACE
    cdef uint32_t size, last, other, swapped
    cdef uint64_t state, word
    cdef int which
    for which in range(5):
        size = MAGLEV_SIZES[which]
        SHUFFLES[which] = order
        for last in range(size):
            order[last] = last
        state = size
        last = size - 1
        while last > 0:
            state += 0x9E3779B97F4A7C15ULL
            word = (state ^ state >> 30) * 0xBF58476D1CE4E5B9ULL
            word = (word ^ word >> 27) * 0x94D049BB133111EBULL
            other = <uint32_t>((word ^ word >> 31) % (last + 1))
            swapped = order[last]
            order[last] = order[other]
            order[other] = swapped
            last -= 1
        order += size


fill_shuffles()


cdef inline int maglev_which(uint64_t endpoints) noexcept nogil:
    cdef int which = 0
    while which < 4 and MAGLEV_SIZES[which] < endpoints * 1000:
        which += 1
    return which


# One endpoint's place in its permutation.
cdef struct Turn:
    uint32_t offset
    uint32_t skip
    const uint32_t *next
    uint64_t credit
    uint64_t weight
    uint32_t entry         # what is written into the table


cdef extern from *:
    """
    /* value mod size by multiplications (Lemire, Kaser, Kurz 2019); ratio = 2**64 / size + 1. Right
       for values of up to 47 bits and sizes of up to 17. */
    static inline uint32_t kp_mod(uint64_t ratio, uint64_t value, uint32_t size) {
        return (uint32_t)(((unsigned __int128)(ratio * value) * size) >> 64);
    }
    """
    uint32_t kp_mod(uint64_t ratio, uint64_t value, uint32_t size) noexcept nogil


cdef void maglev_fill(
    int which, Turn *turns, uint32_t count, uint8_t *narrow, uint16_t *wide
) noexcept nogil:
    """``turns`` hold hashes in offset and skip, weights and entries; all of it is used up. Entries
    below 256 go into ``narrow``, else (NULL) all into ``wide``."""
    cdef uint32_t size = MAGLEV_SIZES[which]
    cdef uint64_t ratio = UINT64_MAX // size + 1
    # A bit a slot stays in the first-level cache where the table would not.
    cdef uint64_t[1025] taken
    cdef uint32_t one, slot, left = size
    cdef uint64_t heaviest = 1
    cdef Turn *turn
    memset(taken, 0, sizeof(taken))
    for one in range(count):
        turn = &turns[one]
        turn.offset %= size
        turn.skip = turn.skip % (size - 1) + 1
        turn.next = SHUFFLES[which]
        turn.credit = 0
        if turn.weight > heaviest:
            heaviest = turn.weight
    while True:
        for one in range(count):
            turn = &turns[one]
            turn.credit += turn.weight
            if turn.credit < heaviest:
                continue
            turn.credit -= heaviest
            while True:
                slot = kp_mod(ratio, <uint64_t>turn.skip * turn.next[0], size) + turn.offset
                if slot >= size:
                    slot -= size
                turn.next += 1
                if not taken[slot >> 6] >> (slot & 63) & 1:
                    break
            taken[slot >> 6] |= <uint64_t>1 << (slot & 63)
            if narrow != NULL:
                narrow[slot] = <uint8_t>turn.entry
            else:
                wide[slot] = <uint16_t>turn.entry
            left -= 1
            if left == 0:
                return
