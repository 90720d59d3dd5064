"""Cluster IPs, load-balancer addresses and node ports: chosen at random, but the same every time.

Pure. The number tried first is a hash of the lab's and the service's name, the next ones hashes of
a counter as well; so a lab that is made again gives the same service the same address even when
its record was lost, and no two services of one lab ever share one.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Collection, Iterable, Mapping

#: The API server's --service-node-port-range.
NODE_PORTS = range(30000, 32768)


def static_band(size: int) -> int:
    """How many addresses at the start of a range are left to people who choose their own.

    min(max(16, size / 16), 256), as the API server keeps them (KEP-3070).
    """
    return min(max(16, size // 16), 256)


class Pool:
    """Who holds what. Generic over addresses (text) and ports (numbers).

    ``kept`` are values that absent services had and may want back: not given to others unasked.
    """

    def __init__(self, seed: str) -> None:
        self._seed = seed
        self._holders: dict[str | int, str] = {}
        self._kept: dict[str | int, str] = {}

    def keep(self, values: Iterable[str | int], owner: str) -> None:
        for value in values:
            self._kept[value] = owner

    def holder(self, value: str | int) -> str:
        """Who holds a value, "" when it is free to be asked for."""
        return self._holders.get(value, "")

    def take(self, value: str | int, owner: str) -> None:
        self._holders[value] = owner

    def _free(self, value: str | int, owner: str) -> bool:
        return value not in self._holders and self._kept.get(value, owner) == owner

    def _numbers(self, owner: str, size: int) -> Iterable[int]:
        """Offsets below ``size`` in the owner's own order: hashed ones, then every one."""
        for attempt in range(64):
            digest = hashlib.blake2b(f"{self._seed}|{owner}|{attempt}".encode(), digest_size=8)
            yield int.from_bytes(digest.digest(), "big") % size
        yield from range(size)

    def next_port(self, owner: str, avoid: Collection[int] = ()) -> int | None:
        """A free node port that is not in ``avoid``, taken; None when there is none."""
        for number in self._numbers(owner, len(NODE_PORTS)):
            port = NODE_PORTS[number]
            if port not in avoid and self._free(port, owner):
                self.take(port, owner)
                return port
        return None

    def next_address(self, cidr: str, owner: str, *, reserve: bool = True) -> str | None:
        """A free address of a range, taken; None when all are.

        ``reserve`` leaves the static band alone; the first and the last address are never given.
        """
        network = ipaddress.ip_network(cidr)
        # /64 and wider IPv6 ranges: 2^16 addresses are plenty, and short to read.
        size = min(network.num_addresses, 1 << 16)
        first = static_band(size) if reserve and size > 32 else 1
        for number in self._numbers(owner, max(1, size - first - 1)):
            address = str(network[first + number])
            if self._free(address, owner):
                self.take(address, owner)
                return address
        return None


def pool_from(seed: str, kept: Mapping[str, tuple[str, ...]] | Mapping[str, int]) -> Pool:
    """A pool that remembers what services had."""
    pool = Pool(seed)
    for owner, values in kept.items():
        pool.keep(values if isinstance(values, tuple) else (values,), owner)
    return pool
