"""The kernel's list of connections that IPVS carries."""

from __future__ import annotations

import pytest

from kproxy.core.objects import Family
from kproxy.kernel.ipvs_connections import Carried, carried, parse

HEAD = "Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData\n"
OPEN = "TCP 0A4D0002 8F3C AC1E0001 0050 0A000002 1F90 ESTABLISHED     899\n"
SIX = (
    "TCP fd77:0000:0000:0000:0000:0000:0000:0002 8F3C fd96:0000:0000:0000:0000:0000:0000:0010"
    " 0050 fd78:0000:0000:0000:0000:0000:0000:0002 1F90 ESTABLISHED     899\n"
)

CLIENT = (bytes([10, 77, 0, 2]), b"\x8f\x3c")
ASKED, ENDPOINT = (bytes([172, 30, 0, 1]), b"\0\x50"), (bytes([10, 0, 0, 2]), b"\x1f\x90")


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ("", []),
        (OPEN, [Carried(6, CLIENT, ASKED, ENDPOINT)]),
        (OPEN.replace("TCP", "UDP").replace("ESTABLISHED", "UDP        "),
         [Carried(17, CLIENT, ASKED, ENDPOINT)]),
        (OPEN.replace("\n", " sip 1234\n"), [Carried(6, CLIENT, ASKED, ENDPOINT)]),
        (OPEN.replace("ESTABLISHED", "TIME_WAIT  "), []),
        # What holds a client to its server between connections.
        (OPEN.replace("8F3C", "0000"), []),
        (SIX, []),
    ],
    ids=["none", "tcp", "udp", "with data", "ended", "template", "other family"],
)  # fmt: skip
def test_lines(lines: str, found: list[Carried]) -> None:
    """Open connections of the family, as they stand in packets."""
    assert list(parse(HEAD + lines, Family.IPV4)) == found


def test_ipv6() -> None:
    """Addresses are written out in full."""
    (found,) = parse(HEAD + OPEN + SIX, Family.IPV6)
    assert found.client == (bytes.fromhex("fd77" + 27 * "0" + "2"), b"\x8f\x3c")
    assert found.endpoint[0] == bytes.fromhex("fd78" + 27 * "0" + "2")


@pytest.mark.kernel
def test_without_ipvs_there_are_none() -> None:
    """And nothing is loaded by looking: the list is there when IPVS is."""
    assert isinstance(carried(Family.IPV4), list)
