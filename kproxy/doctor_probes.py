"""What :mod:`kproxy.doctor` tries, one probe for each mode and feature, with the remedies.

A probe does the real thing in the namespace of the calling thread, and leaves nothing there.
"""

from __future__ import annotations

import fcntl
import os
import resource
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyroute2 import IPVS, IPSet
from pyroute2.netlink.exceptions import NetlinkError as RefusedByKernel

from kproxy.backends import registry
from kproxy.backends.xtables.door import tool
from kproxy.backends.xtables.host import asks_sets, counts_packets
from kproxy.backends.xtables.variant import Variant
from kproxy.core.objects import Family
from kproxy.errors import KernelError, MachineError
from kproxy.kernel import command, sysctl
from kproxy.kernel.netlink import explained, open_route
from kproxy.lab import loss
from kproxy.lab.uml import machine as uml

#: linux/if_tun.h
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_MULTI_QUEUE = 0x0001, 0x1000, 0x4000, 0x0100

#: Descriptors for a lab of 50 pods with their responders, and room for userspace mode's relays.
ENOUGH_DESCRIPTORS = 4096

#: A probe returns what it saw (a few words), or raises why it cannot be done.
Probe = Callable[[], str]


def _module(module: str, option: str) -> str:
    """How to get a kernel feature: a kernel without modules needs another kernel."""
    if Path("/proc/modules").exists():
        return f"modprobe {module}"
    return f"a kernel with {option} (this one loads no modules)"


# -- modes ----------------------------------------------------------------------------------------


def _iptables(variant: str) -> Callable[[Family], str]:
    def probe(family: Family) -> str:
        registry.create(registry.Choice("iptables", variant), family).probe()
        return "rules of every kind it uses load"

    return probe


def _nftables(family: Family) -> str:
    registry.create(registry.Choice("nftables"), family).probe()
    return "maps with NAT, affinity written by packets and chains of every kind it uses load"


def _ipvs(family: Family) -> str:
    try:
        IPVS().close()
    except RefusedByKernel as refused:
        raise MachineError("the kernel has no IPVS", hint=_without_ipvs()) from refused
    with _closing(_link("kp-probe", "dummy")):
        return "IPVS answers on netlink, dummy devices can be made"


def _userspace(family: Family) -> str:
    registry.create(registry.parse("userspace"), family).probe()
    return "rules of every kind it uses load"


def _fastpath(family: Family) -> str:
    registry.create(registry.Choice("fastpath"), family).probe()
    return "TUN device, policy routing and connection marks work"


def _without_ipvs() -> str:
    """What to do on a kernel without IPVS: another kernel, which may be a program."""
    if uml.lacking() is None:
        return "user-mode Linux: --kernel uml of kproxy lab up and kproxy scenario run"
    return f"{_IPVS}, or user-mode Linux: apt-get install user-mode-linux"


_IPVS = _module("ip_vs", "CONFIG_IP_VS")

#: Mode (and variant), its probe, and the remedy where the probe itself names none.
MODE_PROBES: tuple[tuple[str, Callable[[Family], str], str], ...] = (
    ("iptables-legacy", _iptables("legacy"), _module("iptable_nat", "CONFIG_IP_NF_NAT")),
    ("iptables-nft", _iptables("nft"), _module("nft_compat", "CONFIG_NFT_COMPAT")),
    ("nftables", _nftables, _module("nf_tables", "CONFIG_NF_TABLES")),
    ("ipvs", _ipvs, _IPVS),
    ("userspace", _userspace, _module("xt_REDIRECT", "CONFIG_NETFILTER_XT_TARGET_REDIRECT")),
    ("fastpath", _fastpath, _module("tun", "CONFIG_TUN")),
)


# -- features -------------------------------------------------------------------------------------


class _Link:
    """A device of the scratch namespace."""

    def __init__(self, name: str, kind: str, **options: Any) -> None:
        self.name, self._route = name, open_route()
        try:
            with explained(f"make a {kind} device"):
                self._route.link("add", ifname=name, kind=kind, **options)
        except BaseException:
            self._route.close()
            raise

    def index(self) -> int:
        return int(self._route.link_lookup(ifname=self.name)[0])

    def close(self) -> None:
        self._route.link("del", index=self.index())
        self._route.close()


_link = _Link


@contextmanager
def _closing(thing: Any) -> Iterator[Any]:
    try:
        yield thing
    finally:
        thing.close()


def _veth() -> str:
    with _closing(_link("kp-probe0", "veth", peer={"ifname": "kp-probe1"})):
        return "a pair can be made"


def _device(kind: str) -> Probe:
    def probe() -> str:
        with _closing(_link("kp-probe", kind)):
            return "can be made"

    return probe


def _tun() -> str:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        flags = _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR | _IFF_MULTI_QUEUE
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", b"kp-probe", flags))
    finally:
        os.close(descriptor)
    return "with offloads and several queues"


