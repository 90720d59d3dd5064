"""Packet arithmetic, written to be read: the slow twin of :mod:`kproxy._fastpath`.

Every function here has one of the same name and signature there, and the tests hold them equal on
every length. This one is right because it is obvious; that one is fast because this one exists.

All integers are values, not bytes in some order: the checksum field of a header is read with
``int.from_bytes(field, "big")`` and written with ``check.to_bytes(2, "big")``. Values that do not
fit their width raise OverflowError on both sides.
"""

from __future__ import annotations

#: The SCTP common header (RFC 9260 section 3.1): ports, verification tag, then the checksum.
SCTP_HEADER_LENGTH = 12
SCTP_CHECKSUM_OFFSET = 8

#: The Castagnoli polynomial 0x1EDC6F41 with its bits reversed, for a register that shifts right.
CASTAGNOLI_REVERSED = 0x82F63B78


def ones_sum(data: bytes | bytearray | memoryview, initial: int = 0) -> int:
    """One's complement sum of ``data`` as big-endian 16-bit words (RFC 1071), folded to 16 bits.

    An odd last byte counts as the high half of a word. ``initial`` is the sum of what comes before,
    which must have been of even length. The sum is 0 only when ``initial`` and all bytes are 0.
    """
    total = _fits(initial, 2)
    for at in range(0, len(data) - 1, 2):
        total += data[at] << 8 | data[at + 1]
    if len(data) % 2:
        total += data[-1] << 8
    return _fold(total)


def checksum(data: bytes | bytearray | memoryview, initial: int = 0) -> int:
    """The Internet checksum: the complement of :func:`ones_sum`.

    For a header whose checksum field holds 0 this is the value to write there; over a header
    with its checksum in place it is 0. UDP sends 0xffff where this gives 0 (RFC 768).
    """
    return 0xFFFF ^ ones_sum(data, initial)


def update16(check: int, old: int, new: int) -> int:
    """Checksum after one aligned 16-bit word changed: RFC 1624 equation 3.

    Equal to computing the checksum anew, except where every covered byte has become 0: that
    gives 0xffff anew and 0 here. Both mean the same sum, and no header is all zeros (IPv4 has
    its version, TCP and UDP the protocol in their pseudo-header). A field of 0xffff, UDP's other
    spelling of 0, gives what 0 gives, if need be in the other spelling.
    """
    return 0xFFFF ^ _fold((0xFFFF ^ _fits(check, 2)) + (0xFFFF ^ _fits(old, 2)) + _fits(new, 2))


def update32(check: int, old: int, new: int) -> int:
    """Checksum after two adjoining aligned words changed, such as an IPv4 address."""
    check = update16(check, _fits(old, 4) >> 16, _fits(new, 4) >> 16)
    return update16(check, old & 0xFFFF, new & 0xFFFF)


def update_range(
    check: int,
    old: bytes | bytearray | memoryview,
    new: bytes | bytearray | memoryview,
    odd: bool = False,
) -> int:
    """Checksum after the bytes ``old`` became ``new``; ``odd``: they began at an odd offset.

    An IPv6 address is 16 bytes. Both must be of one length (ValueError). Equation 3 holds for a sum
    of words as it does for one word.
    """
    if len(old) != len(new):
        raise ValueError(f"old has {len(old)} bytes and new {len(new)}: must be the same")
    # The other half of a word that is cut at either end did not change: 0 stands for it in both.
    lead = b"\0" if odd else b""
    return update16(check, ones_sum(lead + bytes(old)), ones_sum(lead + bytes(new)))


def crc32c(data: bytes | bytearray | memoryview, crc: int = 0) -> int:
    """CRC32c (Castagnoli) of ``data``; ``crc`` is the result for the bytes before it.

    ``crc32c(b"123456789")`` is 0xe3069283. On the wire SCTP carries ``crc.to_bytes(4, "little")``:
    bits travel reflected, so the byte of the register's low end goes first (RFC 9260 appendix A).
    """
    register = _fits(crc, 4) ^ 0xFFFFFFFF
    for byte in bytes(data):
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (CASTAGNOLI_REVERSED if register & 1 else 0)
    return register ^ 0xFFFFFFFF


def sctp_checksum(packet: bytes | bytearray | memoryview) -> bytes:
    """The four bytes, in wire order, for the checksum field of an SCTP packet.

    ``packet`` starts at the common header; what its checksum field holds does not matter.
    ValueError when it is shorter than that header.
    """
    if len(packet) < SCTP_HEADER_LENGTH:
        raise ValueError(f"an SCTP packet has 12 bytes of header at least; got {len(packet)}")
    whole = bytes(packet[:SCTP_CHECKSUM_OFFSET]) + bytes(4) + bytes(packet[SCTP_HEADER_LENGTH:])
    return crc32c(whole).to_bytes(4, "little")


def _fold(total: int) -> int:
    """Add the carries back in until 16 bits are left."""
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def _fits(value: int, size: int) -> int:
    """``value``, if it is an unsigned integer of ``size`` bytes; OverflowError else."""
    return int.from_bytes(value.to_bytes(size, "big"), "big")
