"""Packing and reading IPVS's messages, in memory alone; README.md says how to read it.

    python -m pytest bench/bench_codec.py --benchmark-columns=median,min,rounds

5,000 virtual servers with 10 real ones each: 55,000 orders, and the kernel's listing of them.
"""

from __future__ import annotations

import pytest

from kproxy.core.objects import Family
from kproxy.core.servers import Order, Scheduling, Verb
from kproxy.kernel.ipvs_codec import Codec, listed

SERVERS, REALS = 5_000, 10
ROUNDS = 9

families = pytest.mark.parametrize("family", list(Family), ids=["ipv4", "ipv6"])

#: Any number will do for a codec.
KIND = 0x1F


def address(family: Family, net: int, number: int) -> bytes:
    if family is Family.IPV4:
        return bytes((10, net)) + number.to_bytes(2)
    return b"\xfd" + bytes((net,)) + number.to_bytes(14)


def orders(family: Family) -> list[Order]:
    """Each virtual server and then its real ones."""
    found = []
    for number in range(SERVERS):
        server = address(family, 0, number) + (80).to_bytes(2) + b"\x06"
        found.append(Order(Verb.ADD_SERVER, server, scheduling=Scheduling("rr")))
        found += [
            Order(Verb.ADD_REAL, server, address(family, 1, number * REALS + each)
                  + (8080).to_bytes(2))
            for each in range(REALS)
        ]  # fmt: skip
    return found


def listing(family: Family) -> str:
    """What /proc/net/ip_vs says of the same servers."""
    lines = ["IP Virtual Server version 1.2.1 (size=4096)", "Prot …", "  -> …"]
    for order in orders(family):
        if order.real:
            lines.append(f"  -> {_place(order.real)}      Masq    1      0          0         ")
        else:
            lines.append(f"TCP  {_place(order.server[:-1])} rr  ")
    return "\n".join([*lines, ""])


def _place(key: bytes) -> str:
    host, port = key[:-2], key[-2:].hex().upper()
    if len(host) == 4:
        return f"{host.hex().upper()}:{port}"
    return f"[{host.hex(':', 2)}]:{port}"


@families
def bench_make_orders(benchmark, family):
    """The values, as a plan makes them."""
    assert len(benchmark.pedantic(orders, (family,), rounds=ROUNDS)) == SERVERS * (1 + REALS)


@families
def bench_pack(benchmark, family):
    """Orders to messages."""
    codec, given = Codec(family, KIND), orders(family)
    packed = benchmark.pedantic(codec.pack, (given, 1), rounds=ROUNDS)
    assert len(packed) == len(given)


@families
def bench_read(benchmark, family):
    """The listing of all real servers to values."""
    text = listing(family)
    found = benchmark.pedantic(listed, (text, family), rounds=ROUNDS)
    assert sum(len(reals) for reals in found.values()) == SERVERS * REALS
