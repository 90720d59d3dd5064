"""The kernel sets of IPVS mode: what is in each, and how a rule asks it. Pure.

Names and kinds are kube-proxy's (``pkg/proxy/ipvs/ipset.go``), so that whoever compares two nodes
finds the same sets; :data:`NO_ENDPOINT`, :data:`NO_LOCAL_ENDPOINT` and :data:`FROM_LOOPBACK` are
ours. Rules depend on the node's settings only; what differs from service to service is a member::

    set                                 a member is                        asked by
    KUBE-LOOP-BACK                      endpoint·port, endpoint            dst,dst,src (hairpin)
                                                                           src,src,src (INVALID)
    KUBE-CLUSTER-IP                     cluster IP·port                    dst,dst
    KUBE-EXTERNAL-IP(-LOCAL)            external IP·port, by policy        dst,dst
    KUBE-LOAD-BALANCER                  every load-balancer VIP·port       dst,dst
    KUBE-LOAD-BALANCER-LOCAL            those of Local policy              dst,dst
    KUBE-LOAD-BALANCER-FW               those with source ranges           dst,dst
    KUBE-LOAD-BALANCER-SOURCE-CIDR      VIP·port, permitted range          dst,dst,src
    KUBE-LOAD-BALANCER-SOURCE-IP        VIP·port, VIP of the node          dst,dst,src
    KUBE-NODE-PORT(-LOCAL)-TCP, -UDP    node port (-LOCAL: Local policy)   dst
    KUBE-NODE-PORT(-LOCAL)-SCTP-HASH    node address·node port             dst,dst
    KUBE-HEALTH-CHECK-NODE-PORT         port                               dst
    KUBE-IPVS-IPS                       address on the dummy device        dst, and src
    KUBE-NO-ENDPOINT                    VIP·port that nobody may use here  dst,dst
    KUBE-NO-LOCAL-ENDPOINT              VIP·port closed to outside clients dst,dst
    KUBE-FROM-LOOPBACK                  VIP·port, node address·node port,  dst,dst
                                        127.0.0.0/8·node port: whatever
                                        has an endpoint, of TCP and UDP

Every node port is in its set whatever its policy; -LOCAL holds a part of them. The last one is
there in IPv4 only: nobody serves clients at ::1, and only those are at loopback in IPv6.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from kproxy.core.objects import Family, Protocol

LOOP_BACK = "KUBE-LOOP-BACK"
CLUSTER_IP = "KUBE-CLUSTER-IP"
EXTERNAL_IP, EXTERNAL_IP_LOCAL = "KUBE-EXTERNAL-IP", "KUBE-EXTERNAL-IP-LOCAL"
LOAD_BALANCER, LOAD_BALANCER_LOCAL = "KUBE-LOAD-BALANCER", "KUBE-LOAD-BALANCER-LOCAL"
LOAD_BALANCER_FIREWALL = "KUBE-LOAD-BALANCER-FW"
LOAD_BALANCER_SOURCE_RANGE = "KUBE-LOAD-BALANCER-SOURCE-CIDR"
LOAD_BALANCER_SOURCE_IP = "KUBE-LOAD-BALANCER-SOURCE-IP"
NODE_PORT: Mapping[Protocol, str] = MappingProxyType(
    {
        Protocol.TCP: "KUBE-NODE-PORT-TCP",
        Protocol.UDP: "KUBE-NODE-PORT-UDP",
        # A bitmap knows no protocol, and there are fewer of these: addresses are cheap.
        Protocol.SCTP: "KUBE-NODE-PORT-SCTP-HASH",
    }
)
NODE_PORT_LOCAL: Mapping[Protocol, str] = MappingProxyType(
    {
        Protocol.TCP: "KUBE-NODE-PORT-LOCAL-TCP",
        Protocol.UDP: "KUBE-NODE-PORT-LOCAL-UDP",
        Protocol.SCTP: "KUBE-NODE-PORT-LOCAL-SCTP-HASH",
    }
)
HEALTH_CHECK_NODE_PORT = "KUBE-HEALTH-CHECK-NODE-PORT"
IPVS_IPS = "KUBE-IPVS-IPS"
NO_ENDPOINT, NO_LOCAL_ENDPOINT = "KUBE-NO-ENDPOINT", "KUBE-NO-LOCAL-ENDPOINT"
FROM_LOOPBACK = "KUBE-FROM-LOOPBACK"

#: Set -> its kind, as :data:`kproxy.core.members.LAYOUTS` knows it. Members come in this order and
#: go in the opposite one: a client is permitted before others are shut out, and served before it
#: is closed to some.
KINDS: Mapping[str, str] = MappingProxyType(
    {
        LOOP_BACK: "hash:ip,port,ip",
        CLUSTER_IP: "hash:ip,port",
        EXTERNAL_IP: "hash:ip,port",
        EXTERNAL_IP_LOCAL: "hash:ip,port",
        LOAD_BALANCER: "hash:ip,port",
        LOAD_BALANCER_LOCAL: "hash:ip,port",
        LOAD_BALANCER_SOURCE_RANGE: "hash:ip,port,net",
        LOAD_BALANCER_SOURCE_IP: "hash:ip,port,ip",
        LOAD_BALANCER_FIREWALL: "hash:ip,port",
        NODE_PORT[Protocol.TCP]: "bitmap:port",
        NODE_PORT[Protocol.UDP]: "bitmap:port",
        NODE_PORT[Protocol.SCTP]: "hash:ip,port",
        NODE_PORT_LOCAL[Protocol.TCP]: "bitmap:port",
        NODE_PORT_LOCAL[Protocol.UDP]: "bitmap:port",
        NODE_PORT_LOCAL[Protocol.SCTP]: "hash:ip,port",
        HEALTH_CHECK_NODE_PORT: "bitmap:port",
        IPVS_IPS: "hash:ip",
        NO_ENDPOINT: "hash:ip,port",
        NO_LOCAL_ENDPOINT: "hash:ip,port",
        FROM_LOOPBACK: "hash:net,port",
    }
)

#: Sets that IPv6 does not have.
_IPV4_ONLY = frozenset({FROM_LOOPBACK})

#: The kernel's limit for names of sets, without the closing zero.
_LONGEST = 31


def in_family(name: str, family: Family) -> str:
    """A set's name in the kernel: ``KUBE-6-…`` in IPv6, cut where the kernel's limit is, as
    kube-proxy does."""
    if family is Family.IPV4:
        return name
    return f"KUBE-6-{name.removeprefix('KUBE-')}"[:_LONGEST]


def kinds(family: Family) -> dict[str, str]:
    """Name in the kernel -> kind, of every set of a family."""
    return {in_family(name, family): KINDS[name] for name in names(family)}


def names(family: Family) -> tuple[str, ...]:
    """Every set of a family, without its prefix, in the order of :data:`KINDS`."""
    return tuple([name for name in KINDS if family is Family.IPV4 or name not in _IPV4_ONLY])
