"""Addresses of a namespace and word of their changes; one device counts for nothing."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from kproxy.backends.ipvs.plan import STAND_IN
from kproxy.kernel import command, netns
from kproxy.kernel.addresses import AddressNotices, host_addresses
from kproxy.kernel.rtnetlink import ELSEWHERE

pytestmark = pytest.mark.kernel


@pytest.fixture
def pair() -> Iterator[None]:
    """``kp-a`` and ``kp-b``, both up, in a namespace of their own."""
    with netns.fresh():
        ip("link", "add", "kp-a", "type", "veth", "peer", "name", "kp-b")
        for name in ("kp-a", "kp-b"):
            ip("link", "set", name, "addrgenmode", "none")  # no link-local address
        for name in ("lo", "kp-a", "kp-b"):
            ip("link", "set", name, "up")
        yield


def ip(*args: str) -> None:
    command.run(["ip", *args])


def add(address: str, device: str, *more: str) -> None:
    ip("address", "add", address, "dev", device, *more)


def test_all_but_one_devices_addresses(pair: None) -> None:
    """Both families, those of global scope first, each once."""
    add("192.0.2.1/24", "kp-a")
    add("2001:db8::1/64", "kp-a", "nodad")
    add("192.0.2.2/24", "kp-b")
    add("192.0.2.1/32", "lo")
    found = host_addresses(but="kp-b")
    assert set(found) == {"192.0.2.1", "2001:db8::1", "127.0.0.1", "::1"}
    assert len(found) == 4
    assert found.index("192.0.2.1") < found.index("127.0.0.1")
    assert set(host_addresses(but="absent")) == {*found, "192.0.2.2"}


def test_scopes_in_order(pair: None) -> None:
    """Host and link scope come last, whatever the kernel's order is."""
    add("169.254.9.9/16", "kp-a", "scope", "link")
    add("192.0.2.1/24", "kp-a")
    found = host_addresses()
    assert found.index("192.0.2.1") < found.index("127.0.0.1")
    assert found.index("192.0.2.1") < found.index("169.254.9.9")


def test_the_order_of_devices() -> None:
    """By their index, whatever the kernel hashes it to: it lists 256 before 255."""
    indices = (254, 255, 256, 513)
    with netns.fresh():
        for index in indices:
            peer = ("peer", "name", f"peer-{index}", "index", str(index + 1000))
            ip("link", "add", f"kp-{index}", "index", str(index), "type", "veth", *peer)
            add(f"192.0.2.{index & 0xFF}/32", f"kp-{index}")
        assert host_addresses() == tuple(f"192.0.2.{index & 0xFF}" for index in indices)


@pytest.mark.parametrize(
    "addresses",
    [
        ("192.0.2.1/32", "198.51.100.1/24", "198.51.100.2/24"),
        ("2001:db8::1/128", "2001:db8:1::1/64", "2001:db8:1::2/64"),
    ],
    ids=["IPv4", "IPv6"],
)
def test_the_way_out_comes_first(pair: None, addresses: tuple[str, ...]) -> None:
    """What the kernel takes as source by the default route is the first of its family."""
    devices = dict(zip(addresses, ("kp-a", "kp-b", "kp-b"), strict=True))
    for address, device in devices.items():
        add(address, device, *(["nodad"] if ":" in address else []))
    homes = {address.partition("/")[0]: device for address, device in devices.items()}
    before = [each for each in host_addresses() if each in homes]
    last = before[-1]
    family = "-6" if ":" in last else "-4"
    ip(family, "route", "add", "default", "dev", homes[last], "src", last)
    assert [each for each in host_addresses() if each in homes] == [last, *before[:-1]]


def test_nobody_binds_what_the_way_out_is_asked_of() -> None:
    """IPVS mode binds an address of the same range on its device."""
    assert STAND_IN not in ELSEWHERE.values()


def test_the_near_end_of_a_link(pair: None) -> None:
    """A peer's address is not ours."""
    add("192.0.2.1", "kp-a", "peer", "192.0.2.99/32")
    found = host_addresses()
    assert "192.0.2.1" in found
    assert "192.0.2.99" not in found


def test_an_address_that_another_has(pair: None) -> None:
    """Duplicate address detection took it away from us."""
    ip("link", "set", "kp-a", "address", "02:00:00:00:00:01")
    add("2001:db8::5/64", "kp-b", "nodad")
    with closing(AddressNotices()) as notices:
        add("2001:db8::5/64", "kp-a")
        poll = select.poll()
        poll.register(notices.fileno(), select.POLLIN)
        while "2001:db8::5" in host_addresses(but="kp-b"):
            assert poll.poll(60_000), "no word of the address"
            notices.drain()


@pytest.mark.parametrize("known", [True, False], ids=["device there", "device made later"])
def test_word_of_all_but_one_device(known: bool) -> None:
    """Added and removed addresses, of a device that was there or came later; never of that one."""
    with netns.fresh():
        ip("link", "set", "lo", "up")
        if known:
            ip("link", "add", "kp-a", "type", "veth", "peer", "name", "kp-b")
        with closing(AddressNotices(but="kp-a")) as notices:
            assert not notices.drain()
            if not known:
                ip("link", "add", "kp-a", "type", "veth", "peer", "name", "kp-b")
            for act in ("add", "delete"):
                for address in ("192.0.2.1/32", "2001:db8::1/128"):
                    ip("address", act, address, "dev", "kp-a")
                    assert not notices.drain(), (act, address, "kp-a")
                    ip("address", act, address, "dev", "kp-b")
                    # A new IPv6 address is told of by the kernel's own worker.
                    assert select.select([notices], [], [], 20)[0], (act, address, "kp-b")
                    assert notices.drain()
                    assert not notices.drain()


def test_a_device_that_goes_takes_its_addresses(pair: None) -> None:
    """Word of it comes, though the device has no name any more."""
    add("192.0.2.1/24", "kp-a")
    with closing(AddressNotices(but="other")) as notices:
        ip("link", "delete", "kp-a")
        assert notices.drain()


def test_a_dropped_notice_wakes_nobody(pair: None) -> None:
    """The kernel itself drops what is said of the device: the socket stays unreadable."""
    with closing(AddressNotices(but="kp-a")) as notices:
        poll = select.poll()
        poll.register(notices.fileno(), select.POLLIN)
        add("192.0.2.1/32", "kp-a")
        assert not poll.poll(0)
        add("192.0.2.2/32", "kp-b")
        assert poll.poll(0)


def test_lost_notices_are_taken_for_a_change(pair: None) -> None:
    """More than there is room for: what changed is not known."""
    with closing(AddressNotices(but="kp-a")) as notices:
        with socket.socket(fileno=os.dup(notices.fileno())) as shared:
            shared.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)  # room for a few
        for number in range(1, 20):
            add(f"192.0.2.{number}/32", "kp-b")
        assert notices.drain()
        assert not notices.drain()
