"""What is remembered besides flows: clients' affinity, and datagrams that come in parts."""

from __future__ import annotations

from dataclasses import dataclass

from kproxy.core.objects import Family
from kproxy.core.twin.flows import Endpoint, Flow
from kproxy.core.twin.parse import Parsed
from kproxy.core.twin.states import Direction
from kproxy.core.twin.values import TICKS_PER_SECOND

#: As long as the kernel waits for the rest of a datagram (net.ipv4.ipfrag_time).
FRAGMENT_SECONDS = 30


@dataclass
class _Pinned:
    endpoint: Endpoint
    serial: int
    tick: int


class Affinities:
    """(service, client) → endpoint. The least recently used entry goes when room is short."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.entries: dict[tuple[int, bytes], _Pinned] = {}

    def find(self, service: int, client: bytes, seconds: int, tick: int) -> Endpoint | None:
        """The endpoint of the client's last new flow, if that was less than ``seconds`` ago."""
        pinned = self.entries.get((service, client))
        if pinned is None or tick - pinned.tick >= seconds * TICKS_PER_SECOND:
            return None
        return pinned.endpoint if pinned.serial == pinned.endpoint.serial else None

    def keep(self, service: int, client: bytes, endpoint: Endpoint, tick: int) -> None:
        key = service, client
        if not self.limit:
            return
        if self.entries.pop(key, None) is None and len(self.entries) >= self.limit:
            del self.entries[next(iter(self.entries))]
        self.entries[key] = _Pinned(endpoint, endpoint.serial, tick)


@dataclass
class Datagram:
    """What became of a first fragment, for those that follow. ``flow`` None: none of ours."""

    flow: Flow | None
    way: Direction
    until: int


class Fragments:
    """The oldest goes when room is short."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.entries: dict[tuple[bytes, bytes, int, int], Datagram] = {}

    @staticmethod
    def _key(parsed: Parsed) -> tuple[bytes, bytes, int, int]:
        assert parsed.fragment is not None
        # In IPv6 the protocol is not part of it: options may stand between, in the first one only.
        protocol = parsed.protocol if parsed.family is Family.IPV4 else 0
        return parsed.source, parsed.destination, protocol, parsed.fragment

    def find(self, parsed: Parsed, tick: int) -> Datagram | None:
        found = self.entries.get(self._key(parsed))
        return found if found is not None and tick < found.until else None

    def keep(self, parsed: Parsed, flow: Flow | None, way: Direction, tick: int) -> None:
        key, until = self._key(parsed), tick + FRAGMENT_SECONDS * TICKS_PER_SECOND
        if not self.limit:
            return
        if key not in self.entries and len(self.entries) >= self.limit:
            del self.entries[next(iter(self.entries))]
        self.entries[key] = Datagram(flow, way, until)
