"""The daemon's part: what is told, what is kept, and what a fault does."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from kproxy.core.health.values import Checked, Observation, Policy, target_of
from kproxy.health import care as care_module
from kproxy.health.care import MOST_LINES, STALLED, Care
from kproxy.health.checks.rounds import Figures
from kproxy.health.journal import Event, Kind
from kproxy.health.keeper import Keeper
from kproxy.health.memory import FILE, Memory
from tests.factories import make_service, make_slice
from tests.health.plans import TCP, Plans

FEW = ("10.0.0.1", "10.0.0.2")
MANY = tuple(f"10.0.0.{number}" for number in range(1, 10))


class NoChecks:
    """Nothing is found out but what a test says."""

    def change(self, *of: Any) -> None: ...
    def figures(self) -> None: ...
    def close(self) -> None: ...


class Daemon:
    """Care, and the plans of its proxy."""

    def __init__(self, folder: Path, *objects: Any) -> None:
        self.plans = Plans()
        self.counted: list[Event] = []
        self.told: list[Observation] = []
        self.care = Care("n1", self.told.extend, self.counted.append)
        self.believed = self.care.begin(folder, None)
        self.plans.book.restore(self.believed)
        self.sync(*objects)

    def sync(self, *changed: Any, **more: Any) -> None:
        self.care.synced(self.plans.sync(changed, **more))

    def hear(self, up: bool, *addresses: str, reason: str = "refused") -> None:
        """As if checks had told it."""
        keeper = self.care._keeper
        assert keeper is not None
        assert TCP.check is not None
        targets = [target_of(TCP.check, address, 8080) for address in addresses]
        keeper._checked([Checked(target, up, reason, 5.0) for target in targets])
        keeper._flush()
        observations, self.told[:] = list(self.told), []
        self.sync(observations=observations)


@pytest.fixture(autouse=True)
def no_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Care, "_checker", lambda self, told: NoChecks())


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def body() -> None:
        await test()

    asyncio.run(body())


class LateChecks(NoChecks):
    """Of a thread that is behind."""

    late = 0.0

    def figures(self) -> Any:
        return Figures(late=self.late)


def web(*addresses: str, policy: Policy = TCP) -> tuple[Any, ...]:
    return make_service(health=policy), make_slice(*addresses)


def lines(caplog: pytest.LogCaptureFixture, level: int) -> list[tuple[str, dict[str, Any]]]:
    return [
        (each.getMessage(), vars(each)["fields"])
        for each in caplog.records
        if each.levelno == level and each.name == "kproxy.health"
    ]


def test_each_transition_is_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With the reason; in the journal, and counted."""
    caplog.set_level(logging.INFO, "kproxy")

    async def test() -> None:
        daemon = Daemon(tmp_path, *web(*FEW))
        daemon.hear(False, FEW[0])
        daemon.hear(True, FEW[0], reason="connected")
        await daemon.care.end(handed_over=False)
        endpoint = {"service": "ns1/svc1:http", "endpoint": f"{FEW[0]}:8080"}
        assert lines(caplog, logging.WARNING) == [
            ("endpoint is down", {**endpoint, "why": "refused"})
        ]
        assert lines(caplog, logging.INFO) == [("endpoint is up", {**endpoint, "why": "connected"})]
        assert [event.kind for event in daemon.counted] == [Kind.DOWN, Kind.UP]

    run(test)
    written = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [(each["kind"], each["node"]) for each in written] == [("down", "n1"), ("up", "n1")]


def test_many_at_once_are_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With the first of them; each is counted, and in the journal."""
    caplog.set_level(logging.DEBUG, "kproxy")

    async def test() -> None:
        daemon = Daemon(tmp_path, *web(*MANY))
        daemon.hear(False, *MANY[1:])
        await daemon.care.end(handed_over=False)
        ((message, fields),) = lines(caplog, logging.WARNING)
        assert (message, fields["count"]) == ("endpoint is down", len(MANY) - 1)
        assert fields["what"].startswith("10.0.0.2:8080 of ns1/svc1:http: refused; ")
        assert fields["what"].endswith(f"and {len(MANY) - 1 - MOST_LINES} more")
        details = [message for message, _ in lines(caplog, logging.DEBUG)]
        assert details.count("endpoint is down") == len(MANY) - 1
        assert len(daemon.counted) == len(MANY) - 1

    run(test)


def test_panic_and_calm_have_lines(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of the service port."""
    caplog.set_level(logging.INFO, "kproxy")

    async def test() -> None:
        daemon = Daemon(tmp_path, *web(*FEW))
        daemon.hear(False, *FEW)
        daemon.hear(True, *FEW)
        await daemon.care.end(handed_over=False)
        told = dict(lines(caplog, logging.WARNING)), dict(lines(caplog, logging.INFO))
        assert told[0]["too few endpoints are up"] == {
            "service": "ns1/svc1:http",
            "why": "0 of 2 endpoints up: all are used",
        }
        assert told[1]["enough endpoints are up again"]["why"] == "2 of 2 endpoints up"

    run(test)


