"""Delay and loss of links, on a kernel that has netem (this one, or user-mode Linux)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kproxy.core.objects import Protocol
from kproxy.kernel import netns
from kproxy.kernel.netlink import open_route
from kproxy.lab.apply import Builder
from kproxy.lab.network import BASE_SYSCTLS, Address, End, Host, Link, Network, Shape
from kproxy.lab.plan import plan
from kproxy.lab.traffic import Listener, Outcome, Probe, Reach, Responder, probe_all

pytestmark = pytest.mark.netem

LAB = "anetem"


@pytest.fixture
def builder() -> Iterator[Builder]:
    names: list[str] = []
    try:
        with Builder(LAB, on_namespace=names.append) as one:
            yield one
    finally:
        for name in names:
            netns.remove(name)


def outcomes(builder: Builder, shape: Shape, count: int, **options: float) -> list[Outcome]:
    """``count`` datagrams at once over one link, each to be answered."""
    hosts = tuple(
        Host(name, (Address("eth0", f"10.0.0.{number}/24"),), sysctls=BASE_SYSCTLS)
        for number, name in enumerate(("a", "b"), 1)
    )
    link = Link(End("a", "eth0"), End("b", "eth0"), shape=shape)
    builder.apply(plan(None, Network(LAB, hosts, (link,))))
    _acquaint(builder)
    with Responder() as responder:
        responder.listen("b", builder.fd("b"), Listener("b", 53, Protocol.UDP))
        probe = Probe("10.0.0.2", 53, Protocol.UDP, builder.fd("a"), **options)
        return probe_all([probe] * count)


def _acquaint(builder: Builder) -> None:
    """Tell each end the other's hardware address: a lost question for it would lose all."""
    hardware = {}
    for name in ("a", "b"):
        with open_route(builder.fd(name)) as route:
            hardware[name] = route.link("get", ifname="eth0")[0]
    for name, other, address in (("a", "b", "10.0.0.2"), ("b", "a", "10.0.0.1")):
        with open_route(builder.fd(name)) as route:
            route.neigh(
                "add",
                dst=address,
                lladdr=hardware[other].get("address"),
                ifindex=hardware[name]["index"],
                state="permanent",
            )


def test_delay_is_that_of_both_ways(builder: Builder) -> None:
    """The link delays a question and its answer."""
    (outcome,) = outcomes(builder, Shape(delay=0.1), 1, timeout=20.0)
    assert outcome.reach is Reach.REACHED
    assert outcome.seconds >= 0.2


def test_a_rate_goes_with_a_delay(builder: Builder) -> None:
    """A link may have both: a slow one is late as well."""
    (outcome,) = outcomes(builder, Shape(rate=1_000_000, delay=0.1), 1, timeout=20.0)
    assert outcome.reach is Reach.REACHED
    assert outcome.seconds >= 0.2
    with open_route(builder.fd("a")) as route:
        index = route.link_lookup(ifname="eth0")[0]
        (options,) = (each.get("options") for each in route.get_qdiscs(index=index))
    assert options.get_attr("TCA_NETEM_RATE")["rate"] == 1_000_000 // 8


def test_all_is_lost(builder: Builder) -> None:
    """With a loss of 100 % nothing arrives."""
    (outcome,) = outcomes(builder, Shape(loss=1.0), 1, timeout=0.5)
    assert outcome.reach is Reach.SILENCE


def test_some_is_lost(builder: Builder) -> None:
    """Half of the packets each way: of 200 questions, a quarter is answered, give or take. The
    chance that none or all are is below 1e-24."""
    found = [one.reach for one in outcomes(builder, Shape(loss=0.5), 200, timeout=3.0)]
    assert {Reach.REACHED, Reach.SILENCE} == set(found)
