"""From configuration, Node object and the host's addresses to the settings of one family.

Pure. The host's addresses are a parameter: :mod:`kproxy.kernel.addresses` reads them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Sequence

from kproxy.config import Config, port_range
from kproxy.core.decode.policy import read_policy
from kproxy.core.health.values import HealthSettings
from kproxy.core.objects import Family, Node, family_of
from kproxy.core.snapshot import (
    FastpathSettings,
    IpvsSettings,
    LocalDetector,
    ModeSettings,
    NftablesSettings,
    NodePortTargets,
    NodeSettings,
    UserspaceSettings,
)

ZONE_LABEL = "topology.kubernetes.io/zone"

_LOOPBACK = {
    Family.IPV4: ipaddress.ip_network("127.0.0.0/8"),
    Family.IPV6: ipaddress.ip_network("::1/128"),
}
_UNSPECIFIED = ("0.0.0.0", "::")


def node_settings(
    config: Config,
    node: Node | None,
    node_name: str,
    family: Family,
    host_addresses: Sequence[str],
) -> NodeSettings:
    """Settings of one family.

    ``host_addresses`` are all addresses of the node's network namespace, those of global scope
    first (both families may be mixed, without prefix length). ``node`` None: the node's own
    addresses are the host's, and there is no zone and no pod range.
    """
    addresses = node_addresses(config, node, family, host_addresses)
    return NodeSettings(
        name=node_name,
        zone=node.label(ZONE_LABEL) if node else "",
        addresses=addresses,
        detector=local_detector(config, node, family),
        masquerade_all=config.rules.masquerade_all,
        masquerade_bit=config.rules.masquerade_bit,
        node_port_targets=node_port_targets(config, family, addresses, host_addresses),
        service_cidrs=_of(family, config.service_cidrs),
        local_addresses=local_addresses(config, family, addresses, host_addresses),
        ipvs=ipvs_settings(config, family),
        userspace=userspace_settings(config, family),
        health=health_settings(config),
    )


#: Modes that name each address of the node; the others ask the kernel what is local.
_NAMES_ADDRESSES = frozenset({"ipvs", "fastpath"})


def local_addresses(
    config: Config, family: Family, addresses: Sequence[str], host_addresses: Sequence[str]
) -> tuple[str, ...]:
    """The node's addresses of a family, but loopback's and link-local ones, for the modes that need
    them; sorted, since the kernel's order may change while the addresses do not.

    In userspace mode those of the node's own ``addresses`` that are here, in their order: what the
    Node object says may be an address of another machine, from which packets are passed on.
    """
    if config.effective_mode == "userspace":
        return tuple(address for address in addresses if address in host_addresses)
    if config.effective_mode not in _NAMES_ADDRESSES:
        return ()
    loopback = _LOOPBACK[family]
    found = (ipaddress.ip_address(text) for text in _of(family, host_addresses))
    # Link-local addresses come with every pod's link, and nobody takes one for the node's.
    return tuple(str(ip) for ip in sorted(found) if not (ip in loopback or ip.is_link_local))


def ipvs_settings(config: Config, family: Family) -> IpvsSettings:
    """The ``ipvs`` section for one family; the default in other modes, where it means nothing."""
    if config.effective_mode != "ipvs":
        return IpvsSettings()
    section = config.ipvs
    return IpvsSettings(
        scheduler=section.scheduler or "rr",
        exclude_cidrs=_canonical(family, section.exclude_cidrs),
        strict_arp=section.strict_arp,
        tcp_timeout=int(section.tcp_timeout),
        tcp_fin_timeout=int(section.tcp_fin_timeout),
        udp_timeout=int(section.udp_timeout),
        drain_seconds=float(section.drain_timeout),
    )


def userspace_settings(config: Config, family: Family) -> UserspaceSettings:
    """What userspace mode is asked for; the default in other modes, where it means nothing."""
    if config.effective_mode != "userspace":
        return UserspaceSettings()
    section = config.userspace
    bind = config.bind_address
    own = bind not in _UNSPECIFIED and family_of(bind) is family
    return UserspaceSettings(
        listen=str(ipaddress.ip_address(bind)) if own else "",
        port_range=port_range(config.port_range),
        workers=section.workers,
        tcp_idle_seconds=float(section.tcp_idle_timeout),
        udp_idle_seconds=float(config.udp_idle_timeout),
        drain_seconds=float(section.drain_timeout),
    )


def health_settings(config: Config) -> HealthSettings:
    """What the operator says of endpoints' health. The configuration has been checked."""
    section = config.health
    default = read_policy(section.default)[0] if section.default is not None else None
    return HealthSettings(default, section.allow_exec)


def fastpath_settings(config: Config) -> FastpathSettings:
    """What fastpath mode is asked for; the default in other modes, where it means nothing."""
    if config.effective_mode != "fastpath":
        return FastpathSettings()
    section = config.fastpath
    return FastpathSettings(
        workers=section.workers,
        max_flows=section.max_flows,
        new_per_second=section.new_per_second,
        drain_seconds=float(section.drain_timeout),
        seed=bytes.fromhex(section.seed),
    )


