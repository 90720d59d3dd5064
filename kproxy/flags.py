"""kube-proxy's Linux command-line flags as a table, and the Config that they give.

The table is the one place that knows flags: :mod:`kproxy.cli.run` makes its options from it. A flag
with a ``path`` sets that field of :class:`kproxy.config.Config`, and the field's default is the
flag's; a flag without one is an action, or has no effect here and says so in its note.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec
import yaml

from kproxy.config import (
    HEALTHZ_PORT,
    METRICS_PORT,
    Config,
    default_addresses,
    read_mapping,
    replace_at,
    to_mapping,
    value_at,
    with_port,
)
from kproxy.config_check import problems
from kproxy.core.objects import Value
from kproxy.durations import format_duration, parse_duration
from kproxy.errors import ConfigError


class Kind(StrEnum):
    """How a flag's text is read. FLAG may stand alone, meaning true."""

    TEXT = "text"
    WHOLE = "int"
    NUMBER = "float"
    FLAG = "bool"
    DURATION = "duration"
    LIST = "list"
    SWITCHES = "name=bool,…"


class Flag(Value, frozen=True):
    """One flag. ``values`` are shown in the help as its choices."""

    name: str
    kind: Kind
    path: str
    help: str
    group: str
    short: str = ""
    aliases: tuple[str, ...] = ()

    @property
    def default(self) -> str:
        """The default as it would be typed; "" when there is none to show."""
        if not self.path:
            return ""
        value = value_at(Config(), self.path)
        if self.kind is Kind.DURATION:
            assert isinstance(value, float)
            return format_duration(value)
        if self.kind is Kind.FLAG:
            return str(value).lower()
        return "" if value in ("", (), {}) else str(value)


NODE, LOCAL, MODE, KERNEL, SERVERS, API, LOGS = (
    "This node",
    "Local traffic",
    "Mode and rules",
    "Kernel limits",
    "Servers",
    "Kubernetes API (accepted, no effect: objects come from -f)",
    "Logs",
)
_T, _I, _N, _B, _D, _L = (
    *(Kind.TEXT, Kind.WHOLE, Kind.NUMBER, Kind.FLAG, Kind.DURATION, Kind.LIST),
)

