"""kube-proxy's metrics under its names, through prometheus_client, and a few of our own.

Two kinds. *Events* are counted when they happen (:class:`Metrics`). *States* are looked at when
somebody scrapes (:class:`_States`), so that a sync never does work for a figure nobody asks for.
Metrics that carry ``ip_family`` here carry it in kube-proxy's newest releases.

Importing this module costs 50 ms; the daemon does so after its first sync.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from kproxy import __version__, logs
from kproxy.backends import registry as modes
from kproxy.backends.iptables.counters import INVALID_DROPPED, LOCALHOST_ACCEPTED
from kproxy.core.objects import Family, TrafficPolicy
from kproxy.core.snapshot import Snapshot
from kproxy.engine_metrics import engine_metrics
from kproxy.errors import KernelError
from kproxy.family import SyncRecord
from kproxy.health.journal import Event as Turned
from kproxy.health.journal import Kind
from kproxy.health.monitor import Watched
from kproxy.health_metrics import health_metrics
from kproxy.kernel.nfacct import Counters

if TYPE_CHECKING:
    from kproxy.backends.userspace.estate import Figures

_log = logs.get("metrics")

PREFIX = "kubeproxy_"

_FAMILY = ("ip_family",)
_SERVICE_PORT = ("namespace", "service", "port", "protocol", *_FAMILY)
_EVERY_MODE: frozenset[str] = frozenset()
_IPTABLES = frozenset({"iptables", "ipvs", "userspace", "fastpath"})
_NFTABLES = frozenset({"nftables"})

SYNC_BUCKETS = tuple(0.001 * 2**power for power in range(15))
PROGRAMMING_BUCKETS = (0.25, 0.5, *range(1, 60), *range(60, 120, 5), *range(120, 301, 30))


class Event(NamedTuple):
    """A metric that counts what happens. ``modes`` empty: in every mode."""

    name: str
    kind: type[Counter | Gauge | Histogram]
    help: str
    labels: tuple[str, ...] = _FAMILY
    modes: frozenset[str] = _EVERY_MODE
    buckets: tuple[float, ...] = ()


#: Without the prefix; those of our own have another one and stand in :data:`OWN`.
EVENTS: tuple[Event, ...] = (
    Event("sync_proxy_rules_duration_seconds", Histogram, "Time of one sync",
          buckets=SYNC_BUCKETS),
    Event("sync_full_proxy_rules_duration_seconds", Histogram,
          "Time of one sync that read the kernel and compared everything", buckets=SYNC_BUCKETS),
    Event("sync_partial_proxy_rules_duration_seconds", Histogram,
          "Time of one sync that wrote what had changed", buckets=SYNC_BUCKETS),
    Event("network_programming_duration_seconds", Histogram,
          "Time from a change in the cluster to the kernel's acknowledgement of its rules",
          buckets=PROGRAMMING_BUCKETS),
    Event("sync_proxy_rules_last_timestamp_seconds", Gauge, "When the last good sync ended"),
    Event("sync_proxy_rules_last_queued_timestamp_seconds", Gauge,
          "When a sync was last asked for"),
    Event("sync_proxy_rules_iptables_last", Gauge, "Rules that the last sync wrote",
          labels=("table", *_FAMILY), modes=_IPTABLES),
    Event("sync_proxy_rules_iptables_restore_failures_total", Counter,
          "Restores that the kernel refused", modes=_IPTABLES),
    Event("sync_proxy_rules_iptables_partial_restore_failures_total", Counter,
          "Partial restores that the kernel refused", modes=_IPTABLES),
    Event("sync_proxy_rules_nftables_sync_failures_total", Counter,
          "Transactions that the kernel refused", modes=_NFTABLES),
    Event("sync_proxy_rules_nftables_cleanup_failures_total", Counter,
          "Always 0: what is stale ends in the transaction that makes it so, or that fails as such",
          modes=_NFTABLES),
    Event("conntrack_reconciler_sync_duration_seconds", Histogram,
          "Time to compare the table of tracked flows with the plan", buckets=SYNC_BUCKETS),
    Event("conntrack_reconciler_deleted_entries_total", Counter, "Stale flows deleted"),
    Event("proxy_healthz_total", Counter, "Answers to /healthz", labels=("code",)),
    Event("proxy_livez_total", Counter, "Answers to /livez", labels=("code",)),
)  # fmt: skip

OWN: tuple[Event, ...] = (
    Event("kproxy_foreign_changes_total", Counter,
          "Syncs that found rules changed by others, and mended them"),
    Event("kproxy_nftables_last", Gauge, "Rules and elements that the last sync wrote",
          labels=("kind", *_FAMILY), modes=_NFTABLES),
    Event("kproxy_health_transitions_total", Counter,
          "Changed verdicts on endpoints (up, down, ejected, readmitted) and on service ports"
          " (panic, calm)", labels=("kind", *_FAMILY)),
)  # fmt: skip

#: What the relay of userspace mode counts of each service port: (its counter, metric, help).
RELAY_COUNTED = (
    ("connections", "connections", "Connections accepted, and UDP sessions begun"),
    ("retries", "retries", "Endpoints that did not take a connection, so that another was tried"),
    ("failures", "failures", "Connections that no endpoint took"),
    ("refused", "refused", "Connections and datagrams for which there was no endpoint to try"),
    ("bytes_in", "received_bytes", "Bytes from clients"),
    ("bytes_out", "sent_bytes", "Bytes to clients"),
    ("datagrams_in", "received_datagrams", "Datagrams from clients"),
    ("datagrams_out", "sent_datagrams", "Datagrams to clients"),
)

#: The same of each endpoint of a service port: as many series as there are endpoints.
ENDPOINT_COUNTED = (
    ("connections", "connections", "Connections that it took, and UDP sessions begun"),
    ("failures", "failures", "Connections that it did not take, or reset before it said anything"),
    ("bytes_in", "received_bytes", "Bytes from clients"),
    ("bytes_out", "sent_bytes", "Bytes to clients"),
)

#: Over all services, what is so now and what has been counted.
RELAY_NOW = (
    ("flows", "flows", "TCP connections that are open"),
    ("sessions", "sessions", "UDP sessions that are open"),
    ("buffered", "buffered_bytes", "Bytes kept for peers that do not read"),
    ("workers", "workers", "Threads that move them"),
)
RELAY_TOTALS = (
    ("accept_pauses", "accept_pauses", "Pauses in accepting, at the limit of descriptors or flows"),
    ("evicted", "evicted_sessions", "UDP sessions that had to make room"),
    (
        "other_sources",
        "other_source_connections",
        "Connections from another address of the node, the usual one having no port left",
    ),
    (
        "no_ports",
        "source_ports_exhausted",
        "Times that no address of the node had a port left towards an endpoint",
    ),
)

#: What the kernel counts where it can, in iptables mode: (its counter, metric, help).
COUNTED = (
    (INVALID_DROPPED, "iptables_ct_state_invalid_dropped_packets",
     "Packets of endpoints that conntrack could not place, dropped when forwarded"),
    (LOCALHOST_ACCEPTED, "iptables_localhost_nodeports_accepted_packets",
     "Connections to node ports on 127.0.0.0/8"),
)  # fmt: skip

_CODES = ("200", "503")


class Metrics:
    """All metrics of one proxy, in a registry of their own."""

    def __init__(self, watched: Watched) -> None:
        # Else each counter and histogram comes with a second series that kube-proxy has not.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._mode = watched.mode
        self.registry = CollectorRegistry(auto_describe=False)
        self._events: dict[str, Any] = {}
        for prefix, events in ((PREFIX, EVENTS), ("", OWN)):
            for event in events:
                if not event.modes or self._mode in event.modes:
                    self._events[event.name] = _made(prefix, event, self.registry)
        for kind in Kind:
            for family in Family:
                self._events["kproxy_health_transitions_total"].labels(kind, _label(family))
        for path in ("healthz", "livez"):
            for code in _CODES:
                self._events[f"proxy_{path}_total"].labels(code)
        self.registry.register(_States(watched))
        build = Info("kproxy_build", "Which kproxy this is", registry=self.registry)
        build.info({"version": __version__, "mode": self._mode})
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def asked(self, family: Family, at: float) -> None:
        """A sync was asked for (seconds since the epoch)."""
        self._of("sync_proxy_rules_last_queued_timestamp_seconds", family).set(at)

    def synced(self, record: SyncRecord) -> None:
        """A sync ended."""
        family, extent = record.family, "full" if record.full else "partial"
        self._of("sync_proxy_rules_duration_seconds", family).observe(record.seconds)
        self._of(f"sync_{extent}_proxy_rules_duration_seconds", family).observe(record.seconds)
        for name, failed in _failures(record).items():
            if name in self._events:
                # By 0 as well: a series that is there before the first failure can be alerted on.
                self._of(name, family).inc(failed)
        if not record.ok:
            return
        self._of("sync_proxy_rules_last_timestamp_seconds", family).set(record.at)
        for seconds in record.latencies:
            self._of("network_programming_duration_seconds", family).observe(seconds)
        written = dict(record.tables)
        for name in _WRITTEN.keys() & self._events.keys():
            for kind in _WRITTEN[name]:
                self._events[name].labels(kind, _label(family)).set(written.get(kind, 0))

    def reconciled(self, family: Family, seconds: float, deleted: int) -> None:
        """The table of tracked flows was compared with the plan, and ``deleted`` flows removed."""
        self._of("conntrack_reconciler_sync_duration_seconds", family).observe(seconds)
        self._of("conntrack_reconciler_deleted_entries_total", family).inc(deleted)

    def turned(self, event: Turned) -> None:
        """The verdict on an endpoint, or on all of a service port, has changed."""
        kind, family = event.kind, _label(Family(event.family))
        self._events["kproxy_health_transitions_total"].labels(kind, family).inc()

    def answered(self, path: str, status: int) -> None:
        """The health server answered ``healthz`` or ``livez``."""
        self._events[f"proxy_{path}_total"].labels(str(status)).inc()

    def text(self, accept: str) -> tuple[bytes, str]:
        """The exposition that the header ``Accept`` asks for, and its content type."""
        encoder, content_type = choose_encoder(accept)
        return encoder(self.registry), content_type

    def _of(self, name: str, family: Family) -> Any:
        return self._events[name].labels(_label(family))


#: What a sync wrote is counted by table, or by kind: metric -> its tables or kinds.
_WRITTEN = {
    "sync_proxy_rules_iptables_last": ("nat", "filter"),
    "kproxy_nftables_last": ("rules", "elements"),
}


def _failures(record: SyncRecord) -> dict[str, int]:
    partial = record.refused and not record.full
    return {
        "sync_proxy_rules_iptables_restore_failures_total": int(record.refused),
        "sync_proxy_rules_iptables_partial_restore_failures_total": int(partial),
        "sync_proxy_rules_nftables_sync_failures_total": int(record.refused),
        "sync_proxy_rules_nftables_cleanup_failures_total": 0,
        "kproxy_foreign_changes_total": int(record.foreign),
    }


def _made(prefix: str, event: Event, registry: CollectorRegistry) -> Any:
    more: dict[str, Any] = {"buckets": event.buckets} if event.buckets else {}
    return event.kind(f"{prefix}{event.name}", event.help, event.labels, registry=registry, **more)


def _label(family: Family) -> str:
    return f"IPv{family:d}"


class _States(Collector):
    """What is so at the moment of the scrape."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched

    def collect(self) -> Iterator[Metric]:
        plans = tuple(self._watched.plans)
        yield from self._changes()
        yield _no_local_endpoints([plan for plan, _ in plans])
        if self._watched.mode in _IPTABLES:
            yield self._objects(plans, f"{PREFIX}sync_proxy_rules_iptables_total", "table")
        if self._watched.mode in _NFTABLES:
            yield self._objects(plans, "kproxy_nftables_objects", "kind")
        if self._watched.mode == "iptables":
            yield from _counted()
        if relays := tuple(self._watched.relays):
            yield from _carried(relays)
            yield from _endpoints(relays)
            yield from _relays(relays)
        if engines := tuple(self._watched.engines):
            yield from engine_metrics(engines, _label)
        yield from health_metrics([plan for plan, _ in plans], self._watched.checks, _label)
        yield GaugeMetricFamily(
            "kproxy_refused_objects",
            "Objects, and members of objects, that are left out",
            value=self._watched.refused,
        )

    def _changes(self) -> Iterator[Metric]:
        pending, seen = self._watched.pending, self._watched.seen
        for kind, waiting, total in (
            ("endpoint", pending.endpoints, seen.endpoints),
            ("service", pending.services, seen.services),
        ):
            name = f"{PREFIX}sync_proxy_rules_{kind}_changes"
            yield GaugeMetricFamily(f"{name}_pending", f"Changed {kind}s to sync", value=waiting)
            yield CounterMetricFamily(f"{name}_total", f"Changed {kind}s seen", value=total)

    def _objects(self, plans: tuple[tuple[Snapshot, Any], ...], name: str, label: str) -> Metric:
        """Rules, and elements of sets and maps, by table or kind."""
        metric = GaugeMetricFamily(name, "What of ours is in force", labels=(label, *_FAMILY))
        for plan, desired in plans:
            for each, count in modes.counts(self._watched.mode, desired).items():
                metric.add_metric((each, _label(plan.family)), count)
        return metric


