"""The keeper between plans and real checks of real sockets, in a fresh network namespace."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest

from kproxy.backends.base import Finding, Outcome
from kproxy.core.events import Ref
from kproxy.core.health.values import (
    Check,
    Checked,
    Ejected,
    Observation,
    Pace,
    Passive,
    Policy,
    Ramped,
    Target,
    Tcp,
)
from kproxy.core.objects import PortName, Protocol
from kproxy.health.checks.checker import Checker
from kproxy.health.keeper import Keeper
from kproxy.kernel import netns
from kproxy.kernel.netlink import open_route
from tests.factories import make_service, make_slice
from tests.health.plans import PACE, TCP, Plans

pytestmark = pytest.mark.kernel

TIMEOUT = 60
NAME = PortName("ns1", "svc1", "http", Protocol.TCP)
TWO = ("127.0.0.2", "127.0.0.3")


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with netns.fresh():
        with open_route() as route:
            route.link("set", index=1, state="up")
        yield


class Ports:
    """Servers that open connections, on port 8080 of addresses of this namespace."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._open: dict[str, socket.socket] = {}

    def open(self, *addresses: str) -> None:
        for address in addresses:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            server = self._stack.enter_context(socket.socket(family))
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((address, 8080))
            server.listen(128)
            self._open[address] = server

    def close(self, address: str) -> None:
        self._open.pop(address).close()


@pytest.fixture
def ports() -> Iterator[Ports]:
    with ExitStack() as stack:
        yield Ports(stack)


class Node:
    """A keeper with its plans: what it tells is taken into a sync at once."""

    def __init__(self, *objects: Any, seen: list[Finding] | None = None) -> None:
        self.plans = Plans(*objects)
        self.told: list[Observation] = []
        self.messages = 0
        self._changed = asyncio.Event()
        findings = None if seen is None else self._seen
        self.found = seen if seen is not None else []
        self.keeper = Keeper(self._take, Checker, findings)
        self.keeper.follow(self.plans.now)

    def _seen(self) -> Collection[Finding]:
        found, self.found = self.found, []
        return found

    def _take(self, observations: Sequence[Observation]) -> None:
        self.told += observations
        self.messages += 1
        self.sync(observations=observations)

    def sync(self, *changed: Any, **more: Any) -> None:
        self.keeper.follow(self.plans.sync(changed, **more))
        self._changed.set()

    async def until(self, reached: Callable[[], bool]) -> None:
        async with asyncio.timeout(TIMEOUT):
            while not reached():
                self._changed.clear()
                await self._changed.wait()

    async def until_used(self, *addresses: str) -> None:
        wanted = {f"[{a}]:8080" if ":" in a else f"{a}:8080" for a in addresses}
        await self.until(lambda: self.plans.used() == wanted)

    def checked(self, address: str) -> list[bool]:
        """What was told of a target, in order."""
        return [
            each.up for each in self.told if isinstance(each, Checked) and each.target.ip == address
        ]

    def known(self) -> list[str]:
        """Whose state would be kept over a restart."""
        return sorted(each.target.ip for each in self.keeper.known if isinstance(each, Checked))


def run(test: Callable[[Callable[..., Node]], Awaitable[None]]) -> None:
    """A test in an event loop; the nodes that it makes are closed after it."""

    async def body() -> None:
        nodes: list[Node] = []

        def make(*objects: Any, **more: Any) -> Node:
            nodes.append(Node(*objects, **more))
            return nodes[-1]

        try:
            await test(make)
        finally:
            for node in nodes:
                await node.keeper.close()

    asyncio.run(body())


def test_who_refuses_is_left_out_until_it_serves(ports: Ports) -> None:
    """The dead one of two goes, comes back, and goes again when it dies again."""
    ports.open(TWO[0])

    async def test(make: Callable[..., Node]) -> None:
        node = make(make_service(health=TCP), make_slice(*TWO))
        await node.until_used(TWO[0])
        ports.open(TWO[1])
        await node.until_used(*TWO)
        ports.close(TWO[0])
        await node.until_used(TWO[1])
        assert node.checked(TWO[1]) == [False, True]

    run(test)


