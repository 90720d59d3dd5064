"""What decides about figures and is nobody's: processor, memory, kernel, tools, settings.

No host name, no user, no path, no time zone is looked at: what is not read cannot be told by
mistake. Of what a tool says of itself only its version's words are kept, since some (iperf3) print
the host's name as well.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from kproxy.bench.path import ENDS, NODE, SETTINGS
from kproxy.bench.results import Fingerprint
from kproxy.kernel import command

#: Tool -> how to ask it for its version, and where in its words that is.
_TOOLS: Mapping[str, tuple[str, str]] = {
    "iptables": ("--version", r" v(\S+ \(\w+\))"),
    "iptables-legacy": ("--version", r" v(\S+)"),
    "ipset": ("--version", r" v([\d.]+)"),
    "nft": ("--version", r" v(\S+)"),
    "ipvsadm": ("--version", r"ipvsadm v(\S+)"),
    "conntrack": ("--version", r" v([\d.]+)"),
    "haproxy": ("-v", r"version (\S+)"),
    "nginx": ("-v", r"nginx/(\S+)"),
    "wrk": ("-v", r"wrk (\S+)"),
    "iperf3": ("--version", r"iperf (\S+)"),
}

#: Sysctls of the machine that decide about figures and that no namespace has for itself, or gets
#: from the first one.
_MACHINE = (
    "net.core.default_qdisc",
    "net.core.netdev_budget",
    "net.core.netdev_max_backlog",
    "net.core.rmem_max",
    "net.core.wmem_max",
    "net.core.somaxconn",
    "net.ipv4.tcp_congestion_control",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
    "net.netfilter.nf_conntrack_max",
)

#: Seconds that a tool may take to say its version.
_PATIENCE = 5.0


def taken(settings: Iterable[str] = ("tuned",)) -> Fingerprint:
    """Of this machine, now. ``settings`` are those of the path that its node had."""
    return Fingerprint(
        cpu=_cpu_model(),
        cores=os.cpu_count() or 0,
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        kernel=platform.release(),
        python=platform.python_version(),
        tools=tools(),
        sysctls={**_of_machine(), **_of_path(settings)},
        load=os.getloadavg()[0],
    )


def tools() -> dict[str, str]:
    """Version of each tool that is here."""
    return {name: version for name in _TOOLS if (version := _version(name))}


def _version(name: str) -> str:
    """ "": it is not installed; "unknown": it does not say."""
    tool = command.find(name)
    if tool is None:
        return ""
    option, pattern = _TOOLS[name]
    try:
        # Most end with 0, wrk with 1, and ipvsadm with 2 where the kernel has no IPVS.
        said = subprocess.run(
            [tool, option],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=_PATIENCE,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    found = re.search(pattern, (said.stdout + said.stderr).decode(errors="replace"))
    return found[1] if found else "unknown"


def _cpu_model() -> str:
    """As the kernel calls it; the architecture where it has no name for it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model"):
            return value.strip()
    return platform.machine()


def _of_machine() -> dict[str, str]:
    found = {}
    for name in _MACHINE:
        file = Path("/proc/sys", *name.split("."))
        if file.exists():
            found[name] = " ".join(file.read_text().split())
    return found


def _of_path(settings: Iterable[str]) -> dict[str, str]:
    """What the measured namespaces are set to, whose they are in front."""
    whose = {"ends": ENDS, "node": NODE}
    for name in settings:
        whose[f"node ({name})"] = SETTINGS[name]
    return {
        f"{who}: {name.replace('/', '.')}": value
        for who, sysctls in whose.items()
        for name, value in sysctls
    }
