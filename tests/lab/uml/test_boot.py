"""A machine that runs commands: streams, statuses, its view of this host, and how it ends."""

from __future__ import annotations

import os
import select
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from kproxy.errors import LabError, MachineError
from kproxy.lab.uml import machine
from kproxy.lab.uml.boot import Boot
from kproxy.lab.uml.homes import private_root
from tests.conftest import ROOT

#: An ordinary user, by number: a name need not exist.
NOBODY = "65534"


@pytest.fixture(scope="module")
def shared() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="kp shared ") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def boot(shared: Path) -> Iterator[Boot]:
    """One machine for all tests that leave it as it was."""
    with Boot(memory="512M", shared=shared) as one:
        yield one


class Taken:
    """Collects what a command writes."""

    def __init__(self) -> None:
        self.streams = {1: b"", 2: b""}

    def __call__(self, stream: int, data: bytes) -> None:
        self.streams[stream] += data


def test_streams_come_apart_and_byte_for_byte(boot: Boot) -> None:
    """Every byte there is, more of them than any buffer holds, on each stream its own."""
    taken = Taken()
    script = (
        "import sys\n"
        "sys.stdout.buffer.write(bytes(range(256)) * 4096)\n"
        "sys.stderr.buffer.write(bytes(range(255, -1, -1)) * 64)\n"
    )
    assert boot.run([sys.executable, "-c", script], take=taken) == 0
    assert taken.streams[1] == bytes(range(256)) * 4096
    assert taken.streams[2] == bytes(range(255, -1, -1)) * 64


def test_more_is_said_to_it_than_its_terminal_holds(boot: Boot) -> None:
    """A long command line and environment; what is said afterwards still arrives: without it the
    output would stop at its window."""
    taken = Taken()
    environment = {**os.environ, "KP_LONG": "x" * 100_000}
    script = 'printf %s "$KP_LONG"; head -c 300000 /dev/zero'
    argv = ["sh", "-c", script, "sh", *["y" * 100] * 500]
    assert boot.run(argv, take=taken, environment=environment) == 0
    assert taken.streams[1] == b"x" * 100_000 + bytes(300_000)


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -9 $$"], 137),
        (["there-is-no-such-program"], 126),
    ],
)
def test_the_exit_status_comes_through(boot: Boot, argv: list[str], status: int) -> None:
    """As a shell has it; a signal is 128 and its number."""
    assert boot.run(argv, take=Taken()) == status


def test_it_stands_where_we_stand(boot: Boot, tmp_path: Path) -> None:
    """Directory (with a space in its name), environment, umask and files are ours; the user and
    the kernel are not."""
    place = tmp_path / "a b"
    place.mkdir()
    (place / "file").write_text("of the host\n")
    taken = Taken()
    script = 'cat file; pwd; echo "$KP_WORD"; umask; id -u; uname -r'
    environment = {**os.environ, "KP_WORD": "two words"}
    assert boot.run(["sh", "-c", script], take=taken, directory=place, environment=environment) == 0
    mask = os.umask(0o022)
    os.umask(mask)
    lines = taken.streams[1].decode().splitlines()
    assert lines == ["of the host", str(place), "two words", f"{mask:04o}", "0", boot.version]
    assert boot.version != os.uname().release


def test_nothing_that_it_writes_reaches_the_host(boot: Boot, tmp_path: Path, shared: Path) -> None:
    """But in the folder that is shared. /run holds nothing of the host's."""
    (tmp_path / "file").write_text("before\n")
    script = f'echo after >"{tmp_path}/file"; echo new >"{tmp_path}/new"; ls /run/netns 2>/dev/null'
    taken = Taken()
    boot.run(["sh", "-c", f'{script}; echo kept >"{shared}/kept"; sync'], take=taken)
    assert (tmp_path / "file").read_text() == "before\n"
    assert not (tmp_path / "new").exists()
    assert taken.streams[1] == b""
    assert (shared / "kept").read_text() == "kept\n"


