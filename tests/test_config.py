"""Configuration: durations, files, flags, validation, by table."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy import config_check, flags
from kproxy.config import (
    Config,
    config_from_mapping,
    port_range,
    replace_at,
    to_mapping,
    value_at,
)
from kproxy.config_sections import DetectLocal, Health, Iptables, Nftables, Userspace
from kproxy.durations import Seconds, format_duration, parse_duration
from kproxy.errors import ConfigError

#: What kubeadm writes into its kube-proxy ConfigMap, nulls and empty strings included.
KUBEADM = """\
apiVersion: kubeproxy.config.k8s.io/v1alpha1
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection:
  acceptContentTypes: ""
  burst: 0
  contentType: ""
  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf
  qps: 0
clusterCIDR: 10.244.0.0/16
configSyncPeriod: 0s
conntrack:
  maxPerCore: null
  min: null
  tcpBeLiberal: null
  tcpCloseWaitTimeout: null
  tcpEstablishedTimeout: null
  udpStreamTimeout: 0s
  udpTimeout: 0s
detectLocal:
  bridgeInterface: ""
  interfaceNamePrefix: ""
detectLocalMode: ""
enableProfiling: false
healthzBindAddress: ""
hostnameOverride: ""
iptables:
  localhostNodePorts: null
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
ipvs:
  excludeCIDRs: null
  minSyncPeriod: 0s
  scheduler: ""
  strictARP: false
  syncPeriod: 0s
  tcpFinTimeout: 0s
  tcpTimeout: 0s
  udpTimeout: 0s
kind: KubeProxyConfiguration
logging:
  flushFrequency: 0
  options:
    json:
      infoBufferSize: "0"
    text:
      infoBufferSize: "0"
  verbosity: 0
metricsBindAddress: ""
mode: ""
nftables:
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
nodePortAddresses: null
oomScoreAdj: null
portRange: ""
showHiddenMetricsForVersion: ""
winkernel:
  enableDSR: false
  forwardHealthCheckVip: false
  networkName: ""
  rootHnsEndpointName: ""
  sourceVip: ""
"""


@pytest.mark.parametrize(
    ("text", "seconds", "printed"),
    [
        ("0", 0, "0s"),
        ("30s", 30, "30s"),
        ("1m30s", 90, "1m30s"),
        ("24h", 86400, "24h0m0s"),
        ("250ms", 0.25, "250ms"),
        ("1.5h", 5400, "1h30m0s"),
        (".5s", 0.5, "500ms"),
        ("100us", 0.0001, "100\u00b5s"),
        ("100\u03bcs", 0.0001, "100\u00b5s"),
        ("3ns", 3e-9, "3ns"),
        ("-1m", -60, "-1m0s"),
        ("1h0.25s", 3600.25, "1h0m0.25s"),
    ],
)
def test_durations_are_gos(text: str, seconds: float, printed: str) -> None:
    """Go's durations are read, and printed as Go prints them."""
    assert parse_duration(text) == seconds
    assert format_duration(parse_duration(text)) == printed


@pytest.mark.parametrize("text", ["", "s", "30", "1 s", "1x", "1m-3s", "--1s", "1e3s", "\u0663s"])
def test_no_duration_is_refused(text: str) -> None:
    """What is no Go duration is refused with an example of one."""
    with pytest.raises(ValueError, match="1m30s"):
        parse_duration(text)


@given(st.integers(min_value=-(10**15), max_value=10**15))
def test_durations_survive_printing(nanoseconds: int) -> None:
    """Printing and reading gives the same time, to the nanosecond."""
    printed = format_duration(nanoseconds / 1e9)
    assert round(parse_duration(printed) * 1e9) == nanoseconds


def write(folder: Path, text: str) -> str:
    path = folder / "config.yaml"
    path.write_text(text)
    return str(path)


def test_kubeadms_file_means_the_defaults(tmp_path: Path) -> None:
    """Every null, empty string and zero of kubeadm's file means the default, without a warning."""
    config, warnings = flags.load(write(tmp_path, KUBEADM))
    expected = replace_at(Config(cluster_cidr="10.244.0.0/16"), "clientConnection.kubeconfig",
                          "/var/lib/kube-proxy/kubeconfig.conf")  # fmt: skip
    assert config == expected
    assert warnings == ()
    assert config_check.problems(config) == ()


