"""The kernel's counters, beside the host's tools that count with them."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from kproxy.backends.xtables import door as doors
from kproxy.backends.xtables.door import ToolDoor
from kproxy.backends.xtables.variant import Variant
from kproxy.core.objects import Family
from kproxy.errors import NetlinkError
from kproxy.kernel import nfacct
from kproxy.kernel.command import run
from kproxy.kernel.nfacct import MAX_NAME, Counted, Counters
from tests.contract.namespaces import scratch

pytestmark = pytest.mark.kernel

V4 = Family.IPV4
NAME = "kp_test_pkts"


@pytest.fixture
def counters() -> Iterator[Counters]:
    with scratch(), Counters() as made:
        yield made


def rule(name: str, verb: str = "-A") -> bytes:
    """What is sent to a port of this node, counted."""
    spec = f"-d 127.0.0.1/32 -p udp -m udp --dport 5300 -m nfacct --nfacct-name {name}"
    return f"*filter\n{verb} OUTPUT {spec}\nCOMMIT\n".encode()


def send(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", ("127.0.0.1", port))


def test_counters_are_made_once_and_taken_away(counters: Counters) -> None:
    """Making one that is there, and removing one that is not, is fine."""
    assert counters.all() == {}
    for _ in range(2):
        counters.ensure(NAME)
    longest = "x" * MAX_NAME
    counters.ensure(longest)
    assert counters.all() == {NAME: Counted(0, 0), longest: Counted(0, 0)}
    assert counters.remove(NAME)
    assert counters.remove(NAME)
    assert set(counters.all()) == {longest}


def test_many_are_listed_over_several_datagrams(counters: Counters) -> None:
    """More than one datagram holds."""
    names = {f"kp_{number}" for number in range(1000)}
    for name in names:
        counters.ensure(name)
    assert set(counters.all()) == names


@pytest.mark.parametrize("variant", list(Variant))
def test_a_rule_counts_what_it_matches(
    counters: Counters, variant: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only packets that met its other matches, of every rule together; one that is there counts
    on; and while a rule counts, the counter stays."""
    # nf_tables frees a deleted rule when a worker of the kernel comes to it.
    monkeypatch.setattr(doors, "_LET_GO", 30.0)
    run(["ip", "link", "set", "lo", "up"])
    door = ToolDoor(V4, variant)
    counters.ensure(NAME)
    for _ in range(2):
        door.restore([rule(NAME)])
    for port in (5300, 5301, 5300):
        send(port)
    counters.ensure(NAME)
    assert counters.all() == {NAME: Counted(4, 2)}
    assert not counters.remove(NAME)
    door.restore([rule(NAME, "-D")])
    assert not door.drop_counter(NAME, others=1)
    assert counters.all()[NAME] == Counted(4, 1)
    door.restore([rule(NAME, "-D")])
    assert door.drop_counter(NAME)
    assert counters.all() == {}


def test_refusals_name_the_counter(counters: Counters) -> None:
    """A name that is too long is refused in words."""
    name = "x" * (MAX_NAME + 1)
    with pytest.raises(NetlinkError, match=f"cannot make counter {name}"):
        counters.ensure(name)


def test_a_kernel_without_counters_has_none(
    counters: Counters, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked about, it says so by refusing; here a part of netlink that no kernel has is asked."""
    monkeypatch.setattr(nfacct, "_SUBSYSTEM", 255 << 8)
    assert counters.all() == {}
    with pytest.raises(NetlinkError, match="cannot make counter"):
        counters.ensure(NAME)