def test_both_families(ports: Ports) -> None:
    """The pods of a dual-stack service are judged by each address."""
    ports.open("127.0.0.2", "::1")

    async def test(make: Callable[..., Node]) -> None:
        node = make(
            make_service(ip=("172.30.0.41", "fd00:30::41"), health=TCP),
            make_slice(*TWO),
            make_slice("::1", name="six"),
        )
        await node.until_used("127.0.0.2", "::1")
        await node.until(lambda: node.checked("::1") == [True])
        ports.open("127.0.0.3")
        await node.until_used(*TWO, "::1")

    run(test)


def test_one_check_for_two_services(ports: Ports) -> None:
    """Both lose the endpoint by one target."""
    ports.open(TWO[0])

    async def test(make: Callable[..., Node]) -> None:
        node = make(
            make_service(health=TCP),
            make_slice(*TWO),
            make_service("svc2", ip="172.30.0.42", health=TCP),
            make_slice(*TWO, service="svc2"),
        )
        await node.until_used(TWO[0])
        figures = node.keeper.figures()
        assert figures is not None
        assert sum(kind.targets for kind in figures.kinds) == 2
        judged = [health.judged for plan in node.plans.now for health in plan.health.values()]
        assert [[each.up for each in one] for one in judged] == [[True, False]] * 2

    run(test)


def test_what_a_slice_drops_is_forgotten(ports: Ports) -> None:
    """Its target is not checked any more; what comes back begins anew, as the check says."""
    ports.open(TWO[0])

    async def test(make: Callable[..., Node]) -> None:
        node = make(make_service(health=TCP), make_slice(*TWO))
        await node.until_used(TWO[0])
        await node.until(lambda: len(node.keeper) == 2)
        node.sync(make_slice(TWO[0]))
        assert node.known() == [TWO[0]]
        node.sync(make_slice(*TWO))
        assert node.plans.used() == {f"{address}:8080" for address in TWO}
        await node.until_used(TWO[0])
        node.sync(deleted=[Ref("Service", make_service().key)])
        assert node.known() == []

    run(test)


def test_nothing_is_made_for_services_without_checks() -> None:
    """No thread, no figures."""

    async def test(make: Callable[..., Node]) -> None:
        node = make(make_service(), make_slice(*TWO))
        assert node.keeper.figures() is None
        node.sync(make_service("svc2", ip="172.30.0.42", health=Policy()))
        assert node.keeper.figures() is None

    run(test)


def test_what_is_believed_stays_until_it_is_known(ports: Ports) -> None:
    """An endpoint that was down before the restart is left out from the first plan on, and is in
    again when it is found up; what nobody names is dropped."""
    check = TCP.check
    assert check is not None
    before = [
        Checked(Target(check, address, 8080), up, "from before", 5.0)
        for address, up in ((TWO[0], True), (TWO[1], False), ("127.0.0.9", False))
    ]
    ports.open(*TWO)

    async def test(make: Callable[..., Node]) -> None:
        node = make()
        node.keeper.believe(before)
        node.plans.book.restore(before)
        node.sync(make_service(health=TCP), make_slice(*TWO))
        assert node.plans.used() == {f"{TWO[0]}:8080"}
        assert node.known() == [*TWO]
        await node.until_used(*TWO)

    run(test)


def test_many_flaps_are_few_messages(ports: Ports) -> None:
    """What comes one by one within a moment is told together, the first of it at once."""
    addresses = [f"127.0.1.{number}" for number in range(1, 101)]
    ports.open(*addresses, *TWO)
    pace = Pace(interval=60.0, timeout=30.0, fast_interval=0.01, rise=1, fall=1)
    slow = Policy(check=Check(Tcp(), pace))

    async def test(make: Callable[..., Node]) -> None:
        node = make(make_service(health=TCP), make_slice(*TWO))
        await node.until(lambda: len(node.told) == 2)
        many = make_service("many", ip="172.30.0.42", health=slow)
        node.sync(many, make_slice(*addresses, service="many"))
        await node.until(lambda: len(node.told) == 102)
        assert node.messages < 20
        moments = [each.at for each in node.told]
        assert moments == sorted(set(moments))

    run(test)


PASSIVE = Passive(failures=3, base=0.2, most=10.0, share=0.5)


def refusals(address: str, count: int) -> list[Finding]:
    return [Finding(NAME, address, 8080, Outcome.REFUSED)] * count


def ejected(node: Node) -> list[tuple[str, bool]]:
    return [(each.ip, each.out) for each in node.told if isinstance(each, Ejected)]