def mode_settings(config: Config, family: Family) -> ModeSettings:
    """What the operator asks of single modes."""
    return ModeSettings(
        ipvs_settings(config, family),
        userspace_settings(config, family),
        fastpath_settings(config),
        NftablesSettings(config.nftables.choice),
    )


def node_addresses(
    config: Config, node: Node | None, family: Family, host_addresses: Sequence[str]
) -> tuple[str, ...]:
    """This node's own addresses of the family, primary first.

    A specific bindAddress is the primary one; then the Node's, in its order; the host's stand in
    for a node without any. Loopback and link-local addresses are nobody's node address.
    """
    bind = config.bind_address
    bound = () if bind in _UNSPECIFIED else _of(family, (str(ipaddress.ip_address(bind)),))
    known = _of(family, node.addresses) if node else ()
    return tuple(dict.fromkeys((*bound, *(known or _global(family, host_addresses)))))


def primary_family(config: Config, node: Node | None, host_addresses: Sequence[str]) -> Family:
    """The family that this node cannot do without: of bindAddress, of the Node's first address, of
    the host's; IPv4 when nothing tells."""
    if config.bind_address not in _UNSPECIFIED:
        return family_of(config.bind_address)
    if node and node.addresses:
        return family_of(node.addresses[0])
    if _global(Family.IPV6, host_addresses) and not _global(Family.IPV4, host_addresses):
        return Family.IPV6
    return Family.IPV4


def local_detector(config: Config, node: Node | None, family: Family) -> LocalDetector | None:
    """How local pods' traffic is told; None when what the mode needs is not there."""
    detector = _DETECTORS[config.detect_local_mode](config, node, family)
    return detector if detector != LocalDetector() else None


def _cluster_cidr(config: Config, node: Node | None, family: Family) -> LocalDetector:
    ranges = (part.strip() for part in config.cluster_cidr.split(",") if part.strip())
    return LocalDetector(cidr=next(iter(_canonical(family, ranges)), ""))


def _node_cidr(config: Config, node: Node | None, family: Family) -> LocalDetector:
    ranges = node.pod_cidrs if node else ()
    return LocalDetector(cidr=next(iter(_canonical(family, ranges)), ""))


def _bridge(config: Config, node: Node | None, family: Family) -> LocalDetector:
    return LocalDetector(bridge=config.detect_local.bridge_interface)


def _prefix(config: Config, node: Node | None, family: Family) -> LocalDetector:
    return LocalDetector(prefix=config.detect_local.interface_name_prefix)


_DETECTORS: dict[str, Callable[[Config, Node | None, Family], LocalDetector]] = {
    "ClusterCIDR": _cluster_cidr,
    "NodeCIDR": _node_cidr,
    "BridgeInterface": _bridge,
    "InterfaceNamePrefix": _prefix,
}


def node_port_targets(
    config: Config, family: Family, addresses: Sequence[str], host_addresses: Sequence[str]
) -> NodePortTargets:
    """Where node ports answer.

    Unset means every local address, except in nftables mode, where it means the primary one. A
    list whose ranges are all of the other family restricts nothing in this one (kube-proxy's rule).
    """
    unset = ("primary",) if config.effective_mode == "nftables" else ("all",)
    wanted = config.node_port_addresses or unset
    keywords = {item for item in wanted if "/" not in item}
    ranges = [ipaddress.ip_network(text) for text in _canonical(family, wanted)]
    loopback = _LOOPBACK[family]
    on_loopback = (
        family is Family.IPV4
        and config.effective_mode != "nftables"
        and config.iptables.localhost_node_ports
    )
    if "all" in keywords or not (keywords or ranges) or any(r.prefixlen == 0 for r in ranges):
        return NodePortTargets(all=True, localhost=on_loopback)
    chosen = list(addresses[:1]) if "primary" in keywords else []
    # An address may be link-local IPv6 as well: whoever lists its range means it.
    local = [ipaddress.ip_address(address) for address in _of(family, host_addresses)]
    chosen += [
        str(ip) for ip in local if ip not in loopback and any(ip in range_ for range_ in ranges)
    ]
    includes_loopback = "localhost" in keywords or any(r.overlaps(loopback) for r in ranges)
    return NodePortTargets(
        all=False,
        addresses=tuple(dict.fromkeys(chosen)),
        localhost=on_loopback and includes_loopback,
    )


def _of(family: Family, texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(text for text in texts if family_of(text) is family)


def _canonical(family: Family, texts: Iterable[str]) -> tuple[str, ...]:
    """Ranges of a family in canonical text: iptables prints host bits as zero, so must we."""
    return tuple(
        str(ipaddress.ip_network(text, strict=False))
        for text in texts
        if "/" in text and family_of(text) is family
    )


def _global(family: Family, addresses: Iterable[str]) -> tuple[str, ...]:
    found = (ipaddress.ip_address(address) for address in _of(family, addresses))
    return tuple(str(ip) for ip in found if not (ip.is_loopback or ip.is_link_local))
