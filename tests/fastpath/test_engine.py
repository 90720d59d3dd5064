"""What the engine promises, one promise a test, where the random lives say only "alike"."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import pytest

from kproxy.core.twin.retry import Finding
from kproxy.core.twin.states import State
from kproxy.core.twin.values import TIMEOUTS, Code, Fate, Reason
from tests.fastpath.checks import check_sums
from tests.fastpath.packets import (
    ACK,
    FIN,
    RST,
    SYN,
    answer_to,
    header,
    icmp_error,
    ip,
    raw,
    sctp,
    tcp,
    udp,
)
from tests.fastpath.pair import NODE4, SCTP, TCP, UDP, Algorithm, Pair, member, service
from tests.fastpath.samples import OUT4, POD4, SAMPLES, WEB4

PODS = ("10.180.0.1", "10.180.0.2", "10.180.2.1")


def ends(packet: bytes) -> tuple[str, int, str, int]:
    """Source and destination of an IPv4 packet without options."""
    source, destination = (".".join(map(str, packet[at : at + 4])) for at in (12, 16))
    return (
        source, int.from_bytes(packet[20:22]), destination, int.from_bytes(packet[22:24])
    )  # fmt: skip


def syn(sport: int = 40000, source: str = POD4, **fields: Any) -> bytes:
    return ip(source, WEB4, TCP, tcp(sport, 80, **fields))


def opened(pair: Pair, sport: int = 40000, source: str = POD4) -> bytes:
    """A connection after its handshake; returns the SYN as the endpoint got it."""
    reached = pair.send(syn(sport, source))
    assert reached.code is Code.FORWARD
    assert pair.send(answer_to(reached.packet)).code is Code.FORWARD
    data = ip(source, WEB4, TCP, tcp(sport, 80, ACK, sequence=1001, acknowledged=78, data=b"ask"))
    assert pair.send(data).code is Code.FORWARD
    return reached.packet


# --- translation -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLES)
def test_checksums(pair: Pair, name: str):
    """Whatever is sent on or answered has the checksums that scapy would have written."""
    outcome = pair.send(SAMPLES[name])
    if outcome.code in (Code.FORWARD, Code.REPLY):
        check_sums(outcome.packet)


def test_there_and_back(make_pair: Any):
    """A pod's address is kept; the answer comes from the address that the pod asked."""
    pair = make_pair({1: service("10.180.0.1")})
    reached = pair.send(syn())
    assert ends(reached.packet) == (POD4, 40000, "10.180.0.1", 8080)
    back = pair.send(answer_to(reached.packet))
    assert ends(back.packet) == (WEB4, 80, POD4, 40000)


def test_masquerade(make_pair: Any):
    """Who is no pod is hidden behind the node's address and a reserved port of it."""
    pair = make_pair({1: service("10.180.0.1")})
    reached = pair.send(syn(source=OUT4))
    source, port, *_ = ends(reached.packet)
    assert source == "192.168.0.2"
    assert 49152 <= port <= 49160
    assert ends(pair.send(answer_to(reached.packet)).packet) == (WEB4, 80, OUT4, 40000)


def test_hairpin(make_pair: Any):
    """An endpoint that reaches itself is hidden, or its answer would never pass here."""
    pair = make_pair({1: service("10.180.0.1")})
    reached = pair.send(syn(source="10.180.0.1"))
    assert ends(reached.packet)[0] == "192.168.0.2"
    assert ends(pair.send(answer_to(reached.packet)).packet) == (WEB4, 80, "10.180.0.1", 40000)


def test_two_ways_to_one_endpoint(make_pair: Any):
    """The same port of a client to two services with one endpoint: its port is moved for one."""
    pair = make_pair({1: service("10.180.0.1"), 2: service("10.180.0.1", ip="172.30.0.42")})
    first = pair.send(syn()).packet
    second = pair.send(ip(POD4, "172.30.0.42", TCP, tcp(40000, 80))).packet
    assert ends(first)[0] == ends(second)[0] == POD4
    assert ends(first)[1] != ends(second)[1]
    assert ends(pair.send(answer_to(second)).packet) == ("172.30.0.42", 80, POD4, 40000)