FLAGS: tuple[Flag, ...] = (
    Flag("hostname-override", _T, "hostnameOverride", "Node name; else the host's name", NODE),
    Flag("bind-address", _T, "bindAddress",
         "primary node IP and family; userspace mode listens there", NODE),
    Flag("nodeport-addresses", _L, "nodePortAddresses",
         "CIDRs, primary, localhost or all: where node ports answer", NODE),
    Flag("oom-score-adj", _I, "oomScoreAdj", "OOM score of this process", NODE),
    Flag("detect-local-mode", _T, "detectLocalMode",
         "ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix", LOCAL),
    Flag("cluster-cidr", _T, "clusterCIDR", "pod ranges, one a family", LOCAL),
    Flag("pod-bridge-interface", _T, "detectLocal.bridgeInterface", "bridge of the pods", LOCAL),
    Flag("pod-interface-name-prefix", _T, "detectLocal.interfaceNamePrefix",
         "first letters of the pods' interfaces", LOCAL),
    Flag("proxy-mode", _T, "mode", "iptables, ipvs, nftables, userspace or fastpath", MODE,
         aliases=("mode",)),
    Flag("iptables-masquerade-bit", _I, "iptables.masqueradeBit", "bit of the packet mark", MODE),
    Flag("masquerade-all", _B, "iptables.masqueradeAll", "rewrite every source address", MODE),
    Flag("iptables-localhost-nodeports", _B, "iptables.localhostNodePorts",
         "IPv4 node ports on 127.0.0.0/8", MODE),
    Flag("iptables-sync-period", _D, "iptables.syncPeriod", "rules are checked that often", MODE),
    Flag("iptables-min-sync-period", _D, "iptables.minSyncPeriod", "least gap of syncs", MODE),
    Flag("ipvs-sync-period", _D, "ipvs.syncPeriod", "rules are checked that often", MODE),
    Flag("ipvs-min-sync-period", _D, "ipvs.minSyncPeriod", "least gap of syncs", MODE),
    Flag("ipvs-scheduler", _T, "ipvs.scheduler", "rr, wrr, lc, sh, mh, …", MODE),
    Flag("ipvs-exclude-cidrs", _L, "ipvs.excludeCIDRs", "virtual servers left alone", MODE),
    Flag("ipvs-strict-arp", _B, "ipvs.strictARP", "arp_ignore=1, arp_announce=2", MODE),
    Flag("ipvs-tcp-timeout", _D, "ipvs.tcpTimeout", "0s leaves the kernel's", MODE),
    Flag("ipvs-tcpfin-timeout", _D, "ipvs.tcpFinTimeout", "0s leaves the kernel's", MODE),
    Flag("ipvs-udp-timeout", _D, "ipvs.udpTimeout", "0s leaves the kernel's", MODE),
    Flag("ipvs-drain-timeout", _D, "ipvs.drainTimeout",
         "how long an endpoint that went keeps its TCP connections", MODE),
    Flag("proxy-port-range", _T, "portRange", "of userspace mode; else the kernel chooses", MODE),
    Flag("udp-timeout", _D, "udpIdleTimeout", "userspace: idle UDP sessions end", MODE),
    Flag("userspace-tcp-idle-timeout", _D, "userspace.tcpIdleTimeout",
         "idle TCP connections end", MODE),
    Flag("userspace-workers", _I, "userspace.workers", "threads; 0: by the cores, up to 4", MODE),
    Flag("userspace-drain-timeout", _D, "userspace.drainTimeout",
         "how long flows may go on after a new process took over", MODE),
    Flag("feature-gates", Kind.SWITCHES, "featureGates", "accepted, no effect", MODE),
    Flag("conntrack-max-per-core", _I, "conntrack.maxPerCore", "0 leaves the limit", KERNEL),
    Flag("conntrack-min", _I, "conntrack.min", "floor of the limit", KERNEL),
    Flag("conntrack-tcp-timeout-established", _D, "conntrack.tcpEstablishedTimeout",
         "0s leaves it", KERNEL),
    Flag("conntrack-tcp-timeout-close-wait", _D, "conntrack.tcpCloseWaitTimeout",
         "0s leaves it", KERNEL),
    Flag("conntrack-tcp-be-liberal", _B, "conntrack.tcpBeLiberal",
         "accept packets out of window", KERNEL),
    Flag("conntrack-udp-timeout", _D, "conntrack.udpTimeout", "0s leaves it", KERNEL),
    Flag("conntrack-udp-timeout-stream", _D, "conntrack.udpStreamTimeout", "0s leaves it", KERNEL),
    Flag("healthz-bind-address", _T, "healthzBindAddress", "ip:port, or '' for none", SERVERS),
    Flag("metrics-bind-address", _T, "metricsBindAddress", "ip:port, or '' for none", SERVERS),
    Flag("healthz-port", _I, "", "old form of --healthz-bind-address; 0 for none", SERVERS),
    Flag("metrics-port", _I, "", "old form of --metrics-bind-address; 0 for none", SERVERS),
    Flag("bind-address-hard-fail", _B, "bindAddressHardFail",
         "exit when a port cannot be bound", SERVERS),
    Flag("profiling", _B, "enableProfiling", "accepted, no effect", SERVERS),
    Flag("show-hidden-metrics-for-version", _T, "showHiddenMetricsForVersion",
         "accepted, no effect", SERVERS),
    Flag("kubeconfig", _T, "clientConnection.kubeconfig", "API credentials", API),
    Flag("master", _T, "", "API address", API),
    Flag("kube-api-content-type", _T, "clientConnection.contentType", "wire format", API),
    Flag("kube-api-qps", _N, "clientConnection.qps", "requests a second", API),
    Flag("kube-api-burst", _I, "clientConnection.burst", "requests at once", API),
    Flag("config-sync-period", _D, "configSyncPeriod", "how often all is listed again", API),
    Flag("v", _I, "logging.verbosity", "how much is logged; 2 and more: details", LOGS, short="v"),
    Flag("vmodule", _T, "", "accepted, no effect", LOGS),
    Flag("logging-format", _T, "logging.format", "text or json", LOGS),
    Flag("log-flush-frequency", _D, "logging.flushFrequency", "accepted, no effect", LOGS),
)  # fmt: skip

BY_NAME = {flag.name: flag for flag in FLAGS}

#: Flags that set nothing here -> why.
WITHOUT_EFFECT = {
    "master": "objects come from -f",
    "vmodule": "-v is for all of kproxy",
}

#: Flags that keep their meaning beside --config (kube-proxy's rule).
_BESIDE_CONFIG = ("hostname-override", "v", "logging-format")


def read_flag(flag: Flag, text: str) -> object:
    """The value of one flag's text. ValueError, saying what is needed, when it is none."""
    return _READERS[flag.kind](text)


