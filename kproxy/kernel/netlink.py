"""rtnetlink through pyroute2: sockets bound to a namespace, refusals in our own tree."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError as _RefusedByKernel

from kproxy.errors import NetlinkError
from kproxy.kernel.netns import entered


def open_route(namespace: int | str | None = None) -> IPRoute:
    """An rtnetlink socket that acts in ``namespace`` for life; the caller closes it."""
    with entered(namespace):
        return IPRoute()


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn a refusal of the kernel inside the block into NetlinkError: "cannot <what>: <why>"."""
    try:
        yield
    except _RefusedByKernel as refused:
        raise NetlinkError(f"cannot {what}: {os.strerror(refused.code)}", refused.code) from refused