def test_a_written_file_reads_back(tmp_path: Path) -> None:
    """What dump writes, load reads as the same value, for the defaults and for others."""
    other = Config(
        mode="ipvs",
        iptables=Iptables(localhost_node_ports=False),
        node_port_addresses=("primary", "10.0.0.0/8"),
        feature_gates={"A": True},
        service_cidrs=("172.30.0.0/16",),
        health=Health(default={"tcp": {"port": 80}, "interval": "5s"}, allow_exec=True),
    )
    for config in (Config(), other):
        assert flags.load(write(tmp_path, flags.dump(config))) == (config, ())


@pytest.mark.parametrize(
    ("mapping", "path", "value"),
    [
        ({"iptables": {"minSyncPeriod": "0s"}}, "iptables.minSyncPeriod", 1),
        ({"ipvs": {"minSyncPeriod": "0s"}}, "ipvs.minSyncPeriod", 0),
        ({"iptables": {"masqueradeBit": 0}}, "iptables.masqueradeBit", 0),
        ({"oomScoreAdj": 0}, "oomScoreAdj", 0),
        ({"conntrack": {"tcpEstablishedTimeout": "0s"}}, "conntrack.tcpEstablishedTimeout", 0),
        ({"healthzBindAddress": "10.0.0.1"}, "healthzBindAddress", "10.0.0.1:10256"),
        ({"metricsBindAddress": "fd00::1"}, "metricsBindAddress", "[fd00::1]:10249"),
        ({"bindAddress": "::"}, "healthzBindAddress", "[::]:10256"),
        ({"bindAddress": "::"}, "metricsBindAddress", "[::1]:10249"),
        ({"logging": {"flushFrequency": 2_000_000_000}}, "logging.flushFrequency", 2),
        ({"detectLocal": None}, "detectLocal", DetectLocal()),
        ({"clientConnection": {"qps": 7}}, "clientConnection.qps", 7.0),
        ({"serviceCIDRs": ["10.0.0.0/8"]}, "serviceCIDRs", ("10.0.0.0/8",)),
        ({"health": {"default": "tcp"}}, "health.default", "tcp"),
        ({"health": {"default": None}}, "health.default", None),
        ({"health": {"default": {"tcp": None}}}, "health.default", {"tcp": None}),
        ({"health": {"allowExec": True}}, "health.allowExec", True),
    ],
)
def test_fields_of_a_file(mapping: dict[str, object], path: str, value: object) -> None:
    """A field's value, with the API's own rule for zeros."""
    config, warnings = config_from_mapping(mapping)
    assert value_at(config, path) == value
    assert warnings == ()


def test_unknown_fields_warn_by_name() -> None:
    """An unknown field is named with its path, the rest is used, a slip of case is pointed out."""
    config, warnings = config_from_mapping(
        {"modus": "x", "clusterCidr": None, "iptables": {"foo": 1, "masqueradeAll": True}}
    )
    assert config.iptables.masquerade_all
    assert warnings == (
        "config: unknown field modus is ignored",
        "config: unknown field clusterCidr is ignored; did you mean clusterCIDR?",
        "config: unknown field iptables.foo is ignored",
    )


@pytest.mark.parametrize(
    ("mapping", "told"),
    [
        ({"winkernel": {"networkName": "x"}}, "winkernel"),
        ({"windowsRunAsService": True}, "windowsRunAsService"),
        ({"resourceContainer": "/kube-proxy"}, "resourceContainer"),
        ({"conntrack": {"max": 5}}, "conntrack.max"),
        ({"logging": {"vmodule": [{"filePattern": "a", "verbosity": 3}]}}, "logging.vmodule"),
        ({"logging": {"options": {"json": {"infoBufferSize": "4Ki"}}}}, "logging.options"),
        ({"winkernel": {"enableDSR": False, "networkName": "", "rootHnsEndpointName": None}}, ""),
        ({"logging": {"options": {"json": {"infoBufferSize": "0"}}, "vmodule": None}}, ""),
        ({"conntrack": {"max": 0}, "resourceContainer": "", "windowsRunAsService": False}, ""),
    ],
)
def test_set_fields_without_effect_are_said(mapping: dict[str, object], told: str) -> None:
    """What is another system's or of a release long gone is taken, and said unless it is zero."""
    config, warnings = config_from_mapping(mapping)
    assert config == Config()
    assert [line.split(" ")[:4] for line in warnings] == (
        [["config:", told, "has", "no"]] if told else []
    )


