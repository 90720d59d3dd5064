"""Metrics of endpoints' health: by service port and state, and of the checks themselves."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from kproxy.core.health.values import Checked, Ejected, Passive, Policy, target_of
from kproxy.core.objects import Family, PortName, Protocol
from kproxy.health.checks.rounds import Figures, KindFigures
from kproxy.health.journal import Event, Kind
from kproxy.health.monitor import Monitor
from tests.factories import make_service, make_slice
from tests.health.plans import TCP, Plans
from tests.test_metrics import Watched, scraped, value

NAME = PortName("ns1", "svc1", "http", Protocol.TCP)
LABELS = {
    "namespace": "ns1",
    "service": "svc1",
    "port": "http",
    "protocol": "TCP",
    "ip_family": "IPv4",
}


def plans() -> Plans:
    """One endpoint that is up, one that is down by its check, one that is ejected."""
    policy = Policy(TCP.check, Passive())
    made = Plans(
        make_service(health=policy),
        make_slice("10.0.0.1", "10.0.0.2", "10.0.0.3"),
        make_service("bare", ip="172.30.0.42"),
        make_slice("10.0.0.1", service="bare"),
    )
    assert policy.check is not None
    made.sync(
        observations=[
            Checked(target_of(policy.check, "10.0.0.2", 8080), False, "refused", 5.0),
            Ejected(NAME, "10.0.0.3", 8080, True, "3 resets", 6.0),
        ]
    )
    return made


def watched(made: Plans, checks: Figures | None = None) -> Watched:
    found = Watched(*[(plan, None) for plan in made.now])
    found.mode = "none"
    found.checks = checks
    return found


def test_endpoints_are_counted_by_state() -> None:
    """Of service ports with a policy only."""
    _, samples = scraped(Monitor(30.0).load(watched(plans())))
    for state in ("up", "down", "ejected"):
        assert value(samples, "kproxy_health_endpoints", **LABELS, state=state) == 1
    assert value(samples, "kproxy_health_panic", **LABELS) == 0
    assert not [labels for _, labels in samples if ("service", "bare") in labels]


def test_panic_is_told() -> None:
    """When all are used because none is up."""
    made = plans()
    made.sync([make_slice("10.0.0.2")])
    _, samples = scraped(Monitor(30.0).load(watched(made)))
    assert value(samples, "kproxy_health_panic", **LABELS) == 1
    assert value(samples, "kproxy_health_endpoints", **LABELS, state="up") == 0


def test_checks_are_counted_by_kind_and_result() -> None:
    """What could not be tried is no failure of an endpoint."""
    kinds = (KindFigures("tcp", 7, 1, 0, 40, 5, 2), KindFigures("http", 1, 0, 0, 3, 0, 0))
    _, samples = scraped(Monitor(30.0).load(watched(plans(), Figures(kinds, 0.25))))
    for kind, result, count in (
        ("tcp", "good", 40),
        ("tcp", "failed", 5),
        ("tcp", "not_possible", 2),
        ("http", "good", 3),
    ):
        assert value(samples, "kproxy_health_checks_total", kind=kind, result=result) == count
    assert value(samples, "kproxy_health_targets", kind="tcp") == 7
    assert value(samples, "kproxy_health_late_seconds") == 0.25


def test_transitions_are_counted_from_the_start() -> None:
    """Every kind and family is there with 0 before the first, so that it can be alerted on."""
    monitor = Monitor(30.0)
    for kind in (Kind.DOWN, Kind.DOWN, Kind.PANIC):
        monitor.turned(Event.of(kind, NAME, Family.IPV4, "refused", node="n1", at=1.0))
    metrics = monitor.load(watched(plans()))
    monitor.turned(Event.of(Kind.CALM, NAME, Family.IPV6, "", node="n1", at=2.0))
    _, samples = scraped(metrics)
    counted = {
        (kind.value, family): value(
            samples, "kproxy_health_transitions_total", kind=kind.value, ip_family=family
        )
        for kind in Kind
        for family in ("IPv4", "IPv6")
    }
    assert {key: count for key, count in counted.items() if count} == {
        ("down", "IPv4"): 2,
        ("panic", "IPv4"): 1,
        ("calm", "IPv6"): 1,
    }
    assert len(counted) == 12


def test_the_exposition_can_be_read() -> None:
    """By the parser of the library, for a scraper that takes OpenMetrics too."""
    metrics = Monitor(30.0).load(watched(plans(), Figures((KindFigures("udp", *[1] * 6),))))
    text, _ = metrics.text("")
    names = {family.name for family in text_string_to_metric_families(text.decode())}
    assert {"kproxy_health_checks", "kproxy_health_targets"} <= names
