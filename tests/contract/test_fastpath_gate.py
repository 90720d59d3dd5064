"""Health check node ports in fastpath mode: let through a closed INPUT while they are wanted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from kproxy.backends.fastpath import gate, rules
from kproxy.backends.fastpath.apply import FastpathBackend
from kproxy.backends.fastpath.door import SteerDoor
from kproxy.backends.fastpath.gate import Gate
from kproxy.backends.fastpath.rules import CHAIN
from kproxy.backends.fastpath.sweep import sweep
from kproxy.backends.fastpath.watch import watch
from kproxy.backends.syncer import Syncer
from kproxy.backends.xtables.door import tool
from kproxy.backends.xtables.variant import Variant
from kproxy.core.objects import Family, PortName, Protocol
from kproxy.core.snapshot import PortPlan, Snapshot
from kproxy.kernel import command
from tests.backends.iptables.plans import port, snapshot, successor
from tests.contract.namespaces import scratch

pytestmark = pytest.mark.kernel


def balanced(name: str, family: Family, health: int = 0) -> PortPlan:
    """A service port of its own number, so that services do not meet at one address."""
    number = 80 + int(name[-1])
    return port(name, family, ways="cl", pods=2, number=number, health=health)


def saved(family: Family, variant: Variant) -> list[str]:
    """The rules of the filter table."""
    text = command.run([tool(family, variant, "save")]).stdout.decode()
    return [line for line in text.splitlines() if line.startswith("-A")]


@pytest.fixture(params=Variant)
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Variant:
    """What this host's firewall is made of."""
    monkeypatch.setattr(gate, "detect_variant", lambda: request.param)
    chosen: Variant = request.param
    return chosen


@pytest.fixture(params=Family)
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FastpathBackend]:
    with scratch(loopback=True):
        made = FastpathBackend(request.param, door=SteerDoor(request.param, records=tmp_path))
        with closing(made):
            yield made


def ours(family: Family, *numbers: int) -> list[str]:
    """What stands for these numbers, as the save tool prints it."""
    head = f'-A INPUT -m comment --comment "kproxy health check node ports" -j {CHAIN}'
    return [head, *rules.rules(numbers, family)] if numbers else []


def test_it_follows_the_plan(backend: FastpathBackend, variant: Variant) -> None:
    """The ports of the plan and no others; endpoints do not touch them, the last one ends all."""
    family, syncer = backend.family, Syncer(backend)
    one, two = balanced("svc1", family, 32000), balanced("svc2", family, 32001)
    plain = balanced("svc1", family)
    now = snapshot(balanced("svc0", family), family=family)
    steps: list[tuple[Snapshot, tuple[int, ...]]] = []
    for change, numbers in (
        ((one,), (32000,)),
        ((two,), (32000, 32001)),
        ((balanced("svc1", family, 32002),), (32001, 32002)),
        ((plain,), (32001,)),
        ((balanced("svc2", family),), ()),
        ((one,), (32000,)),
    ):
        now = successor(now, *change)
        steps.append((now, numbers))
    for plan, numbers in steps:
        syncer.sync(plan)
        assert saved(family, variant) == ours(family, *numbers)
        assert backend.read() == backend.settled(syncer.desired)
    other = Variant.LEGACY if variant is Variant.NFT else Variant.NFT
    assert saved(family, other) == []


def test_ports_of_one_service_share_theirs(backend: FastpathBackend, variant: Variant) -> None:
    """When one of two service ports goes, the health check port of their Service stays."""
    family, syncer = backend.family, Syncer(backend)
    web = balanced("svc1", family, 32000)
    name = PortName(web.name.namespace, web.name.name, "alt", Protocol.TCP)
    alt = msgspec.structs.replace(web, name=name, port=8080)
    now = snapshot(web, alt, family=family)
    assert len(now.ports) == 2
    syncer.sync(now)
    syncer.sync(successor(now, removed=(alt.name,)))
    assert saved(family, variant) == ours(family, 32000)
    assert backend.read() == backend.settled(syncer.desired)


def test_rules_of_others_stay(backend: FastpathBackend, variant: Variant) -> None:
    """A firewall that closes INPUT stays as it is, behind ours; cleaning up takes ours alone."""
    family = backend.family
    theirs = "-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT"
    command.run([tool(family, variant), *theirs.split()])
    Syncer(backend).sync(snapshot(balanced("svc1", family, 32000), family=family))
    ahead, *rest = ours(family, 32000)
    assert saved(family, variant) == [ahead, theirs, *rest]
    backend.cleanup()
    assert saved(family, variant) == [theirs]


def test_a_restart_finds_it(backend: FastpathBackend, variant: Variant, tmp_path: Path) -> None:
    """A new process writes nothing when nothing has changed, and takes away what went meanwhile."""
    family = backend.family
    plan = snapshot(balanced("svc1", family, 32000), family=family)
    Syncer(backend).sync(plan)
    backend.close()
    less = snapshot(balanced("svc1", family), family=family)
    for wanted, written, numbers in ((plan, 0, (32000,)), (less, 1, ())):
        with closing(FastpathBackend(family, door=SteerDoor(family, records=tmp_path))) as again:
            assert dict(Syncer(again).sync(wanted).tables).get("sets", 0) == written
            assert saved(family, variant) == ours(family, *numbers)


