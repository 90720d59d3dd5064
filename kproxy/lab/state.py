"""What is known about the labs that are up: JSON files under /run, one folder for each lab.

A lab has three files and a folder::

    /run/kproxy/labs/<lab>/state.json     LabState: what the lab is (written when it changed)
                          /undo.jsonl     what must be taken down, one line for each thing, written
                                          *before* a namespace is made: a crash leaves it behind
                          /conditions.json  faults, restarts and readiness of pods
                          /manifests/     what every node's kproxy reads
                          /<host>/        a node's log, lock file and proxy state
    /var/lib/kproxy/labs/<lab>/allocations.json    clusterIPs and nodePorts; survives ``down``

A lab with an undo log and no state.json is half made (or half gone): ``lab down`` and the next
``lab up`` clean it. Only what the log names is ever removed. All files are 0600 in folders 0700.

A lab on a kernel of its own has here the undo log, which names the processes of its machine, and
what belongs to the machine (:mod:`kproxy.lab.uml.resident`); all else is inside. That needs no
root: another user's folders are $XDG_RUNTIME_DIR/kproxy-labs-UID and ~/.local/state/kproxy/labs.

Whoever reads a state in order to change it holds :func:`lock` from before the read until after
:func:`save`.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from kproxy.errors import LabError, MachineError, UsageError
from kproxy.lab import conditions
from kproxy.lab.model import Allocations, LabState, Pod
from kproxy.lab.topology import NAME
from kproxy.lab.uml import homes

__all__ = [
    "Allocations",
    "LabState",
    "Pod",
    "check_name",
    "find",
    "forget",
    "forget_allocations",
    "host_dir",
    "hosts_path",
    "kept_dir",
    "lab_dir",
    "list_allocations",
    "list_labs",
    "load",
    "load_allocations",
    "lock",
    "manifests_dir",
    "private_dir",
    "require_root",
    "save",
    "save_allocations",
    "write_atomically",
]

#: Root's, and so those of every lab inside its machine.
ROOTS_KEPT_DIR = Path("/var/lib/kproxy/labs")


def _run_dir() -> Path:
    return Path("/run/kproxy/labs") if os.geteuid() == 0 else homes.users_own("labs")


def _kept_dir() -> Path:
    if os.geteuid() == 0:
        return ROOTS_KEPT_DIR
    home = Path(os.environ.get("HOME") or "/")
    above = Path(os.environ.get("XDG_STATE_HOME") or home / ".local" / "state")
    # A user without a home keeps nothing for longer than the machine runs.
    usable = os.access(home, os.W_OK) or os.access(above, os.W_OK)
    return above / "kproxy" / "labs" if usable else _run_dir() / ".kept"


RUN_DIR = _run_dir()
KEPT_DIR = _kept_dir()

#: Lab names become part of namespace names and of unix socket paths (107 bytes at most).
MAX_LAB_NAME = 24


def check_name(lab: str) -> None:
    """UsageError for what cannot be a lab's name; as it becomes a folder's, nothing else may pass
    (``..`` would take the folder of all labs down)."""
    if NAME.fullmatch(lab) is None or len(lab) > MAX_LAB_NAME:
        raise UsageError(
            f"{lab!r} is no name for a lab",
            where="--name",
            hint=f"lower case letters, digits and inner dashes, at most {MAX_LAB_NAME}",
        )


def _check_owner() -> None:
    """The records are their user's alone. MachineError when somebody else has put some in place."""
    if os.geteuid() != 0 and RUN_DIR.exists():
        homes.check_private(RUN_DIR)


# --- places -----------------------------------------------------------------------------------


def lab_dir(lab: str) -> Path:
    return RUN_DIR / lab


def manifests_dir(lab: str) -> Path:
    """The folder that every node's kproxy reads; :mod:`kproxy.lab.lifecycle` alone writes."""
    return lab_dir(lab) / "manifests"


def kept_dir(lab: str) -> Path:
    """What outlives a lab."""
    return KEPT_DIR / lab


def host_dir(lab: str, host: str) -> Path:
    """Log, lock file and proxy state of one node."""
    return lab_dir(lab) / "hosts" / host


def hosts_path(lab: str) -> Path:
    """What stands for /etc/hosts in programs that run inside the lab."""
    return lab_dir(lab) / "hosts.txt"


def list_labs() -> tuple[str, ...]:
    """Names of all labs that are up, half made or half gone, sorted: ours, not other users'."""
    _check_owner()
    return tuple(sorted(_recorded())) if RUN_DIR.is_dir() else ()


