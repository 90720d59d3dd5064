"""What processes use, by /proc: CPU seconds and memory of a subject, of the whole machine."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable
from pathlib import Path

from kproxy.core.objects import Value
from kproxy.errors import CheckFailed

_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")

#: Processes are calm that take no more of a processor than that between two looks, within so long.
_CALM, _LOOK, _PATIENCE = 0.03, 0.2, 60.0

#: Lines of /proc/meminfo that hold what rules, sets, sockets and connections are made of. What can
#: be given back (SReclaimable: names of files, mostly) is left out: reading a file makes it grow.
_KERNEL = ("SUnreclaim:", "VmallocUsed:", "Percpu:")


class Memory(Value, frozen=True):
    """Bytes. ``pss`` shares what several processes share; neither has the kernel's socket
    buffers."""

    rss: int
    pss: int


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time of processes, all their threads: those that ended count as well.

    To nanoseconds while no thread has ended, where the scheduler tells; else to clock ticks.
    Packets that a process sends over veth are delivered in its own system call, so much of what
    the network costs is in here; what other processes' packets cause in a softirq is with them.
    """
    return sum(max(_precise(pid), _ticks(pid)) for pid in pids)


def _precise(pid: int) -> float:
    """Sum of the living threads' run times; 0 when this kernel has none (CONFIG_SCHED_INFO)."""
    try:
        return sum(
            int((task / "schedstat").read_text().split()[0]) / 1e9
            for task in Path(f"/proc/{pid}/task").iterdir()
        )
    except (FileNotFoundError, ProcessLookupError):
        return 0.0


def _ticks(pid: int) -> float:
    after_name = _of(pid, "stat").rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / _TICK


def tools_seconds(pids: Iterable[int]) -> float:
    """CPU seconds of the processes that these have started and that have ended, in clock ticks."""
    total = 0
    for pid in pids:
        after_name = _of(pid, "stat").rpartition(")")[2].split()
        total += int(after_name[13]) + int(after_name[14])
    return total / _TICK


def machine_seconds() -> float:
    """CPU seconds that all of the machine has spent since it started, idle and stolen ones not."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, _idle, _wait, irq, softirq = map(int, fields[:7])
    return (user + nice + system + irq + softirq) / _TICK


def await_calm(pids: Collection[int], who: str) -> None:
    """Until processes have next to nothing to do. CheckFailed: they do not come to rest."""
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        before = cpu_seconds(pids)
        time.sleep(_LOOK)
        if cpu_seconds(pids) - before <= _CALM * _LOOK:
            return
    raise CheckFailed(f"{who} does not come to rest within {_PATIENCE:g} s")


def kernel_memory() -> int:
    """Bytes that the kernel holds for itself, all of the machine. What was freed a moment
    ago is given back a moment later: differences of less than five megabytes say nothing."""
    words = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    return sum(1024 * int(value[1]) for value in words if value[0] in _KERNEL)


def memory(pids: Iterable[int]) -> Memory:
    """Of processes together."""
    rss = pss = 0
    for pid in pids:
        rss += int(_of(pid, "statm").split()[1]) * _PAGE
        for line in _of(pid, "smaps_rollup").splitlines():
            if line.startswith("Pss:"):
                pss += int(line.split()[1]) * 1024
    return Memory(rss, pss)


def _of(pid: int, name: str) -> str:
    """A file of a process. CheckFailed: it is not there any more, or only waits to be reaped."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except (FileNotFoundError, ProcessLookupError):
        raise CheckFailed(f"process {pid} has ended while it was measured") from None


def descriptors(pids: Iterable[int]) -> int:
    """Open descriptors of processes together."""
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)
