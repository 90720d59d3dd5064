# For the fuzz build alone: which edges of the engine's code an input takes. In the other builds
# nothing is counted.

cdef extern from *:
    """
    #include <stdint.h>
    #define KP_EDGES 65536
    #ifdef KPROXY_FUZZ
    #define KP_FUZZ 1
    static uint8_t kp_taken[KP_EDGES];
    static uint8_t kp_known[KP_EDGES];
    static uintptr_t kp_before;
    /* The compiler calls it at the beginning of every block. */
    __attribute__((no_sanitize_coverage, no_sanitize("address", "undefined")))
    void __sanitizer_cov_trace_pc(void) {
        uintptr_t here = (uintptr_t)__builtin_return_address(0) - (uintptr_t)&kp_taken;
        here = (here * (uintptr_t)0x9E3779B97F4A7C15u) >> 48;
        kp_taken[(here ^ kp_before) & (KP_EDGES - 1)]++;
        kp_before = here >> 1;
    }
    /* Edges that were taken, by powers of two of how often, and never so before; then forgets. */
    __attribute__((no_sanitize_coverage))
    static int kp_news(void) {
        int found = 0, at;
        for (at = 0; at < KP_EDGES; at++) {
            uint8_t times = kp_taken[at], bit;
            if (!times)
                continue;
            kp_taken[at] = 0;
            bit = (uint8_t)(1u << (31 - __builtin_clz(times)));
            if (!(kp_known[at] & bit)) {
                kp_known[at] |= bit;
                found++;
            }
        }
        return found;
    }
    #else
    #define KP_FUZZ 0
    static int kp_news(void) { return 0; }
    #endif
    """
    const bint KP_FUZZ
    int kp_news() noexcept nogil


def _fuzz_news():
    """How many edges were taken since the last call as never before; 0 in an ordinary build."""
    return kp_news()


def _fuzz_overrun(Batch batch not None):
    """Read one byte past the first packet's memory: the tests' proof that the sanitizer looks."""
    if KP_FUZZ and batch.exact and batch.size and batch.packets[0].offset:
        return batch._at(0)[batch.packets[0].capacity]
    return None