def _counted() -> Iterator[Metric]:
    """Of the network namespace of the calling thread: threads are born in the daemon's. Where no
    rule can count there is no counter, and no metric."""
    try:
        with Counters() as counters:
            found = counters.all()
    except KernelError as refused:
        _log.warning("no metrics of what the kernel counts", why=refused)
        return
    for counter, name, help_ in COUNTED:
        if counter in found:
            yield CounterMetricFamily(f"{PREFIX}{name}", help_, value=found[counter].packets)


_Row = tuple[tuple[str, ...], Mapping[str, int]]


def _carried(relays: Iterable[Figures]) -> Iterator[Metric]:
    """What was carried of each service port."""
    rows = [
        ((*each.name, _label(relay.family)), each.counters)
        for relay in relays
        for each in relay.services
    ]
    return _of_relays("kproxy_relay", RELAY_COUNTED, _SERVICE_PORT, rows)


def _endpoints(relays: Iterable[Figures]) -> Iterator[Metric]:
    """What was carried to each endpoint of a service port."""
    rows = [
        ((*each.name, _label(relay.family), str(endpoint)), endpoint.counters)
        for relay in relays
        for each in relay.services
        for endpoint in each.endpoints
    ]
    labels = (*_SERVICE_PORT, "endpoint")
    return _of_relays("kproxy_relay_endpoint", ENDPOINT_COUNTED, labels, rows)


