"""A pump between a TUN device and the engine, in a namespace of its own."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

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
def pumped(queues: int = 1, *, spin: int = 0) -> Iterator[list[Pump]]:
    """A device in a fresh namespace, with a thread for each queue."""
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
            for fd in fds:
                os.close(fd)


def test_a_datagram_arrives_translated() -> None:
    """What a socket sends to the service is the pod's, from the client's own address."""
    with pumped() as (pump,), socket.socket(type=socket.SOCK_DGRAM) as pod:
        pod.bind((POD, 8080))
        pod.settimeout(5)
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
        pod.settimeout(5)
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            client.bind(("10.1.1.2", 0))
            data = os.urandom(size)
            client.sendto(data, (VIP, 80))
            assert pod.recv(65536) == data


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
        thread.join(5)
        os.close(queue)
        assert found == [errno.EBADFD]
