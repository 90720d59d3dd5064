"""``lab capture``: the packets of one namespace, filtered in the kernel, decoded or stored.

Frames are taken with their Ethernet header through AF_PACKET. One socket hears all interfaces,
also those that are made later; interfaces without Ethernet (TUN) get sockets of their own, because
a filter's offsets depend on the link layer, and their packets an Ethernet header of zeros, so that
one pcap file can hold everything. Filters are libpcap's language, compiled through scapy.
"""

from __future__ import annotations

import ctypes
import select
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import IO, Any, Self

from kproxy.core.objects import Value
from kproxy.errors import LabError, MachineError, UsageError
from kproxy.kernel.netlink import open_route
from kproxy.kernel.netns import entered
from kproxy.lab.traffic import join_host_port

_ETH_P_ALL = 0x0003
_SO_ATTACH_FILTER = 26  # asm-generic/socket.h
_SO_TIMESTAMPNS = 35
_SOL_PACKET, _PACKET_STATISTICS = 263, 6  # linux/socket.h, linux/if_packet.h
_PACKET_OUTGOING = 4
_ARPHRD_ETHER, _ARPHRD_LOOPBACK = 1, 772  # linux/if_arp.h; loopback has an Ethernet header too
_WITH_ETHERNET = (_ARPHRD_ETHER, _ARPHRD_LOOPBACK)

#: pcap's link types (and libpcap's DLT_RAW, whose number differs from the file's).
_LINKTYPE_ETHERNET, _DLT_RAW = 1, 12

#: veth carries segments of up to 64 KiB whole (GSO); so does a snapshot.
_SNAPSHOT = 1 << 18
_TIMESPEC = struct.Struct("@ll")
_ETHER_HEADER = 14
_RECEIVE_BUFFER = 8 << 20
_POLL_MS = 1000


class Frame(Value, frozen=True):
    """One packet at one interface. ``when`` is the kernel's time in ns since the epoch; ``data``
    begins with an Ethernet header; ``length`` is its length on the link."""

    interface: str
    outgoing: bool
    when: int
    data: bytes
    length: int


def compile_filter(expression: str, dlt: int = _LINKTYPE_ETHERNET) -> bytes:
    """The BPF program of a filter, 8 bytes an instruction (struct sock_filter).

    UsageError when libpcap does not understand it, MachineError when there is no libpcap.
    """
    from scapy.error import Scapy_Exception

    try:
        from scapy.arch.common import compile_filter as compile_
        from scapy.arch.common import free_filter

        program = compile_(expression, linktype=dlt)
    except (ImportError, OSError) as missing:
        raise MachineError(
            "filters need libpcap, which is not installed", hint="try: apt-get install libpcap0.8"
        ) from missing
    except Scapy_Exception as wrong:
        said = str(wrong).rpartition("(")[2].rstrip(")")
        raise UsageError(
            f"no packet filter: {expression!r} ({said})",
            where="FILTER",
            hint="write it as for tcpdump, as: tcp port 80 and host 10.244.1.2; see pcap-filter(7)",
        ) from wrong
    try:
        return ctypes.string_at(program.bf_insns, 8 * program.bf_len)
    finally:
        free_filter(program)


