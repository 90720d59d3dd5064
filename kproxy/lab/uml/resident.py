"""Machines that stay up as long as a lab: started, found, reached and ended, on the host's side.

A lab on a kernel of its own has in its folder (0700, its user's alone)::

    undo.jsonl      names the broker and the machine's kernel: processes to be ended by ``down``
    machine.sock    where the broker takes requests
    machine.log     what the broker says, if ever
    machine/        the machine's home (:mod:`kproxy.lab.uml.machine`)

Whoever boots or stops one holds ``state.lock(lab)``.
"""

from __future__ import annotations

import os
import select
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kproxy.errors import LabError, MachineError
from kproxy.lab import daemons, state
from kproxy.lab.uml import init
from kproxy.lab.uml.channel import Decoder, Kind
from kproxy.lab.uml.machine import MEMORY, PATIENCE, lacking
from kproxy.lab.uml.session import end_session
from kproxy.lab.undo import Process, UndoLog

ROLE_BROKER, ROLE_KERNEL = "broker", "kernel"

_SOCKET = "machine.sock"


def inside() -> bool:
    """Whether this very process runs in a machine."""
    # Everybody is root there; on a host others may not even look.
    return os.geteuid() == 0 and init.MARK.exists()


def home(lab: str) -> Path:
    """The machine's own folder."""
    return state.lab_dir(lab) / "machine"


def find(lab: str) -> Process | None:
    """The broker of a lab's machine, dead or alive; None for a lab that has no machine."""
    state.check_name(lab)
    brokers = [one for one in UndoLog(lab).read().processes if one.role == ROLE_BROKER]
    return brokers[-1] if brokers else None


def running(lab: str) -> bool:
    """Whether a lab has a machine that is there."""
    broker = find(lab)
    return broker is not None and broker.alive()


def boot(lab: str, *, memory: str = MEMORY) -> str:
    """Boot a machine for a lab of which nothing is there yet; its kernel's version.

    When it fails (MachineError says why) or is interrupted, :func:`stop` and ``state.forget``
    clean.
    """
    fault = lacking()
    if fault is not None:
        raise fault
    UndoLog(lab).begin()
    log = state.lab_dir(lab) / "machine.log"
    # Bound here and inherited: a client waits from now on, instead of being refused.
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        with _short(lab) as path:
            listening.bind(path)
            os.chmod(path, 0o600)
        listening.listen(64)
        argv = [sys.executable, "-P", "-m", "kproxy.lab.uml.broker"]
        argv += [lab, str(listening.fileno()), memory]
        daemons.start(lab, ROLE_BROKER, argv, log, inherit=(listening.fileno(),))
    try:
        with connect(lab) as line:
            return wait_ready(line, lab, Decoder())
    except LabError:
        words = log.read_text(errors="replace").strip().splitlines()
        why = words[-1] if words else "user-mode Linux did not start"
        raise MachineError(why) from None


@contextmanager
def _short(lab: str) -> Iterator[str]:
    """A path of the socket that fits into an address (107 bytes), whatever the folder's is."""
    folder = os.open(state.lab_dir(lab), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{_SOCKET}"
    finally:
        os.close(folder)


def connect(lab: str) -> socket.socket:
    """A connection to a lab's machine; LabError when the machine is gone."""
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _short(lab) as path:
            line.connect(path)
    except OSError:
        line.close()
        raise gone(lab) from None
    return line


def gone(lab: str) -> LabError:
    return LabError(f"lab {lab}: its machine is gone", hint=f"clean: kproxy lab down --name {lab}")


def wait_ready(line: socket.socket, lab: str, decoder: Decoder) -> str:
    """Until the broker says that the machine is up; its kernel's version.

    LabError when it ended before, MachineError when it takes longer than it may.
    """
    while True:
        if not select.select([line], [], [], PATIENCE)[0]:
            raise MachineError(
                f"user-mode Linux was not up within {PATIENCE:g} s",
                hint=f"its words are in {home(lab) / 'console'}",
            )
        try:
            data = line.recv(65536)
        except ConnectionError:
            data = b""
        if not data:
            raise gone(lab)
        for frame in decoder.feed(data):
            if frame.kind is Kind.READY:
                return frame.payload.decode()


def stop(lab: str) -> None:
    """End a lab's machine, whatever is left of it: in good order if it can, else by force.

    Fine for a lab that has none.
    """
    processes = UndoLog(lab).read().processes
    daemons.stop(lab, [one for one in processes if one.role == ROLE_BROKER])
    for kernel in [one for one in processes if one.role == ROLE_KERNEL]:
        daemons.stop(lab, [kernel])
        # Killed together with its broker, it leaves helpers behind.
        end_session(kernel.pid, kernel.started)
