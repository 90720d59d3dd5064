"""Private directories of whoever runs machines: for those that run one command, with a sweep after
runs that were killed, and for labs.

Also for who is not root: a directory of one's own in which nobody else can put anything.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from kproxy.errors import MachineError

_ROOTS = Path("/run/kproxy/uml")


def private_root() -> Path:
    """Where this user's machines live; made with mode 0700 if it is not there.

    MachineError when somebody else has put something in its place.
    """
    if os.geteuid() == 0:
        root = _ROOTS
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    else:
        root = users_own("uml")
        root.mkdir(mode=0o700, exist_ok=True)
    check_private(root)
    return root


def users_own(word: str) -> Path:
    """The name of a directory of a user who is not root; ``word`` is what it is for."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    # The name in /tmp is no secret: whose it is decides.
    above = Path(runtime) if runtime else Path(tempfile.gettempdir())
    return above / f"kproxy-{word}-{os.geteuid()}"


def check_private(root: Path) -> None:
    """MachineError unless it is a directory of our own that is closed to everybody else."""
    about = root.lstat()
    mine = about.st_uid == os.geteuid() and not about.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    if not stat.S_ISDIR(about.st_mode) or not mine:
        raise MachineError(
            f"{root} is not a directory of mode 0700 that is yours", hint="remove it, or set TMPDIR"
        )
