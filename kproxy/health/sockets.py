"""Listening sockets of the health and metrics servers, from their ``ip:port`` text."""

from __future__ import annotations

import ipaddress
import socket

from kproxy.errors import KernelError

#: Requests that wait while the server is not there yet, or busy.
_BACKLOG = 128


def parse(address: str) -> tuple[str, int]:
    """Host and port of ``ip:port`` or ``[ip]:port``, which the validation has let through."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def listen(address: str) -> socket.socket:
    """A listening TCP socket in the calling thread's network namespace. KernelError otherwise.

    From now on requests wait to be answered, so a server may be started at leisure.
    """
    host, port = parse(address)
    version = ipaddress.ip_address(host).version
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        # Connections of our predecessor may linger; a second listener is refused all the same.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if version == 6:
            # [::] means every address of both families, as it does for kube-proxy.
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        made.bind((host, port))
        made.listen(_BACKLOG)
    except OSError as refused:
        made.close()
        raise KernelError(
            f"cannot listen: {refused.strerror}",
            where=address,
            hint=f"see who does with: ss -ltnp 'sport = :{port}'",
        ) from refused
    return made
