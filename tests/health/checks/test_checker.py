"""The checker as a whole: one thread, real sockets, and who is told what."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from kproxy.core.health.values import Check, Checked, Exec, Http, Pace, Probe, Target, Tcp, Udp
from kproxy.health.checks import Checker, KindFigures
from kproxy.health.checks.outcome import Outcome
from kproxy.health.checks.rounds import Rounds
from kproxy.health.checks.tcp import TcpProber
from kproxy.kernel import netns
from tests.health.checks.places import NOWHERE, SILENT, TIMEOUT, run, scratch, serving

pytestmark = pytest.mark.kernel

QUICK = Pace(interval=0.02, fast_interval=0.02, timeout=0.25, rise=2, fall=2, jitter=0.1)
PATIENT = Pace(interval=0.02, fast_interval=0.02, timeout=TIMEOUT, rise=2, fall=2, jitter=0.1)


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with scratch():
        yield


class Ear:
    """What a checker tells, and a way to wait for it."""

    def __init__(self) -> None:
        self.all: list[Checked] = []
        self._some = threading.Condition()

    def __call__(self, news: list[Checked]) -> None:
        with self._some:
            self.all += news
            self._some.notify_all()

    def until(self, holds: Callable[[], bool]) -> None:
        with self._some:
            assert self._some.wait_for(holds, TIMEOUT), f"it never came true: {self.all}"

    def of(self, target: Target) -> list[tuple[bool, str]]:
        return [(each.up, each.reason) for each in self.all if each.target == target]


_NEVER = threading.Event()


def until(holds: Callable[[], bool]) -> None:
    """Look again and again; for what nobody is told of."""
    deadline = time.monotonic() + TIMEOUT
    while not holds():
        assert time.monotonic() < deadline, "it never came true"
        # The interpreter is for those who are waited for.
        _NEVER.wait(0.002)


def target(of: Probe, port: int, ip: str = "127.0.0.1", pace: Pace = PATIENT) -> Target:
    return Target(Check(of, pace), ip, port)


def kind(checker: Checker, name: str) -> KindFigures:
    return next(
        (each for each in checker.figures().kinds if each.name == name),
        KindFigures(name, 0, 0, 0, 0, 0, 0),
    )


@contextmanager
def listening(ip: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((ip, port))
        server.listen(1024)
        yield server.getsockname()[1]


def test_transitions_are_told_and_nothing_else() -> None:
    """Confirmed, then down after so many failures, then up again: three messages, however many
    tries lie between them."""
    ear = Ear()
    with Checker(ear) as checker:
        with listening() as port:
            its = target(Tcp(), port)
            checker.change([its])
            ear.until(lambda: ear.of(its) == [(True, "connected")])
            until(lambda: kind(checker, "tcp").good > 20)
        ear.until(lambda: len(ear.of(its)) == 2)
        with listening(port=port):
            ear.until(lambda: len(ear.of(its)) == 3)
    assert ear.of(its) == [(True, "connected"), (False, "connection refused"), (True, "connected")]
    assert [each.at for each in ear.all] == sorted(each.at for each in ear.all)


def test_it_begins_with_what_is_known() -> None:
    """A target that was down before is not up until it has risen; the other way round as well."""
    ear = Ear()
    with listening() as port, Checker(ear) as checker:
        down, gone = target(Tcp(), port), target(Tcp(), 9)
        checker.change([down, gone], known={down: False, gone: True})
        ear.until(lambda: len(ear.all) == 2)
    assert ear.of(down) == [(True, "connected")]
    assert ear.of(gone) == [(False, "connection refused")]


def test_removed_targets_are_checked_no_more() -> None:
    """Nor counted; what of them is under way ends without a word. The others go on."""
    ear = Ear()
    with listening() as port, Checker(ear) as checker:
        stays = target(Tcp(), port)
        going = [target(Tcp(), 80, SILENT), target(Http(), 80, SILENT), target(Tcp(), 9)]
        checker.change([stays, *going])
        until(lambda: kind(checker, "tcp").going > 0 and kind(checker, "http").going > 0)
        ear.until(lambda: ear.of(going[2]) != [])
        checker.change(removed=[*going, target(Tcp(), 10)])
        until(lambda: kind(checker, "tcp").targets == 1)
        assert kind(checker, "http") == KindFigures("http", 0, 0, 0, 0, 0, 0)
        failed, good = kind(checker, "tcp").failed, kind(checker, "tcp").good
        until(lambda: kind(checker, "tcp").good > good + 5)
        assert kind(checker, "tcp").failed == failed


def test_it_checks_in_the_namespace_of_who_made_it() -> None:
    """Wherever changes come from."""
    ear = Ear()
    with listening() as port:
        its = target(Tcp(), port)
        with Checker(ear) as checker, netns.fresh():
            checker.change([its])
            ear.until(lambda: ear.of(its) == [(True, "connected")])


def test_all_checks_are_one_thread() -> None:
    """Two hundred targets that never answer cost none."""
    before = set(threading.enumerate())
    with Checker(Ear()) as checker:
        checker.change(target(Tcp(), port, SILENT) for port in range(1, 201))
        until(lambda: kind(checker, "tcp").going == 200)
        assert len(set(threading.enumerate()) - before) == 1
    assert set(threading.enumerate()) <= before


def test_tcp_checks_load_no_web_library() -> None:
    """In an interpreter of its own: what tests have loaded would hide it."""
    code = (
        "import sys, threading\n"
        "from kproxy.core.health.values import Check, Target, Tcp\n"
        "from kproxy.health.checks import Checker\n"
        "told = threading.Event()\n"
        "with Checker(lambda news: told.set()) as checker:\n"
        "    checker.change([Target(Check(Tcp()), '127.0.0.1', 9)], known={})\n"
        f"    assert told.wait({TIMEOUT})\n"
        "print({'aiohttp', 'h2', 'yarl'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# --- many that never answer ---------------------------------------------------------------------


class _Requests(BaseHTTPRequestHandler):
    """Answers 200."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


