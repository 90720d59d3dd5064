"""Both servers on real sockets, in a fresh network namespace."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from kproxy.config import Config, to_mapping
from kproxy.core.objects import Family
from kproxy.core.tracker import Counts
from kproxy.errors import KernelError
from kproxy.family import SyncRecord
from kproxy.health.monitor import Monitor
from kproxy.health.server import Servers
from kproxy.health.sockets import listen
from kproxy.kernel import netns
from kproxy.kernel.netlink import open_route

pytestmark = pytest.mark.kernel

HEALTH, METRICS = 10256, 10249
TIMEOUT = 60


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with netns.fresh():
        with open_route() as route:
            route.link("set", index=1, state="up")
        yield


class Watched:
    mode = "iptables"
    pending = seen = Counts()
    refused = 0
    plans = ()
    relays = ()
    engines = ()
    checks = None


def done(*, ok: bool = True) -> tuple[SyncRecord, ...]:
    return (SyncRecord(Family.IPV4, ok=ok, at=1000.0, seconds=0.02, full=True),)


class Answer:
    """An HTTP answer: status, headers in lower case, text."""

    def __init__(self, raw: bytes) -> None:
        head, _, body = raw.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        self.status = int(first.split()[1])
        self.headers = {
            name.lower(): value for name, value in (line.split(": ", 1) for line in lines)
        }
        self.text = body.decode()


async def get(path: str, port: int, host: str = "127.0.0.1", method: str = "GET") -> Answer:
    async with asyncio.timeout(TIMEOUT):
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        raw = await reader.read()
        writer.close()
        return Answer(raw)


@asynccontextmanager
async def serving(
    config: Config, monitor: Monitor, *, synced: bool = True, retry: float = 5.0
) -> AsyncIterator[Servers]:
    servers = Servers(config, monitor, Watched(), retry=retry)
    servers.bind()
    event = asyncio.Event()
    if synced:
        event.set()
    task = asyncio.create_task(servers.run(event))
    try:
        yield servers
    finally:
        task.cancel()
        await asyncio.wait([task])


def monitor_of(*, clock: Callable[[], float] | None = None) -> Monitor:
    monitor = Monitor(30, clock=clock) if clock else Monitor(30)
    monitor.serves((Family.IPV4,))
    return monitor


def run(work: Callable[[], Awaitable[Any]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(TIMEOUT):
            await work()

    asyncio.run(limited())


def test_health_follows_the_syncs_and_the_clock() -> None:
    """503 before the first success, 200 after it, 503 when a change waits for two periods."""
    now = [0.0]
    monitor = monitor_of(clock=lambda: now[0])

    async def work() -> None:
        async def both() -> tuple[int, int]:
            answers = [await get(path, HEALTH) for path in ("/healthz", "/livez")]
            for answer in answers:
                assert answer.headers["content-type"] == "application/json"
                assert answer.headers["x-content-type-options"] == "nosniff"
                assert answer.headers["server"] == "kproxy"
            return answers[0].status, answers[1].status

        async with serving(Config(), monitor):
            assert await both() == (503, 503)
            monitor.asked()
            assert await both() == (503, 503)
            monitor.began()
            monitor.ended(done(ok=False))
            assert await both() == (503, 503)
            monitor.began()
            monitor.ended(done())
            assert await both() == (200, 200)
            monitor.eligible = False
            assert await both() == (503, 200)
            monitor.eligible = True
            now[0] = 1000.0
            assert await both() == (200, 200)
            monitor.asked()
            now[0] = 1059.0
            assert await both() == (200, 200)
            now[0] = 1060.0
            assert await both() == (503, 503)
            text = (await get("/metrics", METRICS)).text
            assert 'kubeproxy_proxy_healthz_total{code="200"} 3.0' in text
            assert 'kubeproxy_proxy_healthz_total{code="503"} 5.0' in text
            assert 'kubeproxy_proxy_livez_total{code="200"} 4.0' in text

    run(work)


def test_the_metrics_server() -> None:
    """Metrics, mode, settings and a plain ok; any method, and 404 elsewhere."""
    config = Config(cluster_cidr="10.0.0.0/8")

    async def work() -> None:
        async with serving(config, monitor_of()):
            metrics = await get("/metrics", METRICS)
            assert metrics.status == 200
            assert metrics.headers["content-type"].startswith("text/plain; version=")
            assert "# TYPE kubeproxy_sync_proxy_rules_duration_seconds histogram" in metrics.text
            for path, text in (("/healthz", "ok"), ("/proxyMode", "iptables")):
                plain = await get(path, METRICS)
                assert (plain.status, plain.text) == (200, text)
                assert plain.headers["content-type"] == "text/plain; charset=utf-8"
                assert plain.headers["x-content-type-options"] == "nosniff"
            configz = await get("/configz", METRICS)
            assert configz.headers["content-type"] == "application/json"
            assert json.loads(configz.text) == {"kubeproxy.config.k8s.io": to_mapping(config)}
            assert (await get("/healthz", METRICS, method="POST")).status == 200
            assert (await get("/nothing", METRICS)).status == 404
            assert (await get("/metrics", HEALTH)).status == 404

    run(work)


def test_the_indicators_follow_the_health() -> None:
    """Each check stands for itself: a sync that is due, and a node that is to be removed."""

    async def work() -> None:
        monitor = monitor_of()

        async def checks() -> dict[str, str]:
            answer = await get("/metrics/slis", METRICS)
            assert answer.status == 200
            assert answer.headers["content-type"].startswith("text/plain; version=")
            lines = [line for line in answer.text.splitlines() if not line.startswith("#")]
            return {check: value for check, _, value in (line.rpartition(" ") for line in lines)}

        sync = 'kubernetes_healthcheck{name="sync-IPv4",type="livez"}'
        node = 'kubernetes_healthcheck{name="node-eligible",type="healthz"}'
        async with serving(Config(), monitor):
            assert await checks() == {sync: "0.0", node: "1.0"}
            monitor.began()
            monitor.ended(done())
            monitor.eligible = False
            assert await checks() == {sync: "1.0", node: "0.0"}

    run(work)


def test_requests_wait_for_the_first_sync() -> None:
    """The port is there at once; who asks before the servers are loaded is answered then."""

    async def work() -> None:
        servers = Servers(Config(), monitor := monitor_of(), Watched())
        servers.bind()
        early = asyncio.create_task(get("/healthz", HEALTH))
        synced = asyncio.Event()
        task = asyncio.create_task(servers.run(synced))
        monitor.began()
        monitor.ended(done())
        synced.set()
        assert (await early).status == 200
        task.cancel()
        await asyncio.wait([task])

    run(work)


@pytest.mark.parametrize(
    ("healthz", "metrics", "reached", "refused"),
    [
        ("", "127.0.0.1:10249", [("127.0.0.1", METRICS)], [("127.0.0.1", HEALTH)]),
        ("127.0.0.1:10256", "", [("127.0.0.1", HEALTH)], [("127.0.0.1", METRICS)]),
        ("[::]:10256", "[::1]:10249", [("::1", HEALTH), ("127.0.0.1", HEALTH), ("::1", METRICS)],
         [("127.0.0.1", METRICS)]),
        ("0.0.0.0:10256", "127.0.0.1:10249", [("127.0.0.2", HEALTH)], [("127.0.0.2", METRICS)]),
    ],
)  # fmt: skip
def test_addresses(
    healthz: str, metrics: str, reached: list[tuple[str, int]], refused: list[tuple[str, int]]
) -> None:
    """Each server listens where it is told and nowhere else; "" turns it off."""
    config = Config(healthz_bind_address=healthz, metrics_bind_address=metrics)

    async def work() -> None:
        async with serving(config, monitor_of()):
            for host, port in reached:
                assert (await get("/healthz", port, host)).status in (200, 503)
            for host, port in refused:
                with pytest.raises(ConnectionRefusedError):
                    await get("/healthz", port, host)

    run(work)


def test_a_taken_port_is_tried_again() -> None:
    """Somebody else has the port: the other server serves; when it is free, this one does too."""

    async def work() -> None:
        taken = listen("0.0.0.0:10256")
        async with serving(Config(), monitor_of(), retry=0.02):
            assert (await get("/healthz", METRICS)).status == 200
            taken.close()
            answer = None
            while answer is None:
                try:
                    answer = await get("/livez", HEALTH)
                except ConnectionRefusedError:
                    await asyncio.sleep(0)
            assert answer.status == 503

    run(work)


def test_with_hard_fail_a_taken_port_is_the_end() -> None:
    """bindAddressHardFail: an error that names the address, and the other port is given back."""
    with listen("127.0.0.1:10249"):
        servers = Servers(Config(bind_address_hard_fail=True), monitor_of(), Watched())
        with pytest.raises(KernelError, match=r"127\.0\.0\.1:10249"):
            servers.bind()
    listen("0.0.0.0:10256").close()


def test_an_address_of_somebody_else_is_refused() -> None:
    """An address that this namespace does not have cannot be listened on."""
    with pytest.raises(KernelError, match=r"192\.0\.2\.1:80.*assign"):
        listen("192.0.2.1:80")
    assert listen("[::1]:10249").family is socket.AF_INET6
