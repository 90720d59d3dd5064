"""What ipvs mode leaves in a kernel with IPVS goes when another mode stands, and no more."""

from __future__ import annotations

from pathlib import Path

import pytest

from kproxy.backends import registry
from kproxy.backends.iptables.apply import IptablesBackend
from kproxy.backends.ipvs.apply import IpvsBackend
from kproxy.backends.registry import Choice
from kproxy.backends.syncer import Syncer
from kproxy.backends.xtables.variant import Variant
from kproxy.core.objects import Family
from kproxy.core.snapshot import IpvsSettings, Snapshot
from kproxy.kernel import command, dummy, sysctl
from tests.backends.iptables.plans import ADDRESSES, port, settings, snapshot
from tests.contract.namespaces import scratch

pytestmark = pytest.mark.ipvs

LEGACY = Variant.LEGACY
SPARED = IpvsSettings(exclude_cidrs=("198.18.0.0/15",))


def plan(family: Family) -> Snapshot:
    node = settings(family, local_addresses=(ADDRESSES[family][3],), ipvs=SPARED)
    ways = port("svc1", family, ways="cnel", pods=3)
    return snapshot(ways, family=family, settings_=node)


def servers() -> str:
    return command.run(["ipvsadm", "-Sn"]).stdout.decode()


def test_every_trace_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers of VIPs and of node ports, the device, sets, rules and sysctls; not what others
    made, and not the mode that stands."""
    monkeypatch.setenv("KPROXY_RECORDS", str(tmp_path))
    with scratch():
        command.run(["ip", "link", "set", "lo", "up"])
        for family in Family:
            command.run(["ip", "address", "add", ADDRESSES[family][3], "dev", "lo"])
        command.run(["ipvsadm", "-A", "-t", "198.18.7.7:80", "-s", "lc"])
        before = sysctl.read("net/ipv4/vs/conntrack")
        for family in Family:
            Syncer(IpvsBackend(family, LEGACY)).sync(plan(family))
        assert servers().count("-A ") == 9
        assert sysctl.read("net/ipv4/vs/conntrack") == "1"
        for family in Family:
            Syncer(IptablesBackend(family, LEGACY)).sync(plan(family))
        left = registry.sweep(Choice("iptables", LEGACY), list(Family))
        assert "ipvs" in {each.mode for each in left}
        assert servers() == "-A -t 198.18.7.7:80 -s lc\n"
        assert dummy.addresses() is None
        assert "KUBE" not in command.run(["ipset", "list", "-n"]).stdout.decode()
        assert sysctl.read("net/ipv4/vs/conntrack") == before
        for family in Family:
            backend = IptablesBackend(family, LEGACY)
            assert backend.diff(backend.render(plan(family), None), backend.read()) is None
        assert registry.sweep(Choice("iptables", LEGACY), list(Family)) == ()


#: Servers of kube-proxy and of another program, at the same node ports.
OWN = ("-A -t 192.0.2.7:30777 -s rr", "-A --sctp-service 192.0.2.7:30778 -s rr")
FOREIGN = ("-A -t 10.77.0.1:30777 -s rr", "-A --sctp-service 10.77.0.1:30778 -s rr")


def test_kube_proxys_servers_go_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sets have another size than ours, and are asked all the same; a node port is at the
    node's own addresses only."""
    monkeypatch.setenv("KPROXY_RECORDS", str(tmp_path))
    with scratch():
        for words in (
            "ip link set lo up",
            "ip address add 192.0.2.7 dev lo",
            "ipset create KUBE-NODE-PORT-TCP bitmap:port range 0-65535",
            "ipset create KUBE-NODE-PORT-SCTP-HASH hash:ip,port hashsize 1024 maxelem 65536",
            "ipset add KUBE-NODE-PORT-TCP 30777",
            "ipset add KUBE-NODE-PORT-SCTP-HASH 192.0.2.7,sctp:30778",
            *(f"ipvsadm {each}" for each in (*OWN, *FOREIGN)),
        ):
            command.run(words.split())
        IpvsBackend(Family.IPV4, LEGACY).cleanup()
        assert sorted(servers().splitlines()) == sorted(FOREIGN)
        assert command.run(["ipset", "list", "-n"]).stdout == b""


def test_a_family_that_is_not_served_keeps_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its servers, and the device with its addresses."""
    monkeypatch.setenv("KPROXY_RECORDS", str(tmp_path))
    with scratch():
        command.run(["ip", "link", "set", "lo", "up"])
        for family in Family:
            Syncer(IpvsBackend(family, LEGACY)).sync(plan(family))
        Syncer(IptablesBackend(Family.IPV4, LEGACY)).sync(plan(Family.IPV4))
        registry.sweep(Choice("iptables", LEGACY), [Family.IPV4])
        assert not dummy.addresses(family=Family.IPV4)
        kept = IpvsBackend(Family.IPV6, LEGACY)
        patch = kept.diff(kept.render(plan(Family.IPV6), None), kept.read())
        assert patch is None or not (patch.orders or patch.bound or patch.rules or patch.sets)
