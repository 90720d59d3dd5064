# Maglev's tables of few endpoints, in which chance weighs too much for turns (maglev.pxi): see
# kproxy.core.hashing.

cdef enum:
    FEW_FIRST = 4          # most endpoints where the first to ask has a slot
    FEW_QUOTA = 16         # and where nobody gets more than its share
    SIZE_FIRST = 4093
    SIZE_QUOTA = 16381
    LAST_OF_FEW = 128      # slots that half of all tries would go into, as in maglev.pxi

# When a slot is asked for (kproxy.core.hashing.times).
cdef uint64_t[4093] TIMES_FIRST
cdef uint64_t[16381] TIMES_QUOTA


cdef void fill_times(uint64_t *times, uint32_t size) noexcept nogil:
    cdef uint64_t time = 0
    cdef uint32_t rank
    for rank in range(size):
        time += (<uint64_t>1 << 32) // (size - rank)
        times[rank] = time


fill_times(TIMES_FIRST, SIZE_FIRST)
fill_times(TIMES_QUOTA, SIZE_QUOTA)


cdef void maglev_fill(
    int which, Turn *turns, uint32_t count, uint8_t *narrow, uint16_t *wide
) noexcept nogil:
    """``turns`` hold hashes in offset and skip, weights and entries; all of it is used up. Entries
    below 256 go into ``narrow``, else (NULL) all into ``wide``."""
    cdef uint32_t size = MAGLEV_SIZES[which], one
    for one in range(count):
        turns[one].offset %= size
        turns[one].skip = turns[one].skip % (size - 1) + 1
    if count == 1:
        for one in range(size):
            put_slot(one, turns, narrow, wide)
    elif count <= FEW_FIRST:
        maglev_first(which, turns, count, narrow, wide)
    elif count <= FEW_QUOTA:
        maglev_quota(which, turns, count, narrow, wide)
    else:
        maglev_turns(which, turns, count, narrow, wide)


cdef void maglev_first(
    int which, const Turn *turns, uint32_t count, uint8_t *narrow, uint16_t *wide
) noexcept nogil:
    cdef uint64_t ratio = UINT64_MAX // SIZE_FIRST + 1
    cdef uint64_t[4093] when
    cdef uint8_t[4093] owner
    cdef uint32_t one, rank, slot
    cdef const Turn *turn
    for one in range(count):
        turn = &turns[one]
        for rank in range(SIZE_FIRST):
            slot = walk_slot(turn, SHUFFLES[which][rank], ratio, SIZE_FIRST)
            # Times have 36 bits, weights 16.
            if one == 0 or TIMES_FIRST[rank] * turns[owner[slot]].weight < when[slot] * turn.weight:
                when[slot] = TIMES_FIRST[rank]
                owner[slot] = <uint8_t>one
    for slot in range(SIZE_FIRST):
        put_slot(slot, &turns[owner[slot]], narrow, wide)


cdef void maglev_quota(
    int which, Turn *turns, uint32_t count, uint8_t *narrow, uint16_t *wide
) noexcept nogil:
    cdef uint64_t[256] taken
    cdef uint8_t[16381] owner
    cdef uint64_t heaviest = 0
    cdef uint32_t slot, left
    memset(taken, 0, sizeof(taken))
    memset(owner, 0, sizeof(owner))
    if share_out(turns, count, &heaviest):
        left = quota_even(which, turns, count, owner, taken)
        quota_last(which, turns, count, left, owner, taken)
    else:
        quota_by_weight(which, turns, count, heaviest, owner, taken)
    for slot in range(SIZE_QUOTA):
        put_slot(slot, &turns[owner[slot]], narrow, wide)


cdef uint32_t quota_even(
    int which, Turn *turns, uint32_t count, uint8_t *owner, uint64_t *taken
) noexcept nogil:
    """All ask for one slot in a round. How many slots are left for :c:func:`quota_last`."""
    cdef uint64_t ratio = UINT64_MAX // SIZE_QUOTA + 1
    cdef uint32_t one, slot, rank, place, left = SIZE_QUOTA
    cdef uint64_t free_
    cdef Turn *turn
    for rank in range(SIZE_QUOTA):
        place = SHUFFLES[which][rank]
        for one in range(count):
            turn = &turns[one]
            slot = walk_slot(turn, place, ratio, SIZE_QUOTA)
            # Without a branch: whether a slot is free is what a processor guesses worst.
            free_ = ~taken[slot >> 6] >> (slot & 63) & (turn.quota != 0)
            taken[slot >> 6] |= free_ << (slot & 63)
            owner[slot] ^= <uint8_t>((owner[slot] ^ one) & (0 - free_))
            turn.quota -= <uint32_t>free_
            left -= <uint32_t>free_
        if left <= LAST_OF_FEW:
            break
    return left