@pytest.mark.parametrize("broken", [0, 1, 77])
def test_damage_stays_visible(make_pair: Any, broken: int):
    """A checksum that was wrong is as wrong as before; only what changed is corrected."""
    services = {
        1: service("10.180.0.1"),
        2: service("10.180.0.1", ip="172.30.0.42", protocol=SCTP, port=99),
    }
    for packet, at, size in (
        (syn(), 36, 2),
        (ip(POD4, "172.30.0.42", SCTP, sctp(6000, 99)), 28, 4),
    ):
        pair = make_pair(services)
        right = pair.send(packet).packet
        pair = make_pair(services)
        wrong = bytearray(packet)
        wrong[at + size - 1] ^= broken
        made = pair.send(bytes(wrong)).packet
        assert (made == right) is (broken == 0)
        assert made[:at] + made[at + size :] == right[:at] + right[at + size :]


def test_partial_checksum(make_pair: Any):
    """With an unfinished checksum the addresses alone are corrected: finishing it gives the same
    packet as finishing it first."""
    services = {1: service("10.180.0.1")}
    whole = make_pair(services).send(syn()).packet
    fields, packet = header(syn())
    made = make_pair(services).send(packet, fields)
    assert made.header == fields
    finished = bytearray(made.packet)
    finished[36:38] = b"\0\0"
    partial = int.from_bytes(made.packet[36:38])
    from kproxy.core.packet import checksum

    # The device sums the transport header with the field's value in place of the checksum.
    finished[36:38] = checksum(bytes(finished[20:]), partial).to_bytes(2)
    assert bytes(finished) == whole


def test_large_segments(pair: Pair):
    """A segment of 60 KiB is one packet as any other."""
    opened(pair)
    data = ip(POD4, WEB4, TCP, tcp(40000, 80, ACK, sequence=1001, data=bytes(60_000)))
    outcome = pair.send(data, bytes((0, 1)) + bytes(8))
    assert outcome.code is Code.FORWARD
    assert len(outcome.packet) == len(data)


def test_fragments(pair: Pair):
    """Later parts follow the first one, also of what is none of ours, and not for ever."""
    first = pair.send(SAMPLES["udp4 first part"])
    later = pair.send(SAMPLES["udp4 later part"])
    assert first.code is later.code is Code.FORWARD
    assert first.packet[12:20] == later.packet[12:20]
    assert pair.send(SAMPLES["udp4 stray part"]).reason is Reason.FRAGMENT
    assert pair.send(SAMPLES["udp4 part of nobody"]).code is Code.PASS
    stray = ip(POD4, "172.30.0.99", UDP, b"later...", fragment=(9, 1, False), checked=False)
    assert pair.send(stray).code is Code.PASS
    pair.pass_time(30)
    assert pair.send(SAMPLES["udp4 later part"]).reason is Reason.FRAGMENT


def test_router_keeps_its_address(make_pair: Any):
    """An ICMP error reaches the client about the packet that it sent; who says so stays visible,
    unless it is the endpoint, which the client does not know."""
    pair = make_pair({1: service("10.180.0.1", protocol=UDP)})
    asked = ip(OUT4, WEB4, UDP, udp(5000, 80))
    reached = pair.send(asked).packet
    for sender, seen in (("10.9.9.9", "10.9.9.9"), ("10.180.0.1", WEB4)):
        told = pair.send(icmp_error(sender, "192.168.0.2", reached, 3, 3)).packet
        assert ends(told)[0] == seen
        assert ends(told)[2] == OUT4
        assert told[28:] == asked
        check_sums(told)


# --- policies ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "to", "code", "reason"),
    [
        (POD4, "172.30.0.45", Code.REPLY, Reason.REFUSED),
        (OUT4, "172.30.0.48", Code.DROP, Reason.NO_LOCAL),
        (POD4, "172.30.0.99", Code.PASS, Reason.NONE),
    ],
)
def test_nobody_there(pair: Pair, source: str, to: str, code: Code, reason: Reason):
    """Refused when nobody serves anywhere, dropped when nobody does here, else none of ours."""
    outcome = pair.send(ip(source, to, TCP, tcp(40000, 80)))
    assert (outcome.code, outcome.reason) == (code, reason)


