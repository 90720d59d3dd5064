# Maglev's tables: what kproxy.core.hashing says, filled fast. Here the permutations, and the tables
# of many endpoints, in turns; those of few ones are in maglev_few.pxi.

cdef uint32_t[5] MAGLEV_SIZES = [251, 1021, 4093, 16381, 65537]
cdef uint32_t *SHUFFLES[5]
cdef uint32_t *PLACES[5]            # the other way: where in the shuffle a number is
cdef uint32_t[87287] SHUFFLE_SPACE  # all five sizes together, and what is looked at in vain
cdef uint32_t[87283] PLACE_SPACE
cdef void fill_shuffles() noexcept nogil:
    cdef uint32_t *order = SHUFFLE_SPACE
    cdef uint32_t *places = PLACE_SPACE
    cdef uint32_t size, last, other, swapped
    cdef uint64_t state, word
    cdef int which
    for which in range(5):
        size = MAGLEV_SIZES[which]
        SHUFFLES[which] = order
        PLACES[which] = places
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
        for last in range(size):
            places[order[last]] = last
        order += size
        places += size


fill_shuffles()


cdef inline int maglev_which(uint64_t endpoints) noexcept nogil:
    cdef int which = 0
    while which < 4 and MAGLEV_SIZES[which] < endpoints * 1000:
        which += 1
    return which


# One endpoint's place in its permutation. What fills a table is given its hashes in offset and
# skip, its weight and its entry.
cdef struct Turn:
    uint32_t offset
    uint32_t skip
    const uint32_t *next
    uint64_t credit
    uint64_t weight
    uint32_t entry         # what is written into the table
    uint32_t quota         # slots that it may still get
    uint32_t asked         # slots that it has asked for


cdef extern from *:
    """
    /* value mod size by multiplications (Lemire, Kaser, Kurz 2019); ratio = 2**64 / size + 1. Right
       for values of up to 47 bits and sizes of up to 17. */
    static inline uint32_t kp_mod(uint64_t ratio, uint64_t value, uint32_t size) {
        return (uint32_t)(((unsigned __int128)(ratio * value) * size) >> 64);
    }
    """
    uint32_t kp_mod(uint64_t ratio, uint64_t value, uint32_t size) noexcept nogil
    int kp_lowest "__builtin_ctz"(uint32_t bits) noexcept nogil


cdef inline uint32_t walk_slot(
    const Turn *turn, uint32_t place, uint64_t ratio, uint32_t size
) noexcept nogil:
    """Where ``place`` of the shuffle lies in its permutation."""
    cdef uint32_t slot = kp_mod(ratio, <uint64_t>turn.skip * place, size) + turn.offset
    return slot - size if slot >= size else slot


cdef inline void put_slot(
    uint32_t slot, const Turn *turn, uint8_t *narrow, uint16_t *wide
) noexcept nogil:
    if narrow != NULL:
        narrow[slot] = <uint8_t>turn.entry
    else:
        wide[slot] = <uint16_t>turn.entry


# Half of all tries would go into the last 1 % of the slots, which hardly any try hits. For these it
# is cheaper to work out when each endpoint would come by each of them.
cdef enum:
    LAST_SLOTS = 256
    MOST_TURNS = 1024      # with more endpoints that table would be too large


cdef uint32_t inverse(uint32_t value, uint32_t size, uint64_t ratio) noexcept nogil:
    """By Fermat: value ** (size - 2), size being prime."""
    cdef uint64_t power = value, result = 1
    cdef uint32_t bits = size - 2
    while bits:
        if bits & 1:
            result = kp_mod(ratio, result * power, size)
        power = kp_mod(ratio, power * power, size)
        bits >>= 1
    return <uint32_t>result


cdef void maglev_last(
    int which, Turn *turns, uint32_t count, uint32_t first, uint64_t heaviest, uint32_t left,
    const uint64_t *taken, uint32_t *when, uint8_t *narrow, uint16_t *wide,
) noexcept nogil:
    """The last slots, ``left`` of them, from the turn of ``first`` on. ``when`` has room for the
    number of the try that hits each of them, for every endpoint."""
    cdef uint32_t size = MAGLEV_SIZES[which]
    cdef uint64_t ratio = UINT64_MAX // size + 1
    cdef uint32_t[256] slots
    cdef uint32_t one, slot, found = 0, best, each, back
    cdef uint32_t *mine
    cdef Turn *turn
    for slot in range(size):
        if not taken[slot >> 6] >> (slot & 63) & 1:
            slots[found] = slot
            found += 1
    for one in range(count):
        turn = &turns[one]
        mine = when + one * LAST_SLOTS
        back = inverse(turn.skip, size, ratio)
        for each in range(left):
            slot = slots[each] + size - turn.offset
            mine[each] = PLACES[which][kp_mod(ratio, <uint64_t>slot * back, size)]
    one = first
    while left:
        turn = &turns[one]
        turn.credit += turn.weight
        if turn.credit >= heaviest:
            turn.credit -= heaviest
            mine = when + one * LAST_SLOTS
            best = 0
            for each in range(1, left):
                if mine[each] < mine[best]:
                    best = each
            slot = slots[best]
            put_slot(slot, turn, narrow, wide)
            left -= 1
            slots[best] = slots[left]
            for each in range(count):
                when[each * LAST_SLOTS + best] = when[each * LAST_SLOTS + left]
        one = one + 1 if one + 1 < count else 0


cdef void maglev_turns(
    int which, Turn *turns, uint32_t count, uint8_t *narrow, uint16_t *wide
) noexcept nogil:
    """Of any size: see :c:func:`maglev_fill`."""
    cdef uint32_t last = LAST_SLOTS
    cdef uint32_t *when = NULL
    cdef uint32_t size = MAGLEV_SIZES[which]
    cdef uint64_t ratio = UINT64_MAX // size + 1
    # A bit a slot stays in the first-level cache where the table would not.
    cdef uint64_t[1025] taken
    cdef uint32_t one, slot, each, free_, left = size
    cdef uint32_t[4] tries
    cdef uint64_t heaviest = 1
    cdef Turn *turn
    memset(taken, 0, sizeof(taken))
    for one in range(count):
        turn = &turns[one]
        turn.next = SHUFFLES[which]
        turn.credit = 0
        if turn.weight > heaviest:
            heaviest = turn.weight
    if 1 < count <= MOST_TURNS:
        # Without memory it only takes longer.
        when = <uint32_t *>malloc(count * <size_t>LAST_SLOTS * 4)
    if when == NULL:
        last = 0
    while True:
        for one in range(count):
            turn = &turns[one]
            turn.credit += turn.weight
            if turn.credit < heaviest:
                continue
            turn.credit -= heaviest
            # Four tries at once: whether the next one hits is what a processor guesses worst. A
            # free slot always comes before the shuffle's end, and what lies behind does no harm.
            while True:
                free_ = 0
                for each in range(4):
                    slot = walk_slot(turn, turn.next[each], ratio, size)
                    tries[each] = slot
                    free_ |= <uint32_t>(~taken[slot >> 6] >> (slot & 63) & 1) << each
                if free_:
                    break
                turn.next += 4
            each = <uint32_t>kp_lowest(free_)
            slot = tries[each]
            turn.next += each + 1
            taken[slot >> 6] |= <uint64_t>1 << (slot & 63)
            put_slot(slot, turn, narrow, wide)
            left -= 1
            if left == last:
                if last:
                    maglev_last(
                        which, turns, count, one + 1 if one + 1 < count else 0, heaviest, left,
                        taken, when, narrow, wide,
                    )
                    free(when)
                return