class Tap:
    """Hears one namespace (descriptor or name) while it is open.

    ``interface`` "" means all; ``expression`` "" lets everything pass.
    """

    def __init__(self, namespace: int | str, interface: str = "", expression: str = "") -> None:
        self._sockets: list[socket.socket] = []
        self._alone: set[int] = set()
        self._poll = select.poll()
        self.dropped = 0
        kinds = _interfaces(namespace)
        if interface and interface not in kinds:
            raise LabError(
                f"no interface {interface} there", hint=f"there are: {', '.join(sorted(kinds))}"
            )
        bare = [name for name, kind in kinds.items() if kind not in _WITH_ETHERNET]
        wanted = [interface] if interface else ["", *bare]
        try:
            with entered(namespace):
                for name in wanted:
                    dlt = _DLT_RAW if name in bare else _LINKTYPE_ETHERNET
                    program = compile_filter(expression, dlt) if expression else b""
                    self._listen(name, program)
        except BaseException:
            self.close()
            raise

    def _listen(self, interface: str, program: bytes) -> None:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        self._sockets.append(sock)
        sock.setblocking(False)
        if interface:
            sock.bind((interface, _ETH_P_ALL))
            self._alone.add(sock.fileno())
        if program:
            buffer = ctypes.create_string_buffer(program)
            fprog = struct.pack("@HL", len(program) // 8, ctypes.addressof(buffer))
            sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)
        # The socket heard from the moment it was made: what came before its filter and its
        # interface were set is no part of the capture.
        with suppress(BlockingIOError):
            while True:
                sock.recv(1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._poll.register(sock, select.POLLIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self.count_dropped()
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()

    def count_dropped(self) -> int:
        """Packets that the kernel dropped because nobody read them in time, so far."""
        for sock in self._sockets:
            # Reading the counters resets them: packet(7).
            _, lost = struct.unpack("@II", sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
            self.dropped += lost
        return self.dropped

    def frames(self) -> Iterator[Frame]:
        """Packets as they come, for ever; the caller stops."""
        by_fd = {sock.fileno(): sock for sock in self._sockets}
        while True:
            for fd, _ in self._poll.poll(_POLL_MS):
                # A burst on one socket must not starve the others, nor the caller's output.
                for _ in range(256):
                    frame = self._receive(by_fd[fd])
                    if frame is None:
                        break
                    if frame.data:
                        yield frame

    def _receive(self, sock: socket.socket) -> Frame | None:
        """The next packet; None when there is none now, one without data for a repeated one."""
        try:
            data, control, _, origin = sock.recvmsg(_SNAPSHOT, 64)
        except BlockingIOError:
            return None
        except OSError:
            # ENETDOWN: the interface went down; others go on.
            return None
        interface, protocol, kind, hardware = origin[:4]
        outgoing = kind == _PACKET_OUTGOING
        repeated = hardware == _ARPHRD_LOOPBACK and outgoing  # seen again as it comes in
        # A socket of its own hears an interface without Ethernet.
        foreign = sock.fileno() not in self._alone and hardware not in _WITH_ETHERNET
        if repeated or foreign:
            return Frame(interface, outgoing, 0, b"", 0)
        if hardware not in _WITH_ETHERNET:
            data = bytes(12) + struct.pack("!H", protocol) + data
        return Frame(interface, outgoing, _stamp(control), data, len(data))


def _stamp(control: list[tuple[int, int, bytes]]) -> int:
    for level, kind, content in control:
        if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
            seconds, nanoseconds = _TIMESPEC.unpack_from(content)
            return int(seconds * 1_000_000_000 + nanoseconds)
    return time.time_ns()


def _interfaces(namespace: int | str) -> dict[str, int]:
    """Name and hardware type (ARPHRD_…) of every interface of a namespace."""
    with open_route(namespace) as route:
        return {link.get("ifname"): link["ifi_type"] for link in route.get_links()}


# --- out --------------------------------------------------------------------------------------


class Store:
    """A pcap file (nanoseconds, Ethernet) that is written packet by packet."""

    def __init__(self, file: IO[bytes]) -> None:
        from scapy.utils import RawPcapWriter

        self._writer: Any = RawPcapWriter(
            file, linktype=_LINKTYPE_ETHERNET, nano=True, sync=True, snaplen=_SNAPSHOT
        )
        # A capture without packets is a file with a header: readers take it.
        self._writer.write_header(None)

    def add(self, frame: Frame) -> None:
        seconds, nanoseconds = divmod(frame.when, 1_000_000_000)
        self._writer.write_packet(
            frame.data,
            sec=seconds,
            usec=nanoseconds,
            caplen=len(frame.data),
            wirelen=frame.length,
        )


class Decoder:
    """One line a packet: time, interface, direction, and what scapy makes of it."""

    def __init__(self) -> None:
        # Importing these layers registers them: Ethernet finds IP, IPv6 and ARP by itself.
        from scapy.layers.inet import TCP, UDP
        from scapy.layers.inet6 import IPv6
        from scapy.layers.l2 import Ether

        self._ether, self._ip6, self._tcp, self._udp = Ether, IPv6, TCP, UDP

    def line(self, frame: Frame) -> str:
        way = "out" if frame.outgoing else "in "
        clock = time.strftime("%H:%M:%S", time.localtime(frame.when // 1_000_000_000))
        micro = frame.when // 1000 % 1_000_000
        return f"{clock}.{micro:06d}  {frame.interface:<15} {way}  {self.summary(frame.data)}"

    def summary(self, data: bytes) -> str:
        """What a frame is. Ports stay numbers; an ICMP error is told with what it is about."""
        if len(data) < _ETHER_HEADER:
            return f"{len(data)} bytes, too short for an Ethernet frame"
        packet = self._ether(data)
        network = packet.payload
        segment = network.payload
        if isinstance(segment, self._tcp | self._udp):
            return self._transport(network, segment)
        words = str(packet.summary()).removeprefix("Ethernet / ").removeprefix("Ether / ")
        return words or f"{len(data)} bytes"

    def _transport(self, network: Any, segment: Any) -> str:
        ends = " > ".join(
            (join_host_port(network.src, segment.sport), join_host_port(network.dst, segment.dport))
        )
        size = len(segment.payload)
        if isinstance(segment, self._udp):
            return f"{ends} UDP {size} bytes"
        words = [ends, "TCP", str(segment.flags) or "-"]
        if size:
            words.append(f"{size} bytes")
        return " ".join(words)
