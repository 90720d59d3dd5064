"""What is compared of IPVS's listing: wishes, not the course of things."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from kproxy.backends.ipvs.essence import differing, essence
from kproxy.core.objects import Family

HEAD = b"""IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
"""
BOTH = frozenset(Family)


def real(place: str, weight: int = 1, active: int = 0, inactive: int = 0) -> bytes:
    """As the kernel prints it (ip_vs_info_seq_show)."""
    return f"  -> {place}      {'Masq':<7} {weight:<6} {active:<10} {inactive:<10}\n".encode()


SERVER = b"TCP  AC1E0029:0050 rr \n"
SIX = b"UDP  [fd00:0030:0000:0000:0000:0000:0000:0041]:0035 rr \n"
SIX_REAL = real("[fd00:0010:0000:0000:0000:0000:0000:0001]:14E9")
BASE = HEAD + SERVER + real("0AB40001:1F90") + SIX + SIX_REAL

#: (about, listing, what is told of it against BASE)
CASES = [
    ("the same", BASE, []),
    (
        "connections came",
        HEAD + SERVER + real("0AB40001:1F90", 1, 7, 1234567890) + SIX + SIX_REAL,
        [],
    ),
    ("one drains", BASE.replace(SIX, real("0AB40002:1F90", 0, 3) + SIX), []),
    ("in another order", HEAD + SIX + SIX_REAL + SERVER + real("0AB40001:1F90"), []),
    ("by packet mark", BASE + b"FWM  00000007 rr \n" + real("0AB40009:0050"), []),
    ("a real server more", BASE.replace(SIX, real("0AB40002:1F90") + SIX), ["TCP 172.30.0.41:80"]),
    ("a real server less", HEAD + SERVER + SIX + SIX_REAL, ["TCP 172.30.0.41:80"]),
    (
        "another weight",
        BASE.replace(real("0AB40001:1F90"), real("0AB40001:1F90", 5)),
        ["TCP 172.30.0.41:80"],
    ),
    (
        "weight 0",
        BASE.replace(real("0AB40001:1F90"), real("0AB40001:1F90", 0)),
        ["TCP 172.30.0.41:80"],
    ),
    (
        "forwarded otherwise",
        BASE.replace(real("0AB40001:1F90"), real("0AB40001:1F90").replace(b"Masq   ", b"Route  ")),
        ["TCP 172.30.0.41:80"],
    ),
    (
        "another scheduler",
        BASE.replace(SERVER, b"TCP  AC1E0029:0050 lc \n"),
        ["TCP 172.30.0.41:80"],
    ),
    (
        "persistence",
        BASE.replace(SIX, SIX[:-1] + b"persistent 300 80\n"),
        ["UDP [fd00:30::41]:53"],
    ),
    ("a server less", HEAD + SERVER + real("0AB40001:1F90"), ["UDP [fd00:30::41]:53"]),
    ("all gone", b"", ["TCP 172.30.0.41:80", "UDP [fd00:30::41]:53"]),
]


@pytest.mark.parametrize(("listing", "told"), [case[1:] for case in CASES],
                         ids=[case[0] for case in CASES])  # fmt: skip
def test_what_differs(listing: bytes, told: list[str]) -> None:
    """What somebody changed is named, what changes by itself is not."""
    assert differing(essence(BASE), essence(listing), BOTH, ()) == told
    assert differing(essence(listing), essence(BASE), BOTH, ()) == told


@pytest.mark.parametrize("about", ["the same", "connections came", "one drains"])
def test_the_usual_course_needs_no_second_thought(about: str) -> None:
    """The essence is the same to the byte: nothing is parsed."""
    listing = next(each for name, each, _ in CASES if name == about)
    assert essence(listing) == essence(BASE)


def test_others_servers_are_their_business() -> None:
    """Those of a family that is not served, and those in ranges that are to be left alone."""
    other = essence(HEAD)
    assert differing(essence(BASE), other, frozenset({Family.IPV6}), ()) == ["UDP [fd00:30::41]:53"]
    spared = (ip_network("172.30.0.0/16"), ip_network("fd00:30::/64"))
    assert differing(essence(BASE), other, BOTH, spared) == []
