"""The cross-check by wrk: what both clients send, and what wrk says of it."""

from __future__ import annotations

import pytest

from kproxy.bench.cross import Seen, Turn, read_wrk, request_of, row
from kproxy.errors import CheckFailed

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
    """Its rate, its percentiles in microseconds, whatever went wrong."""
    assert read_wrk(REPORT.format(errors=errors)) == Seen(41558.22, 980.0, 2050.0, failed)


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


def test_a_row_is_of_medians() -> None:
    """Of each side, and of the ratios within a round: not the ratio of the medians."""
    taken = [
        Turn(Seen(10.0, 1.0, 5.0), Seen(20.0, 2.0, 4.0)),
        Turn(Seen(30.0, 3.0, 6.0), Seen(10.0, 1.0, 9.0)),
        Turn(Seen(20.0, 2.0, 7.0), Seen(5.0, 3.0, 8.0)),
    ]
    found = row("direct", "kept", taken)
    assert found["ours"] == {"rate": 20.0, "p50": 2.0, "p99": 6.0, "failed": 0}
    assert found["wrk"] == {"rate": 10.0, "p50": 2.0, "p99": 8.0, "failed": 0}
    assert found["ratio"] == 3.0