@pytest.mark.parametrize(
    "harm",
    [
        ["-F", CHAIN],
        ["-F", "INPUT"],
        ["-A", CHAIN, "-j", "DROP"],
        ["-I", CHAIN, "-p", "tcp", "-m", "tcp", "--dport", "1", "-s", "::1", "-j", "ACCEPT"],
        ["-D", CHAIN, "1"],
    ],
)
def test_what_others_do_to_it_is_mended(
    backend: FastpathBackend, variant: Variant, harm: list[str]
) -> None:
    """At the next full sync everything stands as it is wanted."""
    family, syncer = backend.family, Syncer(backend)
    plan = snapshot(balanced("svc1", family, 32000), balanced("svc2", family, 32001), family=family)
    syncer.sync(plan)
    source = "::1" if family is Family.IPV6 else "127.0.0.1"
    words = [source if word == "::1" else word for word in harm]
    command.run([tool(family, variant), *words])
    syncer.forget()
    assert syncer.sync(plan).foreign
    assert saved(family, variant) == ours(family, 32000, 32001)
    assert backend.read() == backend.settled(syncer.desired)


def test_own_transactions_are_counted(backend: FastpathBackend, variant: Variant) -> None:
    """What we write ourselves is nobody else's doing."""
    family, syncer = backend.family, Syncer(backend)
    now = snapshot(balanced("svc1", family, 32000), family=family)
    with closing(watch([family])) as watched:
        for plan in (
            now,
            now := successor(now, balanced("svc2", family, 32001)),
            now := successor(now, balanced("svc2", family)),
            successor(now, balanced("svc1", family)),
        ):
            watched.pause()
            applied = syncer.sync(plan)
            assert watched.resume(applied.transactions) == ""


def test_another_mode_takes_it_away(backend: FastpathBackend, variant: Variant) -> None:
    """What an earlier fastpath mode has opened is closed when another mode serves."""
    family = backend.family
    Syncer(backend).sync(snapshot(balanced("svc1", family, 32000), family=family))
    backend.close()
    assert sweep(family, "iptables")
    assert saved(family, variant) == []
    assert not sweep(family, "iptables")


def test_without_iptables_there_is_nothing_to_open(
    backend: FastpathBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host without the tools has no such firewall: nothing is done, and nothing is missed."""
    family, syncer, found = backend.family, Syncer(backend), command.find
    monkeypatch.setattr(command, "find", lambda name: None if "tables" in name else found(name))
    plan = snapshot(balanced("svc1", family, 32000), family=family)
    assert syncer.sync(plan).transactions == 1
    assert backend.read() == backend.settled(syncer.desired)
    syncer.forget()
    assert not syncer.sync(plan).foreign


def test_a_refusal_stops_nothing_else(
    backend: FastpathBackend, variant: Variant, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told, services are served, and the next change tries again."""
    family, syncer = backend.family, Syncer(backend)
    # A chain that a rule of another table's kind cannot be put into: the name is too long.
    original, rules.CHAIN = rules.CHAIN, "X" * 40
    try:
        plan = snapshot(balanced("svc1", family, 32000), family=family)
        syncer.sync(plan)
    finally:
        rules.CHAIN = original
    assert [record.getMessage() for record in caplog.records] == [
        "health check node ports in INPUT are left as they are"
    ]
    assert backend.read() == backend.settled(syncer.desired)
    syncer.sync(successor(plan, balanced("svc2", family, 32001)))
    assert saved(family, variant) == ours(family, 32000, 32001)


def test_a_table_that_is_not_of_iptables_is_left_alone(
    backend: FastpathBackend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An administrator's own table of the same name: services are served, and nothing is forced
    into it, nor missed again at every look."""
    monkeypatch.setattr(gate, "detect_variant", lambda: Variant.NFT)
    family, syncer = backend.family, Syncer(backend)
    word = "ip" if family is Family.IPV4 else "ip6"
    table = f"table {word} filter {{ chain INPUT {{ type filter hook input priority 0; "
    theirs = table + "tcp dport { 22, 80 } ct state new counter meta mark set 1 accept; }; }\n"
    command.run(["nft", "-f", "-"], stdin=theirs.encode())
    before = command.run(["nft", "list", "table", word, "filter"]).stdout
    plan = snapshot(balanced("svc1", family, 32000), family=family)
    syncer.sync(plan)
    assert len(caplog.records) == 1
    syncer.forget()
    assert not syncer.sync(plan).foreign
    backend.cleanup()
    assert command.run(["nft", "list", "table", word, "filter"]).stdout == before


def test_the_script_is_plain_text() -> None:
    """What ``kproxy render`` shows; the jump only where it is missing."""
    text = "".join(rules.script({32001, 32000}, Family.IPV4, leads=False))
    assert text == (
        "*filter\n"
        f":{CHAIN} - [0:0]\n"
        f'-I INPUT -m comment --comment "kproxy health check node ports" -j {CHAIN}\n'
        f"-A {CHAIN} -p tcp -m tcp --dport 32000 -j ACCEPT\n"
        f"-A {CHAIN} -p tcp -m tcp --dport 32001 -j ACCEPT\n"
        "COMMIT\n"
    )
    assert "-I INPUT" not in "".join(rules.script({1}, Family.IPV4, leads=True))


def test_nothing_is_made_where_nothing_is_wanted(backend: FastpathBackend) -> None:
    """Without such ports no table of iptables comes into being."""
    Syncer(backend).sync(snapshot(balanced("svc1", backend.family), family=backend.family))
    assert Gate(backend.family).numbers() == frozenset()
    tables = command.run(["nft", "list", "tables"]).stdout.decode()
    assert "filter" not in tables
    assert "filter" not in Path("/proc/thread-self/net/ip_tables_names").read_text()
