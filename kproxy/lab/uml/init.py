"""The first program of a machine that stays up: a shell script that makes it look like the host.

The machine's root is a copy-on-write view of the host's file system; what is written there is gone
with the machine. An overlay does not notice when the host changes a file under it, so the folders
in which people keep files of theirs are shown as they are instead, live and for writing: a command
that names a file finds what the host has now, and leaves its own files where the host finds them.

Pure: text out of values.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

#: Folders of / that are the machine's own: what it changes there must not reach the host.
_OWN = frozenset(
    {
        "bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "libx32", "lost+found", "mnt",
        "proc", "run", "sbin", "sys", "usr", "var",
    }
)  # fmt: skip

#: Folders of / that are the machine's own, but for folders in them that a command stands in.
_SHARED_BELOW = frozenset({"etc", "media", "mnt", "var"})

#: Where the host's own file system is inside, live.
HOST_ROOT = Path("/mnt/host")

#: A file that is only there inside: its text is the name of the lab that the machine is for.
MARK = Path("/run/kproxy/machine")

#: The line to the broker, as the machine's kernel calls it.
LINE = "/dev/ttyS0"

#: Not loaded by the kernel itself when they are first wanted: their sysctls are, before anything
#: else of theirs.
_MODULES = ("ipv6", "nf_conntrack", "ip_vs")

_TOOLS = tuple(
    f"{tool}{verb}" for tool in ("iptables", "ip6tables") for verb in ("", "-save", "-restore")
)

_SCRIPT = """\
#!/bin/sh
# Runs as process 1 of a user-mode Linux, before anything is mounted.
set -eu
PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
modules=/usr/lib/uml/modules/$(uname -r)
mount -t tmpfs tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/root
insmod "$modules"/kernel/fs/overlayfs/overlay.ko
mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work /mnt/root
cd /mnt/root
mkdir -p usr/lib/modules mnt/host
ln -s "$modules" usr/lib/modules/"$(uname -r)"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t devtmpfs devtmpfs dev
mkdir -p dev/pts dev/shm
# What udev makes elsewhere; shells name pipes by it.
for link in fd:fd stdin:fd/0 stdout:fd/1 stderr:fd/2; do
    ln -sf /proc/self/"${{link#*:}}" dev/"${{link%%:*}}"
done
mount -t devpts -o ptmxmode=666 devpts dev/pts
mount -t tmpfs tmpfs dev/shm
mount -t tmpfs -o mode=755 tmpfs run
mkdir -m 700 run/kproxy
printf %s {lab} >run/kproxy/machine
# Not chroot: the kernel's own calls of modprobe must see usr/lib/modules as well.
pivot_root . mnt/host
exec chroot . /bin/sh -eu <<'INSIDE'
# This kernel has no nf_tables for IP: "iptables" must mean the legacy one, for every program.
for tool in {tools}; do
    legacy=/usr/sbin/$(echo "$tool" | sed s/tables/tables-legacy/)
    [ ! -x "$legacy" ] || ln -sf "$legacy" "/usr/sbin/$tool"
done
modprobe -a {modules}
for folder in {live}; do
    mount --rbind "/mnt/host/$folder" "/$folder"
done
mkdir -p {kept}
mount --bind /mnt/host{kept_on_host} {kept}
printf %s {lab} >/proc/sys/kernel/hostname
ip link set lo up
exec {python} -P -m kproxy.lab.uml.agent {ways} </dev/null
INSIDE
"""


def live_folders(names: Iterable[str]) -> tuple[str, ...]:
    """Those of the folders of / that the machine shows as the host has them, sorted."""
    return tuple(sorted(name for name in names if name not in _OWN))


def to_be_shown(directory: Path) -> bool:
    """Whether a folder that a command stands in is to be shown live by itself: it lies in a part
    of the tree that is the machine's own, but is nothing that the machine needs."""
    parts = directory.parts
    return len(parts) > 2 and parts[1] in _SHARED_BELOW


def script(lab: str, *, live: Iterable[str], kept: Path, kept_on_host: Path, python: str) -> str:
    """The script. ``kept`` is where programs inside look for what outlives the machine,
    ``kept_on_host`` the host's folder that it is; ``python`` has kproxy. With nothing ``live``, no
    write but to ``kept`` reaches the host, wherever a command stands."""
    live = tuple(live)
    return _SCRIPT.format(
        lab=shlex.quote(lab),
        tools=" ".join(_TOOLS),
        modules=" ".join(_MODULES),
        live=shlex.join(live),
        ways="live" if live else "apart",
        kept=shlex.quote(str(kept)),
        kept_on_host=shlex.quote(str(kept_on_host)),
        python=shlex.quote(python),
    )
