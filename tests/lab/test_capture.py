"""``lab capture``: what is seen where, filtered in the kernel, decoded and stored."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from scapy.error import Scapy_Exception
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.utils import rdpcap

from kproxy.errors import LabError, UsageError
from kproxy.kernel import command, netns
from kproxy.lab import catalogue, lifecycle, state
from kproxy.lab.capture import Decoder, Frame, Store, Tap, compile_filter
from kproxy.lab.state import LabState
from kproxy.lab.traffic import Probe, Reach, probe_all

LAB = "fcap"


@pytest.mark.parametrize(
    ("packet", "words"),
    [
        (Ether() / IP(src="192.0.2.1", dst="192.0.2.2") / TCP(sport=1, dport=80, flags="SA"),
         "192.0.2.1:1 > 192.0.2.2:80 TCP SA"),
        (Ether() / IPv6(src="2001:db8::1", dst="2001:db8::2") / UDP(sport=5, dport=53) / b"abc",
         "[2001:db8::1]:5 > [2001:db8::2]:53 UDP 3 bytes"),
        (Ether() / IP(src="192.0.2.1", dst="192.0.2.2") / TCP(sport=1, dport=80, flags="PA") / b"x",
         "192.0.2.1:1 > 192.0.2.2:80 TCP PA 1 bytes"),
    ],
)  # fmt: skip
def test_transport_in_a_line(packet: Ether, words: str) -> None:
    """Addresses, ports as numbers, flags, size."""
    assert Decoder().summary(bytes(packet)) == words


@pytest.mark.parametrize(
    ("packet", "words"),
    [
        (Ether() / ARP(psrc="192.0.2.1", pdst="192.0.2.2"), "ARP who has 192.0.2.2"),
        (
            Ether() / IP(src="192.0.2.9") / ICMP(type=3, code=3) / IP(dst="192.0.2.7") / UDP(),
            "dest-unreach port-unreachable",
        ),
        (b"\0" * 3, ""),
    ],
)
def test_anything_else_in_scapys_words(packet: Ether | bytes, words: str) -> None:
    """Everything that comes has a line, broken things too."""
    line = Decoder().summary(bytes(packet))
    assert line
    assert words in line


def test_line_says_where_and_which_way() -> None:
    """Time, interface and direction stand before the packet."""
    data = bytes(Ether() / IP() / TCP())
    line = Decoder().line(Frame("eth0", True, 1_700_000_000_123_456_789, data, len(data)))
    assert ".123456  eth0" in line
    assert " out  " in line


@pytest.mark.parametrize("expression", ["tcp prt 80", "host", "((", "vlan wrong"])
def test_bad_filter(expression: str) -> None:
    """What libpcap does not understand is a usage error that quotes it."""
    with pytest.raises(UsageError, match="no packet filter"):
        compile_filter(expression)


def test_filter_is_a_program() -> None:
    """Instructions are eight bytes each; one that returns ends it."""
    program = compile_filter("tcp port 80")
    assert len(program) % 8 == 0
    assert int.from_bytes(program[-8:-6], sys.byteorder) & 0x07 == 0x06  # BPF_RET


def test_store(tmp_path: Path) -> None:
    """What is stored is read back, to the nanosecond; no packet is a good file as well."""
    path = tmp_path / "x.pcap"
    with path.open("wb") as file:
        Store(file)
    assert len(rdpcap(str(path))) == 0
    data = bytes(Ether() / IP(dst="192.0.2.1") / TCP(dport=80))
    with path.open("wb") as file:
        Store(file).add(Frame("eth0", False, 1_700_000_000_000_000_007, data, len(data)))
    (packet,) = rdpcap(str(path))
    assert bytes(packet) == data
    assert int(packet.time * 10**9) % 10**9 == 7


@pytest.fixture(scope="module")
def lab() -> Iterator[LabState]:
    """The standard lab, up; nobody changes it."""
    lifecycle.down(LAB)
    yield lifecycle.up(LAB, catalogue.load("standard"), lifecycle.mode_of("iptables")).lab
    lifecycle.down(LAB)
    state.forget_allocations(LAB)


def ask(lab: LabState, sender: str, to: str, port: int) -> None:
    fd = netns.open_fd(lab.network.namespace(sender))
    try:
        (outcome,) = probe_all([Probe(to, port, namespace=fd, timeout=20.0)])
    finally:
        os.close(fd)
    assert outcome.reach is Reach.REACHED


def first(tap: Tap, count: int) -> list[Frame]:
    return list(islice(tap.frames(), count))


@pytest.mark.kernel
def test_forwarded_packet_is_seen_twice_on_a_node(lab: LabState) -> None:
    """In at the uplink, out at the pod's link; only what the filter lets pass."""
    pod = lab.pods[0]
    with Tap(lab.network.namespace(pod.node), expression="tcp[tcpflags] == tcp-syn") as tap:
        for address in pod.addresses[:1]:
            ask(lab, "client", address, 8080)
        seen = first(tap, 2)
    assert [(frame.interface, frame.outgoing) for frame in seen] == [
        ("eth0", False),
        (f"veth-{pod.name}", True),
    ]
    assert {TCP in Ether(frame.data) for frame in seen} == {True}
    assert seen[0].when <= seen[1].when


