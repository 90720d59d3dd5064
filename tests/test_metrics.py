"""kube-proxy's metrics: names, types, labels and buckets, and what each one counts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kproxy.backends.fastpath.figures import EngineFigures
from kproxy.backends.iptables.apply import IptablesBackend
from kproxy.backends.iptables.host import Machine
from kproxy.backends.nftables.render import render
from kproxy.backends.userspace.estate import Counters, EndpointCounters, Figures
from kproxy.core.events import Delta
from kproxy.core.objects import Family, PortName, Protocol, ServiceType, TrafficPolicy
from kproxy.core.planner import Planner
from kproxy.core.snapshot import Snapshot
from kproxy.core.tracker import Counts, Tracker
from kproxy.family import SyncRecord
from kproxy.health.checks.rounds import Figures as CheckFigures
from kproxy.health.monitor import Monitor
from kproxy.metrics import ENDPOINT_COUNTED, RELAY_COUNTED, RELAY_NOW, RELAY_TOTALS, Metrics
from tests.factories import make_endpoint, make_port, make_service, make_settings, make_slice

FAMILY = frozenset({"ip_family"})
SYNC_TIMES = [0.001 * 2**k for k in range(15)]

#: kube-proxy's, without its prefix: name -> (type, labels). Those that the kernel counts are left
#: out: they are there when its counters are.
KUBE_PROXY: dict[str, tuple[str, frozenset[str]]] = {
    "sync_proxy_rules_duration_seconds": ("histogram", FAMILY),
    "sync_full_proxy_rules_duration_seconds": ("histogram", FAMILY),
    "sync_partial_proxy_rules_duration_seconds": ("histogram", FAMILY),
    "network_programming_duration_seconds": ("histogram", FAMILY),
    "sync_proxy_rules_last_timestamp_seconds": ("gauge", FAMILY),
    "sync_proxy_rules_last_queued_timestamp_seconds": ("gauge", FAMILY),
    "sync_proxy_rules_endpoint_changes_pending": ("gauge", frozenset()),
    "sync_proxy_rules_endpoint_changes_total": ("counter", frozenset()),
    "sync_proxy_rules_service_changes_pending": ("gauge", frozenset()),
    "sync_proxy_rules_service_changes_total": ("counter", frozenset()),
    "sync_proxy_rules_iptables_total": ("gauge", FAMILY | {"table"}),
    "sync_proxy_rules_iptables_last": ("gauge", FAMILY | {"table"}),
    "sync_proxy_rules_iptables_restore_failures_total": ("counter", FAMILY),
    "sync_proxy_rules_iptables_partial_restore_failures_total": ("counter", FAMILY),
    "sync_proxy_rules_no_local_endpoints_total": ("gauge", FAMILY | {"traffic_policy"}),
    "proxy_healthz_total": ("counter", frozenset({"code"})),
    "proxy_livez_total": ("counter", frozenset({"code"})),
    "conntrack_reconciler_sync_duration_seconds": ("histogram", FAMILY),
    "conntrack_reconciler_deleted_entries_total": ("counter", FAMILY),
}
OWN = {
    "kproxy_foreign_changes_total": ("counter", FAMILY),
    # No labels as long as no service port has checks: see test_health_metrics.
    "kproxy_health_endpoints": ("gauge", frozenset()),
    "kproxy_health_panic": ("gauge", frozenset()),
    "kproxy_health_transitions_total": ("counter", frozenset({"kind", *FAMILY})),
    "kproxy_refused_objects": ("gauge", frozenset()),
}


#: In nftables mode, in place of those with ``iptables`` in their names.
NFTABLES = {
    "kubeproxy_sync_proxy_rules_nftables_sync_failures_total": ("counter", FAMILY),
    "kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total": ("counter", FAMILY),
    "kproxy_nftables_objects": ("gauge", FAMILY | {"kind"}),
    "kproxy_nftables_last": ("gauge", FAMILY | {"kind"}),
}


class Watched:
    """A proxy that stands still."""

    mode = "iptables"
    pending = Counts(1, 2)
    seen = Counts(30, 40)
    refused = 3

    def __init__(self, *plans: tuple[Snapshot, Any], relays: Iterable[Figures] = ()) -> None:
        self.plans = plans
        self.relays = relays
        self.engines: Iterable[EngineFigures] = ()
        self.checks: CheckFigures | None = None


def plan_of(*objects: Any) -> tuple[Snapshot, Any]:
    """A plan, and what iptables mode makes of it."""
    tracker = Tracker()
    tracker.apply(Delta(upserted=objects))
    snapshot = Planner(Family.IPV4).plan(tracker, make_settings())
    backend = IptablesBackend(Family.IPV4, "nft", machine=Machine())
    return snapshot, backend.render(snapshot, None)


class WatchedNftables(Watched):
    """The same in nftables mode."""

    mode = "nftables"


def record(
    family: Family = Family.IPV4, *, ok: bool = True, full: bool = False, **more: Any
) -> Any:
    return SyncRecord(family, ok=ok, at=1000.0, seconds=0.02, full=full, **more)


Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scraped(metrics: Metrics) -> tuple[dict[str, Any], Samples]:
    """Families by name (counters with their _total), and all samples."""
    text, _ = metrics.text("")
    families, samples = {}, {}
    for family in text_string_to_metric_families(text.decode()):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        families[name] = family
        for sample in family.samples:
            samples[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    return families, samples


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, tuple(sorted(labels.items()))]


def busy() -> Metrics:
    """Metrics after one event of every kind."""
    metrics = Metrics(Watched(plan_of(make_service(), make_slice("10.180.0.1"))))
    metrics.asked(Family.IPV4, 999.0)
    for full in (True, False):
        metrics.synced(record(full=full, latencies=(0.3,)))
    metrics.reconciled(Family.IPV4, 0.001, 2)
    return metrics


def test_every_metric_has_kube_proxys_name_type_and_labels() -> None:
    """The exposition holds kube-proxy's metrics and ours, and no other of either prefix."""
    kube_proxys = {f"kubeproxy_{name}": what for name, what in KUBE_PROXY.items()}
    assert ours(busy()) == {**kube_proxys, **OWN}


