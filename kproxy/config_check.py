"""What is wrong with a :class:`kproxy.config.Config`: every fault at once, each by its field.

The rules are kube-proxy's start-up validation. Pure; whether this machine can do what is asked
(a scheduler that the kernel lacks) shows later, when the mode is probed.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Sequence

from kproxy.config import Config, port_range, value_at
from kproxy.core.decode.policy import read_policy
from kproxy.core.health.values import Exec
from kproxy.core.objects import family_of
from kproxy.core.servers import SCHEDULERS
from kproxy.core.steering import TO_ENGINE
from kproxy.durations import format_duration
from kproxy.errors import ConfigError

MODES = ("iptables", "ipvs", "nftables", "userspace", "fastpath")
DETECT_LOCAL_MODES = ("ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix")
NODE_PORT_KEYWORDS = ("primary", "localhost", "all")

#: Field, lowest, highest.
_RANGES: tuple[tuple[str, float, float], ...] = (
    ("iptables.masqueradeBit", 0, 31),
    ("nftables.masqueradeBit", 0, 31),
    ("oomScoreAdj", -1000, 1000),
    ("clientConnection.burst", 0, float("inf")),
    ("conntrack.maxPerCore", 0, float("inf")),
    ("conntrack.min", 0, float("inf")),
    ("logging.verbosity", 0, float("inf")),
    # Threads beyond that would only wait for each other; each has sockets of its own.
    ("userspace.workers", 0, 64),
    ("fastpath.workers", 0, 64),
    # The engine's index holds no more; 262,144 take 32 MB of each family when all are in use.
    ("fastpath.maxFlows", 1, 1 << 28),
    ("fastpath.newPerSecond", 0, 1 << 28),
)
_POSITIVE = (
    *("iptables.syncPeriod", "ipvs.syncPeriod", "nftables.syncPeriod"),
    *("configSyncPeriod", "udpIdleTimeout", "userspace.tcpIdleTimeout"),
)
_NOT_NEGATIVE = (
    *("iptables.minSyncPeriod", "ipvs.minSyncPeriod", "nftables.minSyncPeriod"),
    *("ipvs.tcpTimeout", "ipvs.tcpFinTimeout", "ipvs.udpTimeout", "ipvs.drainTimeout"),
    *("conntrack.tcpEstablishedTimeout", "conntrack.tcpCloseWaitTimeout"),
    *("conntrack.udpTimeout", "conntrack.udpStreamTimeout"),
    *("userspace.drainTimeout", "fastpath.drainTimeout"),
)
_CHOICES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("mode", ("", *MODES)),
    ("detectLocalMode", DETECT_LOCAL_MODES),
    ("ipvs.scheduler", ("", *SCHEDULERS)),
    ("logging.format", ("text", "json")),
    ("nftables.choice", ("random", "hash")),
)
#: detectLocalMode -> the field that it cannot do without.
_DETECT_LOCAL_NEEDS = {
    "BridgeInterface": "detectLocal.bridgeInterface",
    "InterfaceNamePrefix": "detectLocal.interfaceNamePrefix",
}


def check(config: Config, *, where: str = "config") -> Config:
    """The same Config; ConfigError with every problem in one line if there is any."""
    found = problems(config)
    if found:
        raise ConfigError("; ".join(found), where=where)
    return config


def problems(config: Config) -> tuple[str, ...]:
    """Everything that is wrong, each as ``field: what it is, what it may be``; () when fine.

    The ``ipvs`` section is judged in ipvs mode only, as kube-proxy does.
    """
    found = (
        line
        for rule in (_ranges, _durations, _choices, _addresses, _cidrs, _details, _health)
        for line in rule(config)
    )
    return tuple(line for line in found if config.mode == "ipvs" or not line.startswith("ipvs."))


#: Field -> what it would do. Settings that are taken and checked, and do nothing yet.
_NO_EFFECT: tuple[tuple[str, str], ...] = (
    ("enableProfiling", "there is no profiling server"),
    ("showHiddenMetricsForVersion", "there are no hidden metrics"),
    ("featureGates", "there are no feature gates"),
    ("clientConnection", "objects come from -f"),
    ("configSyncPeriod", "objects come from -f"),
    ("logging.flushFrequency", "lines are written at once"),
)

#: Those of single modes, in the other modes.
_OF_MODES = (
    ("userspace", ("portRange", "udpIdleTimeout", "userspace")),
    ("fastpath", ("fastpath",)),
    ("nftables", ("nftables.choice",)),
)


#: Fields of the section ``iptables``, which governs all modes but nftables: that has its own.
_NOT_NFTABLES = (
    *("masqueradeAll", "masqueradeBit", "localhostNodePorts"),
    *("syncPeriod", "minSyncPeriod"),
)


#: Bit of ``core.steering.TO_ENGINE``.
_TO_ENGINE_BIT = TO_ENGINE.bit_length() - 1


def without_effect(config: Config) -> tuple[str, ...]:
    """One line for each setting that was made and does nothing in this version."""
    default = Config()
    mode = config.effective_mode
    elsewhere = [(path, owner) for owner, some in _OF_MODES for path in some if mode != owner]
    settings = [*_NO_EFFECT, *((path, f"belongs to {owner} mode") for path, owner in elsewhere)]
    if mode == "nftables":
        said = "belongs to other modes; this one has the section nftables"
        settings += [(f"iptables.{name}", said) for name in _NOT_NFTABLES]
    return tuple(
        f"{path}: {what}"
        for path, what in settings
        if value_at(config, path) != value_at(default, path)
    )


def _ranges(config: Config) -> Iterator[str]:
    for path, low, high in _RANGES:
        value = value_at(config, path)
        assert isinstance(value, int)
        if not low <= value <= high:
            span = f"{low:g} or more" if high == float("inf") else f"{low:g} to {high:g}"
            yield f"{path}: {value} must be {span}"


def _durations(config: Config) -> Iterator[str]:
    for path in (*_POSITIVE, *_NOT_NEGATIVE):
        value = value_at(config, path)
        assert isinstance(value, float)
        if value < 0 or (value == 0 and path in _POSITIVE):
            bound = "more than 0s" if path in _POSITIVE else "0s or more"
            yield f"{path}: {format_duration(value)} must be {bound}"
    for name in ("iptables", "ipvs", "nftables"):
        section = getattr(config, name)
        if section.min_sync_period > section.sync_period:
            least, period = map(format_duration, (section.min_sync_period, section.sync_period))
            yield f"{name}.minSyncPeriod: {least} must not exceed syncPeriod, {period}"


def _choices(config: Config) -> Iterator[str]:
    for path, choices in _CHOICES:
        value = value_at(config, path)
        if value not in choices:
            yield f"{path}: {value!r} must be one of {', '.join(filter(None, choices))}"


def _addresses(config: Config) -> Iterator[str]:
    if not _is_ip(config.bind_address):
        yield f"bindAddress: {config.bind_address!r} must be an IP address"
    for path in ("healthzBindAddress", "metricsBindAddress"):
        value = value_at(config, path)
        assert isinstance(value, str)
        if value and not _is_ip_port(value):
            yield f"{path}: {value!r} must be ip:port ([ip]:port for IPv6) with port 1 to 65535"


def _cidrs(config: Config) -> Iterator[str]:
    if config.cluster_cidr:
        parts = [part.strip() for part in config.cluster_cidr.split(",")]
        yield from _bad_cidrs("clusterCIDR", parts)
        if len(parts) > 2 or (len(parts) == 2 and family_of(parts[0]) is family_of(parts[1])):
            yield f"clusterCIDR: {config.cluster_cidr!r} must hold at most one range a family"
    yield from _bad_cidrs("ipvs.excludeCIDRs", config.ipvs.exclude_cidrs)
    yield from _bad_cidrs("serviceCIDRs", config.service_cidrs)
    ranges = [item for item in config.node_port_addresses if item not in NODE_PORT_KEYWORDS]
    keywords = f", or {', '.join(NODE_PORT_KEYWORDS)}"
    yield from _bad_cidrs("nodePortAddresses", ranges, keywords)


def _bad_cidrs(path: str, values: Sequence[str], others: str = "") -> Iterator[str]:
    for value in values:
        if not _is_cidr(value):
            yield f"{path}: {value!r} must be a CIDR like 10.0.0.0/8 or fd00::/8{others}"


def _details(config: Config) -> Iterator[str]:
    needed = _DETECT_LOCAL_NEEDS.get(config.detect_local_mode)
    if needed and not value_at(config, needed):
        yield f"{needed}: must be set for detectLocalMode {config.detect_local_mode}"
    for path in _DETECT_LOCAL_NEEDS.values():
        name = str(value_at(config, path))
        # The kernel's own bounds, and what ends a string for nft.
        if name and not re.fullmatch(r'[^\s/"\x00-\x1f]{1,15}', name):
            yield f"{path}: {name!r} is no name of an interface"
    try:
        port_range(config.port_range)
    except ValueError as wrong:
        yield f"portRange: {wrong}"
    # 16 bytes: the key of the hash that chooses.
    if config.fastpath.seed and not re.fullmatch(r"[0-9a-fA-F]{32}", config.fastpath.seed):
        yield f"fastpath.seed: {config.fastpath.seed!r} must be 32 hexadecimal digits"
    # While a node goes from fastpath mode to nftables mode or back, both stand side by side.
    if config.nftables.masquerade_bit == _TO_ENGINE_BIT:
        yield f"nftables.masqueradeBit: {_TO_ENGINE_BIT} leads packets to fastpath's engine"
    name = config.hostname_override.strip().lower()
    # A Node's name is a DNS subdomain (RFC 1123); any other would match no nodeName ever.
    if name and (len(name) > 253 or not re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", name)):
        yield f"hostnameOverride: {config.hostname_override!r} is no Node name"


def _health(config: Config) -> Iterator[str]:
    if config.health.default is not None:
        policy, faults = read_policy(config.health.default)
        for field, message in faults:
            yield f"health.default{'.' * bool(field)}{field}: {message}"
        runs = policy.check is not None and isinstance(policy.check.probe, Exec)
        if runs and not config.health.allow_exec:
            yield "health.default.exec: runs programs on this node; set health.allowExec to true"


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_cidr(text: str) -> bool:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    return "/" in text


def _is_ip_port(text: str) -> bool:
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if ":" not in host:
            return False
    elif ":" in host:
        return False
    return _is_ip(host) and port.isascii() and port.isdigit() and 1 <= int(port) <= 65535