def _queue(kind: str, **options: Any) -> Probe:
    def probe() -> str:
        link = _link("kp-probe0", "veth", peer={"ifname": "kp-probe1"})
        with _closing(link), open_route() as route:
            try:
                with explained(f"add a {kind} queue"):
                    route.tc("add", kind, link.index(), **options)
            except KernelError as refused:
                raise MachineError(refused.what) from refused
        return "can be added"

    return probe


def _loss() -> str:
    if loss.way() == loss.NETEM:
        return "by netem"
    return "by nft: hooks of nftables at the pod's device, where netem is not there"


def _conntrack() -> str:
    limit = sysctl.read("net/netfilter/nf_conntrack_max")
    if limit is None:
        raise MachineError("the kernel tracks no connections")
    return f"up to {limit} connections"


def _ipset() -> str:
    with _closing(IPSet()) as sets:
        sets.create("kp-probe", stype="hash:ip,port")
        sets.destroy("kp-probe")
    return "sets can be made"


def _sctp() -> str:
    socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP).close()
    return "sockets open"


def _capture() -> str:
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)).close()
    return "packet sockets open"


def _uml() -> str:
    lacking = uml.lacking()
    if lacking is not None:
        raise lacking
    return f"{command.require(uml.KERNEL)}: a kernel with IPVS, SCTP and netem, without root"


def _descriptors() -> str:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < ENOUGH_DESCRIPTORS:
        raise MachineError(f"only {hard} open files are allowed")
    return f"{soft} open files, up to {hard}"


def _tool(name: str) -> Probe:
    def probe() -> str:
        return command.require(name)

    return probe


def in_rules(works: Callable[[Family, Variant], bool]) -> Probe:
    """A match that a proxy can do without: in which variants' rules it loads."""

    def probe() -> str:
        there = [each for each in Variant if command.find(tool(Family.IPV4, each, "restore"))]
        found = [str(variant) for variant in there if works(Family.IPV4, variant)]
        if not found:
            raise MachineError("rules that use it do not load")
        return f"in rules of {' and '.join(found)}"

    return probe


_NFACCT = _module("xt_nfacct", "CONFIG_NETFILTER_XT_MATCH_NFACCT")
_CONNTRACK = _module("nf_conntrack", "CONFIG_NF_CONNTRACK")
_NETEM = f"{_module('sch_netem', 'CONFIG_NET_SCH_NETEM')}, or --kernel uml"
_TBF = _module("sch_tbf", "CONFIG_NET_SCH_TBF")
_SCTP = f"{_module('sctp', 'CONFIG_IP_SCTP')}, or --kernel uml (scenarios craft packets without it)"

#: Feature, what needs it, probe, remedy.
FEATURE_PROBES: tuple[tuple[str, str, Probe, str], ...] = (
    ("veth", "lab, scenario", _veth, _module("veth", "CONFIG_VETH")),
    ("bridge", "lab, scenario", _device("bridge"), _module("bridge", "CONFIG_BRIDGE")),
    ("dummy device", "ipvs", _device("dummy"), _module("dummy", "CONFIG_DUMMY")),
    ("tun", "fastpath", _tun, _module("tun", "CONFIG_TUN")),
    ("connection tracking", "all modes", _conntrack, _CONNTRACK),
    ("ipset", "ipvs, iptables: stray packets", _ipset, _module("ip_set", "CONFIG_IP_SET")),
    ("set match", "the same", in_rules(asks_sets), _module("xt_set", "CONFIG_NETFILTER_XT_SET")),
    ("packet counters", "two metrics of iptables", in_rules(counts_packets), _NFACCT),
    ("netem", "links with delay or loss", _queue("netem", delay=1000), _NETEM),
    ("packet loss", "lab fault loss=PERCENT", _loss, _NETEM),
    ("tbf", "links with a rate", _queue("tbf", rate="1mbit", burst=65536, latency="50ms"), _TBF),
    ("SCTP", "SCTP between real sockets", _sctp, _SCTP),
    ("packet capture", "lab capture", _capture, "run as root (CAP_NET_RAW)"),
    ("open files", "labs with many pods", _descriptors, f"ulimit -n {ENOUGH_DESCRIPTORS}"),
    ("iptables tool", "iptables, ipvs, userspace", _tool("iptables-restore"), ""),
    ("ip6tables tool", "the same for IPv6", _tool("ip6tables-restore"), ""),
    ("nft tool", "nftables, fastpath", _tool("nft"), ""),
    ("ip tool", "reading along", _tool("ip"), ""),
    ("conntrack tool", "reading along", _tool("conntrack"), ""),
    ("user-mode Linux", "--kernel uml: ipvs, SCTP, netem where the kernel has none", _uml, ""),
)  # fmt: skip