def test_every_wrong_type_is_told_at_once() -> None:
    """All values of a wrong type stand in one error, each by its field."""
    with pytest.raises(ConfigError) as caught:
        config_from_mapping(
            {"iptables": {"syncPeriod": 30, "masqueradeBit": "x"}, "conntrack": 5, "kind": "Pod"}
        )
    text = str(caught.value)
    for part in ("iptables.syncPeriod", "iptables.masqueradeBit", "conntrack: a mapping", "kind"):
        assert part in text


def test_a_field_that_stands_twice_warns(tmp_path: Path) -> None:
    """A double field is told with its line; the last one counts."""
    head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
    path = write(tmp_path, head + "mode: ipvs\nmode: iptables\n")
    config, warnings = flags.load(path)
    assert config.mode == "iptables"
    assert warnings == (f"{path}:4: field mode stands twice, the last one counts",)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: [", r":2.*broken YAML"),
        ("- 1", "mapping"),
        ("mode: ipvs", "apiVersion"),
        (None, "cannot be read"),
    ],
)
def test_an_unusable_file_is_an_error(tmp_path: Path, text: str | None, told: str) -> None:
    """A file that is missing, broken or something else is refused, saying where and why."""
    path = write(tmp_path, text) if text is not None else str(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=told) as caught:
        flags.load(path)
    assert path in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"iptables.masqueradeBit": 32}, "iptables.masqueradeBit: 32"),
        ({"nftables.masqueradeBit": 16}, "nftables.masqueradeBit: 16 leads"),
        ({"oomScoreAdj": -1001}, "oomScoreAdj"),
        ({"iptables.syncPeriod": 0.0, "iptables.minSyncPeriod": 0.0}, "iptables.syncPeriod: 0s"),
        ({"iptables.minSyncPeriod": 31.0}, "iptables.minSyncPeriod: 31s"),
        ({"iptables.minSyncPeriod": -1.0}, "iptables.minSyncPeriod: -1s"),
        ({"conntrack.udpTimeout": -1.0}, "conntrack.udpTimeout"),
        ({"bindAddress": "here"}, "bindAddress"),
        ({"healthzBindAddress": "10.0.0.1:0"}, "healthzBindAddress"),
        ({"healthzBindAddress": "::1:80"}, "healthzBindAddress"),
        ({"metricsBindAddress": "localhost:80"}, "metricsBindAddress"),
        ({"clusterCIDR": "10.0.0.1"}, "clusterCIDR"),
        ({"clusterCIDR": "10.0.0.0/8,11.0.0.0/8"}, "one range a family"),
        ({"clusterCIDR": "10.0.0.0/8,fd00::/8,fd01::/16"}, "one range a family"),
        ({"nodePortAddresses": ("everywhere",)}, "nodePortAddresses"),
        ({"detectLocalMode": "Guess"}, "detectLocalMode"),
        ({"detectLocalMode": "BridgeInterface"}, "detectLocal.bridgeInterface"),
        ({"detectLocalMode": "InterfaceNamePrefix"}, "detectLocal.interfaceNamePrefix"),
        ({"detectLocal.bridgeInterface": 'x" drop "'}, "detectLocal.bridgeInterface"),
        ({"detectLocal.interfaceNamePrefix": "x" * 16}, "detectLocal.interfaceNamePrefix"),
        ({"mode": "magic"}, "mode: 'magic'"),
        ({"mode": "ipvs", "ipvs.scheduler": "best"}, "ipvs.scheduler"),
        ({"mode": "ipvs", "ipvs.excludeCIDRs": ("x",)}, "ipvs.excludeCIDRs"),
        ({"mode": "ipvs", "ipvs.drainTimeout": -1.0}, "ipvs.drainTimeout"),
        ({"logging.format": "xml"}, "logging.format"),
        ({"portRange": "a-b"}, "portRange"),
        ({"portRange": "200-100"}, "portRange"),
        ({"portRange": "65535+1"}, "portRange"),
        ({"userspace.workers": -1}, "userspace.workers"),
        ({"userspace.drainTimeout": -1.0}, "userspace.drainTimeout"),
        ({"userspace.tcpIdleTimeout": 0.0}, "userspace.tcpIdleTimeout"),
        ({"udpIdleTimeout": 0.0}, "udpIdleTimeout"),
        ({"hostnameOverride": "a_b"}, "hostnameOverride"),
        ({"health.default": "ping"}, "health.default: 'ping' must be none, tcp"),
        ({"health.default": {"tcp": {"port": 0}}}, "health.default.tcp.port: port 0"),
        ({"health.default": {"exec": {"command": ["a"]}}}, "health.default.exec: runs programs"),
    ],
)
def test_nonsense_is_told_by_its_field(changes: dict[str, object], told: str) -> None:
    """Each rule of the validation finds its fault, and only that one."""
    config = Config()
    for path, value in changes.items():
        config = replace_at(config, path, value)
    found = config_check.problems(config)
    assert len(found) == 1
    assert told in found[0]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"clusterCIDR": "10.0.0.0/8,fd00::/8"},
        {"healthzBindAddress": "", "metricsBindAddress": "[::1]:1"},
        {"nodePortAddresses": ("primary", "10.0.0.1/8", "all", "localhost")},
        {"detectLocalMode": "BridgeInterface", "detectLocal.bridgeInterface": "cni0"},
        {"ipvs.scheduler": "best"},  # judged in ipvs mode only
        {"hostnameOverride": " Node-1.Example "},
    ],
)
def test_sense_passes(changes: dict[str, object]) -> None:
    """What makes sense is not complained about."""
    config = Config()
    for path, value in changes.items():
        config = replace_at(config, path, value)
    assert config_check.problems(config) == ()


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("", None),
        ("0", None),
        ("0-0", None),
        ("300", (300, 300)),
        ("300-300", (300, 300)),
        ("300-2000", (300, 2000)),
        ("300+100", (300, 400)),
        ("1-65535", (1, 65535)),
    ],
)
def test_ranges_of_ports(text: str, span: tuple[int, int] | None) -> None:
    """kube-proxy's three spellings; none, or a zero, leaves the choice to the kernel."""
    assert port_range(text) == span