def test_failed_connections_eject_for_a_while() -> None:
    """Enough in a row; the endpoint is let in again when its time is over. What was seen before
    anybody wanted to know does not count."""

    async def test(make: Callable[..., Node]) -> None:
        node = make(
            make_service(health=Policy(passive=PASSIVE)),
            make_slice(*TWO),
            seen=refusals(TWO[0], 9),
        )
        node.found = refusals(TWO[1], 3)
        await node.until_used(TWO[0])
        await node.until(lambda: ejected(node) == [(TWO[1], True), (TWO[1], False)])
        assert node.plans.used() == {f"{address}:8080" for address in TWO}

    run(test)


def test_a_clock_that_is_put_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is told has the time of the clock as it is now; how long an ejection lasts does not
    follow it."""

    async def test(make: Callable[..., Node]) -> None:
        node = make(make_service(health=Policy(passive=PASSIVE)), make_slice(*TWO), seen=[])
        monkeypatch.setattr("kproxy.health.keeper.time", SimpleNamespace(time=lambda: 4e9))
        node.found = refusals(TWO[1], 3)
        await node.until(lambda: ejected(node) == [(TWO[1], True), (TWO[1], False)])
        assert all(each.at >= 4e9 for each in node.told)

    run(test)


def test_a_check_that_succeeds_lets_in_again(ports: Ports) -> None:
    """Long before the time of the ejection is over."""
    ports.open(*TWO)
    policy = Policy(TCP.check, Passive(failures=1, base=3600.0, most=3600.0, share=0.5))

    async def test(make: Callable[..., Node]) -> None:
        node = make(make_service(health=policy), make_slice(*TWO), seen=[])
        await node.until(lambda: len(node.keeper) == 2)
        node.found = refusals(TWO[0], 1)
        # One sync may take both in: then no plan is without it.
        await node.until(lambda: ejected(node) == [(TWO[0], True), (TWO[0], False)])
        await node.until_used(*TWO)

    run(test)


def test_an_ejected_one_whose_check_fails_comes_back_by_its_check(ports: Ports) -> None:
    """It is the check's from then on: no ejection is left over when it passes again."""
    ports.open(*TWO)
    policy = Policy(TCP.check, Passive(failures=1, base=3600.0, most=3600.0, share=0.5))

    async def test(make: Callable[..., Node]) -> None:
        node = make(make_service(health=policy), make_slice(*TWO), seen=[])
        await node.until(lambda: len(node.keeper) == 2)
        ports.close(TWO[0])
        node.found = refusals(TWO[0], 1)
        await node.until(lambda: node.checked(TWO[0])[-1:] == [False])
        await node.until_used(TWO[1])
        ports.open(TWO[0])
        await node.until_used(*TWO)

    run(test)


def test_findings_of_strangers_are_nothing() -> None:
    """Of services without passive detection, and of endpoints that are gone."""

    async def test(make: Callable[..., Node]) -> None:
        node = make(
            make_service(health=Policy(passive=PASSIVE)),
            make_slice(*TWO),
            seen=[],
        )
        node.found = [
            *[Finding(NAME._replace(name="other"), TWO[0], 8080, Outcome.RESET)] * 9,
            *refusals("127.0.0.9", 9),
            *refusals(TWO[1], 3),
        ]
        await node.until_used(TWO[0])
        assert ejected(node) == [(TWO[1], True)]

    run(test)


def test_slow_start_goes_up_to_full(ports: Ports) -> None:
    """By steps, for an endpoint that comes up; the one that was up all along stays full."""
    ports.open(TWO[0])
    policy = Policy(Check(Tcp(), PACE), slow_start=1.0)

    async def test(make: Callable[..., Node]) -> None:
        node = make(make_service(health=policy), make_slice(*TWO))
        await node.until_used(TWO[0])
        ports.open(TWO[1])
        await node.until_used(*TWO)
        await node.until(lambda: any(isinstance(each, Ramped) for each in node.told))
        await node.until(
            lambda: all(
                each.weight == 100
                for plan in node.plans.now
                for health in plan.health.values()
                for each in health.judged
            )
        )
        steps = [(each.ip, each.weight) for each in node.told if isinstance(each, Ramped)]
        assert {ip for ip, _ in steps} == {TWO[1]}
        assert steps == sorted(steps)
        assert steps[-1][1] == 100

    run(test)
