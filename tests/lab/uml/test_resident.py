"""``kproxy lab`` with a lab on a kernel of its own: every command as on the host."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kproxy.lab import lifecycle, state
from kproxy.lab.uml import resident
from kproxy.lab.undo import Process, UndoLog
from tests.lab.uml.test_boot import NOBODY, assert_ended, opened

pytestmark = pytest.mark.kernel

LAB = "fres"
KPROXY = [sys.executable, "-P", "-m", "kproxy", "lab"]

SERVICE = """\
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{selector: {{app: web}}, ports: [{{port: 81, targetPort: http}}]}}
"""


def kproxy(
    *argv: str, lab: str = LAB, stdin: bytes = b"", directory: Path | None = None
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*KPROXY, *argv],
        input=stdin,
        cwd=directory,
        env={**os.environ, "KPROXY_LAB": lab},
        capture_output=True,
        check=False,
    )


def output(*argv: str, stdin: bytes = b"", directory: Path | None = None) -> bytes:
    done = kproxy(*argv, stdin=stdin, directory=directory)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def started(*argv: str, lab: str = LAB) -> Iterator[subprocess.Popen[bytes]]:
    """A command that runs meanwhile; it is ended with the block."""
    with subprocess.Popen(
        [*KPROXY, *argv],
        env={**os.environ, "KPROXY_LAB": lab},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as command:
        try:
            yield command
        finally:
            command.kill()


def processes(lab: str) -> dict[str, Process]:
    return {one.role: one for one in UndoLog(lab).read().processes}


@pytest.fixture(scope="module")
def machine() -> Iterator[str]:
    """A small lab in ipvs mode on its own kernel; what its ``up`` printed."""
    lifecycle.down(LAB)
    done = kproxy("up", "single", "--kernel", "uml", "--mode", "ipvs")
    assert done.returncode == 0, done.stderr
    yield done.stdout.decode()
    kernel = processes(LAB)["kernel"].pid
    assert b"is down" in output("down", "--forget")
    assert_ended(kernel)
    assert not state.lab_dir(LAB).exists()
    assert not state.kept_dir(LAB).exists()


# --- it behaves as on the host ----------------------------------------------------------------


def test_up_prints_what_it_prints_on_the_host(machine: str) -> None:
    """And a second ``up`` finds the lab where it is, with no kernel named."""
    for word in ("is up in", "ipvs", "web-0", "10.244.1.2"):
        assert word in machine
    assert b"is up already" in output("up", "single", "--mode", "ipvs")


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (("up", "standard", "--mode", "ipvs"), "another topology"),
        (("up", "single", "--mode", "ipvs", "--kernel", "host"), "a kernel of its own"),
        (("exec", "no-such-pod", "true"), "no node, client or pod"),
    ],
)
def test_what_is_wrong_is_one_line_and_status_1(
    machine: str, argv: tuple[str, ...], word: str
) -> None:
    """In the words of whoever found it."""
    done = kproxy(*argv)
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1), done.stderr
    assert word in done.stderr.decode()


def test_it_is_another_kernel_and_listed_as_one(machine: str) -> None:
    """``ls`` on the host tells of it as the lab itself does."""
    inside = output("exec", "node1", "uname", "-r").decode().strip()
    assert inside != os.uname().release
    (facts,) = json.loads(output("ls", "--name", LAB, "-o", "json"))
    assert (facts["kernel"], facts["mode"]) == ("uml", "ipvs-legacy")
    assert {host["name"]: host["state"] for host in facts["hosts"]}["node1"] == "synced"
    assert b"KERNEL" in output("ls", "--name", LAB)


def test_everybody_reaches_everybody(machine: str) -> None:
    """The flows of ``ping`` go through IPVS there."""
    flows = json.loads(output("ping", "-o", "json"))
    assert len(flows) > 50
    assert all(flow["passed"] for flow in flows)


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
def test_pipes_keep_every_byte(machine: str, size: int) -> None:
    """More than any buffer on the way holds, and nothing at all."""
    data = os.urandom(size)
    assert output("exec", "web-0", "cat", stdin=data) == data


def test_streams_and_statuses_are_the_commands(machine: str) -> None:
    """Output and errors apart; a signal is the caller's to see, too."""
    done = kproxy("exec", "web-0", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.stdout, done.stderr, done.returncode) == (b"out\n", b"err\n", 7)
    assert kproxy("exec", "web-0", "sh", "-c", "kill -TERM $$").returncode == -signal.SIGTERM


def test_a_reader_that_stops_stops_the_writer(machine: str) -> None:
    """``kproxy … | head -1`` ends, in silence."""
    with started("exec", "web-0", "yes") as writing:
        assert writing.stdout is not None
        assert writing.stderr is not None
        assert writing.stdout.readline() == b"y\n"
        writing.stdout.close()
        assert writing.wait() == -signal.SIGPIPE
        assert writing.stderr.read() == b""


