"""Settings of one family, from configuration, Node and addresses, by table."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from kproxy.config import Config
from kproxy.config_sections import DetectLocal, Health, Iptables, Ipvs, Nftables, Userspace
from kproxy.core.health.values import Check, HealthSettings, Policy, Tcp
from kproxy.core.objects import Family, Node
from kproxy.core.settings import ZONE_LABEL, mode_settings, node_settings, primary_family
from kproxy.core.snapshot import (
    IpvsSettings,
    LocalDetector,
    ModeSettings,
    NodePortTargets,
    UserspaceSettings,
)
from kproxy.durations import Seconds

PORT_9 = Check(Tcp(port=9))
V4, V6 = Family.IPV4, Family.IPV6
HOST = ("192.0.2.7", "2001:db8::7", "10.1.0.1", "127.0.0.1", "::1", "fe80::1")
NODE = Node(
    name="n1",
    labels=((ZONE_LABEL, "a"),),
    addresses=("192.0.2.7", "2001:db8::7", "198.51.100.7"),
    pod_cidrs=("10.1.0.0/24", "fd00:1::/64"),
)
BRIDGE = Config(detect_local_mode="BridgeInterface", detect_local=DetectLocal("cni0", ""))
PREFIX = Config(detect_local_mode="InterfaceNamePrefix", detect_local=DetectLocal("", "veth"))
BOTH = Config(cluster_cidr="10.0.0.1/8, fd00::/16")


@pytest.mark.parametrize(
    ("config", "node", "family", "detector"),
    [
        (Config(), NODE, V4, None),
        (BOTH, NODE, V4, LocalDetector(cidr="10.0.0.0/8")),
        (BOTH, None, V6, LocalDetector(cidr="fd00::/16")),
        (Config(cluster_cidr="10.0.0.0/8"), NODE, V6, None),
        (Config(detect_local_mode="NodeCIDR"), NODE, V4, LocalDetector(cidr="10.1.0.0/24")),
        (Config(detect_local_mode="NodeCIDR"), NODE, V6, LocalDetector(cidr="fd00:1::/64")),
        (Config(detect_local_mode="NodeCIDR"), None, V4, None),
        (BRIDGE, None, V6, LocalDetector(bridge="cni0")),
        (PREFIX, NODE, V4, LocalDetector(prefix="veth")),
    ],
)
def test_detectors(
    config: Config, node: Node | None, family: Family, detector: LocalDetector | None
) -> None:
    """Each mode gives its detector, and none when what it needs is not there."""
    assert node_settings(config, node, "n1", family, HOST).detector == detector


def ports(*wanted: str, mode: str = "", localhost: bool = True) -> Config:
    return Config(
        mode=mode,
        node_port_addresses=wanted,
        iptables=Iptables(localhost_node_ports=localhost),
    )


@pytest.mark.parametrize(
    ("section", "settings"),
    [
        (Health(), HealthSettings()),
        (Health(default="none"), HealthSettings(Policy())),
        (Health(default={"tcp": {"port": 9}, "passive": False}), HealthSettings(Policy(PORT_9))),
        (Health(allow_exec=True), HealthSettings(allow_exec=True)),
    ],
)
def test_health_settings(section: Health, settings: HealthSettings) -> None:
    """The default is read as an annotation would be; none is more than nothing said."""
    config = Config(health=section)
    assert node_settings(config, NODE, "n1", V4, HOST).health == settings


@pytest.mark.parametrize(
    ("config", "family", "targets"),
    [
        (ports(), V4, NodePortTargets(all=True, localhost=True)),
        (ports(), V6, NodePortTargets(all=True, localhost=False)),
        (ports(localhost=False), V4, NodePortTargets(all=True, localhost=False)),
        (ports("all"), V4, NodePortTargets(all=True, localhost=True)),
        (ports("0.0.0.0/0", "10.0.0.0/8"), V4, NodePortTargets(all=True, localhost=True)),
        (ports("10.0.0.0/8"), V6, NodePortTargets(all=True, localhost=False)),
        (ports("10.0.0.0/8"), V4, NodePortTargets(False, ("10.1.0.1",), False)),
        (ports("10.0.0.0/8", "127.0.0.0/8"), V4, NodePortTargets(False, ("10.1.0.1",), True)),
        (ports("127.0.0.0/8", localhost=False), V4, NodePortTargets(False, (), False)),
        (ports("primary"), V4, NodePortTargets(False, ("192.0.2.7",), False)),
        (ports("primary"), V6, NodePortTargets(False, ("2001:db8::7",), False)),
        (ports("primary", "localhost"), V4, NodePortTargets(False, ("192.0.2.7",), True)),
        (ports("localhost"), V6, NodePortTargets(False, (), False)),
        (ports("2001:db8::/32", "::1/128"), V6, NodePortTargets(False, ("2001:db8::7",), False)),
        (ports(mode="nftables"), V4, NodePortTargets(False, ("192.0.2.7",), False)),
        (ports("203.0.113.0/24"), V4, NodePortTargets(False, (), False)),
    ],
)
def test_node_port_targets(config: Config, family: Family, targets: NodePortTargets) -> None:
    """Ranges, keywords and the rule for loopback, in each family."""
    assert node_settings(config, NODE, "n1", family, HOST).node_port_targets == targets


@pytest.mark.parametrize(
    ("config", "node", "family", "addresses"),
    [
        (Config(), NODE, V4, ("192.0.2.7", "198.51.100.7")),
        (Config(), NODE, V6, ("2001:db8::7",)),
        (Config(), None, V4, ("192.0.2.7", "10.1.0.1")),
        (Config(), None, V6, ("2001:db8::7",)),
        (Config(), Node(name="n1"), V4, ("192.0.2.7", "10.1.0.1")),
        (Config(bind_address="198.51.100.7"), NODE, V4, ("198.51.100.7", "192.0.2.7")),
        (Config(bind_address="2001:0db8::9"), NODE, V6, ("2001:db8::9", "2001:db8::7")),
    ],
)
def test_node_addresses(
    config: Config, node: Node | None, family: Family, addresses: tuple[str, ...]
) -> None:
    """bindAddress first, then the Node's, else the host's of global scope."""
    assert node_settings(config, node, "n1", family, HOST).addresses == addresses


@pytest.mark.parametrize(
    ("config", "node", "host", "family"),
    [
        (Config(), NODE, HOST, V4),
        (Config(), Node(name="n", addresses=("2001:db8::1", "192.0.2.1")), HOST, V6),
        (Config(bind_address="2001:db8::1"), NODE, HOST, V6),
        (Config(), None, ("2001:db8::7", "127.0.0.1"), V6),
        (Config(), None, HOST, V4),
        (Config(), None, (), V4),
    ],
)
def test_primary_family(
    config: Config, node: Node | None, host: tuple[str, ...], family: Family
) -> None:
    """The family that must be served is told by bindAddress, Node, host, in that order."""
    assert primary_family(config, node, host) is family


def test_masquerade_and_zone_come_from_the_modes_section_and_the_node() -> None:
    """nftables has a section of its own; the zone is the Node's label; no Node, no zone."""
    config = Config(
        mode="nftables",
        nftables=Nftables(masquerade_bit=3, masquerade_all=True),
        service_cidrs=("172.30.0.0/16", "fd01::/108"),
    )
    found = node_settings(config, NODE, "n1", V6, HOST)
    assert (found.masquerade_bit, found.masquerade_all, found.zone) == (3, True, "a")
    assert found.service_cidrs == ("fd01::/108",)
    other = node_settings(Config(), None, "n1", V4, HOST)
    assert (other.masquerade_bit, other.masquerade_all, other.zone) == (14, False, "")


