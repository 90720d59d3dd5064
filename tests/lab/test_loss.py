"""Packets that get lost on purpose: all of them, some of them, none any more."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from kproxy import doctor
from kproxy.core.objects import Protocol
from kproxy.errors import LabError
from kproxy.kernel import command
from kproxy.kernel.netlink import open_route
from kproxy.lab import loss
from kproxy.lab.apply import Builder
from kproxy.lab.loss import lose
from kproxy.lab.network import End, Host, Link, Network, Route, Shape
from kproxy.lab.traffic import Listener, Outcome, Probe, Reach, Responder, probe_all
from tests.lab.wired import host, wired

NO_SHAPE = Shape()
LAB = f"loss-{os.getpid()}"


def network(shape: Shape = NO_SHAPE) -> Network:
    """A node and its pod."""
    return Network(
        LAB,
        (
            host("node", [("eth0", "192.0.2.1/32")], Route("192.0.2.2/32", "eth0")),
            host("pod", [("eth0", "192.0.2.2/32")], Route("192.0.2.1/32", "eth0")),
        ),
        (Link(End("node", "eth0"), End("pod", "eth0"), shape=shape),),
    )


def ask(builder: Builder, count: int = 1, timeout: float = 20.0) -> list[Reach]:
    probe = Probe("192.0.2.2", 53, Protocol.UDP, builder.fd("node"), timeout=timeout)
    outcomes: list[Outcome] = probe_all([probe] * count)
    return [one.reach for one in outcomes]


@pytest.fixture
def builder() -> Iterator[Builder]:
    with wired(network()) as one, Responder() as responder:
        responder.listen("pod", one.fd("pod"), Listener("pod", 53, Protocol.UDP))
        yield one


@pytest.mark.kernel
def test_all_then_some_then_none(builder: Builder) -> None:
    """Of 200 questions a quarter is answered when half of the packets is lost each way; that none
    or all are is less likely than 1e-24."""
    assert ask(builder) == [Reach.REACHED]
    lose(network(), "pod", 1.0)
    assert ask(builder, timeout=0.3) == [Reach.SILENCE]
    lose(network(), "pod", 0.5)
    _acquaint(builder)
    assert set(ask(builder, 200, timeout=1.0)) == {Reach.REACHED, Reach.SILENCE}
    lose(network(), "pod", 0)
    assert set(ask(builder, 200)) == {Reach.REACHED}


def _acquaint(builder: Builder) -> None:
    """A lost question for a hardware address would lose all."""
    hardware = {}
    for name in ("node", "pod"):
        with open_route(builder.fd(name)) as route:
            hardware[name] = route.link("get", ifname="eth0")[0]
    for name, other, address in (("node", "pod", "192.0.2.2"), ("pod", "node", "192.0.2.1")):
        with open_route(builder.fd(name)) as route:
            route.neigh(
                "replace",
                dst=address,
                lladdr=hardware[other].get("address"),
                ifindex=hardware[name]["index"],
                state="permanent",
            )


@pytest.mark.kernel
def test_the_end_of_it_leaves_nothing(builder: Builder) -> None:
    """No table, no discipline of a queue; ended twice is fine."""
    before = _disciplines(builder)
    lose(network(), "pod", 0.5)
    lose(network(), "pod", 0)
    lose(network(), "pod", 0)
    assert _disciplines(builder) == before
    if loss.way() == loss.NFT:
        listed = command.run(["nft", "list", "tables"], namespace=builder.fd("pod")).stdout
        assert listed == b""


@pytest.mark.netem
def test_a_link_s_own_shape_is_back_afterwards() -> None:
    """netem takes its place meanwhile, and keeps its delay."""
    shaped = network(Shape(rate=10_000_000))
    with wired(shaped) as builder, Responder() as responder:
        responder.listen("pod", builder.fd("pod"), Listener("pod", 53, Protocol.UDP))
        before = _disciplines(builder)
        lose(shaped, "pod", 1.0)
        assert ask(builder, timeout=0.3) == [Reach.SILENCE]
        assert _disciplines(builder) == {("node", "netem"), ("pod", "netem")}
        lose(shaped, "pod", 0)
        assert _disciplines(builder) == before == {("node", "tbf"), ("pod", "tbf")}
        assert ask(builder) == [Reach.REACHED]


def _disciplines(builder: Builder) -> set[tuple[str, str]]:
    found = set()
    for name in ("node", "pod"):
        with open_route(builder.fd(name)) as route:
            index = route.link_lookup(ifname="eth0")[0]
            kinds = (each.get("kind") for each in route.get_qdiscs(index=index))
            found |= {(name, kind) for kind in kinds}
    return found


def test_only_hosts_with_one_link_lose_packets() -> None:
    """A node's links are others' as well."""
    three = Network(
        LAB,
        (Host("a"), Host("b"), Host("c")),
        (Link(End("a", "x"), End("b", "x")), Link(End("a", "y"), End("c", "x"))),
    )
    assert loss.cable_of(three, "c").far == End("a", "y")
    for name in ("a", "nobody"):
        with pytest.raises(LabError, match=name):
            loss.cable_of(three, name)


@pytest.mark.kernel
def test_the_way_is_found_by_trying() -> None:
    """What doctor tells is what is used."""
    loss.way.cache_clear()
    assert doctor.tried("packet loss").why.startswith(f"by {loss.way()}")
