"""Word of one device: its addresses and its end, and of no other device."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator

import pytest

from kproxy.kernel import command, netns
from kproxy.kernel.device_notices import DeviceNotices

pytestmark = pytest.mark.kernel

NAME, OTHER = "kp-vips", "kp-other"


def ip(*words: str) -> None:
    command.run(["ip", *words])


@pytest.fixture
def notices() -> Iterator[DeviceNotices]:
    with netns.fresh():
        ip("link", "add", NAME, "type", "veth", "peer", "name", OTHER)
        made = DeviceNotices(NAME)
        yield made
        made.close()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("address add 10.0.0.1/32 dev kp-vips", "address added to kp-vips"),
        ("address add fd00::1/128 dev kp-vips nodad", "address added to kp-vips"),
        ("address add 10.0.0.1/32 dev kp-other", ""),
        ("link add kp-more type veth peer name kp-most", ""),
        ("link delete kp-vips", "device kp-vips deleted"),
    ],
)
def test_what_is_said(notices: DeviceNotices, words: str, said: str) -> None:
    """The descriptor is readable and tells of the device; of others nothing is said."""
    ip(*words.split())
    if said:
        assert select.select([notices], [], [], 20.0)[0]
    assert notices.drain() == said
    assert notices.drain() == ""


def test_an_address_that_is_taken_away(notices: DeviceNotices) -> None:
    ip("address", "add", "10.0.0.1/32", "dev", NAME)
    notices.settle()
    ip("address", "delete", "10.0.0.1/32", "dev", NAME)
    assert notices.drain() == f"address taken from {NAME}"


def test_a_device_made_anew_is_known_when_settled(notices: DeviceNotices) -> None:
    """Its index is another one then."""
    ip("link", "delete", NAME)
    ip("link", "add", NAME, "type", "veth", "peer", "name", OTHER)
    notices.settle()
    assert notices.drain() == ""
    ip("address", "add", "10.0.0.1/32", "dev", NAME)
    assert notices.drain() == f"address added to {NAME}"


def test_more_than_can_be_told_counts(notices: DeviceNotices) -> None:
    """Notices that are lost may have been of the device."""
    # How many there is room for by default is the host's choice.
    with socket.socket(fileno=os.dup(notices.fileno())) as shared:
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)
    batch = "".join(
        f"address add 10.{high}.{low}.1/32 dev {OTHER}\n" for high in range(16) for low in range(64)
    )
    command.run(["ip", "-batch", "-"], stdin=batch.encode())
    assert notices.drain() == f"more changes of {NAME} than could be told"
