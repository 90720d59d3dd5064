# cython: language_level=3, freethreading_compatible=True, cdivision=True, linetrace=False
"""Packet arithmetic at wire speed: the compiled twin of :mod:`kproxy.core.packet`.

The C functions work on a cursor over borrowed memory, take no lock, allocate nothing and cannot
fail: what could go wrong is checked once, at the Python boundary at the end of this file. In the
debug build each read through a cursor is checked again, and one past the end ends the process.

Lines are not traced, in the debug build neither: that takes the GIL, also in functions that say
``nogil``, and whoever waits for the GIL with the engine's lock in hand waits for ever.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport (
    UINT32_MAX, UINT64_MAX, int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t,
)
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memmove, memset

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    #ifdef KPROXY_DEBUG
    #define KP_DEBUG 1
    static void kp_inside(int yes) {
        if (!yes) {
            PyGILState_Ensure();  /* the process ends here: nothing to release */
            Py_FatalError("read past the end of a cursor");
        }
    }
    #else
    #define KP_DEBUG 0
    #define kp_inside(yes) ((void)0)
    #endif

    #if defined(__x86_64__)
    #include <nmmintrin.h>
    #define kp_has_crc32c() (__builtin_cpu_supports("sse4.2") != 0)
    /* Compiled for SSE 4.2 whatever the flags, and called only where the processor has it. */
    __attribute__((target("sse4.2")))
    static uint32_t kp_crc32c(uint32_t reg, const uint8_t *at, size_t length) {
        uint64_t wide = reg, word;
        for (; length >= 8; at += 8, length -= 8) {
            memcpy(&word, at, 8);
            wide = _mm_crc32_u64(wide, word);
        }
        reg = (uint32_t)wide;
        for (; length > 0; at++, length--)
            reg = _mm_crc32_u8(reg, *at);
        return reg;
    }
    #else
    #define kp_has_crc32c() 0
    #define kp_crc32c(reg, at, length) (reg)
    #endif
    """
    const bint KP_DEBUG
    void kp_inside(bint yes) noexcept nogil
    bint kp_has_crc32c() noexcept nogil
    uint32_t kp_crc32c(uint32_t reg, const uint8_t *at, size_t length) noexcept nogil


# What may be read: from `at` up to and not including `end`. Reads copy, because no word of a packet
# is sure to be aligned (an Ethernet header is 14 bytes); the compiler turns the copy into a load.
cdef struct Cursor:
    const uint8_t *at
    const uint8_t *end


cdef inline size_t left(const Cursor *cursor) noexcept nogil:
    return <size_t>(cursor.end - cursor.at)


cdef inline uint8_t take8(Cursor *cursor) noexcept nogil:
    kp_inside(left(cursor) >= 1)
    cdef uint8_t byte = cursor.at[0]
    cursor.at += 1
    return byte


# take16 … take64: the next bytes as the machine reads them, in its own order.
cdef inline uint16_t take16(Cursor *cursor) noexcept nogil:
    cdef uint16_t word
    kp_inside(left(cursor) >= 2)
    memcpy(&word, cursor.at, 2)
    cursor.at += 2
    return word


cdef inline uint32_t take32(Cursor *cursor) noexcept nogil:
    cdef uint32_t word
    kp_inside(left(cursor) >= 4)
    memcpy(&word, cursor.at, 4)
    cursor.at += 4
    return word


cdef inline uint64_t take64(Cursor *cursor) noexcept nogil:
    cdef uint64_t word
    kp_inside(left(cursor) >= 8)
    memcpy(&word, cursor.at, 8)
    cursor.at += 8
    return word


# --- Internet checksum -------------------------------------------------------------------------

# Words of 16 bits and their one's complement sum may be read in either byte order, as long as the
# result is turned round in the end (RFC 1071 section 2B): so the loop reads the machine's order.
cdef extern from *:
    """
    #define KP_LITTLE_ENDIAN (__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__)
    """
    const bint LITTLE_ENDIAN "KP_LITTLE_ENDIAN"


cdef inline uint16_t host_order(uint16_t word) noexcept nogil:
    """Between a big-endian value and the machine's reading of its bytes; its own inverse."""
    return <uint16_t>(word << 8 | word >> 8) if LITTLE_ENDIAN else word