@pytest.mark.parametrize("text", ["-", "a", "1-", "+5", "0-5", "5-4", "1-65536", "1-2-3", "99999"])
def test_what_is_no_range_of_ports(text: str) -> None:
    """It is quoted."""
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        port_range(text)


def test_all_problems_come_at_once() -> None:
    """Three faults, one error with three parts."""
    config = Config(mode="magic", bind_address="x", cluster_cidr="y")
    with pytest.raises(ConfigError) as caught:
        config_check.check(config, where="flags")
    assert str(caught.value).startswith("flags: ")
    assert str(caught.value).count(";") == 2


@pytest.mark.parametrize(
    ("given_flags", "path", "value"),
    [
        ({"iptables-min-sync-period": "0"}, "iptables.minSyncPeriod", 0),
        ({"masquerade-all": "true"}, "iptables.masqueradeAll", True),
        ({"iptables-localhost-nodeports": "F"}, "iptables.localhostNodePorts", False),
        ({"nodeport-addresses": "primary, 10.0.0.0/8"}, "nodePortAddresses",
         ("primary", "10.0.0.0/8")),
        ({"feature-gates": "A=true,B=false"}, "featureGates", {"A": True, "B": False}),
        ({"healthz-bind-address": ""}, "healthzBindAddress", ""),
        ({"healthz-bind-address": "10.0.0.1"}, "healthzBindAddress", "10.0.0.1:10256"),
        ({"healthz-port": "1234"}, "healthzBindAddress", "0.0.0.0:1234"),
        ({"metrics-port": "0"}, "metricsBindAddress", ""),
        ({"bind-address": "::"}, "healthzBindAddress", "[::]:10256"),
        ({"v": "4"}, "logging.verbosity", 4),
        ({"kube-api-qps": "2.5"}, "clientConnection.qps", 2.5),
    ],
)  # fmt: skip
def test_flags_set_their_fields(given_flags: dict[str, str], path: str, value: object) -> None:
    """A flag's text reaches its field, and its zero stays zero."""
    read = {name: flags.read_flag(flags.BY_NAME[name], text) for name, text in given_flags.items()}
    assert value_at(flags.config_from_flags(read), path) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("masquerade-all", "yes"), ("conntrack-min", "many"), ("kube-api-qps", "fast"),
        ("iptables-sync-period", "30"), ("feature-gates", "A=maybe"),
    ],
)  # fmt: skip
def test_a_flag_of_the_wrong_kind_is_refused(name: str, text: str) -> None:
    """Text that a flag cannot mean is refused, and quoted."""
    with pytest.raises(ValueError, match=r"'"):
        flags.read_flag(flags.BY_NAME[name], text)