def test_reset_answers_the_segment(pair: Pair):
    """The RST acknowledges the SYN, or stands where an ACK says that the sender is."""
    refused = pair.send(ip(POD4, "172.30.0.45", TCP, tcp(40000, 80, SYN, sequence=5))).packet
    assert ends(refused) == ("172.30.0.45", 80, POD4, 40000)
    assert refused[24:34] == bytes(4) + (6).to_bytes(4) + bytes((0x50, RST | ACK))
    segment = tcp(40000, 80, ACK, sequence=5, acknowledged=9)
    late = pair.send(ip(POD4, "172.30.0.45", TCP, segment)).packet
    assert late[24:34] == (9).to_bytes(4) + bytes(4) + bytes((0x50, RST))
    assert pair.send(ip(POD4, "172.30.0.45", TCP, tcp(1, 80, RST))).code is Code.DROP


def test_source_ranges(make_pair: Any):
    """Load-balancer addresses are for permitted sources only, the other ways in for all."""
    ranges = (msgspec.structs.replace(NODE4.pods[0], net=raw("203.0.113.0"), bits=24),)
    pair = make_pair({1: service("10.180.0.1", balancers=("198.51.100.9",), ranges=ranges)})
    for source, to, code in (
        (OUT4, "198.51.100.9", Code.FORWARD),
        ("203.0.114.2", "198.51.100.9", Code.DROP),
        ("203.0.114.2", WEB4, Code.FORWARD),
    ):
        assert pair.send(ip(source, to, TCP, tcp(40000, 80))).code is code


# --- choice ------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_shares(make_pair: Any, algorithm: Algorithm):
    """Endpoints get flows by their weight, whoever chooses."""
    members = [member(address, weight=weight) for address, weight in zip(PODS, (1, 2, 3))]
    pair = make_pair({1: service(*members, algorithm=algorithm)})
    got = Counter(ends(pair.send(syn(sport)).packet)[2] for sport in range(1000, 1600))
    for address, share in zip(PODS, (100, 200, 300)):
        assert abs(got[address] - share) <= 60


def test_least_connections(make_pair: Any):
    """The one with the fewest open connections is next; closed ones do not count."""
    pair = make_pair({1: service(*PODS, algorithm=Algorithm.LEAST)})
    first = [ends(opened(pair, sport))[2] for sport in (1000, 1001, 1002)]
    assert set(first) == set(PODS)
    pair.send(ip(POD4, WEB4, TCP, tcp(1001, 80, RST)))
    assert ends(pair.send(syn(1003)).packet)[2] == first[1]


def test_affinity(make_pair: Any):
    """A client keeps its endpoint by every way in, until it was away for too long."""
    pair = make_pair({1: service(*PODS, affinity_seconds=60, external=("198.51.100.7",))})
    first = ends(pair.send(syn(1000)).packet)[2]
    for sport in range(1001, 1020):
        pair.pass_time(59)
        to = WEB4 if sport % 2 else "198.51.100.7"
        assert ends(pair.send(ip(POD4, to, TCP, tcp(sport, 80))).packet)[2] == first
    pair.pass_time(60)
    later = set()
    for sport in range(2000, 2020):
        later.add(ends(pair.send(syn(sport)).packet)[2])
        pair.pass_time(60)
    assert len(later) > 1


def test_affinity_ends_with_its_endpoint(make_pair: Any):
    """Who was pinned to an endpoint that went is not pinned to it when it comes back."""
    pair = make_pair({1: service(*PODS, affinity_seconds=1000)})
    pinned = {ends(pair.send(syn(source=f"10.180.1.{n}")).packet)[2]: n for n in range(1, 20)}
    gone = PODS[0]
    pair.commit({1: service(*PODS[1:], affinity_seconds=1000)})
    client = f"10.180.1.{pinned[gone]}"
    moved = ends(pair.send(syn(2, source=client)).packet)[2]
    assert moved != gone
    pair.commit({1: service(*PODS, affinity_seconds=1000)})
    assert ends(pair.send(syn(3, source=client)).packet)[2] == moved


# --- the life of a flow ------------------------------------------------------------------------


