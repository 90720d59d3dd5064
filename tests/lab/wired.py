"""Small networks for tests, wired for as long as they are used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from kproxy.kernel import netns
from kproxy.lab.apply import Builder
from kproxy.lab.network import FORWARDING_SYSCTLS, Address, Host, Network, Route
from kproxy.lab.plan import plan


def host(
    name: str, addresses: Sequence[tuple[str, str]], *routes: Route, sysctls: Sequence[str] = ()
) -> Host:
    """A host that may forward, with (device, address) of its own; ``sysctls`` are set to 0."""
    return Host(
        name,
        addresses=tuple(Address(device, address) for device, address in addresses),
        routes=routes,
        sysctls=(*FORWARDING_SYSCTLS, *((sysctl, "0") for sysctl in sysctls)),
    )


@contextmanager
def wired(network: Network) -> Iterator[Builder]:
    """The network is there, and its namespaces are gone afterwards."""
    with Builder(network.lab) as builder:
        try:
            builder.apply(plan(None, network))
            yield builder
        finally:
            for each in network.hosts:
                netns.remove(network.namespace(each.name))
