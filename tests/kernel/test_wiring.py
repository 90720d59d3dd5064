"""Orders that wire namespaces: pyroute2 must read back what was ordered."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from pyroute2 import IPRoute

from kproxy.errors import NetlinkError
from kproxy.kernel import netns, wiring
from kproxy.kernel.channel import Channel

pytestmark = pytest.mark.kernel

_AF = {4: socket.AF_INET, 6: socket.AF_INET6}


class Here:
    """Two new namespaces: the thread is in one; ``far`` is the other's descriptor."""

    def __init__(self, undo: ExitStack) -> None:
        undo.enter_context(netns.fresh())
        self.far = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        undo.callback(os.close, self.far)
        undo.enter_context(netns.fresh())
        self.near = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        undo.callback(os.close, self.near)
        self.channel: Channel = undo.enter_context(wiring.open_channel(self.near))
        self.reader: Any = undo.enter_context(IPRoute())

    def link(self, name: str) -> Any:
        return self.reader.link("get", ifname=name)[0]

    def do(self, *orders: wiring.Order) -> None:
        wiring.carry_out(self.channel, orders)


@pytest.fixture
def here() -> Iterator[Here]:
    with ExitStack() as undo:
        yield Here(undo)


def _pair(here: Here, master: int = 0) -> wiring.Order:
    return wiring.veth("link", ("a0", 7001), ("b0", 7002), here.far, mtu=1400, master=master)


def test_a_pair(here: Here) -> None:
    """Names, numbers and MTU at both ends; the near end up, the far one in its namespace."""
    here.do(_pair(here))
    near = here.link("a0")
    assert (near["index"], near.get("mtu"), near["flags"] & 1) == (7001, 1400, 1)
    with netns.entered(here.far), IPRoute() as there, wiring.open_channel(here.far) as channel:
        far = there.link("get", ifname="b0")[0]
        assert (far["index"], far.get("mtu"), far["flags"] & 1) == (7002, 1400, 0)
        wiring.carry_out(channel, [wiring.raise_link("up", 7002)])
        assert there.link("get", ifname="b0")[0]["flags"] & 1
    # The kernel's own worker tells of the carrier.
    deadline = time.monotonic() + 20
    while here.link("a0").get("operstate") != "UP":
        assert time.monotonic() < deadline


def test_a_bridge_and_its_port(here: Here) -> None:
    """The port is in the bridge from the beginning, or put there."""
    here.do(wiring.bridge("make", "br0", 7003), _pair(here, master=7003))
    assert here.link("a0").get("master") == 7003
    assert here.link("br0").get(("linkinfo", "kind")) == "bridge"
    here.do(wiring.delete_link("remove", 7001), _pair(here))
    assert here.link("a0").get("master") is None
    here.do(wiring.raise_link("join", 7001, 7003))
    assert here.link("a0").get("master") == 7003


@pytest.mark.parametrize("cidr", ["192.0.2.1/32", "10.0.0.1/8", "2001:db8::1/128", "fd00::1/64"])
def test_addresses(here: Here, cidr: str) -> None:
    """Usable at once; gone when taken away; a second time is refused."""
    here.do(_pair(here), wiring.address("add", "add", cidr, 7001))
    (found,) = [one for one in here.reader.get_addr(index=7001) if not _automatic(one)]
    assert f"{found.get('address')}/{found['prefixlen']}" == cidr
    assert not found["flags"] & 0x40  # IFA_F_TENTATIVE
    with pytest.raises(NetlinkError, match="cannot add it again: File exists") as refused:
        here.do(wiring.address("add it again", "add", cidr, 7001))
    assert refused.value.errno == errno.EEXIST
    here.do(wiring.address("take", "del", cidr, 7001))
    assert [one for one in here.reader.get_addr(index=7001) if not _automatic(one)] == []


def _automatic(address: Any) -> bool:
    return str(address.get("address")).startswith("fe80")


#: (destination, options, what pyroute2 reads)
ROUTES = [
    ("10.1.0.0/16", {"index": 7001}, {"oif": 7001, "scope": 253, "type": 1}),
    ("0.0.0.0/0", {"index": 7001, "gateway": "192.0.2.9"}, {"gateway": "192.0.2.9", "scope": 0}),
    ("10.2.0.1/32", {"index": 7001, "source": "192.0.2.1"}, {"prefsrc": "192.0.2.1"}),
    ("0.0.0.0/0", {"index": 1, "kind": "local", "table": 255}, {"type": 2, "scope": 254}),
    ("10.3.0.0/16", {"kind": "blackhole"}, {"type": 6}),
    ("10.4.0.0/16", {"kind": "unreachable"}, {"type": 7}),
    ("fd00:1::/64", {"index": 7001}, {"oif": 7001, "type": 1}),
    ("::/0", {"index": 7001, "gateway": "fe80::9"}, {"gateway": "fe80::9", "oif": 7001}),
    ("::/0", {"index": 1, "kind": "local", "table": 255}, {"type": 2}),
    ("fd00:2::1/128", {"index": 7001, "gateway": "fd00::9", "table": 255}, {"gateway": "fd00::9"}),
]


@pytest.mark.parametrize(("destination", "options", "seen"), ROUTES)
def test_routes(
    here: Here, destination: str, options: dict[str, Any], seen: dict[str, Any]
) -> None:
    """Of every kind that labs have, in both families; the same words take them away."""
    up = wiring.raise_link("up", 1)
    here.do(up, _pair(here), wiring.address("add", "add", "192.0.2.1/32", 7001))
    with netns.entered(here.far), wiring.open_channel(here.far) as channel:
        wiring.carry_out(channel, [wiring.raise_link("up", 7002)])
    here.do(wiring.route("add", "add", destination, **options))
    (found,) = _routes(here, destination, options)
    for name, value in seen.items():
        assert (found[name] if name in found else found.get(name)) == value
    here.do(wiring.route("take", "del", destination, **options))
    assert _routes(here, destination, options) == []


def _routes(here: Here, destination: str, options: dict[str, Any]) -> list[Any]:
    network, _, length = destination.partition("/")
    family = _AF[6 if ":" in network else 4]
    table = options.get("table", wiring.MAIN)
    found = here.reader.get_routes(family=family, table=table)
    wanted = network if int(length) else None
    return [
        one for one in found if one.get("dst") == wanted and one["dst_len"] == int(length)
        and one.get("oif") == options.get("index", one.get("oif"))
    ]  # fmt: skip


def test_a_refusal_names_the_first(here: Here) -> None:
    """The others of the batch are tried all the same."""
    with pytest.raises(NetlinkError, match="cannot do the second: No such device"):
        here.do(
            _pair(here),
            wiring.address("do the second", "add", "192.0.2.1/32", 4711),
            wiring.address("do the third", "add", "192.0.2.2/32", 7001),
        )
    assert here.reader.get_addr(index=7001, family=socket.AF_INET)
