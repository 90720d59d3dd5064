"""Health check node ports on real sockets, in a fresh network namespace."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from kproxy.core.objects import Family, PortName, Protocol
from kproxy.core.snapshot import EndpointSets, NodePortTargets, PortPlan, Snapshot
from kproxy.health.node_ports import NodePorts
from kproxy.health.sockets import listen
from kproxy.kernel import netns
from kproxy.kernel.netlink import open_route
from tests.factories import make_settings

pytestmark = pytest.mark.kernel

V4, V6 = Family.IPV4, Family.IPV6
LOOPBACK = {V4: "127.0.0.1", V6: "::1"}
TIMEOUT = 60


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with netns.fresh():
        with open_route() as route:
            route.link("set", index=1, state="up")
        yield


def snapshot_of(
    *ports: tuple[str, int, int], family: Family = V4, generation: int = 1, **settings: Any
) -> Snapshot:
    """A first plan: (service, number, ready endpoints of this node)."""
    plans = {}
    for name, number, count in ports:
        key = PortName("shop", name, "http", Protocol.TCP)
        ready = tuple(f"10.180.0.{place}" for place in range(count))
        sets = EndpointSets((), (), (), has_any=True)
        plans[key] = PortPlan(key, 80, sets, health_check_node_port=number, local_ready=ready)
    return Snapshot(
        family,
        make_settings(**settings),
        plans,
        generation=generation,
        changed=frozenset(plans),
    )


class Answer:
    """An HTTP answer: status, headers in lower case, decoded body."""

    def __init__(self, raw: bytes) -> None:
        head, _, body = raw.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        self.status = int(first.split()[1])
        self.headers = {
            name.lower(): value for name, value in (line.split(": ", 1) for line in lines)
        }
        self.text = body.decode()

    @property
    def body(self) -> Any:
        return json.loads(self.text)


async def ask(
    number: int = 32000, host: str = "127.0.0.1", *, request: str = "GET / HTTP/1.1"
) -> Answer:
    reader, writer = await asyncio.open_connection(host, number)
    writer.write(f"{request}\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    raw = await reader.read()
    writer.close()
    return Answer(raw)


async def refused(number: int = 32000, host: str = "127.0.0.1") -> bool:
    try:
        _, writer = await asyncio.open_connection(host, number)
    except ConnectionRefusedError:
        return True
    writer.close()
    return False


class Proxy:
    """Whether the proxy is healthy, as the daemon's monitor says."""

    healthy = True

    def __call__(self) -> bool:
        return self.healthy


@asynccontextmanager
async def serving(*, proxy: Proxy | None = None, retry: float = 5.0) -> AsyncIterator[NodePorts]:
    ports = NodePorts(proxy or Proxy(), retry=retry)
    task = asyncio.create_task(ports.run())
    try:
        yield ports
    finally:
        task.cancel()
        await asyncio.wait([task])
        ports.close()


