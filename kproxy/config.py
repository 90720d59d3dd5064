"""All settings of the proxy as one frozen value: KubeProxyConfiguration v1alpha1.

Every field has the API's own name in camel case (``iptables.minSyncPeriod`` here is
``config.iptables.min_sync_period``). :func:`config_from_mapping` makes a :class:`Config` from a
decoded file; :func:`to_mapping` is its inverse; :mod:`kproxy.flags` makes one from kube-proxy's
flags; :func:`kproxy.config_check.problems` says what is wrong with one. Nothing here does I/O.

In a *file* null always means the default, and so does zero or "" for the fields in
:data:`ZERO_IS_DEFAULT` (the API's rule); a flag's zero stays zero.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Any, get_type_hints

import msgspec

from kproxy.config_sections import (
    ClientConnection,
    Conntrack,
    DetectLocal,
    Fastpath,
    Health,
    Iptables,
    Ipvs,
    Logging,
    Nftables,
    Userspace,
)
from kproxy.core.objects import Value
from kproxy.durations import Seconds, format_duration, parse_duration
from kproxy.errors import ConfigError

API_VERSION = "kubeproxy.config.k8s.io/v1alpha1"
KIND = "KubeProxyConfiguration"

HEALTHZ_PORT = 10256
METRICS_PORT = 10249


class Config(Value, frozen=True, rename="camel"):
    """One node's settings. ``service_cidrs`` (ranges that cluster IPs come from), ``userspace``,
    ``fastpath`` and ``health`` are kproxy's own.

    ``mode`` "" means iptables. ``healthz_bind_address`` and ``metrics_bind_address`` are
    ``ip:port``; "" turns the server off.
    """

    feature_gates: dict[str, bool] = msgspec.field(default_factory=dict)
    client_connection: ClientConnection = ClientConnection()
    logging: Logging = Logging()
    hostname_override: str = ""
    bind_address: str = "0.0.0.0"
    healthz_bind_address: str = f"0.0.0.0:{HEALTHZ_PORT}"
    metrics_bind_address: str = f"127.0.0.1:{METRICS_PORT}"
    bind_address_hard_fail: bool = False
    enable_profiling: bool = False
    show_hidden_metrics_for_version: str = ""
    mode: str = ""
    iptables: Iptables = Iptables()
    ipvs: Ipvs = Ipvs()
    nftables: Nftables = Nftables()
    userspace: Userspace = Userspace()
    fastpath: Fastpath = Fastpath()
    health: Health = Health()
    detect_local_mode: str = "ClusterCIDR"
    detect_local: DetectLocal = DetectLocal()
    cluster_cidr: str = msgspec.field(default="", name="clusterCIDR")
    node_port_addresses: tuple[str, ...] = ()
    oom_score_adj: int = -999
    conntrack: Conntrack = Conntrack()
    config_sync_period: Seconds = Seconds(15 * 60)
    port_range: str = ""
    #: kube-proxy had 250 ms, in which an answer that takes longer finds nobody to take it.
    udp_idle_timeout: Seconds = Seconds(30)
    service_cidrs: tuple[str, ...] = msgspec.field(default=(), name="serviceCIDRs")

    @property
    def effective_mode(self) -> str:
        return self.mode or "iptables"

    @property
    def rules(self) -> Iptables | Nftables:
        """The section that holds masquerade settings of the mode."""
        return self.nftables if self.effective_mode == "nftables" else self.iptables

    @property
    def periods(self) -> Iptables | Ipvs | Nftables:
        """The section that holds the mode's ``sync_period`` and ``min_sync_period``."""
        return self.ipvs if self.effective_mode == "ipvs" else self.rules


#: Fields whose zero or "" in a file means the default, as the API's defaulting has it.
ZERO_IS_DEFAULT = frozenset(
    {
        "bindAddress",
        "clientConnection.burst",
        "clientConnection.contentType",
        "clientConnection.qps",
        "configSyncPeriod",
        "detectLocalMode",
        "healthzBindAddress",
        "iptables.minSyncPeriod",
        "iptables.syncPeriod",
        "ipvs.syncPeriod",
        "logging.flushFrequency",
        "logging.format",
        "metricsBindAddress",
        "nftables.minSyncPeriod",
        "nftables.syncPeriod",
        "udpIdleTimeout",
    }
)

