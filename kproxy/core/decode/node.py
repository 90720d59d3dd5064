"""Reads a Node: its labels, addresses and pod ranges, and whether balancers may use it."""

from __future__ import annotations

from kproxy.core.address import canonical_cidr
from kproxy.core.decode import wire
from kproxy.core.decode.report import Report, quoted
from kproxy.core.objects import Node, ObjectKey

#: The taint with which the cluster autoscaler announces that it takes the node away.
TAINT_GOING = "ToBeDeletedByClusterAutoscaler"

#: Internal addresses first: the first of each family is the node's primary one.
_ADDRESS_TYPES = ("InternalIP", "ExternalIP")

_NO_META = wire.Meta()
_NO_SPEC = wire.NodeSpec()


def read_node(obj: wire.Node, key: ObjectKey, report: Report) -> Node | None:
    """The Node as a frozen value, or None when ``report`` condemned it."""
    meta = obj.metadata or _NO_META
    spec = obj.spec or _NO_SPEC
    leaving = any(taint and taint.key == TAINT_GOING for taint in spec.taints or ())
    node = Node(
        name=key.name,
        labels=tuple(sorted((name, text or "") for name, text in (meta.labels or {}).items())),
        addresses=_addresses(obj.status, report),
        pod_cidrs=_pod_cidrs(spec, report),
        eligible=not (leaving or meta.deletion_timestamp),
    )
    return None if report.whole else node


def _addresses(status: wire.NodeStatus | None, report: Report) -> tuple[str, ...]:
    by_type: dict[str, list[str]] = {name: [] for name in _ADDRESS_TYPES}
    for at, entry in enumerate((status.addresses if status else None) or ()):
        field = f"status.addresses[{at}]"
        if entry is None:
            report.member(field, "is null; remove it")
        elif entry.type in by_type:
            address = report.address(entry.address, f"{field}.address")
            if address:
                by_type[entry.type].append(address)
    return tuple(dict.fromkeys(address for name in _ADDRESS_TYPES for address in by_type[name]))


def _pod_cidrs(spec: wire.NodeSpec, report: Report) -> tuple[str, ...]:
    if spec.pod_cidrs:
        named = [(f"spec.podCIDRs[{at}]", text) for at, text in enumerate(spec.pod_cidrs)]
    elif spec.pod_cidr:
        named = [("spec.podCIDR", spec.pod_cidr)]
    else:
        return ()
    found: dict[str, None] = {}
    for field, text in named:
        network = canonical_cidr(text) if text else None
        if network is None:
            report.member(
                field, f"{quoted(text)} is no address range; write one such as 10.244.0.0/24"
            )
        else:
            found[network] = None
    return tuple(found)