cdef inline uint16_t fold(uint64_t total) noexcept nogil:
    total = (total & UINT32_MAX) + (total >> 32)
    total = (total & UINT32_MAX) + (total >> 32)
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return <uint16_t>((total & 0xFFFF) + (total >> 16))


cdef uint16_t sum_words(Cursor data, uint16_t initial) noexcept nogil:
    # 64 bits hold the sum of 2**32 words of 32 bits: 16 GiB before a carry could be lost.
    cdef uint64_t total = host_order(initial)
    cdef size_t words = left(&data) // 4
    for _ in range(words):
        total += take32(&data)
    if left(&data) >= 2:
        total += take16(&data)
    if left(&data) == 1:
        total += host_order(<uint16_t>(take8(&data) << 8))
    return host_order(fold(total))


cdef inline uint16_t replace_word(uint16_t check, uint16_t old, uint16_t new) noexcept nogil:
    """RFC 1624 equation 3: HC' = ~(~HC + ~m + m')."""
    cdef uint64_t total = <uint64_t>(check ^ 0xFFFF) + (old ^ 0xFFFF) + new
    return fold(total) ^ 0xFFFF


cdef inline uint16_t replace_long(uint16_t check, uint32_t old, uint32_t new) noexcept nogil:
    cdef uint64_t total = <uint64_t>(check ^ 0xFFFF) + (old ^ UINT32_MAX) + new
    return fold(total) ^ 0xFFFF


cdef uint16_t replace_range(uint16_t check, Cursor old, Cursor new, bint odd) noexcept nogil:
    # Equation 3 over many words at once, sums in place of words: ~(~HC + ~sum(m) + sum(m')). At an
    # odd offset every byte is in the other half of its word, which swaps the halves of the sum.
    cdef uint16_t before, after
    before = sum_words(old, 0)
    after = sum_words(new, 0)
    if odd:
        before = <uint16_t>(before << 8 | before >> 8)
        after = <uint16_t>(after << 8 | after >> 8)
    return replace_word(check, before, after)


# --- CRC32c ------------------------------------------------------------------------------------

# Eight tables of 256, one for each byte of a 64-bit word ("slicing by 8"): SLICES[k][b] is what
# byte b leaves in the register after k more bytes of zeros.
cdef uint32_t[8][256] SLICES
cdef uint32_t CASTAGNOLI_REVERSED = 0x82F63B78


cdef void fill_slices() noexcept nogil:
    cdef uint32_t register
    cdef int byte, k, _
    for byte in range(256):
        register = byte
        for _ in range(8):
            # All ones where the low bit is set: the polynomial without a branch.
            register = register >> 1 ^ (CASTAGNOLI_REVERSED & (0 - (register & 1)))
        SLICES[0][byte] = register
    for k in range(1, 8):
        for byte in range(256):
            register = SLICES[k - 1][byte]
            SLICES[k][byte] = register >> 8 ^ SLICES[0][register & 0xFF]


cdef uint32_t crc_by_tables(uint32_t register, Cursor data) noexcept nogil:
    cdef uint64_t word
    cdef size_t words = left(&data) // 8
    # The tables take the first byte from the low end of the word.
    if LITTLE_ENDIAN:
        for _ in range(words):
            word = take64(&data) ^ register
            register = (
                SLICES[7][word & 0xFF]
                ^ SLICES[6][word >> 8 & 0xFF]
                ^ SLICES[5][word >> 16 & 0xFF]
                ^ SLICES[4][word >> 24 & 0xFF]
                ^ SLICES[3][word >> 32 & 0xFF]
                ^ SLICES[2][word >> 40 & 0xFF]
                ^ SLICES[1][word >> 48 & 0xFF]
                ^ SLICES[0][word >> 56]
            )
    while left(&data) > 0:
        register = register >> 8 ^ SLICES[0][(register ^ take8(&data)) & 0xFF]
    return register


cdef bint HARDWARE_CRC = False


cdef inline uint32_t run_crc(uint32_t register, Cursor data, bint hardware) noexcept nogil:
    if hardware:
        return kp_crc32c(register, data.at, left(&data))
    return crc_by_tables(register, data)


fill_slices()
HARDWARE_CRC = kp_has_crc32c()


# --- The Python boundary -----------------------------------------------------------------------