#: Fields that are known and without effect here -> why; "" when there is nothing to say of them.
IGNORED = {
    "apiVersion": "",
    "conntrack.max": "of releases long gone, conntrack.maxPerCore and conntrack.min stand for it",
    "kind": "",
    "logging.options": "lines are written at once",
    "logging.vmodule": "logging.verbosity is for all of kproxy",
    "resourceContainer": "of releases long gone",
    "windowsRunAsService": "this is Linux",
    "winkernel": "this is Linux",
}

#: What such a field holds when nobody has set it: a file that was written with all its fields.
_UNSET = ("", "0", "0s")

#: Durations that the API also takes as a number of nanoseconds.
_NANOSECONDS = frozenset({"logging.flushFrequency"})


def config_from_mapping(
    mapping: Mapping[str, Any], *, where: str = "config"
) -> tuple[Config, tuple[str, ...]]:
    """A Config from a decoded KubeProxyConfiguration, and one warning for each field that is
    unknown, or known and set without effect here.

    ``apiVersion`` and ``kind`` may be absent. ConfigError lists every value of a wrong type at
    once; whether the values make sense is :func:`kproxy.config_check.problems`' question.
    """
    config, warnings, errors = read_mapping(mapping, where=where)
    if errors:
        raise ConfigError("; ".join(errors), where=where)
    return config, warnings


def read_mapping(
    mapping: Mapping[str, Any], *, where: str = "config"
) -> tuple[Config, tuple[str, ...], tuple[str, ...]]:
    """As :func:`config_from_mapping`, with the errors as values: their fields have defaults."""
    reader = _Reader()
    reader.identity(mapping)
    values = reader.struct(Config, mapping, "")
    assert isinstance(values, Config)
    warnings = tuple(f"{where}: {line}" for line in reader.warnings)
    return _with_addresses(values, mapping), warnings, tuple(reader.errors)


def to_mapping(config: Config) -> dict[str, Any]:
    """The file form of a Config: a mapping that :func:`config_from_mapping` reads back.

    kproxy's own fields appear only when set, so that kube-proxy can read a plain one.
    """
    body = _plain(config)
    for name in ("serviceCIDRs", "userspace", "fastpath", "health"):
        if value_at(config, name) == value_at(Config(), name):
            del body[name]
    if config.nftables.choice == Nftables().choice:
        del body["nftables"]["choice"]
    return {"apiVersion": API_VERSION, "kind": KIND, **body}


def replace_at(config: Config, path: str, value: object) -> Config:
    """A copy with one field changed; ``path`` is the API's (``iptables.syncPeriod``)."""
    head, _, rest = path.partition(".")
    name = _attributes(Config)[head][0]
    if rest:
        section = getattr(config, name)
        value = msgspec.structs.replace(section, **{_attributes(type(section))[rest][0]: value})
    return msgspec.structs.replace(config, **{name: value})


def value_at(config: Config, path: str) -> object:
    """The field that ``path`` (the API's) names."""
    value: Any = config
    for part in path.split("."):
        value = getattr(value, _attributes(type(value))[part][0])
    return value


def with_port(address: str, port: int) -> str:
    """``ip:port``; a lone IP gets ``port``, anything else is left for the validation to judge."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    return f"[{ip}]:{port}" if ip.version == 6 else f"{ip}:{port}"


def port_range(text: str) -> tuple[int, int] | None:
    """First and last port of ``300-2000``, ``300+100`` (100 more than the first) or ``300``.

    None where the kernel is to choose: "", 0, 0-0. ValueError for what is no range of ports.
    """
    found = re.fullmatch(r"(\d{1,5})(?:([-+])(\d{1,5}))?", text) if text else None
    if text and found is None:
        raise ValueError(f"{text!r} must be like 300-2000 or 300+100")
    if found is None:
        return None
    first, second = int(found[1]), int(found[3] or 0)
    last = {"-": second, "+": first + second, None: first}[found[2]]
    if (first, last) == (0, 0):
        return None
    if not 1 <= first <= last <= 65535:
        raise ValueError(f"{text!r} must run upwards from 1 to 65535")
    return first, last


def default_addresses(bind_address: str) -> tuple[str, str]:
    """Default health and metrics addresses: of the bind address's family."""
    if ":" in bind_address:
        return f"[::]:{HEALTHZ_PORT}", f"[::1]:{METRICS_PORT}"
    return f"0.0.0.0:{HEALTHZ_PORT}", f"127.0.0.1:{METRICS_PORT}"


