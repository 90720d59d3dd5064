"""Plans: the steps from one network to another, in an order in which each can be carried out."""

from __future__ import annotations

import msgspec
import pytest

from kproxy.lab import catalogue
from kproxy.lab.network import Address, End, Host, Link, Network, Route
from kproxy.lab.plan import (
    AddAddress,
    AddRoute,
    MakeBridge,
    MakeHost,
    MakeLink,
    RemoveAddress,
    RemoveBridge,
    RemoveHost,
    RemoveLink,
    RemoveRoute,
    SetSysctls,
    plan,
)
from tests.lab.test_wiring import lab_of, network_of

LINK = Link(End("a", "eth0"), End("b", "eth0"))
A = Host("a", (Address("eth0", "10.0.0.1/24"),), (Route("0.0.0.0/0", "eth0", via="10.0.0.2"),))
B = Host("b", (Address("eth0", "10.0.0.2/24"),), bridges=("br0",))
TWO = Network("t", (A, B), (LINK,))


def with_a(**changes: object) -> Network:
    return Network("t", (msgspec.structs.replace(A, **changes), B), (LINK,))


@pytest.mark.parametrize(
    ("new", "steps"),
    [
        (TWO, ()),
        (with_a(addresses=()), (RemoveAddress("a", A.addresses[0]),)),
        (with_a(routes=()), (RemoveRoute("a", A.routes[0]),)),
        (
            with_a(addresses=(*A.addresses, Address("lo", "10.1.0.1/32"))),
            (AddAddress("a", Address("lo", "10.1.0.1/32")),),
        ),
        (
            with_a(routes=(*A.routes, Route("10.9.0.0/16", "eth0"))),
            (AddRoute("a", Route("10.9.0.0/16", "eth0")),),
        ),
        (
            with_a(sysctls=(("net/ipv4/ip_forward", "1"),)),
            (SetSysctls("a", (("net/ipv4/ip_forward", "1"),)),),
        ),
        (with_a(bridges=("br1",)), (MakeBridge("a", "br1"),)),
        (
            Network("t", (A, msgspec.structs.replace(B, bridges=())), (LINK,)),
            (RemoveBridge("b", "br0"),),
        ),
        # What hangs on a removed host goes with it.
        (Network("t", (msgspec.structs.replace(B, addresses=()),)), (RemoveHost("a"),)),
        # What hangs on a re-made link is made again.
        (
            Network("t", (A, B), (msgspec.structs.replace(LINK, mtu=1400),)),
            (
                RemoveLink(LINK.a),
                MakeLink(msgspec.structs.replace(LINK, mtu=1400)),
                AddAddress("a", A.addresses[0]),
                AddAddress("b", B.addresses[0]),
                AddRoute("a", A.routes[0]),
            ),
        ),
    ],
)
def test_steps_are_the_difference(new: Network, steps: tuple[object, ...]) -> None:
    """Nothing is done that is done already, nothing is undone that goes by itself."""
    assert plan(TWO, new) == steps


def test_a_network_from_nothing_is_made_from_the_inside_out() -> None:
    """Hosts before links before addresses before routes."""
    kinds = [type(step) for step in plan(None, TWO)]
    assert kinds == [MakeHost, MakeHost, MakeLink, AddAddress, AddAddress, AddRoute]


def test_every_step_of_a_lab_finds_what_it_needs() -> None:
    """Walking the plan of a whole lab, no step refers to what an earlier one has not made."""
    network = network_of(lab_of(catalogue.load("standard")))
    hosts: set[str] = set()
    interfaces: set[tuple[str, str]] = set()
    for step in plan(None, network):
        match step:
            case MakeHost(host):
                hosts.add(host.name)
                interfaces |= {(host.name, name) for name in ("lo", "", *host.bridges)}
            case MakeLink(link):
                assert {link.a.host, link.b.host} <= hosts
                interfaces |= {(end.host, end.interface) for end in (link.a, link.b)}
            case AddAddress(host, address):
                assert (host, address.interface) in interfaces
            case AddRoute(host, route):
                assert (host, route.interface) in interfaces
            case _:
                raise AssertionError(f"{step!r} has no place in a new network")
    assert hosts == {host.name for host in network.hosts}
