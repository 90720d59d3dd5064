"""The cross-checks: what both clients send, what the tools say, and when two agree."""

from __future__ import annotations

from functools import partial

import pytest

from kproxy.bench import cross, rounds
from kproxy.bench.clients import Seen, read_iperf3, read_wrk, request_of
from kproxy.bench.cross import CHECKS, Check, Crossed, Found, crossed, notes, shown
from kproxy.errors import CheckFailed, KproxyError, NetlinkError
from kproxy.kernel import command

REPORT = """\
Running 2s test @ http://10.77.0.1:7000/64
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.53ms  205.91us   6.35ms   88.96%
    Req/Sec    41.78k     2.50k   45.68k    75.00%
  Latency Distribution
     50%  980.00us
     75%    1.60ms
     90%    1.72ms
     99%    2.05ms
  83124 requests in 2.00s, 5.07MB read
{errors}Requests/sec:  41558.22
Transfer/sec:      2.54MB
"""


@pytest.mark.parametrize(
    ("errors", "failed"),
    [
        ("", 0),
        ("  Socket errors: connect 1, read 20, write 0, timeout 3\n", 24),
        ("  Non-2xx or 3xx responses: 7\n", 7),
    ],
)
def test_what_wrk_says(errors: str, failed: int) -> None:
    """Its rate, its percentiles in seconds, whatever went wrong."""
    seen = read_wrk(REPORT.format(errors=errors))
    assert (seen.rate, seen.failed) == (41558.22, failed)
    assert (seen.p50, seen.p99) == pytest.approx((980e-6, 2050e-6))


@pytest.mark.parametrize("said", ["", "unable to connect", REPORT.partition("  83124")[0]])
def test_no_report(said: str) -> None:
    with pytest.raises(CheckFailed, match="not what was expected"):
        read_wrk(said)


@pytest.mark.parametrize("closes", [False, True])
@pytest.mark.parametrize(
    ("host", "named"), [("10.0.0.1", "10.0.0.1:7"), ("fd77::1", "[fd77::1]:7")]
)
def test_requests_are_as_long_as_wrks(host: str, named: str, closes: bool) -> None:
    """As wrk 4.1 writes them: the fields in this order, nothing besides."""
    close = "Connection: close\r\n" if closes else ""
    wanted = f"GET /64 HTTP/1.1\r\nHost: {named}\r\n{close}\r\n"
    assert request_of((host, 7), closes=closes) == wanted.encode()


IPERF3 = b"""{"start": {}, "end": {"sum_sent": {"bits_per_second": 9e9},
 "sum_received": {"seconds": 2.0, "bits_per_second": 8.5e9}}}"""


def test_what_iperf3_says() -> None:
    """What has arrived, not what was sent."""
    assert read_iperf3(IPERF3.decode()) == Seen(8.5e9)


@pytest.mark.parametrize("said", ["", "{}", '{"error": "no route to host"}', '{"end": 1}'])
def test_no_report_of_iperf3(said: str) -> None:
    with pytest.raises(CheckFailed, match="not what was expected"):
        read_iperf3(said)


def found(**fields: object) -> Crossed:
    usual = {
        "subject": "direct",
        "check": "kept",
        "tool": "wrk",
        "unit": "1/s",
        "ours": Seen(100.0),
        "theirs": Seen(100.0),
        "ratio": 1.0,
        "low": 0.9,
        "high": 1.1,
        "noise": 0.1,
        "cost": 1.2,
        "rounds": 7,
    }
    return Crossed(**{**usual, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "agree"),
    [
        ({}, True),
        ({"low": 1.31, "ratio": 1.4, "high": 1.5}, True),
        ({"low": 1.33, "ratio": 1.4, "high": 1.5}, False),
        ({"low": 1.33, "ratio": 1.4, "high": 1.5, "noise": 0.3}, True),
        ({"low": 1.33, "ratio": 1.4, "high": 1.5, "cost": 1.3}, True),
        ({"low": 0.6, "ratio": 0.7, "high": 0.9}, False),
        ({"low": 0.6, "ratio": 0.7, "high": 0.92}, True),
        ({"low": 0.6, "ratio": 0.7, "high": 0.85, "cost": 0.9}, True),
        ({"low": 0.6, "ratio": 0.7, "high": 0.85, "noise": 0.5}, True),
        ({"low": 0.0, "ratio": 1.1, "high": float("inf"), "noise": float("inf")}, True),
        ({"low": 0.0, "ratio": 1.6, "high": float("inf"), "noise": float("inf")}, False),
        ({"theirs": Seen(100.0, failed=1)}, False),
    ],
)
def test_when_two_agree(fields: dict[str, object], agree: bool) -> None:
    """The interval comes as near as the tool's own noise to what lies between 1 and the ratio of
    the clients' costs; too few rounds have neither, and what failed agrees with nothing."""
    each = found(**fields)
    assert each.agree is agree
    assert ("NOT agree" in str(each)) is not agree


def test_noise_agrees_with_nobody() -> None:
    """A tool that is far from itself says nothing of another, unless that is farther away still."""
    noisy = found(low=0.9, ratio=1.2, high=2.7, noise=0.95)
    assert (noisy.found, noisy.agree) == (Found.NOISY, False)
    assert "too noisy to tell whether they agree" in str(noisy)
    assert "NOT agree" not in str(noisy)
    apart = found(low=3.0, ratio=4.0, high=5.0, noise=0.95)
    assert apart.found is Found.APART


@pytest.mark.parametrize("error", [NetlinkError("No buffer space", 105), CheckFailed("ended")])
def test_a_check_that_breaks_off_is_a_sentence(
    error: KproxyError, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the kernel or a tool refuses: the run that it belongs to goes on."""

    def broken(name: str, check: Check, *, count: int, seconds: int) -> Crossed:
        if check.tool == "wrk":
            raise error
        return found(check=check.name)

    monkeypatch.setattr(cross, "crossed", broken)
    said = list(notes(["direct"], count=1, seconds=1))
    assert len(said) == len(CHECKS)
    assert sum(error.what in each for each in said) == 2
    assert sum("agree" in each for each in said) == 2


def test_the_table_tells_those_apart() -> None:
    """A line for each, with what is wrong at its end."""
    each = (found(), found(low=2.0, high=3.0), found(ours=Seen(1.0, failed=2)), found(noise=0.6))
    lines = shown(each).split("\n")
    assert [line.split()[-1] for line in lines[1:]] == ["1.20", "apart", "2", "noisy"]


@pytest.mark.kernel
@pytest.mark.parametrize("check", CHECKS[1::2], ids=lambda check: check.tool)
def test_each_tool_runs(check: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both clients do it for real, and nothing fails. (Whether they agree a busy machine does not
    tell.)"""
    monkeypatch.setattr(rounds, "take", partial(rounds.take, warmup=0))
    each = crossed("direct", check, count=1, seconds=1)  # type: ignore[arg-type]
    assert each.failed == 0
    assert each.ours.rate > 0
    assert each.theirs.rate > 0
    assert each.ours.cost > 0
    assert each.theirs.cost > 0


def test_a_missing_tool_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """One for each tool's check, whoever is asked about; with the package."""
    monkeypatch.setattr(command, "find", lambda tool: None)
    said = list(notes(["direct", "relay"], count=1, seconds=1))
    assert len(said) == len(CHECKS)
    assert all("left out: " in each and "apt-get install" in each for each in said)
