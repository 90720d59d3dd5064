"""The slow packet functions against published values, and against doing it all again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.core.packet import (
    checksum,
    crc32c,
    ones_sum,
    sctp_checksum,
    update16,
    update32,
    update_range,
)

#: Bytes of which many examples are 0x00 or 0xff: the two zeros of one's complement.
byte = st.sampled_from([0x00, 0xFF]) | st.integers(0, 255)


def data(minimum: int, maximum: int = 64) -> st.SearchStrategy[bytes]:
    return st.lists(byte, min_size=minimum, max_size=maximum).map(bytes)


@pytest.mark.parametrize(
    ("text", "total"),
    [
        ("", 0x0000),
        ("00", 0x0000),
        ("ab", 0xAB00),
        ("ffff", 0xFFFF),
        ("ffff ffff", 0xFFFF),
        ("ffff 0001", 0x0001),
        # RFC 1071 section 3.
        ("0001 f203 f4f5 f6f7", 0xDDF2),
    ],
)
def test_ones_sum(text: str, total: int):
    """Sums worked out by hand or printed in the RFC; the checksum is the complement."""
    assert ones_sum(bytes.fromhex(text)) == total
    assert checksum(bytes.fromhex(text)) == 0xFFFF - total


def test_ipv4_header():
    """A header with its checksum in place sums to ffff, so that its checksum is 0."""
    header = bytearray.fromhex("4500 0073 0000 4000 4011 0000 c0a8 0001 c0a8 00c7")
    header[10:12] = checksum(header).to_bytes(2, "big")
    assert header[10:12].hex() == "b861"
    assert checksum(header) == 0


@given(first=data(0).filter(lambda part: len(part) % 2 == 0), second=data(0))
def test_sum_of_parts(first: bytes, second: bytes):
    """The sum may be taken part by part where each part but the last is even."""
    assert ones_sum(second, ones_sum(first)) == ones_sum(first + second)


def test_rfc1624_example():
    """The example of RFC 1624 section 4, which equation 2 of RFC 1141 gets wrong."""
    assert update16(0xDD2F, 0x5555, 0x3285) == 0x0000


@given(whole=data(2).filter(lambda whole: len(whole) % 2 == 0), new=data(2, 2), draw=st.data())
def test_update16_equals_anew(whole: bytes, new: bytes, draw: st.DataObject):
    """Replacing one word gives what summing again gives."""
    at = 2 * draw.draw(st.integers(0, len(whole) // 2 - 1))
    after = whole[:at] + new + whole[at + 2 :]
    got = update16(
        checksum(whole),
        int.from_bytes(whole[at : at + 2], "big"),
        int.from_bytes(new, "big"),
    )
    assert got == _anew(after)


@given(before=data(2, 16), old=data(4, 4), new=data(4, 4))
def test_update32_equals_anew(before: bytes, old: bytes, new: bytes):
    """Replacing an IPv4 address gives what summing again gives."""
    before = before[: len(before) // 2 * 2]
    got = update32(checksum(before + old), int.from_bytes(old, "big"), int.from_bytes(new, "big"))
    assert got == _anew(before + new)


@given(whole=data(1), draw=st.data())
def test_update_range_equals_anew(whole: bytes, draw: st.DataObject):
    """Replacing any bytes, at an even or odd offset, gives what summing again gives."""
    start = draw.draw(st.integers(0, len(whole) - 1))
    end = draw.draw(st.integers(start, len(whole)))
    new = draw.draw(data(end - start, end - start))
    after = whole[:start] + new + whole[end:]
    got = update_range(checksum(whole), whole[start:end], new, odd=start % 2 == 1)
    assert got == _anew(after)


def _anew(whole: bytes) -> int:
    """The checksum taken again; for all zeros, 0 as an update writes it instead of ffff."""
    return checksum(whole) if any(whole) else 0


@given(old=data(2, 2), new=data(2, 2))
def test_udp_spelling_of_zero(old: bytes, new: bytes):
    """A UDP checksum field of ffff stands for 0 and is updated to the same sum as 0."""
    words = int.from_bytes(old, "big"), int.from_bytes(new, "big")
    # Both spellings of 0 are 0 modulo 0xffff.
    assert update16(0xFFFF, *words) % 0xFFFF == update16(0x0000, *words) % 0xFFFF


def test_update_range_refuses_unequal_lengths():
    """Words can be replaced, not added."""
    with pytest.raises(ValueError, match="old has 2 bytes and new 4"):
        update_range(0, b"ab", b"abcd")


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (b"", 0x00000000),
        (b"123456789", 0xE3069283),
        # RFC 3720 appendix B.4 prints these bytes in wire order.
        (bytes(32), int.from_bytes(bytes.fromhex("aa36918a"), "little")),
        (b"\xff" * 32, int.from_bytes(bytes.fromhex("43aba862"), "little")),
        (bytes(range(32)), int.from_bytes(bytes.fromhex("4e79dd46"), "little")),
        (bytes(range(31, -1, -1)), int.from_bytes(bytes.fromhex("5cdb3f11"), "little")),
    ],
)
def test_crc32c(data: bytes, crc: int):
    """The published check values of CRC32c."""
    assert crc32c(data) == crc


@given(first=data(0), second=data(0))
def test_crc32c_of_parts(first: bytes, second: bytes):
    """The CRC may be taken part by part."""
    assert crc32c(second, crc32c(first)) == crc32c(first + second)


def test_sctp_checksum_ignores_the_field():
    """What the checksum field held does not matter, and scapy agrees on the bytes."""
    from scapy.layers.sctp import SCTP, SCTPChunkInit

    built = bytes(SCTP(sport=1024, dport=80, tag=7) / SCTPChunkInit(init_tag=1, init_tsn=2))
    spoiled = built[:8] + b"\xde\xad\xbe\xef" + built[12:]
    assert sctp_checksum(spoiled) == sctp_checksum(built) == built[8:12]


@pytest.mark.parametrize("length", [0, 11])
def test_sctp_checksum_needs_a_header(length: int):
    """Less than a common header is no SCTP packet."""
    with pytest.raises(ValueError, match=f"12 bytes of header at least; got {length}"):
        sctp_checksum(bytes(length))