def test_nftables_mode_has_its_own() -> None:
    """Those of iptables are not there, kube-proxy's of this mode are, from the first sync on, and
    what is in force and what was written last by kind."""
    plan, _ = plan_of(make_service(), make_slice("10.180.0.1", "10.180.0.2"))
    desired = render(plan, None)
    metrics = Metrics(WatchedNftables((plan, desired)))
    metrics.asked(Family.IPV4, 999.0)
    for full in (True, False):
        metrics.synced(record(full=full, latencies=(0.3,), tables=(("elements", 4),)))
    metrics.reconciled(Family.IPV4, 0.001, 2)
    kube_proxys = {
        f"kubeproxy_{name}": what for name, what in KUBE_PROXY.items() if "iptables" not in name
    }
    assert ours(metrics) == {**kube_proxys, **OWN, **NFTABLES}
    metrics.synced(record(ok=False, refused=True))
    _, samples = scraped(metrics)
    four = {"ip_family": "IPv4"}
    prefix = "kubeproxy_sync_proxy_rules_nftables"
    assert value(samples, f"{prefix}_sync_failures_total", **four) == 1
    assert value(samples, f"{prefix}_cleanup_failures_total", **four) == 0
    assert value(samples, "kproxy_nftables_last", kind="elements", **four) == 4
    assert value(samples, "kproxy_nftables_last", kind="rules", **four) == 0
    elements = sum(map(len, desired.elements().values()))
    rules = sum(len(chain.rules) for chain in desired.chains.values())
    for kind, count in (("elements", elements), ("rules", rules)):
        assert value(samples, "kproxy_nftables_objects", kind=kind, **four) == count


