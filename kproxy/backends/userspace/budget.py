"""How the process's file descriptors are shared out, so that no use starves another. Pure.

Of the limit (RLIMIT_NOFILE, raised to the hard one at the start) each of the two families gets a
half, of which sockets of fronts and held node ports use a quarter, at most a half where there are
very many; TCP flows (two descriptors each) a half, UDP sessions (one each) a quarter. What is left
over by some is room for the others; a relay that meets the limit pauses accepting all the same.
"""

from __future__ import annotations

from kproxy.core.objects import Value

#: For files, pipes of tools, netlink and the servers of the process itself.
RESERVE = 256

#: Threads of one family's relay that the machine's cores ask for, at most: beyond that the kernel's
#: own work for the packets is what takes the time.
MOST_WORKERS = 4


class Budget(Value, frozen=True):
    """What one family may use. ``sockets`` at most, ``easy`` of them without being thrifty;
    ``flows`` and ``sessions`` for each worker."""

    workers: int
    sockets: int
    easy: int
    flows: int
    sessions: int


def budget(limit: int, workers: int, cpus: int) -> Budget:
    """Shares of ``limit`` descriptors. ``workers`` 0: by the number of ``cpus``."""
    workers = workers or max(1, min(cpus, MOST_WORKERS))
    eighth = max(0, limit - RESERVE) // 8
    each = max(1, eighth // workers)
    return Budget(workers, sockets=eighth * 2, easy=eighth, flows=each, sessions=each)


def for_each_front(budget: Budget, in_use: int, coming: int) -> int:
    """How many sockets each of ``coming`` fronts gets: one for each worker while there is plenty,
    fewer when so many come that the others would go short; 0: there is no room for even one."""
    if not coming or in_use >= budget.sockets:
        return 0
    return max(1, min(budget.workers, (budget.easy - in_use) // coming))
