"""The device of VIPs and its addresses, in a kernel that has dummy devices."""

from __future__ import annotations

import errno
import ipaddress
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from kproxy.core.objects import Family
from kproxy.core.servers import Order, Verb
from kproxy.errors import NetlinkError
from kproxy.kernel import command, dummy, netns
from kproxy.kernel.addresses import AddressNotices, host_addresses
from kproxy.kernel.ipvs import Ipvs

pytestmark = pytest.mark.ipvs

V4, V6 = Family.IPV4, Family.IPV6
SOME = frozenset({"10.96.0.1", "10.96.0.2", "fd00:30::1", "fd00:30::2"})


@pytest.fixture
def device() -> Iterator[None]:
    with netns.fresh():
        socket.socket(socket.AF_INET6).close()  # loads IPv6 where it is a module
        dummy.ensure()
        yield


def shown() -> list[Any]:
    """The addresses as the host's tool lists them."""
    text = command.run(["ip", "-j", "address", "show", "dev", dummy.NAME]).stdout
    (link,) = json.loads(text)
    found: list[Any] = link["addr_info"]
    return found


def ip(*args: str) -> None:
    command.run(["ip", *args])


def seen_as(vip: str, listener: socket.socket) -> str:
    """The source that the endpoint sees when the calling thread's namespace asks the VIP."""
    with reached(vip):
        end, peer = listener.accept()
        end.close()
    return str(peer[0])


def reached(vip: str) -> socket.socket:
    """A connection. IPv6 on a device that was just set up is ready a moment later, when the kernel
    has heard of its carrier: until then there is no route."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return socket.create_connection((vip, 80), timeout=60)
        except OSError as error:
            if error.errno != errno.ENETUNREACH or time.monotonic() > deadline:
                raise


def many(family: Family, count: int) -> set[str]:
    first = ipaddress.ip_address("10.96.0.1" if family is V4 else "fd00:30::1")
    return {str(first + number) for number in range(count)}


def test_the_device_is_made_once(device: None) -> None:
    """Down, without ARP; making it again keeps its addresses."""
    dummy.add(SOME)
    dummy.ensure()
    (link,) = json.loads(command.run(["ip", "-j", "-d", "link", "show", dummy.NAME]).stdout)
    assert link["linkinfo"]["info_kind"] == "dummy"
    assert "NOARP" in link["flags"]
    assert "UP" not in link["flags"]
    assert dummy.addresses() == SOME


def test_addresses_come_and_go(device: None) -> None:
    """Both families at once; what is there may be bound again, what is gone unbound again."""
    assert dummy.addresses() == frozenset()
    for _ in range(2):
        assert dummy.add(SOME) == []
        assert dummy.addresses() == SOME
    assert dummy.addresses(family=V4) | dummy.addresses(family=V6) == SOME  # type: ignore[operator]
    assert dummy.addresses(family=V4) == {each for each in SOME if "." in each}
    for _ in range(2):
        assert dummy.remove(["10.96.0.1", "fd00:30::1"]) == []
        assert dummy.addresses() == {"10.96.0.2", "fd00:30::2"}
    assert dummy.add([]) == dummy.remove([]) == []


def test_addresses_of_another_length_go_too(device: None) -> None:
    """Somebody bound them by hand. A second one of a subnet goes with the first."""
    for text in ("10.5.5.1/24", "10.5.5.2/24", "10.6.0.1/16", "fd00:5::1/64", "fd00:6::1/128"):
        ip("address", "add", text, "dev", dummy.NAME)
    dummy.add(SOME)
    given = {"10.5.5.1", "10.5.5.2", "10.6.0.1", "fd00:5::1", "fd00:6::1"}
    assert dummy.addresses() == SOME | given
    assert dummy.remove(sorted(given | {"10.7.0.1", "fd00:7::1"})) == []
    assert dummy.addresses() == SOME


def test_addresses_as_the_tool_sees_them(device: None) -> None:
    """Whole addresses for ever, global; IPv6 with nodad and usable at once."""
    dummy.add(SOME)
    rows = shown()
    assert {row["local"] for row in rows} == SOME
    for row in rows:
        assert row["prefixlen"] == (32 if row["family"] == "inet" else 128)
        assert row["scope"] == "global"
        assert row["valid_life_time"] == 0xFFFFFFFF
        assert "tentative" not in row
        assert row.get("nodad", False) is (row["family"] == "inet6")


@pytest.mark.parametrize("family", [V4, V6])
def test_thousands(device: None, family: Family) -> None:
    """Several sends and datagrams, there and back."""
    wanted = many(family, 5000)
    assert dummy.add(wanted) == []
    assert dummy.addresses() == wanted
    assert dummy.remove(wanted) == []
    assert dummy.addresses() == frozenset()


def test_refusals_are_told_and_stop_nothing(device: None) -> None:
    """Each with its address, when no such address can be anybody's."""
    refused = dummy.add(["10.96.0.1", "ff02::5", "10.96.0.2", "::1", "fd00:30::1"])
    assert refused == [("ff02::5", errno.EADDRNOTAVAIL), ("::1", errno.EADDRNOTAVAIL)]
    assert str(refused[0]) == "ff02::5: Cannot assign requested address"
    assert dummy.addresses() == {"10.96.0.1", "10.96.0.2", "fd00:30::1"}


