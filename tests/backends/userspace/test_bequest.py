"""Two relays of one process change hands, step by step, and either side falls silent."""

from __future__ import annotations

import gc
import os
import socket
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from msgspec.msgpack import Decoder
from msgspec.structs import replace

from kproxy.backends.userspace import handover, messages, sockets
from kproxy.backends.userspace.bequest import Heir
from kproxy.backends.userspace.door import RelayDoor
from kproxy.backends.userspace.estate import Words
from kproxy.backends.userspace.handover import Predecessor
from kproxy.backends.userspace.plan import NodePort, Service
from kproxy.backends.userspace.wire import Line
from kproxy.core.objects import Family, PortName, Protocol
from kproxy.core.policy import Use
from kproxy.core.snapshot import UserspaceSettings
from kproxy.errors import KernelError
from tests.contract.namespaces import scratch

pytestmark = pytest.mark.kernel

V4 = Family.IPV4
NAMES = [PortName("ns", name, "p", Protocol.TCP) for name in "abc"]
NODE_PORT = NodePort(30080, udp=False)


#: Seconds after which a test that waits for something has failed.
PATIENCE = 60.0


class Hasty(Line):
    """Waits long for every word but one: nobody says that."""

    unsaid: object = None

    def heard(self, kinds: Decoder[Any]) -> Any:
        self.patience(0.5 if kinds is self.unsaid else PATIENCE)
        return super().heard(kinds)


class Scene:
    """A door that serves, an endpoint, and a successor that talks to it over a socket pair."""

    def __init__(self, opened: ExitStack) -> None:
        self.listening = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.listening.settimeout(PATIENCE)
        self.old = opened.enter_context(closing(RelayDoor(V4)))
        self.new = opened.enter_context(closing(RelayDoor(V4)))
        end = self.listening.getsockname()
        self.old.put(Service(name, (end,), (0,), (0,), (Use.CLUSTER, Use.LOCAL)) for name in NAMES)
        self.old.hold([NODE_PORT])
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.line = Hasty(ours, patience=PATIENCE)
        self.successor = Predecessor(Line(theirs, patience=PATIENCE), Path("here"))
        opened.callback(self.line.close)
        opened.callback(self.successor.close)
        self._pool = opened.enter_context(ThreadPoolExecutor(1))
        self.lock = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        opened.callback(os.close, self.lock)

    def hand_over(self) -> Future[None]:
        """The old side's part, in a thread: it answers the successor's first word."""

        def run() -> None:
            handover.greet(self.line)
            handover.hand_over(self.line, [self.old], [self.lock])

        return self._pool.submit(run)

    def serves(self, door: RelayDoor, name: PortName) -> bool:
        """Whether it is this door that lets the next client of a service in."""
        before = _connections(door, name)
        for use in Use:
            port = self.old.running()[name].ports[use]
            with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
                client.sendall(b"x")
                accepted, _ = self.listening.accept()
                with accepted:
                    accepted.settimeout(PATIENCE)
                    assert accepted.recv(1) == b"x"
        return _connections(door, name) - before == 2


def _connections(door: RelayDoor, name: PortName) -> int:
    counted = {each.name: each.counters["connections"] for each in door.figures().services}
    return counted.get(name, 0)


@pytest.fixture
def scene() -> Iterator[Scene]:
    with scratch(loopback=True), ExitStack() as opened:
        yield Scene(opened)


def test_services_change_hands_one_by_one(scene: Scene) -> None:
    """Each is the successor's from its own last words on, and the old one's until then; at the end
    node ports are held by the successor alone, and the lock is there."""
    done = scene.hand_over()
    heir = Heir(scene.new)
    heir.adopt(scene.successor.estates()[V4])
    assert all(scene.serves(scene.old, name) for name in NAMES)
    heard: list[PortName] = []

    def take(family: Family, words: Words) -> None:
        assert family is V4
        heir.enter(words)
        heard.append(words.name)
        assert scene.serves(scene.new, words.name)

    (lock,) = scene.successor.parting(take)
    assert heard == NAMES
    assert os.path.sameopenfile(lock, scene.lock)
    os.close(lock)
    assert scene.old.held == scene.new.held == {NODE_PORT}
    scene.successor._line.say(messages.Serving())
    done.result()
    assert (scene.old.held, scene.new.held) == (frozenset(), {NODE_PORT})
    assert all(scene.serves(scene.new, name) for name in NAMES)
    assert scene.new.running() == scene.old.running()
    with closing(sockets.plain(V4, udp=False)) as other, pytest.raises(OSError, match="in use"):
        other.bind(("0.0.0.0", NODE_PORT.port))