def ours(metrics: Metrics) -> dict[str, tuple[str, frozenset[str]]]:
    """kube-proxy's metrics and ours: name -> (type, labels)."""
    families, _ = scraped(metrics)
    return {
        name: (
            family.type,
            frozenset().union(*(sample.labels for sample in family.samples)) - {"le"},
        )
        for name, family in families.items()
        if name.startswith(("kubeproxy_", "kproxy_")) and name != "kproxy_build_info"
    }


@pytest.mark.parametrize(
    ("name", "buckets"),
    [
        ("sync_proxy_rules_duration_seconds", SYNC_TIMES),
        ("sync_full_proxy_rules_duration_seconds", SYNC_TIMES),
        ("sync_partial_proxy_rules_duration_seconds", SYNC_TIMES),
        (
            "network_programming_duration_seconds",
            [0.25, 0.5, *range(1, 60), *range(60, 116, 5), *range(120, 301, 30)],
        ),
    ],
)
def test_histograms_have_kube_proxys_buckets(name: str, buckets: list[float]) -> None:
    """Bounds as kube-proxy has them, so that its dashboards fit."""
    families, _ = scraped(busy())
    bounds = [
        float(sample.labels["le"])
        for sample in families[f"kubeproxy_{name}"].samples
        if sample.name.endswith("_bucket")
    ]
    assert bounds == [*buckets, float("inf")]


def test_the_process_and_the_language_are_there() -> None:
    """The usual process metrics, Python's version, and which kproxy this is; no _created series."""
    families, samples = scraped(busy())
    assert {"process_cpu_seconds_total", "process_resident_memory_bytes"} <= families.keys()
    assert {"python_info", "kproxy_build_info"} <= families.keys()
    assert not [name for name, _ in samples if name.endswith("_created")]


def test_a_sync_is_full_or_partial() -> None:
    """Every sync counts once in all, and once by its extent."""
    metrics = Metrics(Watched())
    for full in (True, False, False):
        metrics.synced(record(full=full))
    _, samples = scraped(metrics)
    counts = [
        value(samples, f"kubeproxy_sync_{kind}proxy_rules_duration_seconds_count", ip_family="IPv4")
        for kind in ("", "full_", "partial_")
    ]
    assert counts == [3, 1, 2]


@pytest.mark.parametrize(
    ("made", "failures", "partial", "foreign", "last"),
    [
        (record(), 0, 0, 0, 1000.0),
        (record(ok=False), 0, 0, 0, None),
        (record(ok=False, refused=True), 1, 1, 0, None),
        (record(ok=False, refused=True, full=True), 1, 0, 0, None),
        (record(full=True, foreign=True), 0, 0, 1, 1000.0),
    ],
)
def test_how_a_sync_went(
    made: SyncRecord, failures: int, partial: int, foreign: int, last: float | None
) -> None:
    """Refused restores, partial ones among them, mended changes, and the last good sync."""
    metrics = Metrics(Watched())
    metrics.synced(made)
    _, samples = scraped(metrics)
    prefix = "kubeproxy_sync_proxy_rules"
    four = {"ip_family": "IPv4"}
    assert value(samples, f"{prefix}_iptables_restore_failures_total", **four) == failures
    assert value(samples, f"{prefix}_iptables_partial_restore_failures_total", **four) == partial
    assert value(samples, "kproxy_foreign_changes_total", **four) == foreign
    key = (f"{prefix}_last_timestamp_seconds", tuple(four.items()))
    assert samples.get(key) == last


def test_latencies_and_written_rules() -> None:
    """One observation a slice, and rules by table, of the family that was synced."""
    metrics = Metrics(Watched())
    metrics.synced(record(Family.IPV6, latencies=(0.2, 7.5), tables=(("nat", 12),)))
    _, samples = scraped(metrics)
    six = {"ip_family": "IPv6"}
    name = "kubeproxy_network_programming_duration_seconds"
    assert value(samples, f"{name}_count", **six) == 2
    assert value(samples, f"{name}_bucket", le="0.25", **six) == 1
    assert value(samples, f"{name}_bucket", le="8.0", **six) == 2
    last = "kubeproxy_sync_proxy_rules_iptables_last"
    assert value(samples, last, table="nat", **six) == 12
    assert value(samples, last, table="filter", **six) == 0


