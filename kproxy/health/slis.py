"""The component's health as Kubernetes' service level indicators: what /metrics/slis answers.

The name, the labels and the values are those of every Kubernetes component, see
https://kubernetes.io/docs/reference/instrumentation/slis/. kube-proxy has the path and registers no
check; here it holds what /healthz and /livez are made of.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from kproxy.core.health_state import Verdict


class _Checks(Collector):
    def __init__(self, verdict: Verdict) -> None:
        self._verdict = verdict

    def collect(self) -> Iterator[Metric]:
        metric = GaugeMetricFamily(
            "kubernetes_healthcheck",
            "Result of one health check: 1 when it is well, 0 when not",
            labels=("name", "type"),
        )
        for family, healthy, _ in self._verdict.families:
            metric.add_metric((f"sync-IPv{family:d}", "livez"), healthy)
        metric.add_metric(("node-eligible", "healthz"), self._verdict.eligible)
        yield metric


def text(verdict: Verdict, accept: str) -> tuple[bytes, str]:
    """The exposition that the header ``Accept`` asks for, and its content type."""
    encoder, content_type = choose_encoder(accept)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Checks(verdict))
    return encoder(registry), content_type
