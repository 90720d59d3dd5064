"""Which prober does what, made when the first target asks for it.

The web library and HTTP/2 take a fifth of a second to load, so nobody who checks by TCP loads them,
and where checks are going on they are loaded in another thread.
"""

from __future__ import annotations

import asyncio
import importlib
import select
from collections.abc import Mapping

from kproxy.core.health.values import Exec, Grpc, Http, Probe, Target, Tcp, Udp
from kproxy.core.objects import Value
from kproxy.health.checks.descriptors import DescriptorProber, opened
from kproxy.health.checks.outcome import Outcome, no_answer
from kproxy.health.checks.tasks import Progress, TaskProber, guarded
from kproxy.health.checks.tcp import TcpProber
from kproxy.health.checks.udp import UdpProber


class Kind(Value, frozen=True):
    """``name`` in figures; ``most`` tries at once, None: as many as descriptors allow. ``where``
    is module and class of a prober that has to be loaded."""

    name: str
    most: int | None = None
    where: tuple[str, str] = ("", "")


_HERE = "kproxy.health.checks"

#: A conversation costs some 30 kB while it lasts, a program a process.
KINDS: Mapping[type[Probe], Kind] = {
    Tcp: Kind("tcp"),
    Udp: Kind("udp"),
    Http: Kind("http", 512, (f"{_HERE}.http", "HttpProber")),
    Grpc: Kind("grpc", 512, (f"{_HERE}.grpc", "GrpcProber")),
    Exec: Kind("exec", 8, (f"{_HERE}.execute", "ExecProber")),
}

_SIMPLE: Mapping[str, DescriptorProber] = {"tcp": TcpProber(), "udp": UdpProber()}


def simple(kind: Kind) -> DescriptorProber | None:
    """The prober of a kind that needs one socket and nothing loaded."""
    return _SIMPLE.get(kind.name)


async def load(kind: Kind) -> TaskProber:
    """A prober of a kind that holds conversations; ``close`` it when nobody needs it."""
    module, name = kind.where
    loaded = await asyncio.to_thread(importlib.import_module, module)
    made: TaskProber = getattr(loaded, name)()
    return made


async def probe(target: Target, timeout: float | None = None) -> Outcome:
    """One try, now, in the calling thread's network namespace; rise and fall are the caller's.

    ``timeout`` in seconds, None: the one of the target's pace.
    """
    limit = target.check.pace.timeout if timeout is None else timeout
    kind = KINDS[type(target.check.probe)]
    prober = simple(kind)
    if prober is not None:
        return await _by_descriptor(prober, target, limit)
    talker = await load(kind)
    progress = Progress()
    try:
        async with asyncio.timeout(limit):
            return await guarded(talker, target, progress)
    except TimeoutError:
        return no_answer(limit, progress.lacks)
    finally:
        await talker.close()


async def _by_descriptor(prober: DescriptorProber, target: Target, limit: float) -> Outcome:
    made = opened(prober, target)
    if isinstance(made, Outcome):
        return made
    loop = asyncio.get_running_loop()
    # The events of one socket by an epoll, as the prober expects them.
    with made, select.epoll() as epoll:
        epoll.register(made, prober.mask)
        some = asyncio.Event()
        loop.add_reader(epoll.fileno(), some.set)
        try:
            async with asyncio.timeout(limit):
                while True:
                    for _, events in epoll.poll(0):
                        outcome = prober.ended(target, made, events)
                        if outcome is not None:
                            return outcome
                    some.clear()
                    await some.wait()
        except TimeoutError:
            return no_answer(limit)
        finally:
            loop.remove_reader(epoll.fileno())
