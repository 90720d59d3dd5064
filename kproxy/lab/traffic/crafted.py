"""First packets that no socket would send, and where they come out.

For a protocol that this kernel has no sockets for (SCTP), and for sources that nobody owns. A
packet carries a token that no translation touches (TCP's sequence number, SCTP's initiate tag,
UDP's payload); it is sent whole, checksums and all, and then looked for where it may arrive. What
says no to it quotes it (ICMP) or counts on from its token (RST).
"""

from __future__ import annotations

import ipaddress
import os
import socket
import time
from collections.abc import Iterable, Sequence

from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror, TCPerror
from scapy.layers.inet6 import ICMPv6DestUnreach, IPerror6, IPv6
from scapy.layers.sctp import SCTP, SCTPChunkInit
from scapy.packet import Packet, Raw

from kproxy._fastpath import sctp_checksum
from kproxy.core.objects import Family, Protocol, Value, family_of
from kproxy.kernel.netns import entered
from kproxy.lab.traffic.capture import Capture, Sighting
from kproxy.lab.traffic.wire import Outcome, Reach, join_host_port

#: Seconds after which a packet that nobody has seen will not come any more.
WINDOW = 0.3

#: The same for one that ought to come: whoever passes it on may have to wait for a processor.
PATIENCE = 8.0

_AF = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}

#: ICMP and ICMPv6 codes of destination unreachable: port, and IPv4's protocol unreachable.
_PORT_UNREACHABLE = {4: 3, 6: 4}
_PROTOCOL_UNREACHABLE = 2


class Crafted(Value, frozen=True):
    """A packet, sent from ``namespace`` with any source; over TCP the first one of a connection
    unless ``flags`` says otherwise. ``awaited``: it ought to be seen, or refused, by somebody."""

    namespace: int
    source: str
    source_port: int
    to: str
    port: int
    protocol: Protocol
    flags: str = "S"
    awaited: bool = False

    @property
    def sender(self) -> str:
        return join_host_port(self.source, self.source_port)

    @property
    def astray(self) -> bool:
        """To a loopback address: for the host at the other end of the sender's link, not his."""
        return ipaddress.ip_address(self.to).is_loopback


class Place(Value, frozen=True):
    """Where packets may come out. ``name`` is the responder's name there; ``final`` false: only
    refusals are looked for (what passes there goes on)."""

    name: str
    namespace: int
    final: bool = True


def first_packet(crafted: Crafted, token: int) -> bytes:
    """The packet from its IP header on."""
    ip: Packet = (
        IPv6(src=crafted.source, dst=crafted.to)
        if family_of(crafted.to) is Family.IPV6
        else IP(src=crafted.source, dst=crafted.to)
    )
    sport, dport = crafted.source_port, crafted.port
    if crafted.protocol is Protocol.TCP:
        return bytes(ip / TCP(sport=sport, dport=dport, seq=token, flags=crafted.flags))
    if crafted.protocol is Protocol.UDP:
        return bytes(ip / UDP(sport=sport, dport=dport) / Raw(token.to_bytes(4, "big")))
    init = SCTP(sport=sport, dport=dport, tag=0, chksum=0) / SCTPChunkInit(
        init_tag=token, a_rwnd=65536, n_out_streams=1, n_in_streams=1, init_tsn=1
    )
    body = bytearray(bytes(init))
    body[8:12] = sctp_checksum(bytes(body))
    if isinstance(ip, IPv6):
        ip.nh = socket.IPPROTO_SCTP
    else:
        ip.proto = socket.IPPROTO_SCTP
    return bytes(ip / Raw(bytes(body)))


def send_all(
    packets: Sequence[Crafted], places: Iterable[Place], *, window: float = WINDOW
) -> list[Outcome]:
    """Send all, and say of each where it came out: at a final place, refused, or nowhere.

    ``reach`` SILENCE means that nobody saw it within ``window`` seconds of the last one's leave;
    one that is awaited has :data:`PATIENCE`.
    """
    if not packets:
        return []
    watched = {place.name: place for place in places}
    search = _Search(packets)
    with Capture((name, place.namespace) for name, place in watched.items()) as capture:
        search.send()
        # Only from now on: crafting many packets on a busy machine takes longer than the window.
        sent, left = time.monotonic(), window
        # Until nobody has seen anything by then: what waits to be read had come in time.
        while search.open and left > 0:
            left = sent + (_patience(window) if search.awaits else window) - time.monotonic()
            for sighting in capture.wait(left):
                search.look(sighting, watched[sighting.place])
    return search.outcomes(window)


