"""Who may serve: API AND check AND passive detection, panic, weights."""

from __future__ import annotations

import pytest

from kproxy.core.health.book import Book
from kproxy.core.health.values import (
    Check,
    Checked,
    Ejected,
    Exec,
    Grpc,
    Http,
    Pace,
    Passive,
    Policy,
    Ramped,
    Target,
    Tcp,
    Udp,
    speaks,
    target_of,
)
from kproxy.core.health.verdict import admitted, allowed, judge
from kproxy.core.objects import Family, PortName, Protocol
from kproxy.core.snapshot import Cause, Endpoint

TCP, UDP, SCTP = Protocol.TCP, Protocol.UDP, Protocol.SCTP
NAME = PortName("ns1", "svc1", "http", TCP)
CHECK = Check(Tcp())
BOTH = Policy(CHECK, Passive())


def endpoint(number, **fields):
    return Endpoint(f"10.180.0.{number}", 8080, **fields)


def verdict(policy, count=4, down=(), up=(), out=(), weights=()):
    """The verdict on endpoints 1 to ``count`` of which this is known."""
    endpoints = tuple(endpoint(number) for number in range(1, count + 1))
    book = Book()
    book.register(Family.IPV4, NAME, policy, [(each.ip, each.port) for each in endpoints])

    def place(number):
        return f"10.180.0.{number}", 8080

    check = policy.check or CHECK
    book.hear(Checked(target_of(check, *place(n)), False, "refused", 1.0) for n in down)
    book.hear(Checked(target_of(check, *place(n)), True, "connected", 2.0) for n in up)
    book.hear(Ejected(NAME, *place(n), True, "failed thrice", 3.0) for n in out)
    book.hear(Ramped(NAME, *place(n), weight, 4.0) for n, weight in weights)
    return judge(policy, NAME, endpoints, book)


def ups(health):
    return [int(each.endpoint.ip.rpartition(".")[2]) for each in health.judged if each.up]


@pytest.mark.parametrize(
    ("policy", "known", "up"),
    [
        (BOTH, {}, [1, 2, 3, 4]),
        (BOTH, {"up": [1, 2, 3, 4]}, [1, 2, 3, 4]),
        (BOTH, {"down": [2]}, [1, 3, 4]),
        (BOTH, {"out": [3]}, [1, 2, 4]),
        (BOTH, {"down": [2], "out": [2, 3]}, [1, 4]),
        (BOTH, {"up": [2], "out": [2]}, [1, 3, 4]),
        (Policy(Check(Tcp(), Pace(initial=False))), {"up": [2], "down": [3]}, [2]),
        (Policy(None, Passive()), {"out": [1]}, [2, 3, 4]),
        (Policy(CHECK), {"out": [1]}, [1, 2, 3, 4]),
        (Policy(Check(Tcp(port=9)), None), {}, [1, 2, 3, 4]),
    ],
)
def test_all_judges_must_agree(policy, known, up):
    """One that says down is enough; what nobody knows yet is as the policy assumes."""
    assert ups(verdict(policy, **known)) == up


@pytest.mark.parametrize(
    ("known", "cause", "reason", "at"),
    [
        ({}, Cause.ASSUMED, "not checked yet", 0.0),
        ({"up": [1]}, Cause.CHECK, "connected", 2.0),
        ({"down": [1]}, Cause.CHECK, "refused", 1.0),
        ({"up": [1], "out": [1]}, Cause.PASSIVE, "failed thrice", 3.0),
        ({"down": [1], "out": [1]}, Cause.CHECK, "refused", 1.0),
    ],
)
def test_who_decided(known, cause, reason, at):
    """The reason is of the judge that decided; a check's comes first."""
    one = verdict(BOTH, **known).judged[0]
    assert (one.cause, one.reason, one.at) == (cause, reason, at)


def test_nobody_has_to_decide():
    """With passive detection alone an endpoint that works has no reason."""
    one = verdict(Policy(None, Passive())).judged[0]
    assert (one.up, one.cause, one.reason) == (True, Cause.NONE, "")


