"""Crafted first packets: right bytes, seen where they arrive, refusals told apart."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.sctp import SCTP, SCTPChunkInit
from scapy.packet import Packet

from kproxy.core.objects import Protocol
from kproxy.core.packet import crc32c
from kproxy.kernel.command import run
from kproxy.lab.apply import Builder
from kproxy.lab.network import End, Link, Network, Route
from kproxy.lab.traffic import Reach
from kproxy.lab.traffic.capture import Capture, Sighting
from kproxy.lab.traffic.crafted import Crafted, Place, first_packet, send_all
from tests.lab.wired import host, wired

ENDS = [("192.0.2.1", "198.51.100.1"), ("2001:db8::1", "2001:db8:1::1")]
TOKEN = 0x01020304


def crafted(
    source: str, to: str, protocol: Protocol, namespace: int = -1, port: int = 80
) -> Crafted:
    return Crafted(namespace, source, 4000, to, port, protocol)


@pytest.mark.parametrize("protocol", list(Protocol))
@pytest.mark.parametrize(("source", "to"), ENDS)
def test_packets_are_whole(source: str, to: str, protocol: Protocol) -> None:
    """Addresses, ports, token, and checksums that a decoder computes to the same value."""
    data = first_packet(crafted(source, to, protocol), TOKEN)
    packet: Packet = IPv6(data) if ":" in to else IP(data)
    assert (packet.src, packet.dst) == (source, to)
    body = data[-len(bytes(packet.payload)) :]
    assert (body[:2], body[2:4]) == ((4000).to_bytes(2, "big"), (80).to_bytes(2, "big"))
    if protocol is Protocol.SCTP:
        assert SCTP(body)[SCTPChunkInit].init_tag == TOKEN
        assert crc32c(body[:8] + bytes(4) + body[12:]).to_bytes(4, "little") == body[8:12]
        return
    layer = {Protocol.TCP: TCP, Protocol.UDP: UDP}[protocol]
    sent = packet[layer].chksum
    del packet[layer].chksum
    assert type(packet)(bytes(packet))[layer].chksum == sent
    assert TOKEN.to_bytes(4, "big") in body


LAB = f"g-crafted-{os.getpid()}"
NETWORK = Network(
    LAB,
    hosts=(
        host(
            "sender",
            [("eth0", "192.0.2.1/32"), ("eth0", "2001:db8::1/128")],
            Route("0.0.0.0/0", "eth0", via="192.0.2.254"),
            Route("::/0", "eth0", via="2001:db8::fe"),
        ),
        host(
            "router",
            [("left", "192.0.2.254/32"), ("left", "2001:db8::fe/128")],
            Route("192.0.2.1/32", "left"),
            Route("2001:db8::1/128", "left"),
            Route("198.51.100.1/32", "right"),
            Route("2001:db8:1::1/128", "right"),
            sysctls=["net/ipv4/icmp_ratemask"],
        ),
        host(
            "receiver",
            [("eth0", "198.51.100.1/32"), ("eth0", "2001:db8:1::1/128")],
            Route("0.0.0.0/0", "eth0"),
            Route("::/0", "eth0"),
        ),
    ),
    links=(
        Link(End("router", "left"), End("sender", "eth0")),
        Link(End("router", "right"), End("receiver", "eth0")),
    ),
)


@pytest.fixture(scope="module")
def builder() -> Iterator[Builder]:
    with wired(NETWORK) as one:
        for tool in ("iptables-nft", "ip6tables-nft"):
            for protocol in ("tcp", "udp"):
                for port, target in (("81", ["REJECT"]), ("82", ["DROP"])):
                    rule = ["-p", protocol, "--dport", port, "-j", *target]
                    run([tool, "-A", "FORWARD", *rule], namespace=one.fd("router"))
        yield one


@pytest.mark.kernel
@pytest.mark.parametrize("source", ["own", "foreign"])
def test_packets_are_found_where_they_arrive(builder: Builder, source: str) -> None:
    """Every protocol and family at once, also from sources that nobody owns."""
    fd = builder.fd("sender")
    packets = [
        crafted(mine if source == "own" else other, to, protocol, fd)
        for (mine, to), other in zip(ENDS, ("203.0.113.7", "2001:db8:7::7"), strict=True)
        for protocol in Protocol
    ]
    places = [Place("receiver", builder.fd("receiver")), Place("sender", fd, final=False)]
    outcomes = send_all(packets, places, window=20)
    for packet, outcome in zip(packets, outcomes, strict=True):
        assert outcome.reach is Reach.REACHED, packet
        assert (outcome.endpoint, outcome.client) == ("receiver", packet.sender)
        assert outcome.client == outcome.sender
        assert not outcome.masqueraded


@pytest.mark.kernel
@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP])
@pytest.mark.parametrize(("source", "to"), ENDS)
@pytest.mark.parametrize(("port", "reach"), [(81, Reach.REFUSED), (82, Reach.SILENCE)])
def test_refusal_and_silence(
    builder: Builder, source: str, to: str, protocol: Protocol, port: int, reach: Reach
) -> None:
    """An ICMP port unreachable that quotes the packet refuses it; nothing at all is silence."""
    places = [
        Place("receiver", builder.fd("receiver")),
        Place("sender", builder.fd("sender"), final=False),
    ]
    packet = crafted(source, to, protocol, builder.fd("sender"), port)
    # What comes ends the wait, however long a busy machine takes for it.
    (outcome,) = send_all([packet], places, window=0.3 if reach is Reach.SILENCE else 20)
    assert outcome.reach is reach


@pytest.mark.kernel
def test_a_capture_sees_both_sides_in_order(builder: Builder) -> None:
    """A packet through the router is seen coming in, then going out, with the kernel's times."""
    fd = builder.fd("sender")
    with Capture([("router", builder.fd("router"))]) as capture:
        packet = crafted(*ENDS[0], Protocol.TCP, fd)
        send_all([packet], [Place("r", builder.fd("receiver"))], window=20)
        syn: list[Sighting] = []
        deadline = time.monotonic() + 20
        while len(syn) < 2:
            assert time.monotonic() < deadline
            syn += [one for one in capture.wait(1) if b"\x0f\xa0\x00P" in one.data]
    syn.sort(key=lambda one: one.when)
    assert [(one.interface, one.outgoing) for one in syn[:2]] == [("left", False), ("right", True)]
    assert syn[0].when <= syn[1].when


def test_nothing_to_send_needs_nothing() -> None:
    """No packets, no sockets."""
    assert send_all([], []) == []
