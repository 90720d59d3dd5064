"""Listening sockets of the daemon's web servers, from their ``ip:port`` text."""

from __future__ import annotations

import socket

from kproxy.errors import KernelError

#: Requests that wait while the server is not there yet, or busy.
_BACKLOG = 128


def parse(address: str) -> tuple[str, int]:
    """Host and port of ``ip:port`` or ``[ip]:port``, which the validation has let through."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def spell(host: str, port: int) -> str:
    """The opposite of :func:`parse`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def listen(address: str, *, both: bool = True) -> socket.socket:
    """A listening TCP socket in the calling thread's network namespace. KernelError otherwise.

    From now on requests wait to be answered, so a server may be started at leisure. ``both``:
    ``[::]`` means every address of both families, as it does for kube-proxy; else of IPv6 only.
    """
    host, port = parse(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    made = None
    try:
        made = socket.socket(family, kind)
        # Connections of our predecessor may linger; a second listener is refused all the same.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both)
        made.bind((host, port))
        made.listen(_BACKLOG)
    except OSError as refused:
        if made is not None:
            made.close()
        raise KernelError(
            f"cannot listen: {refused.strerror}",
            where=address,
            hint=f"see who does with: ss -ltnp 'sport = :{port}'",
        ) from refused
    return made