def test_a_file_wins_over_flags_but_for_the_node_name(tmp_path: Path) -> None:
    """Beside --config only --hostname-override and logging count; what is lost is named."""
    values = {"hostname-override": "n1", "v": 3, "masquerade-all": True, "proxy-mode": "ipvs"}
    config, warnings = flags.config_of(values, write(tmp_path, KUBEADM))
    assert (config.hostname_override, config.logging.verbosity) == ("n1", 3)
    assert not config.iptables.masquerade_all
    assert config.mode == ""
    assert len(warnings) == 1
    assert "--masquerade-all, --proxy-mode" in warnings[0]


def test_flags_without_effect_are_said() -> None:
    """A flag that sets nothing says so when it is given; the table of those is whole."""
    _, warnings = flags.config_of({"vmodule": "a=1", "master": "", "v": 3}, None)
    assert [line.split(" ")[0] for line in warnings] == ["--vmodule"]
    idle = {flag.name for flag in flags.FLAGS if not flag.path}
    assert idle == {*flags.WITHOUT_EFFECT, "healthz-port", "metrics-port"}


def test_every_flag_with_a_path_names_a_field_and_its_default_reads_back() -> None:
    """The table is whole: each path exists and each default is its own flag's text."""
    for flag in flags.FLAGS:
        if flag.path and flag.default:
            assert flags.read_flag(flag, flag.default) == value_at(Config(), flag.path)
    assert len(flags.BY_NAME) == len(flags.FLAGS)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("enableProfiling", True, True),
        ("featureGates", {"A": True}, True),
        ("logging.flushFrequency", 1.0, True),
        ("portRange", "1-2", True),
        ("udpIdleTimeout", 1.0, True),
        ("userspace", Userspace(workers=3), True),
        ("conntrack.min", 5, False),
        ("oomScoreAdj", 0, False),
        ("healthzBindAddress", "127.0.0.1:1", False),
    ],
)
def test_settings_without_effect_are_said(path: str, value: object, *, said: bool) -> None:
    """A setting that was made and does nothing is said, one that works is not, defaults are not."""
    assert config_check.without_effect(Config()) == ()
    lines = config_check.without_effect(replace_at(Config(), path, value))
    assert [line.split(":")[0] for line in lines] == ([path] if said else [])


def test_userspace_modes_own_settings_have_effect_there() -> None:
    """In the mode that they belong to nothing is said of them."""
    config = Config(
        mode="userspace", port_range="1-2", udp_idle_timeout=Seconds(1), userspace=Userspace(3)
    )
    assert config_check.without_effect(config) == ()


def test_nftables_mode_says_what_it_does_not_look_at() -> None:
    """--masquerade-all and the other flags of the section iptables do nothing there; its own
    section has effect."""
    own = Nftables(masquerade_all=True, masquerade_bit=3, sync_period=Seconds(7), choice="hash")
    config = Config(mode="nftables", nftables=own)
    assert config_check.without_effect(config) == ()
    assert config.periods.sync_period == 7
    lines = config_check.without_effect(replace_at(config, "iptables.masqueradeAll", True))
    assert [line.split(":")[0] for line in lines] == ["iptables.masqueradeAll"]
    assert "nftables" in lines[0]


def test_own_sections_are_written_when_set() -> None:
    """kube-proxy can read a file in which nothing of ours is set; what is set reads back."""
    assert "userspace" not in to_mapping(Config())
    config = Config(userspace=Userspace(workers=3, drain_timeout=Seconds(60)))
    assert to_mapping(config)["userspace"] == {
        "workers": 3,
        "drainTimeout": "1m0s",
        "tcpIdleTimeout": "24h0m0s",
    }
    assert config_from_mapping(to_mapping(config)) == (config, ())


def test_types_and_values_of_a_file_are_told_together(tmp_path: Path) -> None:
    """A value of a wrong type does not hide one that makes no sense."""
    head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
    path = write(
        tmp_path, head + "iptables: {syncPeriod: 30}\nclusterCIDR: x\nhealthzBindAddress: 7\n"
    )
    with pytest.raises(ConfigError) as caught:
        flags.load(path)
    for part in ("iptables.syncPeriod", "clusterCIDR", "healthzBindAddress"):
        assert part in str(caught.value)