def test_silent_ones_delay_nobody() -> None:
    """50 good TCP targets beside 500 silent ones in 64 places, all as often: the good ones have ten
    rounds before the silent ones have had four. In one queue each would wait for all others, and
    both would have as many."""
    with ExitStack() as stack, Checker(Ear(), most=64) as checker:
        ports = [stack.enter_context(listening()) for _ in range(50)]
        good = [target(Tcp(), port, pace=QUICK) for port in ports]
        silent = [target(Tcp(), 1 + number, SILENT, QUICK) for number in range(500)]
        checker.change([*silent, *good])
        until(lambda: kind(checker, "tcp").failed >= 64)
        before = kind(checker, "tcp")
        until(lambda: kind(checker, "tcp").good >= before.good + 50 * 10)
        after = kind(checker, "tcp")
        assert after.failed - before.failed < 500 * 4
        assert (after.going, after.own) <= (64, 0)


def test_silent_http_delays_nobody() -> None:
    """The same for conversations, with as many again of the other kind beside them."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Requests)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with Checker(Ear(), most=64) as checker:
            good = [
                Target(Check(Http(path=f"/{number}"), QUICK), "127.0.0.1", server.server_port)
                for number in range(10)
            ]
            silent = [target(Http(), 1 + number, SILENT, QUICK) for number in range(500)]
            checker.change([*silent, *good, *(target(Tcp(), 80, f"10.9.2.{n}", QUICK)
                                              for n in range(1, 201))])  # fmt: skip
            until(lambda: kind(checker, "http").failed >= 64)
            before = kind(checker, "http")
            until(lambda: kind(checker, "http").good >= before.good + 10 * 10)
            after = kind(checker, "http")
            assert after.failed - before.failed < 500 * 4
            assert after.own == 0
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# --- faults of this node's own ------------------------------------------------------------------


def test_descriptors_that_run_out_are_nobodys_failure() -> None:
    """No target goes down for it; it is told, tried again, and the checks go on afterwards."""
    ear = Ear()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with listening() as port, Checker(ear) as checker:
        its = target(Tcp(), port)
        checker.change([its])
        ear.until(lambda: ear.of(its) == [(True, "connected")])
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
            until(lambda: kind(checker, "tcp").own >= 2)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        before = kind(checker, "tcp")
        until(lambda: kind(checker, "tcp").good > before.good + 2)
        assert dict(checker.figures().troubles) == {
            "this process has no descriptor left": kind(checker, "tcp").own
        }
    assert ear.of(its) == [(True, "connected")]
    assert before.failed == 0


@pytest.mark.parametrize(
    ("of", "ip", "reason"),
    [
        (Tcp(), NOWHERE, "this node has no route there"),
        (Exec(command=("false",)), "127.0.0.1", "this node runs no programs as checks"),
    ],
)
def test_what_this_node_cannot_try_is_not_told(of: Probe, ip: str, reason: str) -> None:
    """Nothing is learned of the target; figures have the reason."""
    ear = Ear()
    with Checker(ear) as checker:
        checker.change([target(of, 80, ip)])
        until(lambda: dict(checker.figures().troubles).get(reason, 0) >= 2)
    assert ear.all == []


def test_one_that_cannot_be_tried_at_all_stops_no_other() -> None:
    """A target that no call of the kernel's takes is this node's fault; the rounds go on."""
    ear = Ear()
    with listening() as port, Checker(ear) as checker:
        its = target(Tcp(), port)
        checker.change([target(Tcp(), 80, "127.0.0.1\0"), target(Udp(), 80, "127.0.0.1\0")])
        until(lambda: kind(checker, "tcp").own > 0)
        checker.change([its])
        ear.until(lambda: ear.of(its) == [(True, "connected")])
        until(lambda: kind(checker, "tcp").own > 1 and kind(checker, "udp").own > 1)


def test_sockets_that_a_child_holds_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between fork and exec a program has copies of them: what is closed here lives on there, and
    tells nothing of the tries that have its number next."""
    ear, copies = Ear(), list[int]()
    opened = TcpProber.open

    def copied(prober: TcpProber, its: Target) -> socket.socket | Outcome:
        made = opened(prober, its)
        if isinstance(made, socket.socket):
            copies.append(os.dup(made.fileno()))
        return made

    monkeypatch.setattr(TcpProber, "open", copied)
    with Checker(ear) as checker:
        with listening() as port:
            its = target(Tcp(), port)
            checker.change([its])
            until(lambda: kind(checker, "tcp").good > 20)
        ear.until(lambda: len(ear.of(its)) == 2)
    for copy in copies:
        os.close(copy)
    assert ear.of(its) == [(True, "connected"), (False, "connection refused")]


