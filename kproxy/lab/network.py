"""A network of namespaces as one frozen value: hosts, links, addresses, routes.

Labs and scenarios both describe what they want as a :class:`Network`; :mod:`kproxy.lab.plan` turns
the difference of two networks into steps, :mod:`kproxy.lab.apply` carries them out. Nothing here
touches the world.
"""

from __future__ import annotations

from enum import StrEnum

from kproxy.core.objects import Value

#: Linux: IFNAMSIZ is 16 with the closing NUL.
MAX_INTERFACE_NAME = 15


class RouteKind(StrEnum):
    """UNICAST forwards, LOCAL delivers here (any address becomes ours), the others refuse."""

    UNICAST = "unicast"
    LOCAL = "local"
    BLACKHOLE = "blackhole"
    UNREACHABLE = "unreachable"


class Address(Value, frozen=True):
    """``cidr`` on ``interface``. IPv6 addresses skip duplicate detection, which takes a second."""

    interface: str
    cidr: str


class Route(Value, frozen=True):
    """``destination`` is a CIDR (``0.0.0.0/0`` for default). Gateways are taken as on-link.

    ``source`` is the preferred source address, "" for the kernel's choice. ``table`` 0 means the
    kernel's own habit: 255 (local) for LOCAL, 254 (main) for the others.
    """

    destination: str
    interface: str = ""
    via: str = ""
    source: str = ""
    kind: RouteKind = RouteKind.UNICAST
    table: int = 0


class Host(Value, frozen=True):
    """One namespace. ``sysctls`` are (slashed name, value) pairs set before any link exists.

    ``bridges`` are bridge devices of that host, up and empty.
    """

    name: str
    addresses: tuple[Address, ...] = ()
    routes: tuple[Route, ...] = ()
    sysctls: tuple[tuple[str, str], ...] = ()
    bridges: tuple[str, ...] = ()


class End(Value, frozen=True):
    """One end of a link: ``interface`` on ``host``, a port of that host's ``bridge`` if named."""

    host: str
    interface: str
    bridge: str = ""


class Shape(Value, frozen=True):
    """What a link does to packets, both ways: ``rate`` in bit/s (0 unlimited), ``delay`` in
    seconds, ``loss`` as a share of 1."""

    rate: int = 0
    delay: float = 0.0
    loss: float = 0.0

    def __bool__(self) -> bool:
        return bool(self.rate or self.delay or self.loss)


class Link(Value, frozen=True):
    """A veth pair between two hosts. ``mtu`` in bytes."""

    a: End
    b: End
    mtu: int = 1500
    shape: Shape = Shape()


class Network(Value, frozen=True):
    """All of it. Host ``h`` of lab ``l`` is the namespace ``kp-l-h``."""

    lab: str
    hosts: tuple[Host, ...] = ()
    links: tuple[Link, ...] = ()

    def namespace(self, host: str) -> str:
        return namespace_name(self.lab, host)

    def host(self, name: str) -> Host:
        return next(host for host in self.hosts if host.name == name)


def namespace_name(lab: str, host: str) -> str:
    """The name under /run/netns."""
    return f"kp-{lab}-{host}"


#: Every host: no duplicate-address detection, no router advertisements, no redirects.
BASE_SYSCTLS: tuple[tuple[str, str], ...] = (
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/dad_transmits", "0"),
    ("net/ipv6/conf/all/accept_ra", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
)

#: Hosts that forward. send_redirects off: where a node would send a packet for a service address
#: back out of the interface it came from, it sends a redirect instead of the refusal, and the
#: client sees a time-out. The effective value is all OR device, so both are cleared. ICMP errors
#: are not limited: the kernel sends one a second to one address, and each of them refuses somebody.
FORWARDING_SYSCTLS: tuple[tuple[str, str], ...] = (
    *BASE_SYSCTLS,
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
    ("net/ipv6/conf/default/forwarding", "1"),
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/default/send_redirects", "0"),
    ("net/ipv4/icmp_ratemask", "0"),
    ("net/ipv4/icmp_ratelimit", "0"),
    ("net/ipv6/icmp/ratelimit", "0"),
)
