"""What two processes say to each other when one takes over, and how it ends when one breaks off."""

from __future__ import annotations

import os
import socket
import stat
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest
from msgspec.msgpack import Decoder

from kproxy.backends.userspace import handover, messages, state
from kproxy.backends.userspace.estate import Estate, Lent, LentFront, LentPort
from kproxy.backends.userspace.plan import Front, NodePort, Service
from kproxy.backends.userspace.wire import MOST_FDS, Line
from kproxy.core.objects import Family, PortName, Protocol
from kproxy.core.policy import Use
from kproxy.errors import KernelError, UsageError

V4, V6 = Family.IPV4, Family.IPV6
TEXT: Decoder[str] = Decoder(str)


def name(number: int, protocol: Protocol = Protocol.TCP) -> PortName:
    return PortName("ns", f"svc{number}", "http", protocol)


def lent(number: int, *fds: int) -> Lent:
    service = Service(name(number), (("10.0.0.1", 80),), (0,), (0,), (Use.CLUSTER,))
    return Lent(service, (LentFront(Use.CLUSTER, 30000 + number, fds),))


@pytest.fixture
def lines() -> Iterator[tuple[Line, Line]]:
    """Two ends of a conversation."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    both = tuple(Line(end, patience=60) for end in ends)
    yield both  # type: ignore[misc]
    for line in both:
        line.close()


# --- messages -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 1000, 1 << 20])
@pytest.mark.parametrize("count", [0, 1, MOST_FDS])
def test_messages_arrive_with_their_descriptors(
    lines: tuple[Line, Line], size: int, count: int
) -> None:
    """Whatever the length, the number of descriptors and what comes before and behind."""
    said, heard = lines
    read, write = os.pipe()
    with ThreadPoolExecutor(1) as pool, ExitStack() as opened:
        opened.callback(os.close, read)
        sent = pool.submit(lambda: [said.say("x" * size, [write] * count) for _ in range(3)])
        for _ in range(3):
            message, fds = heard.hear(TEXT)
            assert (message, len(fds)) == ("x" * size, count)
            for fd in fds:
                assert not os.get_inheritable(fd)
                assert os.path.sameopenfile(fd, write)
                os.close(fd)
        sent.result()
        os.close(write)


def _garbage(end: socket.socket) -> None:
    end.sendall(struct.pack("!IH", 3, 0) + b"\xc1\xc1\xc1")


def _too_long(end: socket.socket) -> None:
    end.sendall(struct.pack("!IH", 0xFFFFFFFF, 0))


def _short(end: socket.socket) -> None:
    end.sendall(struct.pack("!IH", 10, 0) + b"123")
    end.shutdown(socket.SHUT_WR)


def _cut(end: socket.socket) -> None:
    end.sendall(b"\0\0")
    end.shutdown(socket.SHUT_WR)


def _nothing(end: socket.socket) -> None:
    end.shutdown(socket.SHUT_WR)


def _missing(end: socket.socket) -> None:
    end.sendall(struct.pack("!IH", 1, 5) + b"\xc0")


def _too_many(end: socket.socket) -> None:
    socket.send_fds(end, [struct.pack("!IH", 2, 1) + b"\xa1x"], [0, 0])


def _another_kind(end: socket.socket) -> None:
    socket.send_fds(end, [struct.pack("!IH", 1, 1)], [0])
    end.sendall(b"\x07")


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (_garbage, "not what was expected"),
        (_too_long, "no frame: 4294967295 bytes"),
        (_short, "has hung up"),
        (_cut, "has hung up"),
        (_nothing, "has hung up"),
        (_missing, "0 of 5 descriptors"),
        (_too_many, "2 of 1 descriptors"),
        (_another_kind, "not what was expected"),
    ],
)
def test_what_is_no_message_ends_the_conversation(
    spoil: Callable[[socket.socket], None], why: str
) -> None:
    """It is told in words, and no descriptor that came with it stays open."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    before = set(os.listdir("/proc/self/fd"))
    with theirs:
        spoil(theirs)
        line = Line(ours, patience=60)
        with pytest.raises(KernelError, match=why):
            line.hear(TEXT)
        assert set(os.listdir("/proc/self/fd")) <= before
        line.close()


