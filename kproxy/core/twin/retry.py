"""The ring of first SYNs: a client whose endpoint does not answer gets another one, unnoticed.

A copy of each first SYN is kept, as it came. A RST, "unreachable", or silence in answer sends it to
an endpoint that has not been tried; what refused it never reaches the client. Whether the answer is
to this very SYN is checked by its sequence number, so that nobody off the path can move flows.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from kproxy.core.objects import Family
from kproxy.core.twin.flows import Endpoint, Flow
from kproxy.core.twin.parse import Parsed
from kproxy.core.twin.rewrite import Tuple
from kproxy.core.twin.states import Direction, Event, State
from kproxy.core.twin.values import (
    TCP,
    TICK,
    TICKS_PER_SECOND,
    Code,
    EngineSettings,
    Fate,
    Outcome,
    Reason,
)

if TYPE_CHECKING:
    from kproxy.core.twin.engine import Twin

#: A SYN with all the options there can be fits: 60 + 60 bytes for IPv4, 40 + 60 and extension
#: headers for IPv6. One that carries data (RFC 7413) is not kept.
LONGEST = 192
#: Verdicts that wait to be read; further ones are not recorded.
MOST_VERDICTS = 4096

_ACK = 0x10
#: Destination unreachable but for "fragmentation needed", which a SYN can live with.
_UNREACHABLE = {Family.IPV4: 3, Family.IPV6: 1}
_FRAGMENTATION_NEEDED = 4


class Finding(IntEnum):
    """What a first SYN told about an endpoint; OK is the first success after anything else."""

    REFUSED = 0
    TIMEOUT = 1
    UNREACHABLE = 2
    OK = 3


@dataclass
class Copy:
    """A first SYN as it came, ``use`` and ``masquerade`` as its flow was treated."""

    flow: Flow
    packet: bytes
    header: bytes
    parsed: Parsed
    use: int
    masquerade: bool
    tried: list[Endpoint]
    deadline: int
    pending: bool = False

    @property
    def sequence(self) -> int:
        at = self.parsed.transport + 4
        return int.from_bytes(self.packet[at : at + 4])


class Retries:
    """The newest copies; the oldest is overwritten, and its flow has only one try."""

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        self.copies: list[Copy | None] = [None] * settings.syn_copies
        self.next = 0
        self.verdicts: list[tuple[int, bytes, Finding]] = []

    def keep(
        self,
        twin: Twin,
        flow: Flow,
        use: int,
        masquerade: bool,
        packet: bytes,
        parsed: Parsed,
        header: bytes,
        now: int,
    ) -> None:
        if flow.state is not State.SYN_SENT or parsed.fragment is not None or not self.copies:
            return
        if len(packet) > LONGEST:
            return
        old = self.copies[self.next]
        if old is not None and old.flow.copy == self.next:
            old.flow.copy = None
        deadline = now + self.settings.patience
        copy = Copy(flow, packet, header, parsed, use, masquerade, [flow.endpoint], deadline)
        self.copies[self.next] = copy
        flow.copy = self.next
        self.next = (self.next + 1) % len(self.copies)

    def release(self, flow: Flow) -> None:
        if flow.copy is not None:
            self.copies[flow.copy] = None
            flow.copy = None

    def refused(self, flow: Flow, way: Direction, packet: bytes, parsed: Parsed) -> bool:
        """Whether a packet is the endpoint's RST in answer to the first SYN (RFC 9293 section
        3.10.7.3: it acknowledges the SYN)."""
        copy = self._waiting(flow, way)
        if copy is None or parsed.protocol != TCP or parsed.event is not Event.ABORT:
            return False
        at = parsed.transport
        acknowledged = int.from_bytes(packet[at + 8 : at + 12])
        if not packet[at + 13] & _ACK or acknowledged != (copy.sequence + 1) & 0xFFFFFFFF:
            return False
        self._failed(flow.endpoint, Finding.REFUSED)
        return True

    def unreachable(self, flow: Flow, way: Direction, packet: bytes, parsed: Parsed) -> bool:
        """Whether an ICMP error says that the first SYN did not arrive."""
        copy = self._waiting(flow, way)
        assert parsed.inner is not None
        kind, code = packet[parsed.transport], packet[parsed.transport + 1]
        if copy is None or kind != _UNREACHABLE[parsed.family]:
            return False
        if parsed.family is Family.IPV4 and code == _FRAGMENTATION_NEEDED:
            return False
        at = parsed.inner.transport + 4
        if int.from_bytes(packet[at : at + 4]) != copy.sequence:
            return False
        self._failed(flow.endpoint, Finding.UNREACHABLE)
        return True

    def again(
        self, twin: Twin, flow: Flow, now: int, header: bytes, capacity: int
    ) -> Outcome | None:
        """The first SYN, to another endpoint; None when there is none, or no try is left."""
        assert flow.copy is not None
        copy = self.copies[flow.copy]
        assert copy is not None
        # A checksum that is unfinished can go out only with a header that says so.
        if bool(copy.header) != bool(header) or not self._retarget(twin, copy, flow, now):
            return None
        if len(copy.packet) > capacity:
            copy.pending = True
            return Outcome(Code.STOLEN, Reason.NONE, b"")
        return self._sent(twin, copy, now)

    def _sent(self, twin: Twin, copy: Copy, now: int) -> Outcome:
        copy.pending = False
        there = Direction.THERE
        return twin._send(copy.packet, copy.parsed, copy.flow, there, now, copy.header)

    def _retarget(self, twin: Twin, copy: Copy, flow: Flow, now: int) -> bool:
        service = twin.services.get(flow.endpoint.service)
        if service is None or len(copy.tried) >= self.settings.tries:
            return False
        if service.table.fates[copy.use] is not Fate.FORWARD:
            return False
        there, tick = flow.ends[0], now // TICK
        word = twin._word(there)
        found = service.choosers[copy.use].another(word, copy.tried)
        if found is None:
            return False
        member, endpoint = found
        back: Tuple | None = twin.back(there, member, copy.masquerade, word, tick)
        if back is None:
            return False
        twin.flows[service.table.family].retarget(flow, back, endpoint)
        flow.version, flow.draining = twin.version, False
        flow.deadline = tick + self.settings.timeouts[flow.state] * TICKS_PER_SECOND
        endpoint.flows += 1
        copy.deadline = now + (self.settings.patience << len(copy.tried))
        copy.tried.append(endpoint)
        if service.table.affinity_seconds is not None:
            known = twin.affinities[service.table.family]
            known.keep(service.number, there.source, endpoint, tick)
        return True

    def due(self, twin: Twin, now: int, count: int) -> list[tuple[bytes, bytes]]:
        """Copies whose endpoints were silent for too long, to their next ones; at most ``count``,
        the rest at the next call."""
        sent: list[tuple[bytes, bytes]] = []
        for place, copy in enumerate(self.copies):
            if copy is None or len(sent) >= count:
                continue
            if not copy.pending and now < copy.deadline:
                continue
            flow = copy.flow
            dead = not twin._lives(flow) or flow.copy != place or flow.state is not State.SYN_SENT
            if dead or now // TICK >= flow.deadline:
                self.copies[place] = None
                if flow.copy == place:
                    flow.copy = None
                continue
            if not copy.pending:
                self._failed(flow.endpoint, Finding.TIMEOUT)
                if not self._retarget(twin, copy, flow, now):
                    self.release(flow)
                    continue
            made = self._sent(twin, copy, now)
            sent.append((made.packet, made.header))
        return sent

    def succeeded(self, endpoint: Endpoint) -> None:
        if endpoint.suspect:
            endpoint.suspect = False
            self._note(endpoint, Finding.OK)

    def take_verdicts(self) -> list[tuple[int, bytes, Finding]]:
        """(service, place, finding) since the last call, oldest first."""
        taken, self.verdicts = self.verdicts, []
        return taken

    def _waiting(self, flow: Flow, way: Direction) -> Copy | None:
        if flow.copy is None or flow.state is not State.SYN_SENT or way is not Direction.BACK:
            return None
        return self.copies[flow.copy]

    def _failed(self, endpoint: Endpoint, finding: Finding) -> None:
        endpoint.failures += 1
        endpoint.suspect = True
        self._note(endpoint, finding)

    def _note(self, endpoint: Endpoint, finding: Finding) -> None:
        if len(self.verdicts) < MOST_VERDICTS:
            self.verdicts.append((endpoint.service, endpoint.place, finding))
