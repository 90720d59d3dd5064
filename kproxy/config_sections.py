"""The sections of :class:`kproxy.config.Config`: what the operator asks of each part of the proxy.

Fields have the API's own names in camel case. Durations are seconds; 0 means what the API says it
does.
"""

from __future__ import annotations

from typing import Any

import msgspec

from kproxy.core.objects import Value
from kproxy.durations import Seconds

NO_TIME = Seconds(0)


class ClientConnection(Value, frozen=True, rename="camel"):
    """How the Kubernetes API is reached."""

    kubeconfig: str = ""
    accept_content_types: str = ""
    content_type: str = "application/vnd.kubernetes.protobuf"
    qps: float = 5.0
    burst: int = 10


class Logging(Value, frozen=True, rename="camel"):
    """``format`` is text or json; ``verbosity`` as klog counts it."""

    format: str = "text"
    flush_frequency: Seconds = Seconds(5)
    verbosity: int = 0


class Iptables(Value, frozen=True, rename="camel"):
    """``masquerade_bit`` and ``masquerade_all`` govern ipvs, userspace and fastpath too."""

    masquerade_bit: int = 14
    masquerade_all: bool = False
    localhost_node_ports: bool = True
    sync_period: Seconds = Seconds(30)
    min_sync_period: Seconds = Seconds(1)


class Ipvs(Value, frozen=True, rename="camel"):
    """``drain_timeout`` is kproxy's own: how long an endpoint that went keeps its TCP
    connections."""

    sync_period: Seconds = Seconds(30)
    min_sync_period: Seconds = NO_TIME
    scheduler: str = ""
    exclude_cidrs: tuple[str, ...] = msgspec.field(default=(), name="excludeCIDRs")
    strict_arp: bool = msgspec.field(default=False, name="strictARP")
    tcp_timeout: Seconds = NO_TIME
    tcp_fin_timeout: Seconds = NO_TIME
    udp_timeout: Seconds = NO_TIME
    drain_timeout: Seconds = Seconds(15 * 60)


class Nftables(Value, frozen=True, rename="camel"):
    """``choice`` is kproxy's own: endpoints are picked by chance or by a hash of the client."""

    masquerade_bit: int = 14
    masquerade_all: bool = False
    sync_period: Seconds = Seconds(30)
    min_sync_period: Seconds = Seconds(1)
    choice: str = "random"


class Userspace(Value, frozen=True, rename="camel"):
    """kproxy's own, as a section. ``workers`` 0: as many threads as cores, at most four.
    ``drain_timeout``: how long flows may go on once a new process has taken over; an idle TCP
    connection ends after ``tcp_idle_timeout``. ``portRange`` and ``udpIdleTimeout`` are this mode's
    too."""

    workers: int = 0
    drain_timeout: Seconds = Seconds(15 * 60)
    tcp_idle_timeout: Seconds = Seconds(24 * 3600)


class Fastpath(Value, frozen=True, rename="camel"):
    """kproxy's own, as a section. ``workers`` 0: as many threads as cores, at most four.
    ``max_flows`` of each family at a time; connections to an endpoint that went end after
    ``drain_timeout``. ``new_per_second``: connections that may begin, of each family; 0: 50,000 a
    thread. ``seed``: 32 hexadecimal digits, by which all nodes that have the same one choose the
    same endpoint for a client; "" lets each keep one of its own."""

    workers: int = 0
    max_flows: int = 262_144
    new_per_second: int = 0
    drain_timeout: Seconds = Seconds(15 * 60)
    seed: str = ""


class Health(Value, frozen=True, rename="camel"):
    """kproxy's own, as a section. ``default`` is for services without the annotation
    ``kproxy/health-check``: what may stand there, as plain values; None checks nothing.
    ``allow_exec``: Services may have programs run on this node."""

    default: Any = None
    allow_exec: bool = False


class DetectLocal(Value, frozen=True, rename="camel"):
    """Parameters of ``detectLocalMode``."""

    bridge_interface: str = ""
    interface_name_prefix: str = ""


class Conntrack(Value, frozen=True, rename="camel"):
    """Limits and time-outs of connection tracking; 0 leaves the kernel's alone."""

    max_per_core: int = 32768
    min: int = 131072
    tcp_established_timeout: Seconds = Seconds(24 * 3600)
    tcp_close_wait_timeout: Seconds = Seconds(3600)
    tcp_be_liberal: bool = False
    udp_timeout: Seconds = NO_TIME
    udp_stream_timeout: Seconds = NO_TIME