def test_its_kernel_has_what_it_is_for(boot: Boot) -> None:
    """IPVS, sets, SCTP, netem, dummy devices, and iptables of the variant that its kernel has."""
    script = (
        "from kproxy import doctor\n"
        "for name in ('ipvs', 'iptables-legacy', 'ipset', 'SCTP', 'netem', 'dummy device'):\n"
        "    found = doctor.tried(name)\n"
        "    assert found.ok, found\n"
    )
    taken = Taken()
    status = boot.run([sys.executable, "-c", script], take=taken)
    assert status == 0, taken.streams


def test_output_streams_while_the_command_runs(boot: Boot, tmp_path: Path, shared: Path) -> None:
    """The first line is here before the command can go on."""
    gate = shared / "gate"
    os.mkfifo(gate)
    lines: list[bytes] = []

    def take(stream: int, data: bytes) -> None:
        lines.append(data)
        (shared / "go").touch()

    # Looks for the file by name each time: hostfs asks the host.
    script = f'echo first; until [ -e "{shared}/go" ]; do sleep 0.05; done; echo second'
    assert boot.run(["sh", "-c", script], take=take) == 0
    assert b"".join(lines) == b"first\nsecond\n"


# --- its end ----------------------------------------------------------------------------------


def test_a_machine_that_ends_by_itself_is_an_error() -> None:
    """What waits for the command hears of it, with the console's last words; nothing is left."""
    with Boot(memory="256M") as one:
        pid = one.machine.pid
        script = "echo last words >/dev/kmsg; echo o >/proc/sysrq-trigger; sleep 100"
        with pytest.raises(LabError, match="it ended"):
            one.run(["sh", "-c", script], take=Taken())
    assert_ended(pid)