def walk(pair: Pair, sport: int, *flags: int) -> None:
    """Segments of a flow after the handshake: positive from the client, negative back."""
    reached = opened(pair, sport)
    for flag in flags:
        if flag > 0:
            pair.send(ip(POD4, WEB4, TCP, tcp(sport, 80, flag)))
        else:
            pair.send(answer_to(reached, -flag))


@pytest.mark.parametrize(
    ("flags", "state"),
    [
        ((), State.ESTABLISHED),
        ((FIN | ACK,), State.CLIENT_FINISHED),
        ((-(FIN | ACK),), State.SERVER_FINISHED),
        ((FIN | ACK, -(FIN | ACK)), State.CLOSED),
        ((FIN | ACK, -(FIN | ACK), ACK), State.CLOSED),
        ((RST,), State.RESET),
        ((-(RST | ACK),), State.RESET),
        ((RST, ACK, -ACK), State.RESET),
    ],
)
def test_states(pair: Pair, flags: tuple[int, ...], state: State):
    """Where the flags of a conversation lead, and how long the flow is kept there."""
    walk(pair, 40000, *flags)
    probe = ip(POD4, WEB4, TCP, tcp(40000, 80, ACK))
    for step in (pair.engine.flow(4, probe), (pair.twin.flows[4].slots[0].state,)):
        assert step[0] == state
    pair.pass_time(TIMEOUTS[state] - 0.2)
    assert pair.sweep() == 0
    pair.pass_time(0.3)
    assert pair.sweep() == 1
    assert pair.engine.flow(4, probe) is None


def test_udp_time(pair: Pair):
    """30 s for a question, 180 s once it was answered."""
    asked = ip(POD4, "172.30.0.42", UDP, udp(5000, 53))
    for answered, seconds in ((False, 30), (True, 180)):
        reached = pair.send(asked).packet
        if answered:
            pair.send(answer_to(reached))
        pair.pass_time(seconds - 0.1)
        assert (
            pair.engine.sweep(1 << 20, pair.now) == pair.twin.flows[4].sweep(1 << 20, pair.now) == 0
        )
        pair.pass_time(0.2)
        assert (
            pair.engine.sweep(1 << 20, pair.now) == pair.twin.flows[4].sweep(1 << 20, pair.now) == 1
        )


@pytest.mark.parametrize("flags", [(FIN | ACK, -(FIN | ACK)), (RST,)])
def test_new_syn_on_an_old_flow(pair: Pair, flags: tuple[int, ...]):
    """A SYN on a flow that ended begins another one; both directions of the old one are gone."""
    walk(pair, 40000, *flags)
    assert pair.engine.totals()["flows"][0] == 1
    assert pair.send(syn()).code is Code.FORWARD
    assert pair.engine.totals()["flows"][0] == 1
    assert pair.engine.flow(4, syn())[0] == State.SYN_SENT
    pair.check()


def test_flood(make_pair: Any):
    """A flood of SYNs turns over itself: confirmed flows survive, and the limit is kept."""
    pair = make_pair({1: service(*PODS)}, max_flows=256)
    kept = [opened(pair, sport) for sport in range(1000, 1100)]
    # As many as the table holds several times over, from random places.
    for number in range(2000):
        source = f"10.180.{10 + number // 250}.{number % 250}"
        outcome = pair.send(ip(source, WEB4, TCP, tcp(2000 + number, 80)))
        assert outcome.code is Code.FORWARD
    assert pair.engine.totals()["flows"][0] == 256
    for sport, reached in zip(range(1000, 1100), kept):
        assert pair.send(answer_to(reached, ACK, b"alive")).code is Code.FORWARD
        probe = pair.engine.flow(4, syn(sport))
        assert probe is not None
        assert probe[0] == State.ESTABLISHED


def test_full_of_confirmed_flows(make_pair: Any):
    """No confirmed flow is given up for a new one; one that ended is."""
    pair = make_pair({1: service(*PODS)}, max_flows=4)
    for sport in range(1000, 1004):
        opened(pair, sport)
    assert pair.send(syn(2000)).reason is Reason.FULL
    pair.send(ip(POD4, WEB4, TCP, tcp(1002, 80, RST)))
    assert pair.send(syn(2000)).code is Code.FORWARD
    assert pair.engine.flow(4, syn(1002)) is None


