# Memory of Maglev tables: 16 KiB for each service of ten endpoints, read at random. In the ordinary
# heap every read would miss the TLB too; here 2 MiB pages hold 128 of them.

cdef enum:
    SLAB_CLASSES = 10      # five sizes, one or two bytes a slot
    CHUNK = 33554432


cdef struct Chunk:
    Chunk *next
    uint64_t used


cdef struct Slab:
    Chunk *chunks
    void *free[10]


cdef inline size_t slab_bytes(int which) noexcept nogil:
    return (<size_t>MAGLEV_SIZES[which >> 1] * (1 + (which & 1)) + 63) // 64 * 64


cdef void *slab_take(Slab *slab, int which) noexcept nogil:
    """``which``: twice the number of the size, + 1 for two bytes a slot. NULL without memory."""
    cdef void *found = slab.free[which]
    cdef size_t size = slab_bytes(which)
    cdef Chunk *chunk = slab.chunks
    if found != NULL:
        memcpy(&slab.free[which], found, sizeof(void *))
        return found
    if chunk == NULL or chunk.used + size > CHUNK:
        chunk = <Chunk *>kp_map(CHUNK)
        if chunk == NULL:
            return NULL
        chunk.next = slab.chunks
        chunk.used = 64
        slab.chunks = chunk
    found = <uint8_t *>chunk + chunk.used
    chunk.used += size
    return found


cdef void slab_give(Slab *slab, int which, void *block) noexcept nogil:
    if block != NULL:
        memcpy(block, &slab.free[which], sizeof(void *))
        slab.free[which] = block


cdef void slab_close(Slab *slab) noexcept nogil:
    cdef Chunk *chunk = slab.chunks
    cdef Chunk *next_
    while chunk != NULL:
        next_ = chunk.next
        kp_unmap(chunk, CHUNK)
        chunk = next_