def test_files_are_the_hosts_as_they_are_now(machine: str, tmp_path: Path) -> None:
    """Changed after the boot, by name and in place; written there, found here."""
    file = tmp_path / "service.yaml"
    for name in ("first", "second"):
        file.write_text(SERVICE.format(name=name))
        argv = ("apply", "-f", "service.yaml")
        assert output(*argv, directory=tmp_path) == f"service/{name} created\n".encode()
    other = tmp_path / "draft"
    other.write_text(SERVICE.format(name="third"))
    other.rename(file)
    assert b"third created" in output("apply", "-f", str(file))
    assert b"fourth created" in output(
        "apply", "-f", "-", stdin=SERVICE.format(name="fourth").encode()
    )
    shown = output("get", "services", "-o", "name").split()
    assert {b"service/first", b"service/second", b"service/third", b"service/fourth"} <= {*shown}
    assert b"deleted" in output("delete", "-f", "service.yaml", directory=tmp_path)
    output("graph", "--file", "lab.svg", directory=tmp_path)
    assert "<svg" in (tmp_path / "lab.svg").read_text()


def test_a_file_that_the_shell_has_made(machine: str) -> None:
    """``-f <(generate)`` is a pipe that has a name here only."""
    done = subprocess.run(
        ["bash", "-c", f"{' '.join(KPROXY)} apply -f <(cat)"],
        input=SERVICE.format(name="piped").encode(),
        env={**os.environ, "KPROXY_LAB": LAB},
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"service/piped created\n"


def test_a_capture_ends_by_ctrl_c_with_a_whole_file(machine: str, tmp_path: Path) -> None:
    """The signal goes to the command, which then does what it does for it."""
    file = tmp_path / "packets.pcap"
    with started("capture", "-w", str(file), "web-0") as capture:
        assert capture.stderr is not None
        assert b"capturing on web-0" in capture.stderr.readline()
        output("ping")
        capture.send_signal(signal.SIGINT)
        assert capture.wait() == 0
        assert b"packets" in capture.stderr.read()
    assert file.read_bytes()[:4] in (b"\xd4\xc3\xb2\xa1", b"\x4d\x3c\xb2\xa1", b"\x0a\x0d\x0d\x0a")


def test_several_at_once(machine: str, tmp_path: Path) -> None:
    """Each waits for its own end only: the first one is ended by what the last one does."""
    fifo = "/run/fres-fifo"
    output("exec", "web-0", "mkfifo", fifo)
    with started("exec", "web-0", "cat", fifo) as reading, started("exec", "web-0", "yes") as idle:
        # ``yes`` soon has no room left; nobody reads it.
        output("exec", "web-1", "sh", "-c", f"echo through >{fifo}")
        assert reading.stdout is not None
        assert reading.stdout.read() == b"through\n"
        assert idle.poll() is None


def test_a_client_that_is_killed_takes_its_command_along(machine: str) -> None:
    """Nothing goes on inside for which nobody waits."""
    with started("exec", "web-0", "sh", "-c", "echo $$; exec sleep 1000") as client:
        assert client.stdout is not None
        pid = client.stdout.readline().decode().strip()
    output("exec", "node1", "timeout", "60", "tail", "-f", "/dev/null", f"--pid={pid}")
    assert kproxy("exec", "node1", "kill", "-0", pid).returncode == 1


def _until(terminal: int, wanted: bytes, timeout: float = 60.0) -> bytes:
    seen = b""
    while wanted not in seen:
        assert select.select([terminal], [], [], timeout)[0], seen
        seen += os.read(terminal, 4096)
    return seen


def test_a_shell_with_a_terminal(machine: str) -> None:
    """Prompt, size and its changes, Ctrl-C for what runs in it, and its exit status."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ |= {"SHELL": "/bin/bash", "KPROXY_LAB": LAB, "HOME": "/nonexistent"}
        os.execv(sys.executable, [*KPROXY, "shell", "web-0"])
    try:
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 101, 0, 0))
        _until(terminal, f"[{LAB}:web-0]".encode())
        os.write(terminal, b"stty size\n")
        _until(terminal, b"33 101")
        os.write(terminal, b"sh -c 'echo begun; exec sleep 1000'\n")
        _until(terminal, b"begun\r\n")
        os.write(terminal, b"\x03")
        _until(terminal, f"[{LAB}:web-0]".encode())
        os.write(terminal, b"echo status $?\n")
        _until(terminal, b"status 130")
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 44, 111, 0, 0))
        os.write(terminal, b'while [ "$(stty size)" = "33 101" ]; do :; done; stty size; exit 5\n')
        _until(terminal, b"44 111")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
    finally:
        os.close(terminal)


def test_words_are_completed_from_what_is_inside(machine: str) -> None:
    """As for a lab on the host."""
    for words, expected in (
        (("exec", "--name", LAB, "web"), {"web-0", "web-1"}),
        (("scale", "--name", LAB, "ec"), {"echo"}),
    ):
        done = subprocess.run(
            KPROXY[:-1],
            env={
                **os.environ,
                "_KPROXY_COMPLETE": "bash_complete",
                "COMP_WORDS": " ".join(("kproxy", "lab", *words)),
                "COMP_CWORD": str(len(words) + 1),
            },
            capture_output=True,
            text=True,
            check=True,
        )
        assert {line.partition(",")[2] for line in done.stdout.split()} == expected


# --- who may, and how it ends -----------------------------------------------------------------


def test_it_is_closed_to_everybody_else(machine: str) -> None:
    """Folder, socket and log are the user's alone."""
    folder = state.lab_dir(LAB)
    assert folder.stat().st_mode & 0o777 == 0o700
    for path in folder.iterdir():
        assert path.stat().st_mode & 0o077 == 0, path
    user = ["setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]
    words = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    tried = subprocess.run(
        [*user, "/usr/bin/python3", "-c", words, str(folder / "machine.sock")],
        capture_output=True,
        check=False,
        cwd="/",
    )
    assert b"PermissionError" in tried.stderr


def _boot(lab: str) -> None:
    with state.lock(lab):
        resident.boot(lab, memory="256M")


@pytest.fixture
def crash() -> Iterator[str]:
    """A machine in which no lab is: enough to be killed."""
    lab = "fcrash"
    lifecycle.down(lab)
    _boot(lab)
    yield lab
    lifecycle.down(lab)
    state.forget_allocations(lab)


@pytest.mark.parametrize("victims", [("kernel",), ("broker",), ("kernel", "broker")])
def test_a_killed_machine_is_noticed_and_cleaned(crash: str, victims: tuple[str, ...]) -> None:
    """What was running in it ends, ``ls`` says it, other commands refuse, ``down`` cleans."""
    there = processes(crash)
    ends = {role: os.pidfd_open(process.pid) for role, process in there.items()}
    for role in victims:
        signal.pidfd_send_signal(ends[role], signal.SIGKILL)
    for end in ends.values():  # each goes with the other
        assert select.select([end], [], [], 60)[0]
        os.close(end)
    assert b"its machine is gone" in kproxy("ls", "--name", crash, lab=crash).stdout
    refused = kproxy("exec", "web-0", "true", lab=crash)
    assert refused.returncode == 1
    assert f"kproxy lab down --name {crash}" in refused.stderr.decode()
    assert kproxy("down", lab=crash).returncode == 0
    assert_ended(there["kernel"].pid)
    assert not state.lab_dir(crash).exists()


@pytest.fixture
def fresh() -> Iterator[Callable[[str], str]]:
    """Names of labs that are not there, and of which no address is remembered afterwards."""
    names: list[str] = []

    def one(name: str) -> str:
        lifecycle.down(name)
        names.append(name)
        return name

    yield one
    for name in names:
        lifecycle.down(name)
        state.forget_allocations(name)


def test_an_up_that_is_interrupted_leaves_nothing(fresh: Callable[[str], str]) -> None:
    """Ctrl-C while the machine boots: it goes again, with its folder."""
    lab = fresh("fint")
    with started("up", "single", "--kernel", "uml", lab=lab) as up:
        while "kernel" not in processes(lab):
            assert up.poll() is None
        kernel = processes(lab)["kernel"].pid
        up.send_signal(signal.SIGINT)
        assert up.wait() == 130
    assert_ended(kernel)
    assert not state.lab_dir(lab).exists()


def test_a_lab_that_cannot_come_up_leaves_no_machine(fresh: Callable[[str], str]) -> None:
    """It fails inside, in one line, and the machine is taken away."""
    lab = fresh("fbad")
    done = kproxy("up", "single", "--kernel", "uml", "--mode", "iptables-nft", lab=lab)
    assert done.returncode != 0
    assert b"nft" in done.stderr
    assert not state.lab_dir(lab).exists()


def test_without_root(tmp_path: Path) -> None:
    """A whole lab for an ordinary user, of whom nothing is left but the addresses it gave out."""
    user = ["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--bounding-set", "-all"]
    script = "\n".join(
        [
            opened(tmp_path),
            f'user() {{ setpriv {" ".join(user)} {" ".join(KPROXY)} "$@"; }}',
            "user up single --kernel uml --mode ipvs >&2",
            "user ls -o json",
            "echo from-stdin | user exec web-0 sh -c 'cat; id -u' >&2",
            "user down --forget >&2",
        ]
    )
    with tempfile.TemporaryDirectory() as home:
        os.chown(home, int(NOBODY), int(NOBODY))
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-euc", script],
            env={**os.environ, "HOME": home, "XDG_RUNTIME_DIR": home},
            cwd="/",
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)[0]["kernel"] == "uml"
        assert b"from-stdin\n0\n" in done.stderr
        left = [path for path in Path(home).rglob("*") if not path.is_dir()]
    assert left == []