def test_ipvs_mode_has_its_section_and_every_address() -> None:
    """Time-outs in whole seconds, ranges of the family; addresses sorted, but none of loopback and
    no link-local one. Other modes have neither."""
    section = Ipvs(
        scheduler="lc",
        exclude_cidrs=("192.0.2.7/24", "2001:db8::/32"),
        strict_arp=True,
        tcp_timeout=Seconds(900.7),
        drain_timeout=Seconds(2.5),
    )
    host = ("198.51.100.9", "10.1.0.1", "127.0.0.1", "169.254.0.1", "fe80::1", "2001:db8::7")
    found = node_settings(Config(mode="ipvs", ipvs=section), NODE, "n1", V4, host)
    assert found.local_addresses == ("10.1.0.1", "198.51.100.9")
    assert found.ipvs == IpvsSettings(
        scheduler="lc",
        exclude_cidrs=("192.0.2.0/24",),
        strict_arp=True,
        tcp_timeout=900,
        drain_seconds=2.5,
    )
    plain = node_settings(Config(mode="ipvs"), NODE, "n1", V6, host)
    assert (plain.local_addresses, plain.ipvs) == (("2001:db8::7",), IpvsSettings())
    other = node_settings(Config(ipvs=section), NODE, "n1", V4, host)
    assert (other.local_addresses, other.ipvs) == ((), IpvsSettings())


def test_userspace_mode_has_its_settings() -> None:
    """In seconds; relay ports are at the bind address in its own family only. Other modes have
    none of it, and each mode is asked for its own alone."""
    section = Userspace(workers=3, drain_timeout=Seconds(60), tcp_idle_timeout=Seconds(90))
    config = Config(
        mode="userspace",
        bind_address="192.0.2.7",
        port_range="300+10",
        udp_idle_timeout=Seconds(2),
        userspace=section,
    )
    asked = UserspaceSettings(
        listen="192.0.2.7",
        port_range=(300, 310),
        workers=3,
        tcp_idle_seconds=90.0,
        udp_idle_seconds=2.0,
        drain_seconds=60.0,
    )
    assert node_settings(config, NODE, "n1", V4, ()).userspace == asked
    assert node_settings(config, NODE, "n1", V6, ()).userspace == replace(asked, listen="")
    assert mode_settings(config, V4) == ModeSettings(userspace=asked)
    everywhere = replace(config, bind_address="::")
    assert node_settings(everywhere, NODE, "n1", V6, ()).userspace.listen == ""
    other = node_settings(replace(config, mode="iptables"), NODE, "n1", V4, ())
    assert other.userspace == UserspaceSettings()
