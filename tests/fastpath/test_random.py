"""The engine equals its twin over long random lives: flows of all kinds, tables that change under
them, time that passes, tables that are too small."""

from __future__ import annotations

import ipaddress
import random
from collections import Counter
from typing import Any

from kproxy.core.twin.values import Code, Member, Outcome, Range, Reason, ServiceTable
from tests.fastpath.checks import check_sums
from tests.fastpath.packets import (
    ACK,
    FIN,
    RST,
    SYN,
    answer_to,
    icmp_error,
    ip,
    raw,
    sctp,
    tcp,
    udp,
)
from tests.fastpath.pair import (
    CLUSTER_ROWS,
    LOCAL_ROWS,
    SCTP,
    TCP,
    UDP,
    Algorithm,
    Pair,
    member,
    service,
)

FLAGS = (SYN, SYN, SYN, ACK, ACK, ACK | FIN, RST, RST | ACK, SYN | ACK)
CHUNKS = (1, 1, 0, 0, 3, 6, 7, 14)
CLIENTS4 = ("10.180.0.9", "10.180.0.1", "203.0.113.2", "203.0.113.3", "192.168.0.2", "127.0.0.1")
CLIENTS6 = ("fd00:10::9", "fd00:10::1", "2001:db8:ffff::2", "2001:db8::2", "::1")
PODS4 = ("10.180.0.1", "10.180.0.2", "10.180.0.3", "10.180.2.1", "10.180.2.2", "192.168.0.2")
PODS6 = ("fd00:10::1", "fd00:10::2", "fd00:10:2::1", "2001:db8::2")
OWN4 = ("192.168.0.2", "127.0.0.1")
#: (type, code) of ICMP errors.
ERRORS4, ERRORS6 = ((3, 3), (3, 4), (11, 0)), ((1, 4), (2, 0), (3, 0))
PROTOCOLS = (TCP, TCP, TCP, UDP, UDP, SCTP)


