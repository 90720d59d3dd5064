"""Metrics of the packet engine of fastpath mode, made from what it has counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from kproxy.core.objects import Family

if TYPE_CHECKING:
    from kproxy.backends.fastpath.figures import EngineFigures

_FAMILY = ("ip_family",)
_PORT = ("namespace", "service", "port", "protocol", *_FAMILY)

#: Of each endpoint: (the engine's counter, metric, help).
ENDPOINT_COUNTED = (
    ("packets_in", "received_packets", "Packets from clients"),
    ("packets_out", "sent_packets", "Packets to clients"),
    ("bytes_in", "received_bytes", "Bytes from clients, headers included"),
    ("bytes_out", "sent_bytes", "Bytes to clients, headers included"),
    ("flows", "flows", "Flows that were begun"),
    ("failures", "failures", "First SYNs that were refused or not answered"),
)

#: Of the engine: (its counter, metric, help, whether it only grows).
TOTALS = (
    ("flows", "tracked_flows", "Flows in the table", False),
    ("affinities", "affinities", "Clients that are bound to an endpoint", False),
    ("recycled", "recycled_flows", "Flows that had to make room", True),
    ("expired", "expired_flows", "Flows of which nothing came any more", True),
)

#: Of the threads: (their counter, metric, help).
CARRIED = (
    ("packets_in", "read_packets", "Packets that were led to the engine"),
    ("packets_out", "written_packets", "Packets that it gave back to the node"),
    ("unwritten", "unwritten_packets", "Packets that the node did not take"),
    ("sleeps", "sleeps", "Times that a thread went to sleep"),
)


def engine_metrics(
    engines: Iterable[EngineFigures], label: Callable[[Family], str]
) -> Iterator[Metric]:
    """``label`` names a family as the other metrics do."""
    engines = tuple(engines)
    yield from _of_endpoints(engines, label)
    yield _of_reasons(engines, label)
    for key, name, help_, grows in TOTALS:
        kind = CounterMetricFamily if grows else GaugeMetricFamily
        metric = kind(f"kproxy_fastpath_{name}", help_, labels=_FAMILY)
        for engine in engines:
            metric.add_metric((label(engine.family),), engine.totals.get(key, 0))
        yield metric
    for key, name, help_ in CARRIED:
        metric = CounterMetricFamily(f"kproxy_fastpath_{name}", help_, labels=_FAMILY)
        for engine in engines:
            metric.add_metric((label(engine.family),), engine.carried.get(key, 0))
        yield metric
    memory = GaugeMetricFamily(
        "kproxy_fastpath_memory_bytes", "Memory by table", labels=("table", *_FAMILY)
    )
    for engine in engines:
        for table, count in engine.memory.items():
            memory.add_metric((table, label(engine.family)), count)
    yield memory


def _of_endpoints(
    engines: tuple[EngineFigures, ...], label: Callable[[Family], str]
) -> Iterator[Metric]:
    labels = (*_PORT, "endpoint")
    counted = [
        (key, CounterMetricFamily(f"kproxy_fastpath_endpoint_{name}", help_, labels=labels))
        for key, name, help_ in ENDPOINT_COUNTED
    ]
    active = GaugeMetricFamily(
        "kproxy_fastpath_endpoint_active", "Flows that have not ended", labels=labels
    )
    for engine in engines:
        for service in engine.services:
            for endpoint, counters in service.endpoints.items():
                values = (*service.name, label(engine.family), endpoint)
                for key, metric in counted:
                    metric.add_metric(values, counters[key])
                active.add_metric(values, counters["active"])
    yield from (metric for _, metric in counted)
    yield active


def _of_reasons(engines: tuple[EngineFigures, ...], label: Callable[[Family], str]) -> Metric:
    metric = CounterMetricFamily(
        "kproxy_fastpath_stopped_packets",
        "Packets that were dropped or answered, by reason",
        labels=(*_PORT, "reason"),
    )
    for engine in engines:
        for service in engine.services:
            for reason, count in service.reasons.items():
                metric.add_metric((*service.name, label(engine.family), reason), count)
    return metric