def _at_once(scene: Scene) -> None:
    """It has said Hello."""


def _with_the_sockets(scene: Scene) -> None:
    scene.successor.estates()


def _with_the_last_words(scene: Scene) -> None:
    scene.successor.estates()
    (lock,) = scene.successor.parting(lambda family, words: None)
    os.close(lock)


@pytest.mark.parametrize(
    "step", [_at_once, _with_the_sockets, _with_the_last_words], ids=lambda step: step.__name__
)
def test_a_successor_that_falls_silent(scene: Scene, step: Callable[[Scene], None]) -> None:
    """It is not waited for for ever: the old door serves on, all of it, and leaves no copy behind;
    what the successor says too late finds nobody."""
    before = _listening()
    scene.line.unsaid = messages.SERVING if step is _with_the_last_words else messages.READY
    done = scene.hand_over()
    if step is _at_once:
        scene.successor._line.say(messages.Hello(messages.VERSION))
    step(scene)
    with pytest.raises(KernelError, match="no word in time"):
        done.result()
    scene.line.close()
    assert all(scene.serves(scene.old, name) for name in NAMES)
    assert scene.old.held == {NODE_PORT}
    with pytest.raises(KernelError):
        scene.successor.serving()
    # In this process the successor's copies are still there, if it has heard of them.
    copies = 0 if step is _at_once else scene.old.carried.sockets
    assert _listening() == before + copies


def _listening() -> int:
    """How many of our descriptors are listening sockets."""
    # What earlier tests have left would be closed between two counts.
    gc.collect()
    count = 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            copy = os.dup(int(fd))
        except OSError:
            continue  # the one that listed them is gone, or a relay has ended a flow
        if not stat.S_ISSOCK(os.fstat(copy).st_mode):
            os.close(copy)
            continue
        with socket.socket(fileno=copy) as one:
            count += one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    return count


def test_services_that_come_and_go_in_between(scene: Scene) -> None:
    """After one that broke off everything can change as before, and the next one gets what is
    there then."""
    done = scene.hand_over()
    scene.successor.estates()
    scene.successor.close()
    with pytest.raises(KernelError, match="hung up"):
        done.result()
    scene.old.drop(NAMES[:1])
    assert list(scene.old.running()) == NAMES[1:]
    assert all(scene.serves(scene.old, name) for name in NAMES[1:])


def test_sockets_outside_the_range_are_not_served(scene: Scene) -> None:
    """A successor with another --proxy-port-range keeps the fronts that are in it."""
    kept = min(scene.old.ports.values())
    settings = UserspaceSettings(port_range=(kept, kept))
    with closing(RelayDoor(V4, settings)) as new:
        heir, done = Heir(new), scene.hand_over()
        heir.adopt(scene.successor.estates()[V4])
        (lock,) = scene.successor.parting(lambda _, words: heir.enter(words))
        os.close(lock)
        scene.successor._line.say(messages.Serving())
        done.result()
        assert set(new.ports.values()) == {kept}


def test_sockets_at_another_address_are_not_served(scene: Scene) -> None:
    """A successor that is to listen elsewhere opens fronts of its own: rules lead to its address,
    where those of the predecessor would refuse everybody."""
    with closing(RelayDoor(V4, UserspaceSettings(listen="127.0.0.2"))) as new:
        before, theirs = _listening(), scene.old.carried.sockets
        heir, done = Heir(new), scene.hand_over()
        heir.adopt(scene.successor.estates()[V4])
        (lock,) = scene.successor.parting(lambda _, words: heir.enter(words))
        os.close(lock)
        scene.successor._line.say(messages.Serving())
        done.result()
        assert all(not standing.ports for standing in new.running().values())
        assert _listening() == before - theirs
        wanted = [replace(each.service, uses=tuple(Use)) for each in new.running().values()]
        assert new.put(wanted) == {}
        for standing in new.running().values():
            for port in standing.ports.values():
                socket.create_connection(("127.0.0.2", port), PATIENCE).close()