class _Search:
    """Which of the packets have been found, and where."""

    def __init__(self, packets: Sequence[Crafted]) -> None:
        self.packets = packets
        # Half of the 32 bits: the last of many tokens is in range too.
        base = int.from_bytes(os.urandom(3), "big") << 7
        # Steps of two: a reset acknowledges token + 1, which must not be another packet's token.
        self.tokens = {base + 2 * number: number for number in range(len(packets))}
        self.found: dict[int, Outcome] = {}
        self._began = time.time()

    @property
    def open(self) -> bool:
        return len(self.found) < len(self.packets)

    @property
    def awaits(self) -> bool:
        """Whether one that ought to be seen has not been seen."""
        return any(
            each.awaited and number not in self.found for number, each in enumerate(self.packets)
        )

    def send(self) -> None:
        for token, number in self.tokens.items():
            crafted = self.packets[number]
            with entered(crafted.namespace):
                sock = socket.socket(
                    _AF[family_of(crafted.to)], socket.SOCK_RAW, socket.IPPROTO_RAW
                )
            with sock:
                if crafted.astray:
                    # Past the sender's own loopback, by its one link.
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
                sock.sendto(first_packet(crafted, token), (crafted.to, 0))

    def look(self, sighting: Sighting, place: Place) -> None:
        if sighting.outgoing:
            return
        packet = IPv6(sighting.data) if sighting.data[0] >> 4 == 6 else IP(sighting.data)
        refusal = self._refusal(packet) or self._accepted(packet)
        if refusal is not None:
            number, reach = refusal
            self._found(number, reach)
            return
        number = self.tokens.get(_token(packet), -1)
        if number >= 0 and place.final:
            client, local = _ends(packet)
            crafted = self.packets[number]
            self.found.setdefault(
                number,
                Outcome(
                    Reach.REACHED,
                    crafted.sender,
                    place.name.partition(" ")[0],
                    client,
                    local,
                    sighting.when - self._began,
                ),
            )

    def _found(self, number: int, local: str) -> None:
        crafted = self.packets[number]
        if local:
            outcome = Outcome(Reach.REACHED, crafted.sender, "node", crafted.sender, local)
        else:
            outcome = Outcome(Reach.REFUSED, crafted.sender)
        self.found.setdefault(number, outcome)

    def _refusal(self, packet: Packet) -> tuple[int, str] | None:
        """(number, "") of the packet that this one refuses; (number, destination) when its
        destination host has no such *protocol*: there it has arrived."""
        if TCP in packet and "R" in packet[TCP].flags:
            number = self.tokens.get(packet[TCP].ack - 1)
            return None if number is None else (number, "")
        version = 6 if IPv6 in packet else 4
        if ICMP in packet and packet[ICMP].type == 3:
            code, quoted = packet[ICMP].code, packet.getlayer(IPerror)
        elif ICMPv6DestUnreach in packet:
            code, quoted = packet[ICMPv6DestUnreach].code, packet.getlayer(IPerror6)
        else:
            return None
        if quoted is None:
            return None
        number = self.tokens.get(_token(quoted))
        if number is None:
            return None
        if code == _PORT_UNREACHABLE[version]:
            return number, ""
        if version == 4 and code == _PROTOCOL_UNREACHABLE:
            return number, _ends(quoted)[1]
        return None

    def _accepted(self, packet: Packet) -> tuple[int, str] | None:
        """(number, who says so) of a packet astray that a socket of the node itself took."""
        if TCP not in packet or packet[TCP].flags != "SA":
            return None
        number = self.tokens.get(packet[TCP].ack - 1)
        if number is None or not self.packets[number].astray:
            return None
        return number, _ends(packet)[0]

    def outcomes(self, window: float) -> list[Outcome]:
        return [
            self.found.get(number) or _silence(crafted, window)
            for number, crafted in enumerate(self.packets)
        ]


def _silence(crafted: Crafted, window: float) -> Outcome:
    seconds = _patience(window) if crafted.awaited else window
    detail = f"seen nowhere within {seconds:g} s"
    return Outcome(Reach.SILENCE, crafted.sender, seconds=seconds, detail=detail)


def _patience(window: float) -> float:
    """With one that ought to come."""
    return max(window, PATIENCE)


def _token(packet: Packet) -> int:
    """The token of a packet or of one quoted in an ICMP error; -1 when it has none."""
    for layer in (TCP, TCPerror):
        if layer in packet:
            return int(packet[layer].seq)
    body = _transport(packet)
    if _protocol(packet) == socket.IPPROTO_SCTP and len(body) >= 20:
        return int.from_bytes(body[16:20], "big")  # header 12, chunk header 4, then the tag
    if _protocol(packet) == socket.IPPROTO_UDP and len(body) >= 12:
        return int.from_bytes(body[8:12], "big")
    return -1


def _protocol(packet: Packet) -> int:
    return int(packet.nh if isinstance(packet, IPv6 | IPerror6) else packet.proto)


def _transport(packet: Packet) -> bytes:
    """Bytes from the transport header on, as they were captured."""
    size = 40 if isinstance(packet, IPv6 | IPerror6) else packet.ihl * 4
    return bytes(packet.original[size:])


def _ends(packet: Packet) -> tuple[str, str]:
    """(source, destination) as ``ip:port``."""
    body = _transport(packet)
    sport, dport = (int.from_bytes(body[at : at + 2], "big") for at in (0, 2))
    return join_host_port(packet.src, sport), join_host_port(packet.dst, dport)


__all__ = ["WINDOW", "Crafted", "Place", "first_packet", "send_all"]