cdef void quota_by_weight(
    int which, Turn *turns, uint32_t count, uint64_t heaviest, uint8_t *owner, uint64_t *taken
) noexcept nogil:
    cdef uint64_t ratio = UINT64_MAX // SIZE_QUOTA + 1
    cdef uint64_t latest
    cdef uint32_t one, slot, now = 0, left = SIZE_QUOTA
    cdef Turn *turn
    while left:
        for one in range(count):
            turn = &turns[one]
            if turn.quota == 0:
                continue
            latest = TIMES_QUOTA[turn.asked] * heaviest
            if now < SIZE_QUOTA:
                latest = TIMES_QUOTA[now] * turn.weight
            while turn.quota and TIMES_QUOTA[turn.asked] * heaviest <= latest:
                slot = walk_slot(turn, SHUFFLES[which][turn.asked], ratio, SIZE_QUOTA)
                turn.asked += 1
                if not taken[slot >> 6] >> (slot & 63) & 1:
                    taken[slot >> 6] |= <uint64_t>1 << (slot & 63)
                    owner[slot] = <uint8_t>one
                    turn.quota -= 1
                    left -= 1
        now += 1


cdef bint share_out(Turn *turns, uint32_t count, uint64_t *heaviest) noexcept nogil:
    """Everybody's quota. True: all have the same weight."""
    cdef uint64_t total = 0, sum_ = 0, begin = 0, end
    cdef uint32_t one
    cdef bint even = True
    for one in range(count):
        sum_ += turns[one].weight
        heaviest[0] = max(heaviest[0], turns[one].weight)
        even = even and turns[one].weight == turns[0].weight
    for one in range(count):
        total += turns[one].weight
        end = SIZE_QUOTA * total // sum_
        turns[one].quota = <uint32_t>(end - begin)
        turns[one].asked = 0
        begin = end
    return even


cdef void quota_last(
    int which, Turn *turns, uint32_t count, uint32_t left, uint8_t *owner, const uint64_t *taken
) noexcept nogil:
    """The last slots, ``left`` of them, among endpoints of one weight: who asks first."""
    cdef uint64_t ratio = UINT64_MAX // SIZE_QUOTA + 1
    cdef uint32_t[128] slots
    cdef uint32_t[2048] ranks      # 16 endpoints: where in its permutation each slot is
    cdef uint32_t[16] best
    cdef uint32_t one, slot, each, back, first, gone, found = 0
    for slot in range(SIZE_QUOTA):
        if not taken[slot >> 6] >> (slot & 63) & 1:
            slots[found] = slot
            found += 1
    for one in range(count):
        back = inverse(turns[one].skip, SIZE_QUOTA, ratio)
        for each in range(left):
            slot = slots[each] + SIZE_QUOTA - turns[one].offset
            slot = kp_mod(ratio, <uint64_t>slot * back, SIZE_QUOTA)
            ranks[one * LAST_OF_FEW + each] = PLACES[which][slot]
        best[one] = lowest_of(&ranks[one * LAST_OF_FEW], left)
    while left:
        first = count
        for one in range(count):
            if turns[one].quota and (
                first == count
                or ranks[one * LAST_OF_FEW + best[one]] < ranks[first * LAST_OF_FEW + best[first]]
            ):
                first = one
        gone = best[first]
        owner[slots[gone]] = <uint8_t>first
        turns[first].quota -= 1
        left -= 1
        # The last one takes its place.
        slots[gone] = slots[left]
        for one in range(count):
            ranks[one * LAST_OF_FEW + gone] = ranks[one * LAST_OF_FEW + left]
            if best[one] == gone:
                best[one] = lowest_of(&ranks[one * LAST_OF_FEW], left)
            elif best[one] == left:
                best[one] = gone


cdef uint32_t lowest_of(const uint32_t *ranks, uint32_t count) noexcept nogil:
    """Where the lowest of them stands; 0 of none."""
    cdef uint32_t each, found = 0
    for each in range(1, count):
        if ranks[each] < ranks[found]:
            found = each
    return found
