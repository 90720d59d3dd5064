"""What the kernel does bare: one virtual address by a raw ruleset, without anybody who keeps it.

These are floors for the modes that leave the carrying to the kernel: no mode of that kind can be
faster than its mechanism with a single rule. As for the modes, the client counts as a pod: the
destination is translated and nobody is hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kproxy.bench.load import Place
from kproxy.bench.ours import CLUSTER_IPS
from kproxy.bench.path import PORT, Path
from kproxy.bench.peers import Subject
from kproxy.core.objects import Family
from kproxy.errors import CommandError, MachineError
from kproxy.kernel import command, netns
from kproxy.kernel.netns import entered

#: One rule for both protocols, at the hook and priority of every DNAT (-100 is ``dstnat``).
_RULESET = """\
table ip kproxy-bench {{
  chain way-in {{
    type nat hook prerouting priority -100; policy accept;
    ip daddr {ip4} meta l4proto {{ tcp, udp }} th dport {port} dnat to {pod4}
  }}
}}
table ip6 kproxy-bench {{
  chain way-in {{
    type nat hook prerouting priority -100; policy accept;
    ip6 daddr {ip6} meta l4proto {{ tcp, udp }} th dport {port} dnat to {pod6}
  }}
}}
"""

#: Pods of the trial in an empty namespace: documentation's addresses (RFC 5737, RFC 3849).
_TRIAL = {Family.IPV4: "192.0.2.1", Family.IPV6: "2001:db8::1"}


class _Floor(Subject):
    """A virtual address that the kernel alone leads to the pod."""

    tool: str
    #: How the tool says its version.
    asked: str
    #: What the kernel must have for it.
    needs: str

    def start(self, path: Path) -> None:
        with entered(path.fd("node")):
            self.load({family: path.pod_place(family)[0] for family in Family})

    def place(self, family: Family) -> Place:
        return CLUSTER_IPS[family], PORT

    def version(self) -> str:
        said = command.run([self.tool, self.asked]).stdout.decode().splitlines()[0]
        return said.strip()

    def absent(self) -> str:
        try:
            with netns.fresh():
                self.load(_TRIAL)
        except MachineError as lack:
            return str(lack)
        except CommandError as refused:
            return f"{self.tool}: {refused.what}; needs a kernel with {self.needs}"
        return ""

    def stop(self) -> None:
        """All of it goes with the path's namespace."""

    def load(self, pods: dict[Family, str]) -> None:
        """Put it in force in the calling thread's namespace, to these pods. MachineError: the tool
        is missing; CommandError: the kernel has not what it takes."""
        raise AssertionError("each floor has its own")


class NftDnat(_Floor):
    """One ``dnat`` rule of nftables for each family."""

    name = "nft-dnat"
    tool = "nft"
    asked = "--version"
    needs = "CONFIG_NF_TABLES and CONFIG_NFT_NAT"

    def load(self, pods: dict[Family, str]) -> None:
        text = _RULESET.format(
            port=PORT,
            ip4=CLUSTER_IPS[Family.IPV4],
            ip6=CLUSTER_IPS[Family.IPV6],
            pod4=pods[Family.IPV4],
            pod6=pods[Family.IPV6],
        )
        command.run(["nft", "-f", "-"], stdin=text.encode())


class Ipvsadm(_Floor):
    """A virtual server of IPVS for each protocol and family, round robin, masquerading (NAT), at an
    address of the node's loopback: IPVS takes only what is for the node itself."""

    name = "ipvsadm"
    tool = "ipvsadm"
    asked = "--version"
    needs = "CONFIG_IP_VS, CONFIG_IP_VS_RR and CONFIG_IP_VS_NFCT"

    def load(self, pods: dict[Family, str]) -> None:
        for argv in _servers(pods):
            command.run(argv)


def _servers(pods: dict[Family, str]) -> list[Sequence[str]]:
    """The commands, in order."""
    brackets: dict[Family, Callable[[str], str]] = {
        Family.IPV4: lambda address: f"{address}:{PORT}",
        Family.IPV6: lambda address: f"[{address}]:{PORT}",
    }
    made: list[Sequence[str]] = [["ip", "link", "set", "lo", "up"]]
    for family, spelt in brackets.items():
        address, length = CLUSTER_IPS[family], 32 if family is Family.IPV4 else 128
        made.append(["ip", "address", "add", f"{address}/{length}", "dev", "lo"])
        for protocol in ("-t", "-u"):
            server = [protocol, spelt(address)]
            made.append(["ipvsadm", "-A", *server, "-s", "rr"])
            made.append(["ipvsadm", "-a", *server, "-r", spelt(pods[family]), "-m"])
    return made