def test_another_thread_can_end_it_at_once() -> None:
    """As a Ctrl-C does to a machine that serves a thread of its own."""
    with Boot(memory="256M") as one:
        pid = one.machine.pid

        def take(stream: int, data: bytes) -> None:
            threading.Thread(target=one.abandon).start()

        with pytest.raises(LabError):
            one.run(["sh", "-c", "echo up; sleep 1000"], take=take)
    assert_ended(pid)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_whatever_ends_us_ends_the_machine(number: signal.Signals) -> None:
    """No process of it outlives the program that booted it."""
    argv = [sys.executable, "-m", "kproxy.lab.uml", "--memory", "256M"]
    program = subprocess.Popen(
        [*argv, "sh", "-c", "echo up; sleep 1000"],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert program.stdout is not None
    assert program.stdout.readline() == b"up\n"
    kernels = children(program.pid)
    assert kernels
    ends = [os.pidfd_open(pid) for pid in kernels]
    program.send_signal(number)
    program.wait()
    for end in ends:
        assert select.select([end], [], [], 60)[0], "the machine goes on"
        os.close(end)
    program.stdout.close()


def test_without_root_on_the_host(tmp_path: Path) -> None:
    """Inside is root all the same."""
    user = ["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--bounding-set", "-all"]
    argv = [sys.executable, "-P", "-m", "kproxy.lab.uml", "--memory", "256M", "id", "-u"]
    apart = ["unshare", "--mount", "sh", "-euc", f'{opened(tmp_path)}\nexec "$@"', "sh"]
    with tempfile.TemporaryDirectory() as runtime:
        os.chown(runtime, int(NOBODY), int(NOBODY))
        ended = subprocess.run(
            [*apart, "setpriv", *user, *argv],
            cwd="/",
            env={**os.environ, "XDG_RUNTIME_DIR": runtime},
            capture_output=True,
            check=False,
        )
    assert (ended.stdout, ended.returncode) == (b"0\n", 0), ended.stderr


def test_on_a_host_that_allows_little(tmp_path: Path) -> None:
    """The tree cannot be written to, /dev/shm holds no memory, directories have odd names."""
    odd = tmp_path / "a 'b' $c"
    odd.mkdir(mode=0o700)
    script = (
        "mount -t tmpfs -o size=1m,noexec kp /dev/shm\n"
        f"mount --bind '{ROOT}' '{ROOT}'; mount -o remount,bind,ro '{ROOT}'\n"
        'exec "$@"'
    )
    argv = [sys.executable, "-m", "kproxy.lab.uml", "--memory", "256M", "--share", str(odd)]
    inside = ["sh", "-c", 'touch kproxy/new; echo kept >"$1"/file; pwd', "sh", str(odd)]
    ended = subprocess.run(
        ["unshare", "--mount", "sh", "-euc", script, "sh", *argv, *inside],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.stdout, ended.returncode) == (f"{ROOT}\n", 0), ended.stderr
    assert (odd / "file").read_text() == "kept\n"
    assert not (ROOT / "kproxy" / "new").exists()


def opened(scratch: Path) -> str:
    """Shell commands for a mount namespace in which anybody finds this tree and its interpreter,
    also when they lie in a home that is closed to others."""
    lines = []
    for number, wanted in enumerate({ROOT, Path(sys.base_prefix).resolve()}):
        closed = [above for above in wanted.parents if not above.stat().st_mode & stat.S_IXOTH]
        if closed:
            aside = scratch / str(number)
            aside.mkdir()
            lines += [
                f"mount --bind '{wanted}' '{aside}'",
                f"mountpoint -q '{closed[-1]}' || mount -t tmpfs -o mode=755 kp '{closed[-1]}'",
                f"mkdir -p '{wanted}'",
                f"mount --bind '{aside}' '{wanted}'",
            ]
    return "\n".join(lines)


# --- what this host may lack ------------------------------------------------------------------


def test_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the command that helps."""
    monkeypatch.setattr(machine, "KERNEL", "linux.uml-that-is-not-there")
    error = machine.lacking()
    assert error is not None
    assert "apt-get install" in str(error)


def test_no_modules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "MODULES", tmp_path)
    assert "apt-get install user-mode-linux" in str(machine.lacking())


def test_no_room_for_its_memory() -> None:
    """All places are named, each with its fault."""
    with pytest.raises(MachineError, match=r"/dev/shm has too little room.*TMPDIR"):
        machine.memory_folder(1 << 60)


def test_a_boot_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the console's words; the patience is the caller's."""
    monkeypatch.setattr(
        "kproxy.lab.uml.init.script",
        lambda *args, **named: "#!/bin/sh\necho stuck here\nwhile :; do sleep 1000; done\n",
    )
    # A slow machine may not have come to these words by then.
    for patience in (4, 16, 64):
        with (
            pytest.raises(MachineError, match=f"not up within {patience} s") as given_up,
            Boot(memory="256M", patience=patience),
        ):
            pass
        if "stuck here" in str(given_up.value):
            return
    pytest.fail(str(given_up.value))


def test_a_boot_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "kproxy.lab.uml.init.script", lambda *args, **named: "#!/bin/sh\necho no such thing\n"
    )
    with pytest.raises(MachineError, match="no such thing"), Boot(memory="256M"):
        pass


def test_the_private_directory_is_ones_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What somebody else could write to is refused."""
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(MachineError, match="yours"):
        private_root()


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def assert_ended(leader: int) -> None:
    """Nothing of its group or session runs on; who was killed may take a moment to go, and one that
    is about to go may just have started another."""
    deadline = time.monotonic() + 60
    while pids := members(leader):
        for pid in pids:
            with suppress(ProcessLookupError):
                end = os.pidfd_open(pid)
                gone = select.select([end], [], [], max(0.0, deadline - time.monotonic()))[0]
                os.close(end)
                assert gone, f"process {pid} goes on"
        assert time.monotonic() < deadline, pids


def members(leader: int) -> list[int]:
    """Processes of a group or session that still run (an ended one may wait for init to take note
    of it); a machine's kernel is many."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group, session = path.read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if leader in (int(group), int(session)) and state not in "ZX":
            found.append(int(path.parent.name))
    return found
