"""Running host tools (iptables-restore, ip6tables-save, …): argument lists, never a shell.

Tools act in the network namespace of the calling thread; :func:`run` can be told another one.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

from kproxy.errors import CommandError, MachineError
from kproxy.kernel.netns import entered

#: Where administration tools live even when the caller's PATH forgot them (Debian's non-root PATH).
ADMIN_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"

#: Debian's package of each tool, for the sentence that says how to get it.
PACKAGES = {
    "iptables": "iptables",
    "ip6tables": "iptables",
    "nft": "nftables",
    "ipset": "ipset",
    "ipvsadm": "ipvsadm",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "tc": "iproute2",
    "linux.uml": "user-mode-linux",
    "rsvg": "librsvg2-bin",
}


#: Largest pipe that an unprivileged process may ask for (fs.pipe-max-size, default).
_PIPE_SIZE = 1 << 20


def find(tool: str) -> str | None:
    """Path of a host tool, or None."""
    return shutil.which(tool) or shutil.which(tool, path=ADMIN_PATH)


def require(tool: str) -> str:
    """Path of a host tool; MachineError with the apt command when it is missing."""
    path = find(tool)
    if path is None:
        package = PACKAGES.get(tool.split("-")[0], PACKAGES.get(tool, tool))
        raise MachineError(f"{tool} is not installed", hint=f"try: apt-get install {package}")
    return path


def run(
    argv: Sequence[str],
    *,
    stdin: bytes | Iterable[bytes] | None = None,
    namespace: int | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    check: bool = True,
) -> subprocess.CompletedProcess[bytes]:
    """Run one tool to its end; its output is captured as bytes.

    ``stdin`` may be an iterable of chunks: they are written while the tool already works.
    ``namespace`` is an open descriptor of a network namespace. ``env`` is added to the environment.
    Raises CommandError on a status other than 0 (unless ``check`` is false) or on time-out
    (seconds), MachineError when the tool is missing.
    """
    command = [require(argv[0]), *argv[1:]]
    whole_env = {**os.environ, **env} if env else None
    try:
        with entered(namespace):
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=whole_env,
            )
        if stdin is None or isinstance(stdin, bytes):
            out, err = process.communicate(stdin, timeout=timeout)
        else:
            out, err = _stream(process, stdin, timeout)
    except subprocess.TimeoutExpired as late:
        process.kill()
        process.communicate()
        raise CommandError(argv, -9, f"no answer within {late.timeout:g} s") from None
    if check and process.returncode != 0:
        raise CommandError(argv, process.returncode, err.decode(errors="replace"))
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _stream(
    process: subprocess.Popen[bytes], chunks: Iterable[bytes], timeout: float | None
) -> tuple[bytes, bytes]:
    """Feed chunks as they are made. A tool that dies early breaks the pipe: its words tell why."""
    assert process.stdin is not None
    # A maker that is ahead of the tool need not wait for it every 64 kB.
    with suppress(PermissionError):
        fcntl.fcntl(process.stdin, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
    try:
        for chunk in chunks:
            process.stdin.write(chunk)
        process.stdin.close()
    except BrokenPipeError:
        pass
    except BaseException:
        # The maker of the chunks failed: the tool must not take half a transaction for a whole one.
        process.kill()
        process.communicate()
        raise
    process.stdin = None
    return process.communicate(timeout=timeout)
