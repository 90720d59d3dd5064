"""The legacy tables: how large they are, and who holds the lock of their tools.

Nobody is told of a change of a legacy table, but its size costs two microseconds to ask for, and no
process. Source: linux/netfilter_ipv4/ip_tables.h (``struct ipt_getinfo``), and its twin for IPv6.
"""

from __future__ import annotations

import ctypes
import os
import re
import socket
import struct
from pathlib import Path

from kproxy.core.objects import Family
from kproxy.errors import NetlinkError

_libc = ctypes.CDLL(None, use_errno=True)

#: IPT_SO_GET_INFO and IP6T_SO_GET_INFO are the same number, at these levels.
_GET_INFO = 64
_LEVELS = {Family.IPV4: socket.IPPROTO_IP, Family.IPV6: socket.IPPROTO_IPV6}
_DOMAINS = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
#: name, valid hooks, where each of five hooks begins and ends, entries, bytes
_INFO = struct.Struct("=32s I 5I 5I I I")
_ENTRIES = 12

#: Where the tools lock, unless the environment says otherwise.
DEFAULT_LOCK = "/run/xtables.lock"
_LOCK = re.compile(r"^\d+: +FLOCK +\S+ +WRITE +(\d+) \S+:(\d+) ", re.MULTILINE)


class Tables:
    """The legacy tables of one family, in the namespace of the thread that made it."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self._socket = socket.socket(
            _DOMAINS[family], socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW
        )

    def info(self, table: str) -> bytes | None:
        """The table's hooks, entries and size, to be compared; None when it is not there.

        Ask for tables in use only: the kernel makes the table that it is asked for.
        """
        buffer = ctypes.create_string_buffer(_INFO.pack(table.encode(), *[0] * 13), _INFO.size)
        length = ctypes.c_uint(_INFO.size)
        done = _libc.getsockopt(
            self._socket.fileno(), _LEVELS[self.family], _GET_INFO, buffer, ctypes.byref(length)
        )
        if done == 0:
            return buffer.raw
        code = ctypes.get_errno()
        if code == 2:  # ENOENT
            return None
        raise NetlinkError(
            f"cannot look at the legacy table {table}: {os.strerror(code)}",
            code,
            hint="changes by others are found at syncPeriod only",
        )

    def close(self) -> None:
        self._socket.close()


def entries(info: bytes | None) -> int:
    """How many entries the kernel counts in a table of which :meth:`Tables.info` told: one for each
    rule, two for the head and the end of each chain that somebody made, one for the policy of each
    base chain, and one at the end. Pure."""
    return 0 if info is None else int(_INFO.unpack(info)[_ENTRIES])


def lock_file() -> Path:
    """The file that the legacy tools lock."""
    return Path(os.environ.get("XTABLES_LOCKFILE", DEFAULT_LOCK))


def lock_holder() -> str:
    """``process 123 (firewalld)``: who holds the lock of the legacy tools, "" when nobody does.

    Read from the kernel's list: trying the lock would make others find it taken.
    """
    try:
        inode = lock_file().stat().st_ino
    except FileNotFoundError:
        return ""
    for pid, number in _LOCK.findall(Path("/proc/locks").read_text()):
        if int(number) == inode:
            return f"process {pid}{_name(pid)}"
    return ""


def _name(pid: str) -> str:
    try:
        return f" ({Path(f'/proc/{pid}/comm').read_text().strip()})"
    except OSError:
        return ""