def _of_relays(
    prefix: str,
    counted: Iterable[tuple[str, str, str]],
    labels: tuple[str, ...],
    rows: Iterable[_Row],
) -> Iterator[Metric]:
    """Metrics of a table, and what is open: each with a sample for every row, of label values and
    counters."""
    metrics: list[tuple[str, CounterMetricFamily | GaugeMetricFamily]] = [
        (key, CounterMetricFamily(f"{prefix}_{name}", help_, labels=labels))
        for key, name, help_ in counted
    ]
    opened = "Connections and UDP sessions that are open"
    metrics.append(("active", GaugeMetricFamily(f"{prefix}_active", opened, labels=labels)))
    for values, counters in rows:
        for key, metric in metrics:
            metric.add_metric(values, counters.get(key, 0))
    return (metric for _, metric in metrics)


def _relays(relays: Iterable[Figures]) -> Iterator[Metric]:
    """The relays themselves."""
    for kind, table in ((GaugeMetricFamily, RELAY_NOW), (CounterMetricFamily, RELAY_TOTALS)):
        for key, name, help_ in table:
            metric = kind(f"kproxy_relay_{name}", help_, labels=_FAMILY)
            for relay in relays:
                metric.add_metric((_label(relay.family),), relay.totals.get(key, 0))
            yield metric


def _no_local_endpoints(plans: list[Snapshot]) -> Metric:
    metric = GaugeMetricFamily(
        f"{PREFIX}sync_proxy_rules_no_local_endpoints_total",
        "Service ports of a Local traffic policy with endpoints, but none on this node",
        labels=("traffic_policy", *_FAMILY),
    )
    for plan in plans:
        counts = {"internal": 0, "external": 0}
        for port in plan.ports.values():
            if port.endpoints.local == () and port.endpoints.has_any:
                counts["internal"] += port.internal_policy is TrafficPolicy.LOCAL
                external = port.external and port.external_policy is TrafficPolicy.LOCAL
                counts["external"] += external
        for policy, count in counts.items():
            metric.add_metric((policy, _label(plan.family)), count)
    return metric
