"""A process that runs the bare relay (:mod:`kproxy._relay`): no rules, no daemon.

python -m kproxy.bench.relay_agent       # started by kproxy.bench.ours.BareRelay, in the node
"""

from __future__ import annotations

import socket
from typing import Any

from kproxy import _relay
from kproxy.bench.helper import obey
from kproxy.bench.load import Place


class _Relay:
    def __init__(self) -> None:
        self.relay: _relay.Relay | None = None
        self.services: dict[str, int] = {}

    def start(self, *, fronts: list[tuple[str, Place, Place]], options: dict[str, Any]) -> None:
        """``fronts``: (protocol, where to listen, endpoint), each a service of its own."""
        self.relay = _relay.Relay(**options)
        self.relay.start()
        workers = options.get("workers", 1)
        for protocol, (host, port), endpoint in fronts:
            service = self.relay.add_service(udp=protocol == "udp")
            self.relay.set_endpoints(service, [(endpoint[0], endpoint[1])], [0], [0])
            self.relay.open(
                service, _relay.CLUSTER, [_bound(protocol, host, port) for _ in range(workers)]
            )
            self.services[f"{protocol} {host}"] = service

    def endpoints(self, *, service: str, places: list[Place]) -> None:
        """Replace a service's endpoints; its name is ``protocol address``."""
        every = list(range(len(places)))
        self._running().set_endpoints(
            self.services[service], [(host, port) for host, port in places], every, every
        )

    def counters(self) -> dict[str, Any]:
        relay = self._running()
        # As the daemon does: they are kept until somebody asks, up to a limit.
        relay.take_verdicts()
        return {
            "totals": relay.totals(),
            "services": {
                name: relay.service_counters(number) for name, number in self.services.items()
            },
        }

    def stop(self) -> None:
        if self.relay is not None:
            self.relay.stop()

    def _running(self) -> _relay.Relay:
        if self.relay is None:
            raise LookupError("the relay was not started")
        return self.relay


def _bound(protocol: str, host: str, port: int) -> int:
    """Descriptor of a socket at a place, listening if it is TCP; the caller's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(family, kind | socket.SOCK_NONBLOCK) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind((host, port))
        if protocol == "tcp":
            made.listen(4096)
        return made.detach()


def main() -> None:
    relay = _Relay()
    orders = (relay.start, relay.endpoints, relay.counters)
    try:
        obey({each.__name__: each for each in orders})
    finally:
        relay.stop()


if __name__ == "__main__":
    main()
