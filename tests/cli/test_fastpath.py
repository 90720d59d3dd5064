"""``kproxy fastpath replay``: a capture in, a capture out, and an account of both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scapy.utils import RawPcapReader, RawPcapWriter

from tests.cli.test_commands import WEB, kproxy
from tests.fastpath.packets import ACK, SYN, answer_to, ip, tcp
from tests.fastpath.pair import TCP

ETHERNET = bytes(range(6)) + bytes(range(16, 22)) + b"\x08\x00"
POD = "10.180.0.9"


@pytest.fixture
def services(tmp_path: Path) -> Path:
    path = tmp_path / "web.yaml"
    empty = WEB.split("---")[0].replace("web", "empty").replace(".41", ".42")
    path.write_text(f"{WEB}---\n{empty}")
    return path


def write(path: Path, packets: list[bytes], link: int = 1, head: bytes = ETHERNET) -> Path:
    with RawPcapWriter(str(path), linktype=link) as writer:
        writer.write_header(None)
        for number, packet in enumerate(packets):
            writer.write_packet(head + packet, sec=1000 + number, usec=7)
    return path


def read(path: Path) -> list[tuple[bytes, int]]:
    with RawPcapReader(str(path)) as reader:
        return [(data, meta.sec) for data, meta in reader]


def test_a_conversation(tmp_path: Path, services: Path):
    """A handshake is carried both ways, a refused client is answered, a stranger left alone."""
    syn = ip(POD, "172.30.0.41", TCP, tcp(40000, 80))
    reached = ip(POD, "10.180.0.1", TCP, tcp(40000, 8080))
    answer = answer_to(reached)
    refused = ip(POD, "172.30.0.42", TCP, tcp(40000, 80))
    stranger = ip(POD, "172.30.0.99", TCP, tcp(40000, 80))
    capture = write(tmp_path / "in.pcap", [syn, answer, refused, stranger])
    result = tmp_path / "out.pcap"
    told = kproxy(
        *("fastpath", "replay", "--services", str(services), str(capture), str(result)),
        *("--node", "node1", "-o", "json"),
    )
    assert told.returncode == 0, told.stderr
    report = json.loads(told.stdout)
    assert report["packets"] == 4
    assert report["codes"] == {"FORWARD": 2, "PASS": 1, "REPLY": 1}
    assert report["reasons"] == {"REFUSED": 1}
    assert [row["endpoint"] for row in report["endpoints"]] == ["10.180.0.1:8080"]
    out = read(result)
    assert [second for _, second in out] == [1000, 1001, 1002, 1003]
    assert out[0][0] == ETHERNET + reached
    back = ip("172.30.0.41", POD, TCP, tcp(80, 40000, SYN | ACK, sequence=77, acknowledged=1001))
    assert out[1][0] == ETHERNET + back
    assert out[2][0][:14] == ETHERNET[6:12] + ETHERNET[:6] + ETHERNET[12:]
    assert out[3][0] == ETHERNET + stranger


def test_every_packet_told(tmp_path: Path, services: Path):
    """-v says of each packet what it was, and what it became; raw IP captures do as well."""
    packets = [ip(POD, "172.30.0.41", TCP, tcp(40000, 80)), b"\x45no packet"]
    capture = write(tmp_path / "in.pcap", packets, link=101, head=b"")
    told = kproxy(
        *("fastpath", "replay", "--services", str(services), "-v", "--node", "node1"),
        *(str(capture), str(tmp_path / "out.pcap")),
    )
    assert told.returncode == 0, told.stderr
    lines = told.stdout.splitlines()
    assert lines[0] == f"1 FORWARD ns1/web {POD}:40000 > 10.180.0.1:8080 TCP"
    assert lines[1] == "2 DROP MALFORMED - 10 bytes that are no packet"
    assert lines[2] == "2 packets in: 1 FORWARD, 1 DROP"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--seed", "xyz"], "32 hexadecimal digits"),
        (["--seed", "00"], "32 hexadecimal digits"),
    ],
)
def test_wrong_use(tmp_path: Path, services: Path, argv: list[str], said: str):
    """One line that names the fault, and status 2."""
    capture = write(tmp_path / "in.pcap", [])
    told = kproxy(
        *("fastpath", "replay", "--services", str(services), *argv),
        *(str(capture), str(tmp_path / "out.pcap")),
    )
    assert told.returncode == 2
    assert said in told.stderr


def test_what_is_no_capture(tmp_path: Path, services: Path):
    """Neither text nor a link type that has no IP in a known place."""
    text = tmp_path / "in.pcap"
    text.write_text("hello, this is no capture at all")
    other = write(tmp_path / "usb.pcap", [b""], link=189)
    for path, said in ((text, "pcap or pcapng"), (other, "link type 189")):
        told = kproxy(
            *("fastpath", "replay", "--services", str(services)),
            *(str(path), str(tmp_path / "out.pcap")),
        )
        assert told.returncode == 2
        assert said in told.stderr