def test_what_is_known_is_saved_soon_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After what is new, and then from time to time, so that it does not grow old."""
    monkeypatch.setattr(care_module, "SAVING", 0.01)
    monkeypatch.setattr(care_module, "REFRESH", 0.02)
    kept: list[int] = []
    done = asyncio.Event()

    def keep(self: Memory, known: Any, now: float | None = None) -> None:
        kept.append(sum(not each.up for each in known))
        if kept[-3:] == [1, 1, 1]:
            done.set()

    monkeypatch.setattr(Memory, "keep", keep)

    async def test() -> None:
        daemon = Daemon(tmp_path, *web(*FEW))
        daemon.hear(False, FEW[0])
        async with asyncio.timeout(30):
            await done.wait()
        await daemon.care.end(handed_over=False)

    run(test)


def test_the_end_saves_and_the_next_one_knows(tmp_path: Path) -> None:
    """From its first plan on; it tells nothing that was told before."""

    async def test() -> None:
        first = Daemon(tmp_path, *web(*FEW))
        first.hear(False, FEW[0])
        await first.care.end(handed_over=False)
        second = Daemon(tmp_path, *web(*FEW))
        assert len(second.believed) == 1
        assert second.plans.used() == {f"{FEW[1]}:8080"}
        assert second.counted == []
        second.sync(make_service(), make_slice())
        await second.care.end(handed_over=False)
        assert Memory(tmp_path).recall() == ()

    run(test)


def test_who_has_handed_over_writes_no_more(tmp_path: Path) -> None:
    """The directory is the successor's."""

    async def test() -> None:
        daemon = Daemon(tmp_path, *web(*FEW))
        daemon.hear(False, FEW[0])
        daemon.care.save(last=True)
        (tmp_path / FILE).unlink()
        await daemon.care.end(handed_over=True)
        assert not (tmp_path / FILE).exists()

    run(test)


def test_a_fault_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told with where it happened."""

    def broken(self: Keeper, snapshots: Any) -> None:
        raise ZeroDivisionError("of ours")

    async def test() -> None:
        daemon = Daemon(tmp_path, *web(*FEW))
        monkeypatch.setattr(Keeper, "follow", broken)
        daemon.sync(make_slice(FEW[0]))
        await daemon.care.end(handed_over=False)

    run(test)
    assert "following endpoints' health broke off" in caplog.text
    assert "ZeroDivisionError: of ours" in caplog.text


def test_one_that_never_began_ends() -> None:
    """The daemon could not start."""

    async def test() -> None:
        care = Care("n1", print, print)
        assert care.checks is None
        await care.end(handed_over=False)

    run(test)


@pytest.mark.parametrize("look", ["figures", "sync", "saving"])
def test_checks_that_stand_still_are_told_of_once(
    look: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whatever looks at them; and again when they do it again."""
    checks = LateChecks()
    monkeypatch.setattr(Care, "_checker", lambda self, told: checks)

    async def test() -> None:
        daemon = Daemon(tmp_path, *web(*FEW))
        looks = {
            "figures": lambda: daemon.care.checks,
            "sync": daemon.sync,
            "saving": daemon.care.save,
        }
        for late in (STALLED, STALLED + 1, STALLED + 2, 0.0, STALLED + 3):
            checks.late = late
            looks[look]()
        assert lines(caplog, logging.WARNING) == [
            ("checks have stalled", {"seconds": STALLED + 1}),
            ("checks have stalled", {"seconds": STALLED + 3}),
        ]
        checks.late = 0.0
        await daemon.care.end(handed_over=False)

    run(test)