@pytest.mark.kernel
def test_loopback_once_and_one_interface_only(lab: LabState) -> None:
    """A packet over lo is one packet; -i hears nothing else."""
    pod = lab.pods[0]
    name = lab.network.namespace(pod.name)
    with Tap(name, "lo", "tcp dst port 8080 and tcp[tcpflags] == tcp-syn") as tap:
        ask(lab, "client", pod.addresses[0], 8080)
        ask(lab, pod.name, "127.0.0.1", 8080)
        ask(lab, pod.name, "127.0.0.1", 8080)
        seen = first(tap, 2)
    ports = {Ether(frame.data)[TCP].sport for frame in seen}
    assert {frame.interface for frame in seen} == {"lo"}
    assert len(ports) == 2
    with pytest.raises(LabError, match="nowhere0"):
        Tap(name, "nowhere0")


@pytest.mark.kernel
def test_interface_without_ethernet(lab: LabState) -> None:
    """Packets of a TUN device pass the filter too, and get an Ethernet header."""
    from pyroute2 import IPRoute

    name = lab.network.namespace("client")
    fd = netns.open_fd(name)
    try:
        with netns.entered(fd), IPRoute() as route:
            route.link("add", ifname="kptun", kind="tuntap", mode="tun")
            index = route.link_lookup(ifname="kptun")[0]
            device = _attach("kptun")
            route.link("set", index=index, state="up")
            route.addr("add", index=index, address="198.18.99.1", prefixlen=24)
        try:
            with Tap(name, expression="udp dst port 9") as tap:
                command.run([sys.executable, "-c", _SEND], namespace=fd, timeout=60)
                (frame,) = first(tap, 1)
        finally:
            os.close(device)
            with netns.entered(fd), IPRoute() as route:
                route.link("del", index=index)
    finally:
        os.close(fd)
    assert frame.interface == "kptun"
    assert Ether(frame.data)[IP].dst == "198.18.99.2"


_SEND = (
    "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM);"
    " s.sendto(b'x', ('198.18.99.2', 9))"
)


def _attach(name: str) -> int:
    """Hold a TUN device open: without a holder it has no carrier and sends nothing."""
    import fcntl
    import struct

    fd = os.open("/dev/net/tun", os.O_RDWR)
    # TUNSETIFF with IFF_TUN | IFF_NO_PI: linux/if_tun.h
    fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x1001))
    return fd


@pytest.mark.kernel
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_command_ends_with_counts(lab: LabState, tmp_path: Path, end: signal.Signals) -> None:
    """Ctrl-C ends the capture: the file is whole and private, the counts are told, status 0."""
    path = tmp_path / "x.pcap"
    pod = lab.pods[0]
    argv = ["lab", "capture", "--name", LAB, pod.name, "-w", str(path), "tcp", "port", "8080"]
    with subprocess.Popen(
        [sys.executable, "-m", "kproxy", *argv], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert "capturing on" in process.stderr.readline()
        ask(lab, "client", pod.addresses[0], 8080)
        # To the last packet: one that is being stored when the end comes might not be counted.
        while not has_ended(path):
            assert process.poll() is None
        process.send_signal(end)
        _, rest = process.communicate(timeout=60)
    assert process.returncode == 0
    stored = rdpcap(str(path))
    assert f"{len(stored)} packets" in rest
    assert path.stat().st_mode & 0o777 == 0o600


def has_ended(path: Path) -> bool:
    """Whether the client's reset is stored, after which nothing comes."""
    try:
        stored = rdpcap(str(path))
    except (EOFError, Scapy_Exception):
        return False  # its header is on its way
    return any(TCP in packet and "R" in packet[TCP].flags for packet in stored)


@pytest.mark.kernel
def test_command_counts_and_prints(lab: LabState) -> None:
    """-c ends by itself; each packet is one line."""
    pod = lab.pods[0]
    argv = ["lab", "capture", "--name", LAB, pod.name, "-c", "2", "tcp"]
    with subprocess.Popen(
        [sys.executable, "-m", "kproxy", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert "capturing on" in process.stderr.readline()
        ask(lab, "client", pod.addresses[0], 8080)
        out, err = process.communicate(timeout=60)
    lines = out.splitlines()
    assert len(lines) == 2
    assert lines[0].endswith(f"{pod.addresses[0]}:8080 TCP S")
    assert "2 packets" in err
