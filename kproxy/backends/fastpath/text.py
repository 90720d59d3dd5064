"""What fastpath mode puts in force, as text for a reader. Pure.

First what the engine is told, some lines for each service port; then what leads packets to it, as
``ip``, ``tc`` and ``nft`` read it.
"""

from __future__ import annotations

from collections.abc import Iterator

from kproxy.backends.fastpath import rules, steer
from kproxy.backends.fastpath.render import Desired, render, text_of
from kproxy.core.objects import PortName
from kproxy.core.snapshot import Snapshot
from kproxy.core.steering import Plan
from kproxy.core.twin.values import Fate, Member, Rows, ServiceTable, Way, WayKind

_SETS = ("cluster", "local")
_CLIENTS = ("pods of this node", "the node", "others")
_FATES = {Fate.REFUSE: "refused", Fate.DROP: "dropped"}
_KINDS = {
    WayKind.CLUSTER_IP: "cluster IP",
    WayKind.EXTERNAL_IP: "external IP",
    WayKind.LOAD_BALANCER: "load balancer",
    WayKind.NODE_PORT: "node port",
}


def text(snapshot: Snapshot) -> Iterator[str]:
    """All of a Snapshot, line by line."""
    desired = render(snapshot, None)
    yield "# the engine\n"
    for name in sorted(desired.tables.services):
        yield from _service(name, desired.tables.services[name])
    yield "\n# device, route and rules\n"
    yield from _ways_there(desired)
    yield "\n# nft -f\n"
    yield steer.skeleton(desired.frame)
    yield steer.changes(snapshot.family, desired.sets, {})
    if desired.checks:
        yield "\n# iptables-restore --noflush\n"
        yield from rules.script(desired.checks, snapshot.family, leads=False)


def _service(name: PortName, table: ServiceTable) -> Iterator[str]:
    stay = f", the same endpoint for {table.affinity_seconds} s" * bool(table.affinity_seconds)
    yield f"# {name} by {table.algorithm.name.lower()}{stay}\n"
    for way in table.ways:
        yield f"#   {_way(way)}: {_rows(table, way)}\n"
    if table.ranges is not None:
        ranges = ", ".join(f"{text_of(each.net)}/{each.bits}" for each in table.ranges)
        yield f"#   load-balancer addresses for {ranges or 'nobody'} only\n"
    for member in table.members:
        yield f"#   {_member(member)}\n"


def _way(way: Way) -> str:
    return " ".join(filter(None, (_KINDS[way.kind], _address(way.address), f"port {way.port}")))


def _rows(table: ServiceTable, way: Way) -> str:
    rows: Rows = table.rows[0 if way.kind is WayKind.CLUSTER_IP else 1]
    said = []
    for client, (use, hidden) in zip(_CLIENTS, rows, strict=True):
        what = _FATES.get(table.fates[use]) or f"{_SETS[use]}{' hidden' * hidden}"
        said.append(f"{client} {what}")
    return ", ".join(said)


def _member(member: Member) -> str:
    words = [word for word in _SETS if getattr(member, word)]
    weight = f" weight {member.weight}" * (member.weight != 1)
    address = _address(member.address)
    place = f"[{address}]:{member.port}" if ":" in address else f"{address}:{member.port}"
    return f"{place} {' '.join(words) or 'draining'}{weight}"


def _address(address: bytes) -> str:
    return text_of(address) if address else ""


def _ways_there(desired: Desired) -> Iterator[str]:
    family = desired.snapshot.family
    plan: Plan = steer.plan(family)
    ip = f"ip -{int(family)}"
    yield f"ip tuntap add {plan.device} mode tun vnet_hdr multi_queue\n"
    for name, value in steer.sysctls(desired.frame).items():
        yield f"sysctl -w {name.replace('/', '.')}={value}\n"
    yield f"tc qdisc replace dev {plan.device} root noqueue\n"
    yield f"ip link set {plan.device} up txqueuelen {plan.queue_length}\n"
    if plan.address:
        yield f"ip addr add {plan.address}/32 dev {plan.device} scope host\n"
    yield f"{ip} route add default dev {plan.device} table {plan.table}\n"
    yield f"{ip} route add blackhole default table {plan.table} metric 4096\n"
    yield f"{ip} rule add pref {plan.local} lookup local\n"
    mark = f"{plan.mark:#x}/{plan.mark:#x}"
    yield f"{ip} rule add pref {plan.marked} fwmark {mark} lookup {plan.table}\n"
    yield f"{ip} rule del pref 0 lookup local\n"
