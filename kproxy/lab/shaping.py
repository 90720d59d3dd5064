"""What a link does to packets, as queueing disciplines of the kernel at both its ends."""

from __future__ import annotations

import errno

from kproxy.errors import MachineError, NetlinkError
from kproxy.kernel import command
from kproxy.kernel.netlink import explained, open_route
from kproxy.lab.network import End, Shape

#: Bytes that tbf may send at once: a GSO packet of 64 KiB must fit or it is dropped.
_BURST = 128 * 1024

#: linux/pkt_sched.h: the parent of a root discipline.
_ROOT = 0xFFFFFFFF


def put(namespace: int | None, verb: str, end: End, index: int, shape: Shape) -> None:
    """``verb`` (add, replace) the root discipline of a device: rate alone by tbf, which every
    kernel has; delay and loss need netem. MachineError, naming the end, where the kernel has none.

    ``namespace`` None is the calling thread's.
    """
    by_netem = bool(shape.delay or shape.loss)
    try:
        with open_route(namespace) as route, explained(f"{verb} a queue on {end.interface}"):
            if not by_netem:
                route.tc(verb, "tbf", index, rate=f"{shape.rate}bit", burst=_BURST, latency="50ms")
                return
            route.tc(verb, "netem", index, delay=round(shape.delay * 1e6), loss=shape.loss * 100)
    except NetlinkError as refused:
        if refused.errno != errno.ENOENT:
            raise
        need = "netem (delay, loss)" if by_netem else "tbf (rate)"
        raise MachineError(
            f"this kernel has no packet scheduler {need}",
            where=f"link {end.host}:{end.interface}",
            hint="leave the key out, or use a kernel that has it (modprobe sch_netem)",
        ) from refused
    if shape.rate:
        _set_rate(namespace, end, shape)


def _set_rate(namespace: int | None, end: End, shape: Shape) -> None:
    """pyroute2 0.9.7 says netem's rate twice, the second time as the estimator TCA_RATE, which the
    kernel refuses (ERANGE): with a rate, netem is told by tc what it is."""
    words = ["delay", f"{round(shape.delay * 1e6)}us", "loss", f"{shape.loss * 100:.4f}%"]
    argv = ["tc", "qdisc", "change", "dev", end.interface, "root", "netem", *words]
    command.run([*argv, "rate", f"{shape.rate}bit"], namespace=namespace)


def take_away(namespace: int | None, index: int) -> None:
    """The root discipline of a device, so that the kernel's own takes its place; fine when there
    is none."""
    try:
        with open_route(namespace) as route, explained("remove the root discipline"):
            route.tc("del", index=index, handle=0, parent=_ROOT)
    except NetlinkError as refused:
        if refused.errno not in (errno.ENOENT, errno.EINVAL):
            raise
