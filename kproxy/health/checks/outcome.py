"""What one try of a check found out, and what errors of sockets say about whom.

An error is either about the endpoint (it refused, it is gone) or about this node: no descriptor, no
local port, no route. Of the second kind nothing is learned of the endpoint, so it must never count
as its failure: a node without a default route would else find all the world to be down.
"""

from __future__ import annotations

import errno
import os

from kproxy.core.objects import Value


class Outcome(Value, frozen=True):
    """How a try ended.

    ``reason`` is short, stable and for people, as log lines and events show it. ``own`` is true
    when the try failed for a fault of this node's: then ``good`` is False and says nothing.
    """

    good: bool
    reason: str
    own: bool = False


def bad(reason: str) -> Outcome:
    """The endpoint failed."""
    return Outcome(False, reason)


def own(reason: str) -> Outcome:
    """This node could not try."""
    return Outcome(False, reason, True)


def seconds(value: float) -> str:
    """A time as reasons give it: ``1s``, ``0.25s``."""
    return f"{value:g}s"


def no_answer(timeout: float, what: str = "no answer") -> Outcome:
    """Time ran out: ``no answer in 1s``."""
    return bad(f"{what} in {seconds(timeout)}")


#: Whatever call it comes from, it is about this node.
_OWN = {
    errno.EMFILE: "this process has no descriptor left",
    errno.ENFILE: "this node has no open file left",
    errno.ENOMEM: "this node has no memory for a socket",
    errno.ENOBUFS: "this node has no memory for a socket",
    errno.EADDRNOTAVAIL: "this node has no local port or address left",
    errno.EAFNOSUPPORT: "this node has no such address family",
    errno.EPERM: "this node's own rules forbid it",
    errno.EACCES: "this node's own rules forbid it",
}

#: About this node when the call itself gave it, about the path when the network answered it.
_OWN_AT_ONCE = {errno.ENETUNREACH: "this node has no route there"}

_ENDPOINT = {
    errno.ECONNREFUSED: "connection refused",
    errno.ECONNRESET: "connection reset",
    errno.EPIPE: "connection reset",
    errno.ETIMEDOUT: "no answer",
    errno.ENETUNREACH: "network unreachable",
    # Also from the call itself: CNIs put unreachable and blackhole routes (EINVAL) where a pod's
    # address was, so these say that the pod is gone.
    errno.EHOSTUNREACH: "no route to host",
    errno.EINVAL: "no route to host",
    errno.ECONNABORTED: "connection reset",
    errno.EMSGSIZE: "datagram too long for the path",
    errno.EPROTO: "protocol error",
}


def of_errno(code: int | None, *, at_once: bool = False) -> Outcome:
    """The outcome that an errno is. ``at_once``: the call gave it, before any packet could have
    come back."""
    if not code:
        return bad("connection failed")
    if code in _OWN:
        return own(_OWN[code])
    if at_once and code in _OWN_AT_ONCE:
        return own(_OWN_AT_ONCE[code])
    return bad(_ENDPOINT.get(code) or os.strerror(code).lower())