def test_states_are_those_of_the_scrape() -> None:
    """Pending and seen changes, refused objects, and the rules in force, by table."""
    plan = plan_of(make_service(), make_slice("10.180.0.1"))
    _, samples = scraped(Metrics(Watched(plan)))
    prefix = "kubeproxy_sync_proxy_rules"
    assert value(samples, f"{prefix}_service_changes_pending") == 1
    assert value(samples, f"{prefix}_endpoint_changes_pending") == 2
    assert value(samples, f"{prefix}_service_changes_total") == 30
    assert value(samples, f"{prefix}_endpoint_changes_total") == 40
    assert value(samples, "kproxy_refused_objects") == 3
    rules = plan[1].rules()
    for table in ("nat", "filter"):
        owned = sum(rule.table.value == table for rule in rules)
        found = value(samples, f"{prefix}_iptables_total", table=table, ip_family="IPv4")
        assert found == owned


def test_a_relay_is_counted_by_service_port() -> None:
    """Each counter of the relay under a name of ours, with the service port's own labels; and the
    relay as a whole, by family. What a relay does not count yet is 0."""
    name = PortName("ns", "web", "http", Protocol.UDP)
    counters = {
        key: 10 + number
        for number, key in enumerate(("active", *(row[0] for row in RELAY_COUNTED)))
    }
    totals = {key: 50 + number for number, (key, _, _) in enumerate((*RELAY_NOW, *RELAY_TOTALS))}
    relays = [
        Figures(Family.IPV4, totals, (Counters(name, counters),)),
        Figures(Family.IPV6, {}, (Counters(name, {}),)),
    ]
    _, samples = scraped(Metrics(Watched(relays=relays)))
    own = {"namespace": "ns", "service": "web", "port": "http", "protocol": "UDP"}
    named = {key: f"{metric}_total" for key, metric, _ in (*RELAY_COUNTED, *RELAY_TOTALS)}
    named |= {"active": "active"} | {key: metric for key, metric, _ in RELAY_NOW}
    for key, count in counters.items():
        sample = f"kproxy_relay_{named[key]}"
        assert value(samples, sample, ip_family="IPv4", **own) == count
        assert value(samples, sample, ip_family="IPv6", **own) == 0
    for key, count in totals.items():
        sample = f"kproxy_relay_{named[key]}"
        assert value(samples, sample, ip_family="IPv4") == count
        assert value(samples, sample, ip_family="IPv6") == 0


def test_a_relay_is_counted_by_endpoint() -> None:
    """Each counter under a name of ours, with the service port's labels and the endpoint's; there
    are samples of those endpoints only that the relay tells of."""
    name = PortName("ns", "web", "", Protocol.TCP)
    names = {key: f"{metric}_total" for key, metric, _ in ENDPOINT_COUNTED} | {"active": "active"}
    counters = {key: 10 + number for number, key in enumerate(names)}
    v4 = (EndpointCounters("10.180.0.1", 80, counters), EndpointCounters("10.180.0.1", 81, {}))
    v6 = (EndpointCounters("fd00::1", 80, counters),)
    relays = [
        Figures(Family.IPV4, {}, (Counters(name, {}, v4),)),
        Figures(Family.IPV6, {}, (Counters(name, {}, v6),)),
    ]
    _, samples = scraped(Metrics(Watched(relays=relays)))
    labels = {"namespace": "ns", "service": "web", "port": "", "protocol": "TCP"}
    found: dict[tuple[str, str], dict[str, float]] = {}
    for (metric, labelled), count in samples.items():
        if metric.startswith("kproxy_relay_endpoint_"):
            own = dict(labelled)
            place = own.pop("ip_family"), own.pop("endpoint")
            assert own == labels
            key = metric.removeprefix("kproxy_relay_endpoint_")
            found.setdefault(place, {})[key] = count
    counted = {names[key]: count for key, count in counters.items()}
    assert found == {
        ("IPv4", "10.180.0.1:80"): counted,
        ("IPv4", "10.180.0.1:81"): dict.fromkeys(names.values(), 0),
        ("IPv6", "[fd00::1]:80"): counted,
    }