def run(work: Callable[[], Awaitable[Any]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(TIMEOUT):
            await work()

    asyncio.run(limited())


@pytest.mark.parametrize(
    ("endpoints", "healthy", "status"),
    [(0, True, 503), (1, True, 200), (2, True, 200), (2, False, 503), (0, False, 503)],
)
def test_the_answer(endpoints: int, healthy: bool, status: int) -> None:
    """Status, body, weight and headers, as balancers of clouds read them; weight on 503 too."""

    async def work() -> None:
        proxy = Proxy()
        proxy.healthy = healthy
        async with serving(proxy=proxy) as ports:
            ports.follow([snapshot_of(("web", 32000, endpoints))])
            answer = await ask()
            assert answer.status == status
            assert answer.body == {
                "service": {"namespace": "shop", "name": "web"},
                "localEndpoints": endpoints,
                "serviceProxyHealthy": healthy,
            }
            assert answer.headers["content-type"] == "application/json"
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["x-load-balancing-endpoint-weight"] == str(endpoints)
            assert answer.headers["server"] == "kproxy"

    run(work)


@pytest.mark.parametrize(
    "request_line",
    [
        "GET /healthz HTTP/1.1",
        "GET /any/path?and=query HTTP/1.1",
        "GET //double HTTP/1.1",
        "HEAD / HTTP/1.1",
        "POST / HTTP/1.1",
        "OPTIONS * HTTP/1.1",
        "GET http://example.com/ HTTP/1.1",
        "GET / HTTP/1.0",
    ],
)
def test_any_path_and_method(request_line: str) -> None:
    """A balancer asks as it likes."""

    async def work() -> None:
        async with serving() as ports:
            ports.follow([snapshot_of(("web", 32000, 1))])
            assert (await ask(request=request_line)).status == 200

    run(work)


def test_both_families_on_one_number() -> None:
    """Each has its own socket and its own count, and one may be without."""

    async def work() -> None:
        async with serving() as ports:
            four = snapshot_of(("web", 32000, 1))
            ports.follow([four, snapshot_of(("web", 32000, 2), family=V6)])
            assert ports.refusals == ()
            assert (await ask(host="127.0.0.1")).body["localEndpoints"] == 1
            assert (await ask(host="::1")).body["localEndpoints"] == 2
            ports.follow([four, snapshot_of(family=V6, generation=2)])
            assert await refused(host="::1")
            assert (await ask()).status == 200

    run(work)


def test_two_services_of_two_families_share_a_number() -> None:
    """Who asks over IPv6 hears of the Service that has the number there."""

    async def work() -> None:
        async with serving() as ports:
            ports.follow([
                snapshot_of(("four", 32000, 1)), snapshot_of(("six", 32000, 0), family=V6)
            ])  # fmt: skip
            assert (await ask()).body["service"]["name"] == "four"
            assert (await ask(host="::1")).body["service"]["name"] == "six"

    run(work)


def test_answers_follow_the_snapshots() -> None:
    """The count, the number, the Service: what is in force is what is told, without a pause."""

    async def work() -> None:
        async with serving() as ports:
            ports.follow([snapshot_of(("web", 32000, 0))])
            assert (await ask()).status == 503
            ports.follow([snapshot_of(("web", 32000, 3), generation=2)])
            assert (await ask()).headers["x-load-balancing-endpoint-weight"] == "3"
            ports.follow([snapshot_of(("other", 32000, 1), ("web", 32001, 3), generation=3)])
            assert (await ask()).body["service"]["name"] == "other"
            assert (await ask(32001)).body["service"]["name"] == "web"
            ports.follow([snapshot_of(("web", 32001, 3), generation=4)])
            assert await refused(32000)
            assert (await ask(32001)).status == 200

    run(work)


def test_what_goes_is_closed_at_once() -> None:
    """When follow() returns nobody is let in, and who is in is put out, in mid-request or idle;
    connections to other ports stay."""

    async def work() -> None:
        async with serving() as ports:
            ports.follow([snapshot_of(("web", 32000, 1), ("other", 32001, 1))])
            await ask()
            idle, _ = await asyncio.open_connection("127.0.0.1", 32000)
            half, writer = await asyncio.open_connection("127.0.0.1", 32000)
            writer.write(b"GET / HTTP/1.1\r\nHost:")
            kept, other = await asyncio.open_connection("127.0.0.1", 32001)
            # All three are accepted: a later connection of each has been answered.
            await ask()
            await ask(32001)
            ports.follow([snapshot_of(("other", 32001, 1), generation=2)])
            probe = socket.socket()
            assert probe.connect_ex(("127.0.0.1", 32000)) != 0
            probe.close()
            for reader in (idle, half):
                assert await reader.read() == b""
            other.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert Answer(await kept.read()).status == 200

    run(work)


def test_requests_wait_until_it_runs() -> None:
    """The port is there when follow() returns, before the library is loaded."""

    async def work() -> None:
        ports = NodePorts(Proxy())
        ports.follow([snapshot_of(("web", 32000, 1))])
        early = asyncio.create_task(ask())
        task = asyncio.create_task(ports.run())
        assert (await early).status == 200
        task.cancel()
        await asyncio.wait([task])
        assert await refused()

    run(work)


@pytest.mark.parametrize("family", [V4, V6])
def test_a_taken_port_is_reported_and_tried_again(family: Family) -> None:
    """Other ports are served meanwhile; when it is free it is had, and no longer reported."""

    async def work() -> None:
        host = LOOPBACK[family]
        spelled = f"[{host}]:32000" if family is V6 else f"{host}:32000"
        taken = listen(spelled)
        async with serving(retry=0.02) as ports:
            ports.follow([snapshot_of(("web", 32000, 1), ("other", 32001, 1), family=family)])
            (told,) = ports.refusals
            assert told.startswith("Service shop/web spec.healthCheckNodePort: ")
            assert "32000: cannot listen: Address already in use" in told
            assert (await ask(32001, host)).status == 200
            taken.close()
            while ports.refusals:
                await asyncio.sleep(0)
            assert (await ask(32000, host)).status == 200

    run(work)


def test_a_taken_port_that_is_no_longer_wanted_is_left_alone() -> None:
    """Its holder may go afterwards: nothing is listened on, nothing reported."""

    async def work() -> None:
        with listen("127.0.0.1:32000"):
            async with serving(retry=0.0) as ports:
                ports.follow([snapshot_of(("web", 32000, 1), ("other", 32001, 1))])
                assert len(ports.refusals) == 1
                ports.follow([snapshot_of(("other", 32001, 1), generation=2)])
                assert ports.refusals == ()
        async with serving(retry=0.0) as ports:
            ports.follow([snapshot_of(("other", 32001, 1))])
            await ask(32001)
            assert await refused(32000)

    run(work)


def test_addresses_are_all_or_nothing() -> None:
    """With nodePortAddresses each address has its socket; when one cannot be had, none is held."""

    async def work() -> None:
        def chosen(*addresses: str, generation: int) -> Snapshot:
            targets = NodePortTargets(all=False, addresses=addresses)
            return snapshot_of(("web", 32000, 1), generation=generation, node_port_targets=targets)

        async with serving(retry=0.02) as ports:
            ports.follow([chosen("127.0.0.1", "127.0.0.2", generation=1)])
            for host, there in (("127.0.0.1", True), ("127.0.0.2", True), ("127.0.0.3", False)):
                assert await refused(host=host) is not there
            taken = listen("127.0.0.3:32000")
            ports.follow([chosen("127.0.0.1", "127.0.0.3", generation=2)])
            assert await refused()
            assert "127.0.0.3:32000" in ports.refusals[0]
            taken.close()
            while ports.refusals:
                await asyncio.sleep(0)
            assert (await ask()).status == (await ask(host="127.0.0.3")).status == 200
            assert await refused(host="127.0.0.2")

    run(work)


def test_silent_clients_of_all_ports_together_are_bounded() -> None:
    """However many connections are opened and kept silent, a probe is answered."""

    async def work() -> None:
        async with serving() as ports:
            ports.follow([snapshot_of(("web", 32000, 1), ("other", 32001, 1))])
            await ask()
            silent = [
                await asyncio.open_connection("127.0.0.1", 32000 + place % 2)
                for place in range(200)
            ]
            assert (await ask()).status == 200
            assert (await ask(32001)).status == 200
            # Each client hears of its end when its turn comes.
            while sum(bool(each.at_eof() or each.exception()) for each, _ in silent) < 200 - 128:
                await asyncio.sleep(0)
            for _, writer in silent:
                writer.close()

    run(work)