# The GIL stays held: one packet takes less time than giving the lock up and getting it back.

#: True in the debug build.
DEBUG = bool(KP_DEBUG)

#: True where this processor computes CRC32c itself.
HARDWARE_CRC32C = bool(HARDWARE_CRC)


@cython.final
@cython.freelist(8)
cdef class _Buffer:
    """Borrows the memory of a contiguous buffer for as long as it lives; TypeError without one.

    Keep it in a variable while its cursor is in use.
    """

    cdef Py_buffer view
    cdef Cursor cursor

    def __cinit__(self, data):
        PyObject_GetBuffer(data, &self.view, PyBUF_SIMPLE)
        self.cursor.at = <const uint8_t *>self.view.buf
        self.cursor.end = self.cursor.at + self.view.len

    def __dealloc__(self):
        PyBuffer_Release(&self.view)


def ones_sum(data, uint16_t initial=0):
    cdef _Buffer buffer = _Buffer(data)
    return sum_words(buffer.cursor, initial)


def checksum(data, uint16_t initial=0):
    cdef _Buffer buffer = _Buffer(data)
    return sum_words(buffer.cursor, initial) ^ 0xFFFF


def update16(uint16_t check, uint16_t old, uint16_t new):
    return replace_word(check, old, new)


def update32(uint16_t check, uint32_t old, uint32_t new):
    return replace_long(check, old, new)


def update_range(uint16_t check, old, new, bint odd=False):
    cdef _Buffer before = _Buffer(old)
    cdef _Buffer after = _Buffer(new)
    if before.view.len != after.view.len:
        raise ValueError(
            f"old has {before.view.len} bytes and new {after.view.len}: must be the same"
        )
    return replace_range(check, before.cursor, after.cursor, odd)


def crc32c(data, uint32_t crc=0):
    cdef _Buffer buffer = _Buffer(data)
    return run_crc(crc ^ UINT32_MAX, buffer.cursor, HARDWARE_CRC) ^ UINT32_MAX


def crc32c_by_tables(data, uint32_t crc=0):
    """What :func:`crc32c` does on a processor that cannot compute it itself."""
    cdef _Buffer buffer = _Buffer(data)
    return run_crc(crc ^ UINT32_MAX, buffer.cursor, False) ^ UINT32_MAX


def sctp_checksum(packet):
    cdef _Buffer buffer = _Buffer(packet)
    cdef Cursor ports_and_tag = buffer.cursor
    cdef Cursor chunks = buffer.cursor
    cdef Cursor no_checksum
    cdef uint32_t zeros = 0
    cdef uint32_t register = UINT32_MAX
    if buffer.view.len < 12:
        raise ValueError(f"an SCTP packet has 12 bytes of header at least; got {buffer.view.len}")
    ports_and_tag.end = buffer.cursor.at + 8
    no_checksum.at = <const uint8_t *>&zeros
    no_checksum.end = no_checksum.at + 4
    chunks.at = buffer.cursor.at + 12
    register = run_crc(register, ports_and_tag, HARDWARE_CRC)
    register = run_crc(register, no_checksum, HARDWARE_CRC)
    register = run_crc(register, chunks, HARDWARE_CRC)
    return (~register & UINT32_MAX).to_bytes(4, "little")


def _read_past_the_end():
    """Overrun a cursor of no bytes by one: the tests' proof that the debug build stops at once.

    Safe in the release build: a bytes object ends with a zero byte beyond its length.
    """
    cdef _Buffer buffer = _Buffer(b"")
    return take8(&buffer.cursor)


# --- The packet engine ----------------------------------------------------------------------------

cdef struct Engine_

include "fastpath/memory.pxi"
include "fastpath/maglev.pxi"
include "fastpath/maglev_few.pxi"
include "fastpath/slab.pxi"
include "fastpath/parse.pxi"
include "fastpath/tables.pxi"
include "fastpath/flows.pxi"
include "fastpath/memories.pxi"
include "fastpath/rewrite.pxi"
include "fastpath/refuse.pxi"
include "fastpath/choice.pxi"
include "fastpath/retry.pxi"
include "fastpath/engine.pxi"
include "fastpath/build.pxi"
include "fastpath/boundary.pxi"
include "fastpath/fuzz.pxi"
include "fastpath/io.pxi"
include "fastpath/estate.pxi"