HERE, ELSEWHERE = make_endpoint("10.180.0.1", "node1"), make_endpoint("10.180.0.2", "node2")
NODE_PORT = {"type": ServiceType.NODE_PORT, "ports": (make_port(node_port=30080),)}
LOCAL = TrafficPolicy.LOCAL


@pytest.mark.parametrize(
    ("fields", "endpoints", "internal", "external"),
    [
        ({"internal_policy": LOCAL}, (ELSEWHERE,), 1, 0),
        ({"internal_policy": LOCAL}, (ELSEWHERE, HERE), 0, 0),
        ({"internal_policy": LOCAL}, (), 0, 0),
        ({}, (ELSEWHERE,), 0, 0),
        ({"external_policy": LOCAL, **NODE_PORT}, (ELSEWHERE,), 0, 1),
        ({"external_policy": LOCAL, **NODE_PORT}, (HERE,), 0, 0),
        ({"external_policy": LOCAL}, (ELSEWHERE,), 0, 0),
        (
            {"internal_policy": LOCAL, "external_policy": LOCAL, **NODE_PORT},
            (ELSEWHERE,),
            1,
            1,
        ),
    ],
)
def test_local_policies_without_a_local_endpoint(
    fields: dict[str, Any], endpoints: tuple[Any, ...], internal: int, external: int
) -> None:
    """Counted when there are endpoints but none here, under each policy that is Local."""
    plan = plan_of(make_service(**fields), make_slice(*endpoints))
    _, samples = scraped(Metrics(Watched(plan)))
    name = "kubeproxy_sync_proxy_rules_no_local_endpoints_total"
    for policy, count in (("internal", internal), ("external", external)):
        assert value(samples, name, traffic_policy=policy, ip_family="IPv4") == count


def test_what_happened_before_the_library_was_loaded_counts() -> None:
    """Events wait for the metrics, in their order; afterwards they are counted at once."""
    monitor = Monitor(30)
    monitor.serves((Family.IPV4,))
    monitor.asked()
    monitor.began()
    monitor.ended((record(),))
    metrics = monitor.load(Watched())
    monitor.ended((record(),))
    monitor.answered("healthz", 503)
    _, samples = scraped(metrics)
    name = "kubeproxy_sync_proxy_rules_duration_seconds_count"
    assert value(samples, name, ip_family="IPv4") == 2
    assert value(samples, "kubeproxy_proxy_healthz_total", code="503") == 1
    assert value(samples, "kubeproxy_proxy_healthz_total", code="200") == 0


def test_nobody_who_asks_means_nothing_is_kept() -> None:
    """Without a metrics server events do not pile up."""
    monitor = Monitor(30, counting=False)
    for _ in range(3):
        monitor.ended((record(),))
    _, samples = scraped(monitor.load(Watched()))
    assert not [name for name, _ in samples if name.endswith("rules_duration_seconds_count")]


def test_open_metrics_are_spoken_too() -> None:
    """The form of the exposition follows the Accept header."""
    text, content_type = busy().text("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert text.endswith(b"# EOF\n")


@pytest.mark.parametrize("module", ["kproxy.cli.main", "kproxy.cli.run", "kproxy.daemon"])
def test_the_libraries_are_loaded_late(module: str) -> None:
    """Neither the help nor the start of the daemon waits for them."""
    late = "{'aiohttp', 'prometheus_client', 'kproxy.metrics'}"
    code = f"import sys, {module}; print(sorted({late} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