class Life:
    """One world at random. Everything that it does, both do."""

    def __init__(self, make_pair: Any, seed: int) -> None:
        self.random = random.Random(seed)
        self.pair: Pair = make_pair(
            {},
            max_flows=self.random.choice((8, 64, 4096)),
            max_affinities=self.random.choice((0, 2, 64)),
            max_fragments=self.random.choice((0, 3, 32)),
            syn_copies=self.random.choice((0, 2, 64)),
            tries=self.random.choice((1, 2, 4)),
            drain_seconds=self.random.choice((0, 5, 900)),
        )
        self.seen: Counter[Code | Reason] = Counter()
        self.reached: list[bytes] = []
        self.targets: dict[int, list[tuple[str, int, int]]] = {}

    def commit(self) -> None:
        """Some services come, change or go."""
        changed = {number: self.service(number) for number in self.random.sample(range(6), 2)}
        removed = {number for number in self.targets if self.random.random() < 0.1} - changed.keys()
        for number in removed:
            del self.targets[number]
        self.pair.commit(changed, removed)
        self.pair.reap()

    def service(self, number: int) -> ServiceTable:
        pick = self.random
        six, protocol = number % 2 == 1, PROTOCOLS[number]
        places = pick.sample(PODS6 if six else PODS4, pick.choice((0, 1, 2, 3, 4)))
        members = [self.member(place) for place in places]
        vip = f"fd00:30::{number}" if six else f"172.30.0.{number}"
        more = ("2001:db8:7::7",) if six else ("198.51.100.7",)
        port, node_port = 80 + number, 30080 + number
        self.targets[number] = [
            (vip, port, protocol),
            (more[0], port, protocol),
            (
                "2001:db8::2" if six else pick.choice(("192.168.0.2", "127.0.0.1")),
                node_port,
                protocol,
            ),
        ]
        ranges = (Range(raw("2001:db8:ffff::"), 48) if six else Range(raw("203.0.113.2"), 32),)
        return service(
            *members,
            ip=vip,
            port=port,
            protocol=protocol,
            node_port=node_port,
            balancers=more,
            rows=pick.choice((CLUSTER_ROWS, LOCAL_ROWS)),
            ranges=pick.choice((None, None, (), ranges)),
            affinity_seconds=pick.choice((None, None, 1, 100)),
            algorithm=pick.choice(list(Algorithm)),
        )

    def member(self, place: str) -> Member:
        pick = self.random
        return member(
            place,
            pick.choice((8080, 8081)),
            weight=pick.choice((1, 1, 3, 1000)),
            cluster=pick.random() < 0.9,
            local=pick.random() < 0.5,
            near=pick.random() < 0.5,
        )

    def packet(self) -> bytes:
        """From a client to a target, or back, or about either."""
        pick = self.random
        chance = pick.random()
        if chance < 0.4 and self.reached:
            about = pick.choice(self.reached[-200:])
            if (about[0] >> 4 == 4 and about[6] & 0x3F) or (about[0] >> 4 == 6 and about[6] == 44):
                return about
            if chance < 0.05:
                return self.error(about)
            return answer_to(about, pick.choice((SYN | ACK, ACK, ACK, FIN | ACK, RST | ACK)))
        number = pick.choice(list(self.targets) or [0])
        target, port, protocol = pick.choice(self.targets.get(number, [("172.30.9.9", 80, TCP)]))
        client = pick.choice(CLIENTS6 if ":" in target else CLIENTS4)
        sport = pick.randrange(1000, 1012)
        body = {
            TCP: lambda: tcp(sport, port, pick.choice(FLAGS), data=b"d" * pick.randrange(4)),
            UDP: lambda: udp(sport, port, b"u" * pick.randrange(8)),
            SCTP: lambda: sctp(sport, port, pick.choice(CHUNKS)),
        }[protocol]()
        parts = None
        if pick.random() < 0.05:
            parts = (pick.randrange(4), pick.choice((0, 0, 1)), True)
        return ip(client, target, protocol, body, fragment=parts)

    def error(self, about: bytes) -> bytes:
        six = about[0] >> 4 == 6
        ends = (about[8:24], about[24:40]) if six else (about[12:16], about[16:20])
        source, destination = (str(ipaddress.ip_address(end)) for end in ends)
        kind, code = self.random.choice(
            ((1, 4), (2, 0), (3, 0)) if six else ((3, 3), (3, 4), (11, 0))
        )
        router = self.random.choice((destination, "2001:db8::9" if six else "10.0.0.9"))
        return icmp_error(router, source, about[: self.random.choice((28, 60, 200))], kind, code)

    def step(self) -> None:
        pick = self.random
        self.pair.pass_time(pick.choice((0, 0, 0.001, 0.1, 0.3, 1, 20, 100)))
        packets: list[tuple[bytes, bytes | None]] = [
            (self.packet(), None) for _ in range(pick.choice((1, 5, 64)))
        ]
        for (packet, _), outcome in zip(packets, self.pair.batch_of(packets)):
            self.note(packet, outcome)
        self.reached += self.pair.due()

    def note(self, packet: bytes, outcome: Outcome) -> None:
        self.seen[outcome.code] += 1
        self.seen[outcome.reason] += 1
        if outcome.code is Code.FORWARD:
            self.reached.append(outcome.packet)
        if outcome.code in (Code.FORWARD, Code.REPLY) and self.random.random() < 0.03:
            check_sums(outcome.packet)


LIVES = 24

#: What must have come up in all lives together, or they prove too little.
WANTED: tuple[Code | Reason, ...] = (
    *(Code.FORWARD, Code.PASS, Code.DROP, Code.REPLY),
    *(Reason.FRAGMENT, Reason.SOURCE, Reason.NO_LOCAL, Reason.NO_FLOW, Reason.STALE, Reason.FULL),
    *(Reason.NO_PORT, Reason.REFUSED, Reason.DRAINED),
)


def test_lives(make_pair: Any):
    """Lives of two hundred batches: every packet, counter and verdict alike; and between them they
    come by every code and reason."""
    seen: Counter[Code | Reason] = Counter()
    for seed in range(LIVES):
        try:
            seen += live(Life(make_pair, seed))
        except AssertionError as error:
            error.add_note(f"in the life of seed {seed}")
            raise
    assert not [wanted for wanted in WANTED if not seen[wanted]]


def live(life: Life) -> Counter[Code | Reason]:
    for number in range(200):
        if number % 10 == 0:
            life.commit()
        life.step()
        if number % 20 == 19:
            life.pair.check()
            life.pair.verdicts()
    return life.seen