def test_silence_is_bounded() -> None:
    """Who says nothing is not waited for for ever."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs:
        line = Line(ours, patience=0.01)
        with pytest.raises(KernelError, match="no word in time"):
            line.hear(TEXT)
        line.close()


# --- what there is, in parts --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("services", "sockets", "ports"),
    [(0, 0, 0), (1, 1, 0), (0, 0, 1), (3, 2, 3), (250, 1, 1), (251, 1, 0), (1201, 0, 0),
     (100, 64, 300), (4, 250, 4)],
)  # fmt: skip
def test_parts_make_up_the_whole(services: int, sockets: int, ports: int) -> None:
    """Nothing is lost or comes twice, in the same order, and each part fits into a message."""
    whole = Estate(
        V4,
        tuple(lent(n, *range(n * sockets, (n + 1) * sockets)) for n in range(services)),
        tuple(LentPort(NodePort(n + 1, udp=False), (100000 + n,)) for n in range(ports)),
    )
    parts = list(handover.parts(whole))
    assert all(len(part.fds) <= MOST_FDS for part in parts)
    assert sum((part.services for part in parts), ()) == whole.services
    assert sum((part.node_ports for part in parts), ()) == whole.node_ports
    assert all(part.services or part.node_ports for part in parts)


def test_descriptors_get_their_numbers_here() -> None:
    """In the order in which they came, and in no other place."""
    theirs = Estate(V6, (lent(1, 5, 6), lent(2, 7)), (LentPort(NodePort(1, udp=True), (8,)),))
    ours = handover.with_fds(theirs, (15, 16, 17, 18))
    assert ours.fds == (15, 16, 17, 18)
    assert [front.fds for each in ours.services for front in each.fronts] == [(15, 16), (17,)]
    assert handover.with_fds(ours, theirs.fds) == theirs


def test_a_wrong_number_of_descriptors_is_refused() -> None:
    """And those that came are closed."""
    read, write = os.pipe()
    with pytest.raises(KernelError, match="2 descriptors came instead of 1"):
        handover.with_fds(Estate(V4, (lent(1, 5),)), (read, write))
    for fd in (read, write):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


# --- the socket ---------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A state directory with a path that no socket's address can hold."""
    deep = tmp_path / ("d" * 120)
    deep.mkdir(mode=0o700)
    return deep


def test_only_our_user_can_knock(folder: Path) -> None:
    """The socket is made with mode 0600, also where a dead one lies."""
    for _ in range(2):
        with handover.listen(folder) as listening:
            assert stat.S_IMODE((folder / handover.SOCKET).stat().st_mode) == 0o600
            assert not listening.getblocking()


def test_nobody_there(folder: Path) -> None:
    """No directory, no socket, or one that nobody listens at: there is none to take over from."""
    assert handover.Predecessor.find(folder / "none") is None
    assert handover.Predecessor.find(folder) is None
    handover.listen(folder).close()
    assert handover.Predecessor.find(folder) is None
    assert handover.ask(folder) is None


def test_another_version_is_refused(folder: Path) -> None:
    """The one that serves says so and serves on; the new one says what to do."""
    with ThreadPoolExecutor(1) as pool, handover.listen(folder) as listening:
        listening.setblocking(True)
        before = handover.Predecessor.find(folder)
        assert before is not None
        assert before.pid == os.getpid()
        old = Line(listening.accept()[0])
        answer = pool.submit(handover.greet, _saying(old, version=messages.VERSION + 1, new=before))
        with pytest.raises(UsageError, match=r"cannot be taken over from.*version.*stop it first"):
            before.estates()
        with pytest.raises(KernelError, match="speaks version"):
            answer.result()
        before.close()
        old.close()


def _saying(old: Line, *, version: int, new: handover.Predecessor) -> Line:
    """``old``, to which a successor of another version has spoken before ``new`` does."""
    new._line.say(messages.Hello(version))
    return old


# --- relay ports on disk ------------------------------------------------------------------------


def test_ports_survive_on_disk(tmp_path: Path) -> None:
    """What is written is read, by family, and nobody else may read it."""
    ports = {
        Front(name(1), Use.CLUSTER): 40001,
        Front(name(1), Use.LOCAL): 40002,
        Front(name(1, Protocol.UDP), Use.CLUSTER): 40001,
    }
    state.write(tmp_path, V4, ports)
    state.write(tmp_path, V6, {})
    assert state.read(tmp_path, V4) == ports
    assert state.read(tmp_path, V6) == {}
    assert stat.S_IMODE(state.path(tmp_path, V4).stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b'[[["a"],"cluster",1]]'])
def test_a_broken_file_is_no_file(tmp_path: Path, content: bytes) -> None:
    """It is a help only: what cannot be read is drawn anew."""
    state.path(tmp_path, V4).write_bytes(content)
    assert state.read(tmp_path, V4) == {}


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """With the reason."""
    with pytest.raises(KernelError, match=r"relay-ipv4.json: cannot be written: No such file"):
        state.write(tmp_path / "gone", V4, {})


def test_values_travel(lines: tuple[Line, Line]) -> None:
    """A service port is the same on the other side, in every field."""
    said, heard = lines
    service = Service(
        name(1, Protocol.UDP),
        (("2001:db8::1", 5300), ("2001:db8::2", 5300)),
        (0, 1),
        (1,),
        (Use.CLUSTER, Use.LOCAL),
        affinity_seconds=10800,
        proxy_protocol=True,
        node_port=NodePort(30053, udp=True, addresses=("2001:db8::7",)),
        weights=(100, 5),
    )
    assert all(getattr(service, field) for field in Service.__struct_fields__)
    said.say(service)
    assert heard.heard(Decoder(Service)) == service
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(service), type=Service) == service
