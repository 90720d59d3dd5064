"""A proxy that ends at any moment, and the next one that finds what it left."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from kproxy.backends.iptables import chains
from kproxy.backends.iptables.apply import IptablesBackend
from kproxy.backends.iptables.script import NFT_CHANGES_PER_CALL
from kproxy.backends.syncer import Syncer
from kproxy.backends.xtables.door import Door, ToolDoor, tool
from kproxy.backends.xtables.rules import Table
from kproxy.backends.xtables.saved import Saved, parse, target_of
from kproxy.backends.xtables.variant import Variant
from kproxy.core.objects import Family
from kproxy.core.snapshot import Endpoint, EndpointSets, PortPlan, Snapshot
from kproxy.kernel import command
from tests.backends.iptables.plans import port, settings, snapshot, successor
from tests.contract.namespaces import KERNEL, scratch

#: More than one call of the nft variant.
MANY = NFT_CHANGES_PER_CALL + 20


def recording(door: Door) -> list[str]:
    """The texts that pass through a door from now on."""
    texts: list[str] = []
    restore = door.restore

    def passing(chunks: Iterable[bytes]) -> None:
        whole = b"".join(chunks)
        texts.append(whole.decode())
        restore([whole])

    door.restore = passing  # type: ignore[method-assign]
    return texts


def some(family: Family) -> Snapshot:
    shapes = ("cn", "cnel", "cl", "ce")
    plans = [
        port(f"svc{n}", family, ways=ways, pods=n, number=8000 + n) for n, ways in enumerate(shapes)
    ]
    return snapshot(*plans, family=family)


def test_a_restart_writes_nothing(backend: IptablesBackend) -> None:
    """A new proxy, which knows nothing of the old one, reads and finds everything in place."""
    Syncer(backend).sync(some(backend.family))
    before = backend.door.save()
    texts = recording(backend.door)
    applied = Syncer(backend).sync(some(backend.family))
    assert (applied.full, applied.written, applied.transactions, texts) == (True, 0, 0, [])
    assert rules_of(backend.door.save()) == rules_of(before)


def rules_of(text: str) -> list[str]:
    return [row for row in text.splitlines() if row.startswith("-A")]


def test_a_restart_into_a_change_writes_the_change(backend: IptablesBackend) -> None:
    """What changed while nobody looked is all that is written: chains of one service port."""
    first = some(backend.family)
    Syncer(backend).sync(first)
    texts = recording(backend.door)
    changed = port("svc3", backend.family, ways="ce", pods=2, number=8003)
    Syncer(backend).sync(successor(first, changed))
    key = chains.port_hash(changed.name)
    declared = [row[1:].split()[0] for text in texts for row in text.splitlines() if row[0] == ":"]
    assert declared
    assert all(name.startswith(chains.ENDPOINT) or name.endswith(key) for name in declared)


@pytest.mark.parametrize(
    ("about", "before", "after", "dispatch"),
    [
        ("one of three goes", 3, 2, False),
        ("one more", 1, 2, False),
        ("the last one goes", 1, 0, True),
        ("the first one comes", 0, 1, True),
    ],
)
def test_endpoints_leave_the_dispatch_alone(
    backend: IptablesBackend, about: str, before: int, after: int, dispatch: bool
) -> None:
    """KUBE-SERVICES is written only when a service gains its first or loses its last endpoint."""
    now = successor(some(backend.family), port("svc1", backend.family, pods=before))
    syncer = Syncer(backend)
    syncer.sync(now)
    texts = recording(backend.door)
    syncer.sync(successor(now, port("svc1", backend.family, pods=after)))
    (text,) = texts
    assert (f":{chains.SERVICES} " in text) is dispatch
    assert (f"-A {chains.SERVICES} " in text) is dispatch


def test_the_work_follows_the_change(backend: IptablesBackend) -> None:
    """One endpoint of one among many: as much is written as if there were few."""
    written = []
    for count in (5, MANY):
        plans = [port(f"svc{n:03}", backend.family, number=8000 + n) for n in range(count)]
        now = snapshot(*plans, family=backend.family)
        syncer = Syncer(backend)
        syncer.sync(now)
        texts = recording(backend.door)
        changed = port("svc003", backend.family, pods=3, number=8003)
        written.append(syncer.sync(successor(now, changed)).written)
        assert len(texts) == 1
    assert written[0] == written[1]


# --- ended at any moment ---------------------------------------------------------------------


def pods(family: Family, first: int, count: int) -> tuple[Endpoint, ...]:
    form = {Family.IPV4: "10.181.{}.{}", Family.IPV6: "fd00:10::{:x}:{:x}"}[family].format
    numbers = range(first, first + count)
    ends = (Endpoint(form(n // 200 + 1, n % 200 + 1), 80) for n in numbers)
    return tuple(sorted(ends, key=lambda end: (end.ip, end.port)))


def plan(number: int, family: Family, first: int) -> PortPlan:
    """Service ``number`` with three endpoints from ``first`` on, by cluster IP and node port."""
    ends = pods(family, first, 3)
    made = port(f"svc{number:03}", family, number=8000 + number)
    values = {name: getattr(made, name) for name in made.__struct_fields__}
    sets = EndpointSets(cluster=ends, local=None, all=ends, has_any=True)
    return PortPlan(**{**values, "endpoints": sets, "node_port": 30000 + number})


def whole(family: Family, shift: int) -> Snapshot:
    """Endpoints move from service to service as ``shift`` changes: one that is left where it was
    would be a wrong one."""
    plans = [plan(number, family, 3 * (number + shift)) for number in range(MANY)]
    return snapshot(*plans, family=family, settings_=settings(family), generation=shift)


Reach = dict[str, frozenset[str]]


def reached(saved: Saved) -> Reach:
    """Dispatch rule's port (``8001``, ``30001``) -> endpoints to which its packets may be sent.

    Walked from the base chains: what nothing leads to is not reached.
    """
    nat = saved.get(Table.NAT, {})
    found: Reach = {}
    entries = {target_of(row) for row in nat.get("PREROUTING", ()) + nat.get("OUTPUT", ())}
    for row in nat.get(chains.SERVICES, ()) if chains.SERVICES in entries else ():
        ports = target_of(row) == chains.NODE_PORTS
        for each in nat.get(chains.NODE_PORTS, ()) if ports else [row]:
            number = each.split("--dport ")[1].split()[0]
            found[number] = frozenset(ends_of(nat, target_of(each)))
    return found


def ends_of(nat: dict[str, list[str]], chain: str) -> Iterator[str]:
    for row in nat.get(chain, ()):
        if "--to-destination " in row:
            yield row.split("--to-destination ")[1].split()[0]
        else:
            yield from ends_of(nat, target_of(row))


def wanted(now: Snapshot) -> Reach:
    reach: Reach = {}
    for each in now.ports.values():
        ends = frozenset(str(end) for end in each.endpoints.all)
        reach |= {str(each.port): ends, str(each.node_port): ends}
    return reach


def none(family: Family) -> Snapshot:
    return snapshot(family=family, settings_=settings(family))


STEPS: list[tuple[str, Callable[[Family], Snapshot], Callable[[Family], Snapshot]]] = [
    ("first sync", none, lambda family: whole(family, 0)),
    ("all endpoints move", lambda family: whole(family, 0), lambda family: whole(family, 1)),
    ("all services go", lambda family: whole(family, 0), none),
]


def transactions(text: str) -> list[str]:
    """Each table of a call apart: the kernel takes them one by one."""
    return [f"{part}COMMIT\n" for part in text.split("COMMIT\n") if part]


@pytest.mark.kernel
@pytest.mark.parametrize(("about", "before", "after"), STEPS, ids=[step[0] for step in STEPS])
@pytest.mark.parametrize(("family", "variant"), KERNEL)
def test_an_end_at_any_transaction_leaves_nothing_wrong(
    family: Family,
    variant: Variant,
    about: str,
    before: Callable[[Family], Snapshot],
    after: Callable[[Family], Snapshot],
    tmp_path: Path,
) -> None:
    """What is reachable at each boundary is, service by service, as before or as wanted; a new
    proxy goes on from there and ends where it should."""
    old, new = before(family), after(family)
    with scratch():
        backend = IptablesBackend(
            family, variant, door=ToolDoor(family, variant, records=tmp_path / "records")
        )
        syncer = Syncer(backend)
        syncer.sync(old)
        patch = backend.diff(backend.render(new, syncer.desired), backend.read())
        parts = [part for call in backend.script(patch) for part in transactions("".join(call))]
        assert parts
        for part in parts:
            backend.door.restore([part.encode()])
            seen = reached(parse(backend.door.save()))
            for number, ends in seen.items():
                assert ends in (wanted(old).get(number), wanted(new).get(number)), number
            assert seen.keys() >= wanted(old).keys() & wanted(new).keys()
        assert seen == wanted(new)
        # And from the middle: undone, then left half-way.
        Syncer(backend).sync(old)
        for part in parts[: len(parts) // 2]:
            backend.door.restore([part.encode()])
        late = Syncer(backend)
        assert late.sync(new).full
        assert backend.read() == backend.settled(late.desired)
        assert reached(parse(backend.door.save())) == wanted(new)


@pytest.mark.kernel
@pytest.mark.parametrize(("family", "variant"), KERNEL)
def test_a_tool_killed_in_the_middle_changes_nothing(
    family: Family, variant: Variant, tmp_path: Path
) -> None:
    """kill -9 of the restore tool with half of a call read: the kernel is as before."""
    with scratch():
        backend = IptablesBackend(
            family, variant, door=ToolDoor(family, variant, records=tmp_path / "records")
        )
        Syncer(backend).sync(whole(family, 0))
        before = backend.read()
        patch = backend.diff(backend.render(whole(family, 1), None), before)
        text = "".join(next(iter(backend.script(patch)))).encode()
        argv = [command.require(tool(family, variant, "restore")), "--noflush"]
        process = subprocess.Popen(argv, stdin=subprocess.PIPE)
        assert process.stdin is not None
        process.stdin.write(text[: len(text) // 2])
        process.stdin.flush()
        process.kill()
        assert process.wait() == -signal.SIGKILL
        process.stdin.close()
        assert backend.read() == before