def require_root() -> None:
    """MachineError for who is not root: to be called where none of the user's own labs can be
    meant. Root's are not to be seen."""
    if os.geteuid() != 0:
        hint = "try again with sudo, or on a kernel of your own: kproxy lab up --kernel uml"
        raise MachineError("labs on this kernel need root", hint=hint)


def _recorded() -> Iterator[str]:
    for entry in RUN_DIR.iterdir():
        if (entry / "undo.jsonl").exists() or (entry / "state.json").exists():
            yield entry.name


# --- state ------------------------------------------------------------------------------------


@contextmanager
def lock(lab: str) -> Iterator[None]:
    """One changer of a lab at a time; waits for the other one. Not reentrant.

    The lock's file goes with the lab.
    """
    _check_owner()
    check_name(lab)
    private_dir(RUN_DIR)
    # Beside the lab's folder, not in it: ``forget`` removes the folder while it holds the lock.
    path = RUN_DIR / f".{lab}.lock"
    fd = _locked(path)
    try:
        yield
    finally:
        if not lab_dir(lab).exists():
            path.unlink(missing_ok=True)
        os.close(fd)


def _locked(path: Path) -> int:
    """Descriptor of the file that has this name, locked: its last holder may have removed the one
    that we waited for."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(fd), path.stat()):
                return fd
        except FileNotFoundError:
            pass  # removed between the two looks
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def find(lab: str) -> LabState | None:
    """The state of a lab, its pods as they are now; None when it is not (wholly) up."""
    _check_owner()
    check_name(lab)
    try:
        text = (lab_dir(lab) / "state.json").read_bytes()
    except FileNotFoundError:
        return None
    try:
        found = msgspec.json.decode(text, type=LabState)
        return conditions.applied(found, conditions.read(lab_dir(lab)))
    except msgspec.DecodeError as wrong:
        raise LabError(
            f"the lab's record is of another version of kproxy ({wrong})",
            where=str(lab_dir(lab) / "state.json"),
            hint=f"take it down and up again: kproxy lab down --name {lab}",
        ) from wrong


def load(lab: str) -> LabState:
    """The state of a lab that must be up; LabError says what to do when it is not."""
    state = find(lab)
    if state is not None:
        return state
    others = [name for name in list_labs() if name != lab]
    if not list_labs():
        require_root()
    if lab in list_labs():
        raise LabError(
            f"lab {lab} is half made or half gone", hint=f"try: kproxy lab down --name {lab}"
        )
    hint = f"up are: {', '.join(others)} (use --name)" if others else "try: kproxy lab up"
    raise LabError(f"lab {lab} is not up", hint=hint)


def save(state: LabState) -> None:
    """Write a lab's state, whole or not at all."""
    write_atomically(lab_dir(state.name) / "state.json", msgspec.json.encode(state))


def load_allocations(lab: str) -> Allocations:
    """What was allocated for the services of a lab of that name, now or earlier."""
    try:
        return msgspec.json.decode(
            (kept_dir(lab) / "allocations.json").read_bytes(), type=Allocations
        )
    except FileNotFoundError:
        return Allocations()


def save_allocations(lab: str, allocations: Allocations) -> None:
    write_atomically(kept_dir(lab) / "allocations.json", msgspec.json.encode(allocations))


def list_allocations() -> tuple[str, ...]:
    """Names of labs for which allocations are kept."""
    return tuple(sorted(entry.name for entry in KEPT_DIR.iterdir())) if KEPT_DIR.is_dir() else ()


def forget_allocations(lab: str) -> None:
    """The next lab of that name starts with fresh cluster IPs and node ports."""
    check_name(lab)
    if kept_dir(lab).is_dir():
        shutil.rmtree(kept_dir(lab))


def private_dir(path: Path) -> None:
    """Make a folder and its missing parents, all of them 0700 (mkdir -p gives parents the umask's
    mode)."""
    for folder in (*reversed(path.parents), path):
        folder.mkdir(mode=0o700, exist_ok=True)


def write_atomically(path: Path, content: bytes, *, draft: Path | None = None) -> None:
    """Replace a file so that a reader sees the old or the new content, never half of one.

    The folder is 0700 and the file 0600. ``draft`` (same file system) is where the new content is
    written first: beside the file when not given, elsewhere when the folder is watched.
    """
    private_dir(path.parent)
    draft = draft or path.with_name(f".{path.name}.new")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
    draft.rename(path)


def forget(lab: str) -> None:
    """Remove a lab's folder under /run: the last act of taking it down. Allocations stay."""
    shutil.rmtree(lab_dir(lab), ignore_errors=False)
