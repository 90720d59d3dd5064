"""The engine equals its twin on every packet that somebody may send: cut, spoiled, or both."""

from __future__ import annotations

import ipaddress

import pytest

from kproxy.core.twin.values import Code
from tests.fastpath.packets import answer_to, header, icmp_error
from tests.fastpath.pair import Pair
from tests.fastpath.samples import ACK4, SAMPLES, SYN4

#: What a byte becomes: each bit turned, and the values at which a length or a count goes wrong.
TURNS = [1 << bit for bit in range(8)]
VALUES = (0x00, 0x05, 0x45, 0x60, 0xFF)


def spoiled(packet: bytes) -> list[bytes]:
    """One byte at a time of the headers, in every way; the rest of a long packet is data."""
    found = []
    for at in range(min(len(packet), 100)):
        kinds = {packet[at] ^ turn for turn in TURNS} | set(VALUES)
        found += [packet[:at] + bytes((kind,)) + packet[at + 1 :] for kind in kinds]
    return found


def in_batches(pair: Pair, packets: list[bytes], head: bytes | None = None) -> list[Code]:
    """All through both, in batches; the clock goes on between them."""
    codes = []
    for first in range(0, len(packets), 64):
        pair.pass_time(0.01)
        chunk = [(packet, head) for packet in packets[first : first + 64]]
        codes += [outcome.code for outcome in pair.batch_of(chunk)]
    return codes


@pytest.mark.parametrize("name", SAMPLES)
def test_every_length(pair: Pair, name: str):
    """Cut off at every length, and with bytes too many."""
    packet = SAMPLES[name]
    in_batches(pair, [packet[:length] for length in range(len(packet))])
    in_batches(pair, [packet + bytes(extra) for extra in (1, 2, 3, 100, 1500)])
    pair.check()


@pytest.mark.parametrize("name", SAMPLES)
def test_every_field(pair: Pair, name: str):
    """Every bit of the headers turned, one at a time; then the good one, as if nothing had been."""
    in_batches(pair, spoiled(SAMPLES[name]))
    pair.send(SAMPLES[name])
    pair.check()


def conversation(pair: Pair, name: str) -> list[bytes]:
    """ICMP errors about what a sample became, from its endpoint and from a router on the way."""
    sent = pair.send(SAMPLES[name])
    if sent.code is not Code.FORWARD or SAMPLES[name][-8:] == b"later...":
        return []
    about = sent.packet
    six = about[0] >> 4 == 6
    ends = (about[8:24], about[24:40]) if six else (about[12:16], about[16:20])
    source, destination = (str(ipaddress.ip_address(end)) for end in ends)
    router = "2001:db8:ffff::99" if six else "203.0.113.99"
    kinds = (1, 2, 3) if six else (3, 11, 12)
    found = [
        icmp_error(router, source, about[:cut], kind) for kind in kinds for cut in (28, 68, 200)
    ]
    found += [icmp_error(destination, source, about[:200], kinds[0], 1)]
    return found


PLAIN = ["tcp4 syn", "tcp4 syn from outside", "tcp4 hairpin", "udp4", "sctp4 init", "tcp6 syn",
         "tcp6 syn from outside", "udp6", "sctp6 init", "udp4 without checksum"]  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def test_errors_and_answers(pair: Pair, name: str):
    """ICMP errors about a flow's packets, and its answers: whole, cut and spoiled."""
    errors = conversation(pair, name)
    assert errors
    for error in errors:
        pair.send(error)
    for error in errors[:2]:
        in_batches(pair, [error[:length] for length in range(len(error))])
        in_batches(pair, spoiled(error))
    reached = pair.send(SAMPLES[name])
    assert reached.code is Code.FORWARD
    answer = answer_to(reached.packet)
    assert pair.send(answer).code is Code.FORWARD
    in_batches(pair, spoiled(answer))
    pair.check()


@pytest.mark.parametrize("at", range(10))
def test_every_header_field(pair: Pair, at: int):
    """Every value of every byte of a virtio_net_hdr, on a packet with an unfinished checksum."""
    fields, packet = header(ACK4)
    pair.send(
        *reversed(header(SYN4.replace(b"\x02\x04\x05\xb4", b"\x01\x01\x01\x01"), partial=False))
    )
    for value in range(256):
        head = fields[:at] + bytes((value,)) + fields[at + 1 :]
        pair.send(packet, head)
    pair.check()


def test_every_capacity(pair: Pair):
    """An answer is longer than what it answers: it is built where there is room, else dropped."""
    for name in ("tcp4 refused", "tcp6 refused", "udp4 refused", "udp6 refused"):
        packet = SAMPLES[name]
        codes = set()
        for room in range(len(packet), len(packet) + 60):
            codes.add(pair.send(packet, capacity=room).code)
        assert Code.REPLY in codes
    short = SAMPLES["udp4 refused"][:48]
    short = short[:2] + (48).to_bytes(2) + short[4:]
    assert pair.send(short, capacity=48 + 27).code is Code.DROP
    assert pair.send(short, capacity=48 + 28).code is Code.REPLY