@pytest.mark.parametrize(
    ("panic", "count", "down", "panics"),
    [
        (0.0, 4, [], False),
        (0.0, 4, [1, 2, 3], False),
        (0.0, 4, [1, 2, 3, 4], True),
        (0.0, 1, [1], True),
        (0.5, 4, [1, 2], False),
        (0.5, 4, [1, 2, 3], True),
        (1.0, 4, [1], True),
        (1.0, 4, [], False),
        (0.5, 0, [], False),
    ],
)
def test_panic(panic, count, down, panics):
    """Below the share, and whenever none is up, health is disregarded and all are used."""
    health = verdict(Policy(CHECK, panic=panic), count, down=down)
    assert health.panic is panics
    endpoints = tuple(each.endpoint for each in health.judged)
    usable = [each for each in admitted(endpoints, health) if each.ready]
    assert len(usable) == (count if panics else count - len(down))


def test_the_api_comes_first():
    """Only ready and draining endpoints are judged; the others stay as the API has them."""
    ready, draining = endpoint(1), endpoint(2, ready=False, terminating=True)
    starting = endpoint(3, ready=False)
    gone = endpoint(4, ready=False, serving=False, terminating=True)
    endpoints = (ready, draining, starting, gone)
    assert allowed(endpoints) == (ready, draining)
    assert allowed((ready,) * 2) is not None
    book = Book()
    places = [(each.ip, each.port) for each in allowed(endpoints)]
    book.register(Family.IPV4, NAME, BOTH, places)
    book.hear([Checked(target_of(CHECK, *places[1]), False, "refused", 1.0)])
    health = judge(BOTH, NAME, allowed(endpoints), book)
    assert [each.endpoint for each in health.judged] == [ready, draining]
    out = endpoint(2, ready=False, serving=False, terminating=True)
    assert admitted(endpoints, health) == (ready, out, starting, gone)


@pytest.mark.parametrize(
    "known", [{}, {"up": [1, 2]}, {"down": [1, 2, 3, 4]}, {"weights": [(n, 40) for n in range(5)]}]
)
def test_nothing_to_say_costs_nothing(known):
    """All up with one weight, or panic: the very tuple comes back."""
    health = verdict(Policy(CHECK, slow_start=30.0), **known)
    endpoints = tuple(each.endpoint for each in health.judged)
    assert admitted(endpoints, health) is endpoints


@pytest.mark.parametrize(
    ("known", "weights"),
    [
        ({"weights": [(1, 40)]}, [40, 100, 100, 100]),
        ({"weights": [(1, 40), (2, 5)], "down": [3]}, [40, 5, 100, 100]),
        ({"weights": [(1, 40)], "down": [1]}, [100, 100, 100, 100]),
        ({"weights": [(1, 40)], "down": [2, 3, 4]}, [100, 100, 100, 100]),
        ({"weights": [(1, 40)], "down": [1, 2, 3, 4]}, [100, 100, 100, 100]),
    ],
    ids=["one grows", "two grow", "down", "alone", "panic"],
)
def test_weights(known, weights):
    """Who starts slowly has its weight beside others; equal ones are all full."""
    health = verdict(Policy(CHECK, slow_start=30.0), **known)
    endpoints = tuple(each.endpoint for each in health.judged)
    assert [each.weight for each in admitted(endpoints, health)] == weights


@pytest.mark.parametrize(
    ("check", "targets"),
    [
        (CHECK, [Target(CHECK, "10.180.0.1", 8080), Target(CHECK, "10.180.0.2", 8080)]),
        (Check(Tcp(port=9)), [Target(CHECK, "10.180.0.1", 9), Target(CHECK, "10.180.0.2", 9)]),
        (None, []),
    ],
)
def test_targets(check, targets):
    """What has to be checked for a port, its port filled in."""
    assert list(verdict(Policy(check, Passive()), 2).targets()) == targets


@pytest.mark.parametrize(
    ("probe", "tcp", "udp", "sctp"),
    [
        (Tcp(), True, False, False),
        (Http(), True, False, False),
        (Grpc(), True, False, False),
        (Udp(send=b"x"), False, True, False),
        (Exec(command=("true",)), True, True, True),
        (Tcp(port=80), True, True, True),
        (Udp(port=80), True, True, True),
    ],
)
def test_which_ports_a_probe_can_judge(probe, tcp, udp, sctp):
    """Those of its protocol, and all where it names the port that stands for the pod."""
    assert [speaks(probe, protocol) for protocol in (TCP, UDP, SCTP)] == [tcp, udp, sctp]
    held = Policy(Check(probe), Passive()).on(UDP)
    assert held == Policy(Check(probe) if udp else None, Passive())
