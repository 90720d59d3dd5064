"""Packets of one pod that get lost on purpose, both ways.

With netem both ends of the pod's link drop, on top of what the link's own shape does. On a kernel
without netem a table of nftables drops at the pod's device, as packets come in and as they leave
(netdev hooks, the one for leaving since Linux 5.16): outside of everything that a proxy does, and
as blind to what it drops as netem. Which way it is, is found by trying.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import msgspec

from kproxy.core.objects import Value
from kproxy.errors import CommandError, LabError, MachineError
from kproxy.kernel import command, netns, rtnetlink
from kproxy.lab import shaping
from kproxy.lab.network import End, Link, Network, Shape

#: The table's name, in the pod's own namespace.
TABLE = "kproxy-fault"

#: Before everything else that hooks on the device.
_PRIORITY = -500

#: A loss of one packet in so many is the least.
_STEPS = 10_000

_LOOPBACK = 1

NETEM, NFT = "netem", "nft"


class Cable(Value, frozen=True):
    """A host's only link: its own end, the far end, and the shape that it has anyway."""

    near: End
    far: End
    shape: Shape = Shape()


def cable_of(network: Network, host: str) -> Cable:
    """The link of a pod; LabError for a host that has none, or several."""
    links = [link for link in network.links if host in (link.a.host, link.b.host)]
    if len(links) != 1:
        raise LabError(f"{host} has {len(links)} links, not one", hint="name a pod")
    return _cable(links[0], host)


def _cable(link: Link, host: str) -> Cable:
    near, far = (link.a, link.b) if link.a.host == host else (link.b, link.a)
    return Cable(near, far, link.shape)


def lose(network: Network, host: str, share: float) -> None:
    """From now on that share (0 to 1) of a host's packets is lost, each way; 0 is the end of it.

    MachineError where this kernel has no way to do so.
    """
    cable = cable_of(network, host)
    found = way()
    if found == NETEM:
        for end in (cable.near, cable.far):
            _by_netem(network, end, cable.shape, share)
    if found == NFT or not share:
        with _opened(network, host) as namespace:
            _by_nft(namespace, cable.near.interface, share)


@lru_cache(maxsize=1)
def way() -> str:
    """``netem`` or ``nft``: what this kernel loses packets by. MachineError when by neither."""
    with netns.fresh():
        try:
            shaping.put(None, "add", End("", "lo"), _LOOPBACK, Shape(loss=0.5))
            return NETEM
        except MachineError:
            pass
        try:
            command.run(["nft", "-f", "-"], stdin=_rules("lo", 0.5).encode())
        except CommandError as refused:
            raise MachineError(
                f"this kernel has neither netem nor a hook of nftables for what leaves"
                f" ({refused.stderr.strip().splitlines()[0] if refused.stderr else refused})",
                hint="try: modprobe sch_netem; or a lab with --kernel uml",
            ) from refused
        return NFT


@contextmanager
def _opened(network: Network, host: str) -> Iterator[int]:
    namespace = netns.open_fd(network.namespace(host))
    try:
        yield namespace
    finally:
        os.close(namespace)


def _by_netem(network: Network, end: End, shape: Shape, share: float) -> None:
    wanted = msgspec.structs.replace(shape, loss=1 - (1 - shape.loss) * (1 - share))
    with _opened(network, end.host) as namespace:
        with netns.entered(namespace):
            index = rtnetlink.index_of(end.interface)
        if wanted:
            shaping.put(namespace, "replace", end, index, wanted)
        else:
            shaping.take_away(namespace, index)


def _by_nft(namespace: int, interface: str, share: float) -> None:
    if share:
        command.run(
            ["nft", "-f", "-"], stdin=_rules(interface, share).encode(), namespace=namespace
        )
    elif command.find("nft"):
        # Where netem does it there may be no nftables in the kernel, and nothing to take away.
        gone = f"add table netdev {TABLE}\ndelete table netdev {TABLE}\n"
        command.run(["nft", "-f", "-"], stdin=gone.encode(), namespace=namespace, check=False)


def _rules(interface: str, share: float) -> str:
    """The table, in place of one that may be there."""
    drop = f"numgen random mod {_STEPS} < {max(1, round(share * _STEPS))} drop"
    if share >= 1:
        drop = "drop"
    chains = "\n".join(
        f' chain {hook} {{ type filter hook {hook} device "{interface}" priority {_PRIORITY};'
        f" {drop}; }}"
        for hook in ("ingress", "egress")
    )
    return (
        f"add table netdev {TABLE}\ndelete table netdev {TABLE}\n"
        f"table netdev {TABLE} {{\n{chains}\n}}\n"
    )
