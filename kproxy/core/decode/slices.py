"""Reads EndpointSlices, and Endpoints by mirroring them to slices.

Mirroring follows the mirroring controller of Kubernetes in what it copies: ready and not-ready
addresses, node names, ports; not when the object is labelled ``skip-mirror`` or is really a leader
election lock. A subset gives one slice a family, under a name made of its place, so that the same
object always gives the same slices. Whether a mirrored slice is used is decided where all objects
are known (:mod:`kproxy.sources.merge`).
"""

from __future__ import annotations

from kproxy.core.address import canonical_ip, special_use
from kproxy.core.decode import wire
from kproxy.core.decode.report import Report, is_label, port_fault, quoted, seconds_of
from kproxy.core.decode.service import LABEL_HEADLESS, LABEL_OTHER_PROXY
from kproxy.core.objects import (
    EndpointSlice,
    Family,
    ObjectKey,
    SliceEndpoint,
    SlicePort,
    family_of,
)

LABEL_SERVICE = "kubernetes.io/service-name"
LABEL_SKIP_MIRROR = "endpointslice.kubernetes.io/skip-mirror"
ANNOTATION_TRIGGER = "endpoints.kubernetes.io/last-change-trigger-time"
ANNOTATION_LEADER = "control-plane.alpha.kubernetes.io/leader"

_FAMILIES = {"IPv4": Family.IPV4, "IPv6": Family.IPV6}
_NO_META = wire.Meta()


def read_slice(obj: wire.EndpointSlice, key: ObjectKey, report: Report) -> EndpointSlice | None:
    """The slice as a frozen value; None when condemned, or when it is none of our business."""
    meta = obj.metadata or _NO_META
    labels = meta.labels or {}
    if LABEL_OTHER_PROXY in labels or LABEL_HEADLESS in labels or obj.address_type == "FQDN":
        return None
    family = _FAMILIES.get(obj.address_type or "")
    if family is None:
        report.condemn(
            "addressType", f"{quoted(obj.address_type)} is no address type; use IPv4 or IPv6"
        )
        return None
    service = labels.get(LABEL_SERVICE)
    if not service or not is_label(service):
        report.condemn(
            f"metadata.labels[{LABEL_SERVICE}]",
            f"{quoted(service)} names no Service; set the label to the Service's name",
        )
        return None
    ports = _ports(obj.ports, "ports", report)
    endpoints = tuple(_endpoints(obj.endpoints or (), family, report))
    if report.whole:
        return None
    return EndpointSlice(key.namespace, key.name, service, family, ports, endpoints, _trigger(meta))


def _trigger(meta: wire.Meta) -> float:
    """0.0 when absent or unreadable: it is for a measurement only, so nobody is told."""
    text = meta.annotations.get(ANNOTATION_TRIGGER) if meta.annotations else None
    return (seconds_of(text) or 0.0) if text else 0.0


def _ports(
    entries: list[wire.EndpointPort] | None, field: str, report: Report
) -> tuple[SlicePort, ...]:
    ports: list[SlicePort] = []
    for at, port in enumerate(entries or ()):
        # Without a number nothing can be programmed; the API calls that "all ports".
        if not port.port:
            continue
        protocol = report.protocol(port.protocol, f"{field}[{at}].protocol")
        name = report.port_name(port.name, f"{field}[{at}].name")
        if fault := port_fault(port.port):
            report.condemn(f"{field}[{at}].port", fault)
        ports.append(SlicePort(name, protocol, port.port))
    return tuple(ports)


def _endpoints(
    entries: list[wire.Endpoint | None] | tuple[()], family: Family, report: Report
) -> list[SliceEndpoint]:
    found: list[SliceEndpoint] = []
    for at, entry in enumerate(entries):
        if entry is None:
            report.member(f"endpoints[{at}]", "is null; remove it")
            continue
        text = entry.addresses[0] if entry.addresses else ""
        # Not Report.address: the field's name is put together only for the few broken ones.
        address = canonical_ip(text)
        if address is None or family_of(address) is not family or special_use(address):
            _refuse_endpoint(text, address, family, f"endpoints[{at}].addresses[0]", report)
            continue
        conditions, hints = entry.conditions, entry.hints
        found.append(
            SliceEndpoint(
                address,
                conditions is None or conditions.ready is not False,
                conditions is None or conditions.serving is not False,
                conditions is not None and conditions.terminating is True,
                entry.node_name or "",
                entry.zone or "",
                _names(hints.for_zones) if hints else (),
                _names(hints.for_nodes) if hints else (),
            )
        )
    return found


def _refuse_endpoint(
    text: str, address: str | None, family: Family, field: str, report: Report
) -> None:
    if address is not None and family_of(address) is not family:
        report.member(
            field, f"{address} is not IPv{family:d} as addressType says; move it to another slice"
        )
        return
    report.address(text, field)


def _names(hints: list[wire.Hint] | None) -> tuple[str, ...]:
    return tuple(hint.name for hint in hints or () if hint.name)


def mirror_endpoints(
    obj: wire.Endpoints, key: ObjectKey, report: Report
) -> tuple[EndpointSlice, ...]:
    """The slices of an Endpoints object; none when it is condemned or must not be mirrored."""
    meta = obj.metadata or _NO_META
    if (meta.labels or {}).get(LABEL_SKIP_MIRROR) == "true":
        return ()
    if ANNOTATION_LEADER in (meta.annotations or {}):
        return ()
    if not is_label(key.name):
        report.condemn(
            "metadata.name",
            f"{quoted(key.name)} names no Service; give it the name of the Service it belongs to",
        )
    trigger = _trigger(meta)
    slices: list[EndpointSlice] = []
    for at, subset in enumerate(obj.subsets or ()):
        if subset is None:
            report.member(f"subsets[{at}]", "is null; remove it")
            continue
        slices += _mirror_subset(subset, at, key, trigger, report)
    return () if report.whole else tuple(slices)


def _mirror_subset(
    subset: wire.Subset, index: int, key: ObjectKey, trigger: float, report: Report
) -> list[EndpointSlice]:
    place = f"subsets[{index}]"
    ports = _ports(subset.ports, f"{place}.ports", report)
    by_family: dict[Family, list[SliceEndpoint]] = {}
    for name, entries, ready in (
        ("addresses", subset.addresses, True),
        ("notReadyAddresses", subset.not_ready_addresses, False),
    ):
        for at, entry in enumerate(entries or ()):
            field = f"{place}.{name}[{at}]"
            if entry is None:
                report.member(field, "is null; remove it")
                continue
            address = report.address(entry.ip, f"{field}.ip")
            if address:
                by_family.setdefault(family_of(address), []).append(
                    SliceEndpoint(address, ready=ready, node=entry.node_name or "")
                )
    return [
        EndpointSlice(
            key.namespace,
            f"{key.name}-mirror-{index}-ipv{family:d}",
            key.name,
            family,
            ports,
            tuple(endpoints),
            trigger,
        )
        for family, endpoints in sorted(by_family.items())
    ]
