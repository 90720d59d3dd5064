"""What userspace mode puts in force, as text for a reader. Pure.

First what the relay serves, a line for each front: its port and the endpoints behind it. Relay
ports are the kernel's to choose, so these are stand-ins. Then the rules, as the restore tool reads
them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kproxy.backends.userspace.diff import call, rules_between
from kproxy.backends.userspace.held import Relaying
from kproxy.backends.userspace.plan import Service, Serving
from kproxy.backends.userspace.render import Desired, render
from kproxy.backends.xtables.found import Found
from kproxy.core.objects import PortName
from kproxy.core.policy import Use
from kproxy.core.snapshot import Snapshot

#: The first port of the range from which Linux chooses.
FIRST_PORT = 32768


def text(snapshot: Snapshot) -> Iterator[str]:
    """All of a Snapshot, line by line."""
    desired = render(snapshot, None)
    relaying = imagined(desired)
    yield "# the relay\n"
    for serving in relaying.serving.values():
        yield from _fronts(serving)
    for port in sorted(relaying.held, key=lambda port: (port.port, port.udp)):
        where = f" on {', '.join(port.addresses)}" if port.addresses else ""
        yield f"# holds node port {port.port}/{'udp' if port.udp else 'tcp'}{where}\n"
    tool = "iptables-restore" if snapshot.family.value == 4 else "ip6tables-restore"
    yield f"\n# {tool} --noflush\n"
    yield from call(rules_between(desired, relaying, Found({})))


def imagined(desired: Desired) -> Relaying:
    """A relay in which every front that is wanted stands, on ports in the order of the names."""
    port = FIRST_PORT
    serving: dict[PortName, Serving] = {}
    held = set()
    for name, block in desired.blocks.items():
        service = block.service
        if service is None:
            continue
        if service.node_port is not None:
            held.add(service.node_port)
        if service.uses:
            ports = tuple([(use, port + at) for at, use in enumerate(sorted(service.uses))])
            serving[name] = Serving(service, ports)
            port += len(ports)
    return Relaying(serving=serving, held=held)


def _fronts(serving: Serving) -> Iterator[str]:
    service = serving.service
    lists = {Use.CLUSTER: service.cluster, Use.LOCAL: service.local}
    protocol = service.name.protocol.value.lower()
    for use, port in serving.ports:
        yield f"# {port}/{protocol} {service.name} {use}{_manners(service)}:"
        yield from _places(service, lists[use])
        yield "\n"


def _manners(service: Service) -> str:
    words = f", the same endpoint for {service.affinity_seconds} s" * bool(service.affinity_seconds)
    return words + ", PROXY v2" * service.proxy_protocol


def _places(service: Service, indexes: Iterable[int]) -> Iterator[str]:
    for index in indexes:
        address, port = service.endpoints[index]
        yield f" [{address}]:{port}" if ":" in address else f" {address}:{port}"
        if service.weights:
            yield f" (weight {service.weights[index]})"
