"""The hashes by which fastpath mode chooses, written to be read: SipHash and Maglev's tables.

Everything here has a compiled twin in :mod:`kproxy._fastpath`, and the tests hold them equal. What
is chosen depends on the seed, the client and the set of endpoints and on nothing else, so that
every node with the same seed, before and after a restart, chooses alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate, count, pairwise
from math import inf

_MASK = 0xFFFFFFFFFFFFFFFF

#: Sizes of Maglev tables: primes just under powers of four (251, 1021, 4093, 16381) and 2**16 + 1.
MAGLEV_SIZES = (251, 1021, 4093, 16381, 65537)
#: Slots that each endpoint should have, so that one of them is 0.1 % of its share.
SLOTS_PER_ENDPOINT = 1000


def siphash(key: bytes, data: bytes, compress: int = 1, finish: int = 3) -> int:
    """SipHash-``compress``-``finish`` of ``data`` under a 16-byte key, 64 bits.

    Aumasson and Bernstein, "SipHash: a fast short-input PRF" (2012). 1-3 is what the Linux kernel
    (as HalfSipHash) and Python use for hash tables. ValueError for a key of another length.
    """
    if len(key) != 16:
        raise ValueError(f"a SipHash key has 16 bytes; got {len(key)}")
    k0, k1 = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
    state = (
        k0 ^ 0x736F6D6570736575,
        k1 ^ 0x646F72616E646F6D,
        k0 ^ 0x6C7967656E657261,
        k1 ^ 0x7465646279746573,
    )
    # The last word holds what is left of the data, and the length (mod 256) in its highest byte.
    whole = len(data) // 8 * 8
    last = data[whole:].ljust(7, b"\0") + bytes([len(data) & 0xFF])
    for at in range(0, whole + 8, 8):
        word = int.from_bytes(data[at : at + 8] if at < whole else last, "little")
        v0, v1, v2, v3 = state
        v0, v1, v2, v3 = _rounds((v0, v1, v2, v3 ^ word), compress)
        state = (v0 ^ word, v1, v2, v3)
    v0, v1, v2, v3 = state
    v0, v1, v2, v3 = _rounds((v0, v1, v2 ^ 0xFF, v3), finish)
    return v0 ^ v1 ^ v2 ^ v3


_Words = tuple[int, int, int, int]


def _rounds(state: _Words, count: int) -> _Words:
    v0, v1, v2, v3 = state
    for _ in range(count):
        v0 = (v0 + v1) & _MASK
        v1 = _rotate(v1, 13) ^ v0
        v0 = _rotate(v0, 32)
        v2 = (v2 + v3) & _MASK
        v3 = _rotate(v3, 16) ^ v2
        v0 = (v0 + v3) & _MASK
        v3 = _rotate(v3, 21) ^ v0
        v2 = (v2 + v1) & _MASK
        v1 = _rotate(v1, 17) ^ v2
        v2 = _rotate(v2, 32)
    return v0, v1, v2, v3


def _rotate(word: int, by: int) -> int:
    return (word << by | word >> (64 - by)) & _MASK


def tuple_hash(
    key: bytes, source: bytes, destination: bytes, ports: tuple[int, int], protocol: int
) -> int:
    """Hash of a five-tuple: addresses and ports as on the wire, protocol, three zero bytes."""
    sport, dport = ports
    return siphash(
        key,
        source
        + destination
        + sport.to_bytes(2, "big")
        + dport.to_bytes(2, "big")
        + bytes((protocol, 0, 0, 0)),
    )


def maglev_size(endpoints: int) -> int:
    """The smallest size that gives each endpoint a thousand slots; the largest if none does."""
    wanted = SLOTS_PER_ENDPOINT * endpoints
    return next((size for size in MAGLEV_SIZES if size >= wanted), MAGLEV_SIZES[-1])


@lru_cache(maxsize=len(MAGLEV_SIZES))
def shuffle(size: int) -> tuple[int, ...]:
    """One fixed permutation of ``range(size)``, the same everywhere (Fisher–Yates by splitmix64).

    The paper's permutations are arithmetic progressions. Where the steps of two endpoints are in a
    simple ratio they run beside each other, and removing a third one then moves up to 10 % of the
    other slots (seen with three endpoints). Progressions *through a shuffle* have no such pairs.
    """
    order = list(range(size))
    state = size
    for last in range(size - 1, 0, -1):
        state = (state + 0x9E3779B97F4A7C15) & _MASK
        word = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & _MASK
        word = ((word ^ word >> 27) * 0x94D049BB133111EB) & _MASK
        other = (word ^ word >> 31) % (last + 1)
        order[last], order[other] = order[other], order[last]
    return tuple(order)


@lru_cache(maxsize=len(MAGLEV_SIZES))
def times(size: int) -> tuple[int, ...]:
    """When an endpoint of weight 1 asks for the first, second, … slot of its permutation.

    These are the expected values of ``size`` exponentially distributed times, in order (Rényi
    1953), in units of 2**-32. One of weight w is w times as fast. With exponential times, and with
    no others, each comes first at as many slots as its weight says.
    """
    return tuple(accumulate((1 << 32) // (size - rank) for rank in range(size)))


def maglev(key: bytes, names: Sequence[bytes], weights: Sequence[int]) -> tuple[int, ...]:
    """A table of indices into ``names``, :func:`maglev_size` long; () for no names.

    Every endpoint has a permutation of the slots (Eisenbud et al., "Maglev", 2016, section 3.4),
    and slots go to those who ask early. How, depends on how much chance weighs (:data:`FILLINGS`).
    ``names`` are addresses and ports as on the wire; weights are from 1.
    """
    if not names:
        return ()
    size = maglev_size(len(names))
    walks = []
    for name in names:
        word = siphash(key, name)
        offset, skip = (word & 0xFFFFFFFF) % size, (word >> 32) % (size - 1) + 1
        walks.append([(offset + skip * place) % size for place in shuffle(size)])
    fill = next(fill for most, fill in FILLINGS if len(names) <= most)
    return tuple(fill(walks, weights))


_Walks = Sequence[Sequence[int]]


def _first_comes(walks: _Walks, weights: Sequence[int]) -> list[int]:
    """A slot is whose who asks for it first: when an endpoint goes, no slot of others moves at all.
    Shares are as even as chance has it."""
    size = len(walks[0])
    table, when, ages = [-1] * size, [0] * size, times(size)
    for one, walk in enumerate(walks):
        for age, slot in zip(ages, walk):
            owner = table[slot]
            if owner < 0 or age * weights[owner] < when[slot] * weights[one]:
                table[slot], when[slot] = one, age
    return table


def _by_quota(walks: _Walks, weights: Sequence[int]) -> list[int]:
    """The same, but nobody gets more than its share. In a round the heaviest asks for one slot, the
    others for those that they ask for as early."""
    size, heaviest, ages = len(walks[0]), max(weights), times(len(walks[0]))
    bounds = [size * total // sum(weights) for total in accumulate(weights, initial=0)]
    quotas = [end - begin for begin, end in pairwise(bounds)]
    table, asked = [-1] * size, [0] * len(walks)
    for now in count():
        for one, walk in enumerate(walks):
            if not quotas[one]:
                continue
            # When the heaviest has asked for all there are, the others ask for one in a round.
            latest = ages[now] * weights[one] if now < size else ages[asked[one]] * heaviest
            while quotas[one] and ages[asked[one]] * heaviest <= latest:
                slot = walk[asked[one]]
                asked[one] += 1
                if table[slot] < 0:
                    table[slot] = one
                    quotas[one] -= 1
        if not any(quotas):
            break
    return table


def _in_turns(walks: _Walks, weights: Sequence[int]) -> list[int]:
    """As in the paper: endpoints take turns, each takes the first free slot of its permutation. A
    turn comes as often as the weight compared with the largest one says."""
    size, heaviest = len(walks[0]), max(weights)
    table, left = [-1] * size, size
    asked, credit = [0] * len(walks), [0] * len(walks)
    while True:
        for one, walk in enumerate(walks):
            credit[one] += weights[one]
            if credit[one] < heaviest:
                continue
            credit[one] -= heaviest
            while table[walk[asked[one]]] >= 0:
                asked[one] += 1
            table[walk[asked[one]]] = one
            left -= 1
            if not left:
                return table


#: (most endpoints, filling). When an endpoint goes, at most 1 % of the others' slots may move. With
#: turns that is so in large tables only: of 4,093 slots up to 1.6 % moved (three thousand sets of
#: four), of 16,381 up to 1 % (sixteen). Quotas let 0.85 % move there, of 4,093 still up to 1.9 %.
FILLINGS: tuple[tuple[float, Callable[[_Walks, Sequence[int]], list[int]]], ...] = (
    (4, _first_comes),
    (16, _by_quota),
    (inf, _in_turns),
)