def test_time_that_the_thread_was_held_up_is_not_the_endpoints() -> None:
    """An answer that comes while the loop stands still, long past the time-out, is a good one."""
    ear = Ear()

    async def work() -> None:
        loop = asyncio.get_running_loop()
        rounds = Rounds(loop, ear, most=8, programs=False)
        stood = asyncio.Event()

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            if not stood.is_set():
                # What is tested, and no way to wait for anything: nobody gets this thread.
                time.sleep(3)
                stood.set()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

        async with serving(talk) as port:
            # Half of what it stands still: this try is given that time once more, and no other.
            rounds.change([target(Http(), port, pace=Pace(timeout=1.5, interval=60))])
            await stood.wait()
            async with asyncio.timeout(TIMEOUT):
                while not ear.all:
                    await asyncio.sleep(0)
            assert rounds.figures().kinds[0].failed == 0
            await rounds.close()

    run(work())
    assert [(each.up, each.reason) for each in ear.all] == [(True, "status 200")]


def test_programs_where_they_are_allowed() -> None:
    """As one kind among others."""
    ear = Ear()
    its = target(Exec(command=("sh", "-c", "exit 4")), 80)
    with Checker(ear, programs=True) as checker:
        checker.change([its])
        ear.until(lambda: ear.of(its) == [(False, "exit status 4")])