def test_ports_run_out(make_pair: Any):
    """Nine reserved ports carry nine hidden clients to one endpoint; when none is free, a flow that
    ended gives its port, else the oldest that nobody has confirmed."""
    pair = make_pair({1: service("10.180.0.1")})
    clients = [f"203.0.113.{number}" for number in range(1, 11)]
    for client in clients[:9]:
        opened(pair, 40000, client)
    assert pair.send(syn(source=clients[9])).reason is Reason.NO_PORT
    pair.send(ip(clients[4], WEB4, TCP, tcp(40000, 80, RST)))
    assert pair.send(syn(source=clients[9])).code is Code.FORWARD
    assert pair.engine.flow(4, syn(source=clients[4])) is None
    assert pair.send(syn(source=clients[4])).code is Code.FORWARD
    assert pair.engine.flow(4, syn(source=clients[9])) is None


def test_began_before_us(make_pair: Any):
    """A segment of a connection that is not known goes where its SYN would have gone."""
    services = {1: service(*PODS)}
    first, second = make_pair(services), make_pair(services)
    for sport in range(1000, 1020):
        before = ends(opened(first, sport))
        after = second.send(ip(POD4, WEB4, TCP, tcp(sport, 80, ACK, data=b"go on")))
        assert ends(after.packet) == before


# --- tables that change ------------------------------------------------------------------------


def test_flows_survive_changes(make_pair: Any):
    """Endpoints that come, and others that go, leave a living flow where it is."""
    pair = make_pair({1: service(*PODS)})
    reached = opened(pair)
    mine = ends(reached)[2]
    for others in ((), ("10.180.9.1", "10.180.9.2")):
        pair.commit({1: service(mine, *others)})
        data = pair.send(ip(POD4, WEB4, TCP, tcp(40000, 80, ACK, data=b"x")))
        assert ends(data.packet)[2] == mine
        assert pair.send(answer_to(reached, ACK)).code is Code.FORWARD


@pytest.mark.parametrize("whole", [False, True])
def test_drain_then_reset(make_pair: Any, whole: bool):
    """A connection to an endpoint that went, alone or with its service, goes on until its time to
    drain is up; then either side is told."""
    pair = make_pair({1: service(*PODS)}, drain_seconds=60)
    reached = opened(pair)
    others = [pod for pod in PODS if pod != ends(reached)[2]]
    if whole:
        pair.commit({}, {1})
    else:
        pair.commit({1: service(*others)})
    pair.pass_time(59)
    data = ip(POD4, WEB4, TCP, tcp(40000, 80, ACK, acknowledged=78, data=b"x"))
    assert pair.send(data).code is Code.FORWARD
    assert pair.reap() == 1
    pair.pass_time(1)
    outcome = pair.send(answer_to(reached, ACK))
    assert (outcome.code, outcome.reason) == (Code.REPLY, Reason.DRAINED)
    assert outcome.packet[33] == RST
    assert pair.reap() == 0
    pair.check()


def test_back_before_the_drain_is_over(make_pair: Any):
    """An endpoint that comes back keeps its connections for good."""
    pair = make_pair({1: service(*PODS)}, drain_seconds=60)
    reached = opened(pair)
    pair.commit({1: service(*[pod for pod in PODS if pod != ends(reached)[2]])})
    pair.pass_time(30)
    assert pair.send(answer_to(reached, ACK)).code is Code.FORWARD
    pair.commit({1: service(*PODS)})
    pair.pass_time(600)
    assert pair.send(answer_to(reached, ACK)).code is Code.FORWARD


