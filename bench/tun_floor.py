"""The floor under fastpath mode as a subject: its steering, and a C loop that only rewrites."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path as File

from kproxy.backends.fastpath import steer
from kproxy.backends.fastpath.carrier import take_precedence
from kproxy.backends.fastpath.door import SteerDoor
from kproxy.backends.fastpath.steer import DEVICES, SERVICES, Frame
from kproxy.bench.helper import ROOT
from kproxy.bench.load import Place
from kproxy.bench.ours import CLUSTER_IPS
from kproxy.bench.path import PORT, Path
from kproxy.core.objects import Family
from kproxy.core.steering import wanted
from kproxy.errors import CheckFailed
from kproxy.kernel import command, sysctl, tun
from kproxy.kernel.netns import entered

_SOURCE = File(__file__).parent / "floor" / "tun_floor.c"
_PROGRAM = ROOT / "build" / "bench" / "tun_floor"
_FAMILY = Family.IPV4


def build() -> File:
    """The program, made anew when its source is younger."""
    if not _PROGRAM.exists() or _PROGRAM.stat().st_mtime < _SOURCE.stat().st_mtime:
        _PROGRAM.parent.mkdir(parents=True, exist_ok=True)
        command.run(["gcc", "-O3", "-Wall", "-Wextra", "-o", str(_PROGRAM), str(_SOURCE)])
    return _PROGRAM


class TunFloor:
    """IPv4 only, one endpoint, nobody hidden."""

    name = "floor"

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, path: Path) -> None:
        program, device = build(), DEVICES[_FAMILY]
        endpoint, _ = path.pod_place(_FAMILY)
        with entered(path.fd("node")):
            # The queue that is opened here sets the device up as the mode does.
            queues = tun.open_queues(device, 1)
            door = SteerDoor(_FAMILY)
            for name, value in steer.device_sysctls(_FAMILY, checked=False).items():
                sysctl.write(name, value)
            door.put(wanted(door.plan))
            member = (CLUSTER_IPS[_FAMILY], "tcp", PORT), (CLUSTER_IPS[_FAMILY], "udp", PORT)
            door.run(
                steer.skeleton(Frame(_FAMILY)) + steer.changes(_FAMILY, {SERVICES: member}, {})
            )
            self._process = subprocess.Popen(
                [str(program), device, CLUSTER_IPS[_FAMILY], endpoint], stdin=subprocess.DEVNULL
            )
            take_precedence(self._process.pid)
            self._await(device)
            for queue in queues:
                os.close(queue)

    def _await(self, device: str) -> None:
        """Until it waits for packets."""
        assert self._process is not None
        status = File(f"/proc/{self._process.pid}/wchan")
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            if "poll" in status.read_text():
                return
            time.sleep(0.01)
        raise CheckFailed(f"the floor did not come to {device}")

    def place(self, family: Family) -> Place:
        return CLUSTER_IPS[family], PORT

    def pids(self) -> tuple[int, ...]:
        assert self._process is not None
        return (self._process.pid,)

    def version(self) -> str:
        return "a C loop that only rewrites"

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = None