def test_who_does_not_want_to_hear_stops_nothing() -> None:
    """An error of who is told is logged, and the next news are told as well."""
    heard = []
    twice = threading.Event()

    def told(news: list[Checked]) -> None:
        heard.extend(news)
        if len(heard) == 2:
            twice.set()
        raise ValueError("not now")

    with Checker(told) as checker:
        with listening() as port:
            checker.change([target(Tcp(), port)])
            until(lambda: kind(checker, "tcp").good > 5)
        assert twice.wait(TIMEOUT)
    assert [each.up for each in heard] == [True, False]


def test_closing_ends_everything() -> None:
    """Tries under way, their descriptors, programs; a second time is fine, and so is a late
    change."""
    before = len(os.listdir("/proc/self/fd"))
    checker = Checker(Ear(), programs=True)
    checker.change([
        target(Tcp(), 80, SILENT),
        target(Http(), 80, SILENT),
        target(Exec(command=("sleep", "1000")), 80),
    ])  # fmt: skip
    until(lambda: all(kind(checker, name).going for name in ("tcp", "http", "exec")))
    checker.close()
    checker.close()
    checker.change([target(Tcp(), 80)])
    # The last of a program is reaped beside it.
    until(lambda: len(os.listdir("/proc/self/fd")) <= before)


def test_a_thread_that_stands_still_is_late() -> None:
    """For who asks meanwhile, and no more when it goes on."""
    holding, go = threading.Event(), threading.Event()

    def told(news: list[Checked]) -> None:
        holding.set()
        assert go.wait(TIMEOUT)

    with listening() as port, Checker(told) as checker:
        assert checker.figures().late == 0
        checker.change([target(Tcp(), port)])
        assert holding.wait(TIMEOUT)
        until(lambda: checker.figures().late > 0.3)
        go.set()
        until(lambda: checker.figures().late < 0.3)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_has_ended_is_late() -> None:
    """More and more, and it can be closed."""

    def told(news: list[Checked]) -> None:
        raise SystemExit

    with listening() as port, Checker(told) as checker:
        checker.change([target(Tcp(), port)])
        checker._thread.join(TIMEOUT)
        assert not checker._thread.is_alive()
        until(lambda: checker.figures().late > 0.3)


def test_what_was_found_before_a_change_is_told_before_it() -> None:
    """Whoever begins a target afresh knows from where on results are of the new start."""
    said: list[object] = []
    once, twice = threading.Event(), threading.Event()

    def told(news: list[Checked]) -> None:
        said.extend((each.up, each.reason) for each in news)
        (twice if once.is_set() else once).set()

    its = target(Tcp(), 9)
    with Checker(told) as checker:
        checker.change([its], begun=lambda: said.append("first"))
        assert once.wait(TIMEOUT)
        checker.change([its], [its], begun=lambda: said.append("second"))
        assert twice.wait(TIMEOUT)
    down = (False, "connection refused")
    assert said == ["first", down, "second", down]


def test_news_that_wait_are_told_before_the_change() -> None:
    """A result of the same turn of the loop as the change is one of before."""
    said: list[str] = []

    async def work() -> None:
        loop = asyncio.get_running_loop()
        rounds = Rounds(loop, lambda news: said.append("told"), most=1, programs=False)
        its = target(Tcp(), 9)
        rounds.change([its])
        (run_of,) = rounds._runs.values()
        rounds._tell(run_of)
        rounds.change([its], [its])
        said.append("changed")
        await rounds.close()

    run(work())
    assert said == ["told", "changed"]