def config_from_flags(values: Mapping[str, object]) -> Config:
    """A Config from flags that were given: name -> what :func:`read_flag` made of its text.

    Zero stays zero: only a file's zero means the default.
    """
    config = Config()
    if "bind-address" in values:
        healthz, metrics = default_addresses(str(values["bind-address"]))
        config = msgspec.structs.replace(
            config, healthz_bind_address=healthz, metrics_bind_address=metrics
        )
    for name, value in values.items():
        if BY_NAME[name].path:
            config = replace_at(config, BY_NAME[name].path, value)
    for path, default, old in (
        ("healthzBindAddress", HEALTHZ_PORT, "healthz-port"),
        ("metricsBindAddress", METRICS_PORT, "metrics-port"),
    ):
        config = replace_at(config, path, _with_old_port(config, path, default, values.get(old)))
    return config


def config_of(values: Mapping[str, object], file: str | None) -> tuple[Config, tuple[str, ...]]:
    """The Config of a command line, and warnings: ``file`` (--config) wins over flags.

    Only --hostname-override, -v and --logging-format count beside a file; others are named in a
    warning, as is without a file what has no effect at all. ConfigError when the file cannot be
    read or has values of a wrong type.
    """
    if file is None:
        idle = [f"--{name} has no effect: {why}" for name, why in WITHOUT_EFFECT.items()
                if values.get(name)]  # fmt: skip
        return config_from_flags(values), tuple(idle)
    config, warnings = load(file)
    for name in _BESIDE_CONFIG:
        if name in values:
            config = replace_at(config, BY_NAME[name].path, values[name])
    lost = [f"--{name}" for name in values if name not in _BESIDE_CONFIG]
    if lost:
        warnings = (*warnings, f"--config is given, so these have no effect: {', '.join(lost)}")
    return config, warnings


def load(path: str) -> tuple[Config, tuple[str, ...]]:
    """Read a KubeProxyConfiguration file (YAML, JSON). Warnings name unknown and double fields.

    ConfigError when it cannot be read, or with everything that is wrong if a value is of a wrong
    type; values that only make no sense are left to :func:`kproxy.config_check.check`.
    """
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as failed:
        why = failed.strerror if isinstance(failed, OSError) else "not UTF-8 text"
        raise ConfigError(f"cannot be read: {why}", where=path) from failed
    loader = _Loader(text)
    try:
        mapping = loader.get_single_data()
    except yaml.YAMLError as broken:
        mark = getattr(broken, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        what = getattr(broken, "problem", None) or "no YAML"
        raise ConfigError(f"broken YAML: {what}", where=f"{path}{line}") from broken
    finally:
        loader.dispose()
    if not isinstance(mapping, dict):
        raise ConfigError("holds no KubeProxyConfiguration mapping", where=path)
    if "apiVersion" not in mapping or "kind" not in mapping:
        raise ConfigError(
            "apiVersion and kind are missing",
            where=path,
            hint="first lines: apiVersion: kubeproxy.config.k8s.io/v1alpha1, "
            "kind: KubeProxyConfiguration",
        )
    config, warnings, errors = read_mapping(mapping, where=path)
    if errors:
        # All at once: who mends the types should not learn of the values one start later.
        raise ConfigError("; ".join((*errors, *problems(config))), where=path)
    return config, (*(f"{path}:{line}" for line in loader.doubles), *warnings)


def dump(config: Config) -> str:
    """The YAML file that :func:`load` reads back as the same Config."""
    return yaml.safe_dump(to_mapping(config), sort_keys=True)


class _Loader(yaml.CSafeLoader):
    """Keeps a note of keys that stand twice in one mapping; the last one counts."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.doubles: list[str] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                line = key.start_mark.line + 1
                self.doubles.append(f"{line}: field {key.value} stands twice, the last one counts")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _with_old_port(config: Config, path: str, default: int, port: object) -> str:
    """The address with the old flag's port in place of its own; a lone IP gets a port."""
    address = str(value_at(config, path))
    if port is None:
        return with_port(address, default)
    host = address.rpartition(":")[0]
    return f"{host}:{port}" if port else ""


def _bool(text: str) -> bool:
    # The spellings that Go's strconv.ParseBool takes.
    if text in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if text in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    raise ValueError(f"{text!r} is neither true nor false")


def _int(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise ValueError(f"{text!r} is no whole number") from None


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is no number") from None


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _switches(text: str) -> dict[str, bool]:
    pairs = (part.partition("=") for part in _list(text))
    return {name: _bool(value or "true") for name, _, value in pairs}


_READERS: dict[Kind, Callable[[str], object]] = {
    Kind.TEXT: str,
    Kind.WHOLE: _int,
    Kind.NUMBER: _float,
    Kind.FLAG: _bool,
    Kind.DURATION: parse_duration,
    Kind.LIST: _list,
    Kind.SWITCHES: _switches,
}