def _with_addresses(config: Config, mapping: Mapping[str, Any]) -> Config:
    healthz, metrics = default_addresses(config.bind_address)
    # Text only: what is of another type has been told already.
    given_healthz, given_metrics = (
        given if isinstance(given := mapping.get(name), str) else ""
        for name in ("healthzBindAddress", "metricsBindAddress")
    )
    return msgspec.structs.replace(
        config,
        healthz_bind_address=with_port(given_healthz, HEALTHZ_PORT) if given_healthz else healthz,
        metrics_bind_address=with_port(given_metrics, METRICS_PORT) if given_metrics else metrics,
    )


_ATTRIBUTES: dict[type, dict[str, tuple[str, Any]]] = {}


def _attributes(struct: type) -> dict[str, tuple[str, Any]]:
    """API name -> (attribute, type) of a struct's fields."""
    if struct not in _ATTRIBUTES:
        hints = get_type_hints(struct)
        _ATTRIBUTES[struct] = {
            field.encode_name: (field.name, hints[field.name])
            for field in msgspec.structs.fields(struct)
        }
    return _ATTRIBUTES[struct]


def _plain(value: object) -> Any:
    if isinstance(value, Seconds):
        return format_duration(value)
    if isinstance(value, msgspec.Struct):
        return {
            name: _plain(getattr(value, attribute))
            for name, (attribute, _) in _attributes(type(value)).items()
        }
    return list(value) if isinstance(value, tuple) else value


class _Reader:
    """Walks a mapping beside the struct types and keeps everything that is wrong with it."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []

    def identity(self, mapping: Mapping[str, Any]) -> None:
        for name, wanted in (("apiVersion", API_VERSION), ("kind", KIND)):
            if mapping.get(name, wanted) != wanted:
                self.errors.append(f"{name}: {mapping[name]!r} is not {wanted}")

    def struct(self, struct: type[Value], mapping: object, path: str) -> Value:
        if not isinstance(mapping, Mapping):
            self.errors.append(f"{path}: a mapping is needed, not {_shown(mapping)}")
            return struct()
        known, values = _attributes(struct), {}
        for key, value in mapping.items():
            here = f"{path}.{key}" if path else str(key)
            if here in IGNORED:
                if IGNORED[here] and _is_set(value):
                    self.warnings.append(f"{here} has no effect: {IGNORED[here]}")
            elif key not in known:
                self.warnings.append(_unknown(here, known))
            elif value is not None:
                attribute, type_ = known[key]
                if isinstance(type_, type) and issubclass(type_, Value):
                    values[attribute] = self.struct(type_, value, here)
                else:
                    self._leaf(values, attribute, type_, value, here)
        return struct(**values)

    def _leaf(
        self, values: dict[str, Any], attribute: str, type_: Any, value: object, path: str
    ) -> None:
        try:
            read = _duration(value, path) if type_ is Seconds else msgspec.convert(value, type_)
        except (ValueError, TypeError, msgspec.ValidationError) as wrong:
            text = str(wrong)
            self.errors.append(f"{path}: {text[:1].lower()}{text[1:]}")
            return
        if read or path not in ZERO_IS_DEFAULT:
            values[attribute] = read


def _duration(value: object, path: str) -> Seconds:
    if path in _NANOSECONDS and isinstance(value, int) and not isinstance(value, bool):
        return Seconds(value / 1e9)
    if not isinstance(value, str):
        raise TypeError(f"a duration is needed, not {_shown(value)}; write it like 30s or 1m30s")
    return parse_duration(value)


def _is_set(value: object) -> bool:
    """Whether a field without effect holds more than zeros."""
    if isinstance(value, Mapping):
        return any(_is_set(each) for each in value.values())
    if isinstance(value, list):
        return any(_is_set(each) for each in value)
    return value not in _UNSET if isinstance(value, str) else bool(value)


def _unknown(path: str, known: Mapping[str, object]) -> str:
    """A warning; a field that differs only in case is named, since that is the usual slip."""
    last = path.rpartition(".")[2]
    near = [name for name in known if name.lower() == last.lower()]
    return f"unknown field {path} is ignored" + (f"; did you mean {near[0]}?" if near else "")


def _shown(value: object) -> str:
    return f"{type(value).__name__} {value!r}"[:60]