def test_udp_moves_at_once(make_pair: Any):
    """A client of UDP does not notice that its endpoint is gone: its next datagram goes to another,
    and what the old one still says is dropped. One that drains, and serves, keeps its flows."""
    both = [member(pod) for pod in PODS[:2]]
    pair = make_pair({1: service(*both, protocol=UDP)})
    asked = ip(POD4, WEB4, UDP, udp(5000, 80))
    reached = pair.send(asked).packet
    mine = ends(reached)[2]
    spared = [msgspec.structs.replace(one, cluster=one.address != raw(mine)) for one in both]
    pair.commit({1: service(*spared, protocol=UDP)})
    assert ends(pair.send(asked).packet)[2] == mine
    pair.commit({1: service(*[pod for pod in PODS[:2] if pod != mine], protocol=UDP)})
    assert pair.send(answer_to(reached)).reason is Reason.STALE
    assert ends(pair.send(asked).packet)[2] != mine


def test_all_at_once(make_pair: Any):
    """An address that passes from one service to another is never without one."""
    pair = make_pair({1: service(PODS[0]), 2: service(PODS[1], ip="172.30.0.42")})
    pair.commit({1: service(PODS[0], ip="172.30.0.43"), 2: service(PODS[1])})
    assert ends(pair.send(syn()).packet)[2] == PODS[1]
    assert pair.engine.totals()["ways"] == 2
    pair.commit({3: service(PODS[2])}, {2})
    assert ends(pair.send(syn(40001)).packet)[2] == PODS[2]


@pytest.mark.parametrize(
    "table", [b"", bytes(31), bytes(33), b"\2" + bytes(31), b"\0\6\7" + bytes(29)]
)
def test_broken_tables(make_pair: Any, table: bytes):
    """Bytes that hold no table change nothing."""
    pair = make_pair({1: service(PODS[0])})
    with pytest.raises(ValueError, match="service 1"):
        pair.engine.commit([(1, table)], [], pair.now)
    assert pair.send(syn()).code is Code.FORWARD


def test_forwarding_to_nobody_is_no_table(make_pair: Any):
    """A set that is forwarded to has somebody in it."""
    with pytest.raises(ValueError, match="empty set"):
        make_pair({}).engine.commit([(1, _forward_to_nobody())], [], 0)


def _forward_to_nobody() -> bytes:
    from kproxy.backends.fastpath.tables import pack_service

    return pack_service(service(fates=(Fate.FORWARD, Fate.FORWARD)))


# --- first SYNs that get no answer -------------------------------------------------------------


def refusing(reached: bytes) -> bytes:
    return answer_to(reached, RST | ACK)


def test_refused_syn_goes_elsewhere(make_pair: Any):
    """An endpoint's RST never reaches the client: it becomes the SYN to another endpoint."""
    pair = make_pair({1: service(*PODS)})
    reached = pair.send(syn(data=b"early")).packet
    tried = {ends(reached)[2]}
    for _ in range(2):
        # A stranger's guess is no answer to this SYN.
        guess = bytearray(refusing(reached))
        guess[31] ^= 1
        assert pair.engine.flow(4, syn())[0] == State.SYN_SENT
        reached = pair.send(refusing(reached)).packet
        assert ends(reached)[:2] == (POD4, 40000)
        assert reached[33] == SYN
        check_sums(reached)
        tried.add(ends(reached)[2])
    assert tried == set(PODS)
    assert {kind for _, _, kind in pair.verdicts()} == {Finding.REFUSED}
    # Nobody is left: now the client is told.
    assert ends(pair.send(refusing(reached)).packet)[:3] == (WEB4, 80, POD4)


def test_wrong_rst_is_no_answer(make_pair: Any):
    """A RST that does not acknowledge the SYN moves nothing."""
    pair = make_pair({1: service(*PODS)})
    reached = pair.send(syn()).packet
    at = 20
    forged = ip(ends(reached)[2], POD4, TCP, tcp(8080, 40000, RST | ACK, acknowledged=7))
    outcome = pair.send(forged)
    assert outcome.packet[at + 13] == RST | ACK
    assert not pair.verdicts()


def test_silent_endpoint(make_pair: Any):
    """250 ms, 500 ms and one second of silence: each time the next endpoint gets the SYN."""
    pair = make_pair({1: service(*PODS)})
    tried = [ends(pair.send(syn()).packet)[2]]
    for patience in (0.25, 0.5):
        pair.pass_time(patience - 0.001)
        assert pair.due() == []
        pair.pass_time(0.001)
        (again,) = pair.due()
        tried.append(ends(again)[2])
    assert sorted(tried) == sorted(PODS)
    pair.pass_time(1)
    assert pair.due() == []
    # The last one may still answer.
    assert pair.send(answer_to(again)).code is Code.FORWARD
    assert [kind for _, _, kind in pair.verdicts()] == [*[Finding.TIMEOUT] * 3, Finding.OK]


