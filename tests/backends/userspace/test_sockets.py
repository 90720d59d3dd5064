"""Sockets of fronts and held node ports, on the kernel."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from kproxy.backends.userspace import sockets
from kproxy.backends.userspace.held_ports import HeldPorts
from kproxy.backends.userspace.plan import NodePort
from kproxy.backends.userspace.sockets import UNSPECIFIED, PortTaken
from kproxy.core.objects import Family
from kproxy.errors import KernelError
from tests.contract.namespaces import scratch

pytestmark = pytest.mark.kernel

V4, V6 = Family.IPV4, Family.IPV6
LOOPBACK = {V4: "127.0.0.1", V6: "::1"}
FAMILIES = [V4, V6]
PORT = 30080


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with scratch(loopback=True):
        yield


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def front(
    stack: ExitStack, family: Family, *, udp: bool = False, port: int = 0, count: int = 1
) -> tuple[int, list[socket.socket]]:
    made = sockets.front(family, udp=udp, address=UNSPECIFIED[family], port=port, count=count)
    return made.port, [stack.enter_context(socket.socket(fileno=fd)) for fd in made.fds]


def bound(
    stack: ExitStack, family: Family, *, udp: bool, port: int, listen: bool = False, **set_: int
) -> socket.socket:
    """A socket of another program."""
    one = stack.enter_context(sockets.plain(family, udp=udp))
    for name, value in set_.items():
        one.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
    one.bind((UNSPECIFIED[family], port))
    if listen:
        one.listen()
    return one


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("udp", [False, True])
def test_the_sockets_of_a_front_share_a_port(opened: ExitStack, family: Family, udp: bool) -> None:
    """All of them on one port, close-on-exec and never blocking."""
    port, made = front(opened, family, udp=udp, count=3)
    assert {one.getsockname()[1] for one in made} == {port}
    assert all(not os.get_blocking(one.fileno()) for one in made)
    assert not any(os.get_inheritable(one.fileno()) for one in made)


@pytest.mark.parametrize("family", FAMILIES)
def test_new_connections_are_spread_over_them(opened: ExitStack, family: Family) -> None:
    """Every one of the listening sockets gets some, and what it gets sends at once."""
    port, made = front(opened, family, count=2)
    for _ in range(40):  # 2 ** -39 that one gets none
        client = opened.enter_context(sockets.plain(family, udp=False))
        client.setblocking(True)
        client.connect((LOOPBACK[family], port))
    counts = []
    for one in made:
        counts.append(0)
        while True:
            try:
                accepted, _ = one.accept()
            except BlockingIOError:
                break
            with accepted:
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                counts[-1] += 1
    assert sum(counts) == 40
    assert all(counts)


@pytest.mark.parametrize("udp", [False, True])
def test_both_families_have_a_port_of_their_own(opened: ExitStack, udp: bool) -> None:
    """A port of IPv6 is none of IPv4: each family's relay can have it."""
    port, _ = front(opened, V6, udp=udp)
    assert front(opened, V4, udp=udp, port=port)[0] == port


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("udp", [False, True])
@pytest.mark.parametrize("shares", [0, 1])
def test_a_taken_port_is_not_shared(
    opened: ExitStack, family: Family, udp: bool, shares: int
) -> None:
    """Not even with one who would let us in, nor with a front of our own."""
    bound(opened, family, udp=udp, port=PORT, listen=not udp, SO_REUSEPORT=shares)
    with pytest.raises(PortTaken, match=f":{PORT}: cannot be had"):
        front(opened, family, udp=udp, port=PORT, count=2)
    port, _ = front(opened, family, udp=udp, count=2)
    with pytest.raises(PortTaken):
        front(opened, family, udp=udp, port=port)


def test_lingering_connections_do_not_keep_a_port(opened: ExitStack) -> None:
    """A relay that is back after a crash gets its port although old connections are on it."""
    port, (listener,) = front(opened, V4)
    client = opened.enter_context(sockets.plain(V4, udp=False))
    client.setblocking(True)
    client.connect(("127.0.0.1", port))
    accepted, _ = listener.accept()
    accepted.close()  # FIN-WAIT-2 on our port
    listener.close()
    assert front(opened, V4, port=port)[0] == port


def test_no_descriptor_is_left_behind(opened: ExitStack) -> None:
    """What fails half-way closes what it had opened."""
    port, _ = front(opened, V4)
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(10):
        with pytest.raises(PortTaken):
            front(opened, V4, port=port, count=4)
    assert set(os.listdir("/proc/self/fd")) <= before


