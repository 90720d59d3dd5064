"""Metrics of endpoints' health, made from the plans in force and from what checks have done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from kproxy.core.objects import Family
from kproxy.core.snapshot import Snapshot
from kproxy.health.standing import State, state_of

if TYPE_CHECKING:
    from kproxy.health.checks.rounds import Figures

_PORT = ("namespace", "service", "port", "protocol", "ip_family")

#: What of an endpoint there can be: those that start are up.
_STATES = ("up", State.DOWN.value, State.EJECTED.value)

#: Of checks: (their figure, value of the label).
_RESULTS = (("good", "good"), ("failed", "failed"), ("own", "not_possible"))


def health_metrics(
    plans: Iterable[Snapshot], checks: Figures | None, label: Callable[[Family], str]
) -> Iterator[Metric]:
    """``label`` names a family as the other metrics do."""
    yield from _of_ports(plans, label)
    if checks is not None:
        yield from _of_checks(checks)


def _of_ports(plans: Iterable[Snapshot], label: Callable[[Family], str]) -> Iterator[Metric]:
    endpoints = GaugeMetricFamily(
        "kproxy_health_endpoints",
        "Endpoints that the cluster calls usable, by what checks and connections say of them",
        labels=(*_PORT, "state"),
    )
    panic = GaugeMetricFamily(
        "kproxy_health_panic",
        "Whether too few endpoints are up, so that all of them are used",
        labels=_PORT,
    )
    for plan in plans:
        for name, health in plan.health.items():
            values = *name, label(plan.family)
            counts = Counter(
                (state_of(each) or "up") if not each.up else "up" for each in health.judged
            )
            for state in _STATES:
                endpoints.add_metric((*values, state), counts[state])
            panic.add_metric(values, health.panic and bool(health.judged))
    yield endpoints
    yield panic


def _of_checks(checks: Figures) -> Iterator[Metric]:
    done = CounterMetricFamily(
        "kproxy_health_checks",
        "Tries of active checks that have ended; not_possible: this node was not able to try",
        labels=("kind", "result"),
    )
    targets = GaugeMetricFamily(
        "kproxy_health_targets", "What is checked, each once for all services", labels=("kind",)
    )
    for kind in checks.kinds:
        for figure, result in _RESULTS:
            done.add_metric((kind.name, result), getattr(kind, figure))
        targets.add_metric((kind.name,), kind.targets)
    yield done
    yield targets
    yield GaugeMetricFamily(
        "kproxy_health_late_seconds",
        "How far behind the thread of the checks is",
        value=checks.late,
    )