def test_answered_syn_is_not_repeated(make_pair: Any):
    """Whoever answers in time is left alone."""
    pair = make_pair({1: service(*PODS)})
    opened(pair)
    pair.pass_time(10)
    assert pair.due() == []
    assert not pair.verdicts()


def test_unreachable_endpoint(make_pair: Any):
    """ "Host unreachable" about the SYN is as good as a RST; "too big" is not."""
    pair = make_pair({1: service(*PODS)})
    reached = pair.send(syn()).packet
    big = pair.send(icmp_error("10.0.0.9", POD4, reached[:28], 3, 4))
    assert big.packet[9] == 1
    moved = pair.send(icmp_error("10.0.0.9", POD4, reached[:28], 3, 1)).packet
    assert moved[33] == SYN
    assert ends(moved)[2] != ends(reached)[2]
    assert [kind for _, _, kind in pair.verdicts()] == [Finding.UNREACHABLE]


def test_no_room_for_the_syn(make_pair: Any):
    """A SYN that does not fit the RST's buffer comes out when first SYNs are asked for."""
    pair = make_pair({1: service(*PODS)})
    reached = pair.send(syn(data=bytes(100))).packet
    stolen = pair.send(refusing(reached), capacity=60)
    assert stolen.code is Code.STOLEN
    (again,) = pair.due()
    assert again[33] == SYN
    assert ends(again)[2] != ends(reached)[2]
    assert pair.due() == []


def test_ring_is_full(make_pair: Any):
    """The oldest copy makes room: its flow has one try, the newest has all."""
    pair = make_pair({1: service(*PODS)}, syn_copies=2)
    first, *_, last = (pair.send(syn(sport)).packet for sport in (1000, 1001, 1002))
    assert pair.send(refusing(first)).packet[33] == RST | ACK
    assert pair.send(refusing(last)).packet[33] == SYN


def test_affinity_follows_the_retry(make_pair: Any):
    """A client is pinned to the endpoint that took it, not to the one that refused."""
    pair = make_pair({1: service(*PODS, affinity_seconds=60)})
    moved = pair.send(refusing(pair.send(syn()).packet)).packet
    assert ends(pair.send(syn(40001)).packet)[2] == ends(moved)[2]


# --- figures -----------------------------------------------------------------------------------


def test_counters(make_pair: Any):
    """Packets, bytes and flows of each endpoint, and what was dropped of each service and why."""
    pair = make_pair({1: service("10.180.0.1"), 2: service(ip="172.30.0.42")})
    reached = opened(pair)
    figures = pair.engine.endpoint_counters(1)[member("10.180.0.1").place]
    assert figures["flows"] == figures["active"] == 1
    assert (figures["packets_in"], figures["packets_out"]) == (2, 1)
    assert figures["bytes_in"] == 40 + 43
    assert figures["bytes_out"] == len(answer_to(reached))
    pair.send(ip(POD4, WEB4, TCP, tcp(1, 80, RST)))
    assert pair.engine.service_counters(1)[Reason.NO_FLOW] == 1
    pair.send(ip(POD4, "172.30.0.42", TCP, tcp(1, 80)))
    assert pair.engine.service_counters(2)[Reason.REFUSED] == 1
    with pytest.raises(KeyError):
        pair.engine.service_counters(3)
    pair.check()


def test_packets_name_their_service(make_pair: Any):
    """Each packet of a batch says to which service it belongs."""
    pair = make_pair({1: service("10.180.0.1"), 7: service("10.180.0.1", ip="172.30.0.42")})
    pair.batch_of([(syn(), None), (ip(POD4, "172.30.0.42", TCP, tcp(2, 80)), None),
                   (ip(POD4, "172.30.0.99", TCP, tcp(2, 80)), None)])  # fmt: skip
    assert [pair.batch.service(place) for place in range(3)] == [1, 7, None]