def test_ipv6_that_is_disabled_is_named(device: None) -> None:
    """The error says which sysctl it is."""
    command.run(["sysctl", "-q", "-w", f"net.ipv6.conf.{dummy.NAME}.disable_ipv6=1"])
    (refused,) = dummy.add(["10.96.0.1", "fd00:30::1"])
    assert refused == ("fd00:30::1", errno.EACCES)
    assert "disable_ipv6" in str(refused)
    assert dummy.addresses() == {"10.96.0.1"}


def test_the_kernels_own_address_is_left_out(device: None) -> None:
    """Somebody sets the device up: its link-local address is no VIP."""
    dummy.add(SOME)
    ip("link", "set", dummy.NAME, "up")
    assert any(row["local"].startswith("fe80:") for row in shown())
    assert dummy.addresses() == SOME


def test_no_device() -> None:
    """Nothing to list, nothing to delete; binding says so."""
    with netns.fresh():
        assert dummy.addresses() is None
        assert not dummy.delete()
        for change in (dummy.add, dummy.remove):
            with pytest.raises(NetlinkError, match="no device kube-ipvs0"):
                change(["10.96.0.1"])


def test_delete_takes_all_away(device: None) -> None:
    """Once."""
    dummy.add(SOME)
    assert dummy.delete()
    assert dummy.addresses() is None
    assert not dummy.delete()


def test_a_device_of_another_kind_is_left_and_named() -> None:
    """The name is taken by a device that was not made here."""
    with netns.fresh():
        ip("link", "add", dummy.NAME, "type", "veth", "peer", "name", "kp-peer")
        for act in (dummy.ensure, dummy.delete):
            with pytest.raises(NetlinkError, match="not of type dummy but veth") as caught:
                act()
            assert "ip link delete kube-ipvs0" in caught.value.hint
        ip("address", "add", "10.5.5.1/32", "dev", dummy.NAME)
        assert dummy.addresses() is None
        ip("link", "show", dummy.NAME)


def test_vips_are_no_addresses_of_the_node(device: None) -> None:
    """Listed without them; binding and unbinding five thousand wakes nobody, others do."""
    ip("link", "set", "lo", "up")
    notices = AddressNotices()
    try:
        dummy.add(SOME)
        dummy.add(many(V4, 5000))
        dummy.remove(many(V4, 5000))
        assert not notices.drain()
        ip("address", "add", "192.0.2.9/32", "dev", "lo")
        assert notices.drain()
        assert not notices.drain()
        assert set(host_addresses()) == {"192.0.2.9", "127.0.0.1", "::1"}
    finally:
        notices.close()


def test_a_device_made_later_is_left_out_too() -> None:
    """Notices that were there first: the device is found by the first word of it, and again when
    it is made anew."""
    with netns.fresh():
        notices = AddressNotices()
        try:
            for _ in range(2):
                dummy.ensure()
                dummy.add(many(V4, 5000))
                assert not notices.drain()
                dummy.delete()
                assert not notices.drain()
        finally:
            notices.close()


REALS = {V4: "192.0.2.1", V6: "2001:db8::1"}
CLIENTS = {V4: "192.0.2.2", V6: "2001:db8::2"}
CODES = {V4: socket.AF_INET, V6: socket.AF_INET6}
VIPS = {V4: "10.96.0.1", V6: "fd00:30::1"}


@pytest.mark.parametrize("family", [V4, V6])
def test_vips_answer_though_the_device_is_down(device: None, family: Family) -> None:
    """To a client outside and to the node itself, which takes the VIP as its own source."""
    vip, host = VIPS[family], REALS[family]
    length = "24" if family is V4 else "64"
    with ExitStack() as open_:
        outside = f"kp-dummy-{os.getpid()}"
        netns.create(outside)
        open_.callback(netns.remove, outside)
        more = ["nodad"] if family is V6 else []
        ip("link", "set", "lo", "up")
        ip("link", "add", "kp-in", "type", "veth", "peer", "name", "kp-out", "netns", outside)
        ip("address", "add", f"{host}/{length}", "dev", "kp-in", *more)
        ip("link", "set", "kp-in", "up")
        with netns.entered(outside):
            ip("address", "add", f"{CLIENTS[family]}/{length}", "dev", "kp-out", *more)
            ip("link", "set", "kp-out", "up")
            ip("route", "add", vip, "via", host)
        dummy.add([vip])
        server = ipaddress.ip_address(vip).packed + (80).to_bytes(2) + b"\x06"
        pod = ipaddress.ip_address(host).packed + (8080).to_bytes(2)
        ipvs = open_.enter_context(Ipvs(family))
        ipvs.send([Order(Verb.ADD_SERVER, server), Order(Verb.ADD_REAL, server, pod)])
        listener = open_.enter_context(socket.create_server((host, 8080), family=CODES[family]))
        with netns.entered(outside):
            assert seen_as(vip, listener) == CLIENTS[family]
        assert seen_as(vip, listener) == vip
