"""A pump between a TUN device and the engine, in a namespace of its own."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kproxy._fastpath import Engine, Pump
from kproxy.backends.fastpath import tables
from kproxy.core.objects import Family
from kproxy.core.twin.values import (
    TCP,
    UDP,
    EngineSettings,
    Fate,
    Member,
    NodeTable,
    ServiceTable,
    Way,
    WayKind,
)
from kproxy.kernel import command, netns, tun

pytestmark = pytest.mark.kernel

NAME = "kp-test"
#: Of asm-generic/socket.h.
SO_RCVBUFFORCE = 33

#: The service's address is led to the device; the pod's is the namespace's own.
VIP, POD = "172.30.0.10", "10.1.1.1"


def engine() -> Engine:
    made = tables.make_engine(EngineSettings(flow_key=bytes(16), seed=bytes(16), max_flows=1024))
    packed = {text: socket.inet_aton(text) for text in (VIP, POD)}
    rows = ((0, False),) * 3
    services = {
        number: ServiceTable(
            family=Family.IPV4,
            protocol=protocol,
            ways=(Way(WayKind.CLUSTER_IP, packed[VIP], 80),),
            members=(Member(packed[POD], 8080),),
            rows=(rows, rows),
            fates=(Fate.FORWARD, Fate.REFUSE),
        )
        for number, protocol in enumerate((TCP, UDP))
    }
    tables.set_node(made, NodeTable(Family.IPV4))
    tables.commit(made, services, (), 0)
    return made


@contextmanager
def device(queues: int = 1) -> Iterator[list[int]]:
    """One in a fresh namespace, where nobody reads its queues yet."""
    with netns.fresh():
        fds = tun.open_queues(NAME, queues)
        # Else it looks for routers.
        command.run(["sysctl", "-qw", f"net.ipv6.conf.{NAME}.disable_ipv6=1"])
        for words in (
            f"link set {NAME} up",
            "link set lo up",
            f"addr add {POD}/32 dev lo",
            f"addr add 10.1.1.2/32 dev {NAME}",
            f"route add 172.30.0.0/16 dev {NAME} src 10.1.1.2",
        ):
            command.run(["ip", *words.split()])
        for name in ("accept_local=1", "rp_filter=0"):
            command.run(["sysctl", "-qw", f"net.ipv4.conf.{NAME}.{name}"])
        command.run(["sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0"])
        try:
            yield fds
        finally:
            for fd in fds:
                os.close(fd)


@contextmanager
def running(fds: list[int], *, spin: int = 0) -> Iterator[list[Pump]]:
    """A thread for each queue."""
    whole = engine()
    pumps = [Pump(whole, fd, spin=spin, keeps_time=fd == fds[0]) for fd in fds]
    threads = [threading.Thread(target=pump.run) for pump in pumps]
    for thread in threads:
        thread.start()
    try:
        yield pumps
    finally:
        for pump in pumps:
            pump.stop()
        for thread in threads:
            thread.join()


@contextmanager
def pumped(queues: int = 1, *, spin: int = 0) -> Iterator[list[Pump]]:
    """A device in a fresh namespace, with a thread for each queue."""
    with device(queues) as fds, running(fds, spin=spin) as pumps:
        yield pumps


def test_a_datagram_arrives_translated() -> None:
    """What a socket sends to the service is the pod's, from the client's own address."""
    with pumped() as (pump,), socket.socket(type=socket.SOCK_DGRAM) as pod:
        pod.bind((POD, 8080))
        pod.settimeout(20)
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            client.bind(("10.1.1.2", 0))
            client.sendto(b"hello", (VIP, 80))
            assert pod.recvfrom(100) == (b"hello", client.getsockname())
    # The datagram arrives before the call that wrote it ends: only now has all been counted.
    figures = pump.figures()
    assert (figures["packets_in"], figures["packets_out"]) == (1, 1)
    assert figures["bytes_in"] == figures["bytes_out"] == 33


@pytest.mark.parametrize("size", [0, 1, 1472, 1473, 9000, 60000])
def test_datagrams_of_any_size(size: int) -> None:
    """Those that are sent in parts as well."""
    with pumped(), socket.socket(type=socket.SOCK_DGRAM) as pod:
        pod.bind((POD, 8080))
        pod.settimeout(20)
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            client.bind(("10.1.1.2", 0))
            data = os.urandom(size)
            client.sendto(data, (VIP, 80))
            assert pod.recv(65536) == data


def test_all_that_waits_is_carried() -> None:
    """Three hundred datagrams at once, some of many parts: whole, in their order, in batches."""
    sent = [os.urandom(20_000 if n % 50 == 49 else n) for n in range(300)]
    with (
        device() as fds,
        socket.socket(type=socket.SOCK_DGRAM) as pod,
        socket.socket(type=socket.SOCK_DGRAM) as client,
    ):
        pod.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
        pod.bind((POD, 8080))
        pod.settimeout(20)
        for data in sent:
            client.sendto(data, (VIP, 80))
        with running(fds) as (pump,):
            assert [pod.recv(65536) for _ in sent] == sent
    figures = pump.figures()
    # 20,000 bytes are 14 parts.
    assert figures["packets_in"] == figures["packets_out"] == 294 + 6 * 14
    assert figures["batches"] <= 20


def test_the_thread_has_its_own_descriptors() -> None:
    """The queue and the bell: calls on what is shared with other threads are dearer."""
    before = {entry.name for entry in Path("/proc/self/task").iterdir()}
    with pumped(), socket.socket(type=socket.SOCK_DGRAM) as pod:
        pod.bind((POD, 8080))
        pod.settimeout(20)
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            client.sendto(b"hello", (VIP, 80))
            pod.recv(100)  # it has begun
        counts = [
            len(os.listdir(entry / "fd"))
            for entry in Path("/proc/self/task").iterdir()
            if entry.name not in before
        ]
    # Python's thread, which waits for the other one, shares the table of all.
    assert min(counts) == 2 < max(counts)


def test_a_device_has_no_carrier_when_its_queues_are_closed() -> None:
    """At once: the route to it is passed over from then on."""
    with netns.fresh():
        for _ in range(50):
            (queue,) = tun.open_queues(NAME, 1)
            command.run(["ip", "link", "set", NAME, "up"])
            pump = Pump(engine(), queue)
            thread = threading.Thread(target=pump.run)
            thread.start()
            pump.stop()
            thread.join()
            os.close(queue)
            assert b"NO-CARRIER" in command.run(["ip", "link", "show", "dev", NAME]).stdout


@pytest.mark.parametrize("spin", [0, 1_000_000_000])
def test_it_ends_when_told(spin: int) -> None:
    """Asleep or looking for the next packet; and one that was told before does not begin."""
    with pumped(2, spin=spin):
        pass  # all threads have been joined
    with netns.fresh():
        (queue,) = tun.open_queues(NAME, 1)
        pump = Pump(engine(), queue)
        pump.stop()
        assert pump.run() == 0
        os.close(queue)


def test_it_ends_with_its_device() -> None:
    """The errno says that somebody took it away."""
    with netns.fresh():
        (queue,) = tun.open_queues(NAME, 1)
        pump = Pump(engine(), queue)
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.append(pump.run()))
        thread.start()
        tun.delete(NAME)
        thread.join(60)
        os.close(queue)
        assert found == [errno.EBADFD]