# --- held node ports ----------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("udp", [False, True])
@pytest.mark.parametrize("option", ["", "SO_REUSEADDR", "SO_REUSEPORT"])
def test_a_held_port_is_nobody_elses(
    opened: ExitStack, family: Family, udp: bool, option: str
) -> None:
    """No other program can serve there, whatever it sets; once released, it can."""
    held = HeldPorts(family)
    port = NodePort(PORT, udp)
    assert held.hold([port]) == {}
    assert held.held == {port}
    set_ = {option: 1} if option else {}
    with pytest.raises(OSError, match="Address already in use"):
        bound(opened, family, udp=udp, port=PORT, listen=True, **set_)
    held.release([port])
    assert held.held == set()
    bound(opened, family, udp=udp, port=PORT, listen=not udp)


@pytest.mark.parametrize("udp", [False, True])
@pytest.mark.parametrize("option", ["", "SO_REUSEADDR", "SO_REUSEPORT"])
def test_a_conflict_is_named(opened: ExitStack, udp: bool, option: str) -> None:
    """A port that somebody serves is not held, and the reason says where to look; others are."""
    set_ = {option: 1} if option else {}
    bound(opened, V4, udp=udp, port=PORT, listen=not udp, **set_)
    held = HeldPorts(V4)
    taken, free = NodePort(PORT, udp), NodePort(PORT + 1, udp)
    why = held.hold([taken, free])
    kind = "UDP" if udp else "TCP"
    assert list(why) == [taken]
    assert f"node port {PORT}/{kind} cannot be held: Address already in use" in why[taken]
    assert f"ss -{'u' if udp else 't'}anp 'sport = :{PORT}'" in why[taken]
    assert held.held == {free}
    held.close()


def test_lingering_connections_are_no_conflict(opened: ExitStack) -> None:
    """Closed connections of one who served on the port do not keep it from being held; nobody can
    serve there afterwards."""
    listener = bound(opened, V4, udp=False, port=PORT, listen=True, SO_REUSEADDR=1)
    client = opened.enter_context(sockets.plain(V4, udp=False))
    client.setblocking(True)
    client.connect(("127.0.0.1", PORT))
    accepted, _ = listener.accept()
    accepted.close()
    client.close()  # TIME-WAIT on the port
    listener.close()
    held = HeldPorts(V4)
    assert held.hold([NodePort(PORT, False)]) == {}
    with pytest.raises(OSError, match="Address already in use"):
        bound(opened, V4, udp=False, port=PORT, listen=True, SO_REUSEADDR=1)
    held.close()


def test_held_on_some_addresses_only(opened: ExitStack) -> None:
    """Other addresses of the node stay free; a change of addresses moves it; what is released by
    its old addresses stays."""
    held = HeldPorts(V4)
    first = NodePort(PORT, False, ("127.0.0.1",))
    second = NodePort(PORT, False, ("127.0.0.1", "127.0.0.2"))
    assert held.hold([first]) == {}
    other = opened.enter_context(sockets.plain(V4, udp=False))
    other.bind(("127.0.0.2", PORT))
    assert list(held.hold([second])) == [second]
    assert held.held == set()
    other.close()
    assert held.hold([second]) == {}
    held.release([first])
    assert held.held == {second}
    assert held.count == 2
    held.close()


def test_an_address_that_is_not_ours_is_told(opened: ExitStack) -> None:
    """An address that the node has not is a reason, not a fault."""
    why = HeldPorts(V4).hold([NodePort(PORT, False, ("192.0.2.1",))])
    assert "Cannot assign requested address" in next(iter(why.values()))


def test_a_held_udp_port_keeps_next_to_nothing(opened: ExitStack) -> None:
    """Nobody reads what arrives there untranslated, so hardly any memory may be its."""
    held = HeldPorts(V4)
    held.hold([NodePort(PORT, True)])
    (fds,) = held.lent().values()
    copy = opened.enter_context(socket.socket(fileno=os.dup(fds[0])))
    assert copy.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) <= 4096
    held.close()


def test_adopted_ports_are_held(opened: ExitStack) -> None:
    """Who takes descriptors over holds the ports when the first holder has let go."""
    old, new = HeldPorts(V4), HeldPorts(V4)
    port = NodePort(PORT, False)
    old.hold([port])
    new.adopt(port, [os.dup(fd) for fd in old.lent()[port]])
    old.close()
    with pytest.raises(OSError, match="Address already in use"):
        bound(opened, V4, udp=False, port=PORT, listen=True)
    assert new.held == {port}
    new.close()
    bound(opened, V4, udp=False, port=PORT, listen=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_errors_that_are_no_conflict(opened: ExitStack, family: Family) -> None:
    """An address that cannot be is told as such, and no other port is tried."""
    wrong = {V4: "192.0.2.1", V6: "2001:db8::1"}[family]
    with pytest.raises(KernelError, match="Cannot assign requested address") as told:
        sockets.front(family, udp=False, address=wrong, port=0, count=1)
    assert not isinstance(told.value, PortTaken)
