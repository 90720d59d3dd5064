"""Carrying out plans on the kernel: what was asked for is there, and all of it goes again."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from kproxy import doctor
from kproxy.errors import LabError, MachineError, NetlinkError
from kproxy.kernel import netns
from kproxy.lab.apply import Builder
from kproxy.lab.network import BASE_SYSCTLS, Address, End, Host, Link, Network, Route, Shape
from kproxy.lab.plan import AddAddress, MakeHost, plan
from kproxy.lab.traffic import Listener, Probe, Reach, Responder, probe_all

pytestmark = pytest.mark.kernel

LAB = "fapply"


@pytest.fixture(scope="module")
def netem() -> bool:
    """Whether this kernel can delay packets, as doctor finds it by trying."""
    return next(found.ok for found in doctor.examine().features if found.name == "netem")


def pair(mtu: int = 1500, shape: Shape = Shape()) -> Network:  # noqa: B008 - a frozen value
    """Two hosts on one link, and a third one behind a bridge of the second."""
    a = Host(
        "a",
        (Address("eth0", "10.0.0.1/24"), Address("eth0", "fd00::1/64")),
        (Route("0.0.0.0/0", "eth0", via="10.0.0.2"),),
        BASE_SYSCTLS,
    )
    b = Host(
        "b",
        (Address("br0", "10.0.0.2/24"), Address("br0", "fd00::2/64")),
        sysctls=BASE_SYSCTLS,
        bridges=("br0",),
    )
    return Network(LAB, (a, b), (Link(End("a", "eth0"), End("b", "a", "br0"), mtu, shape),))


@pytest.fixture
def made() -> Iterator[list[str]]:
    """Names of namespaces made and not removed; what a failed test leaves is removed."""
    names: list[str] = []
    yield names
    for name in names:
        netns.remove(name)


@pytest.fixture
def builder(made: list[str]) -> Iterator[Builder]:
    with Builder(LAB, on_namespace=made.append, on_removed=made.remove) as one:
        yield one


def reach(network: Network, builder: Builder) -> list[Reach]:
    """What host ``a`` meets on port 80 of host ``b``, over IPv4 and IPv6."""
    with Responder() as responder:
        responder.listen("b", builder.fd("b"), Listener("b", 80))
        probes = [
            Probe(to, 80, namespace=builder.fd("a"), timeout=10.0) for to in ("10.0.0.2", "fd00::2")
        ]
        return [outcome.reach for outcome in probe_all(probes)]


def test_a_network_is_made_carries_traffic_and_goes(builder: Builder, made: list[str]) -> None:
    """Both families work at once, without waiting for duplicate detection; removal leaves none."""
    network = pair()
    builder.apply(plan(None, network))
    assert made == ["kp-fapply-a", "kp-fapply-b"]
    assert reach(network, builder) == [Reach.REACHED, Reach.REACHED]
    builder.apply(plan(network, Network(LAB)))
    assert made == []
    assert not netns.exists("kp-fapply-a")


def test_a_changed_network_is_changed_in_place(builder: Builder) -> None:
    """An address that moved, a link made anew with another MTU: traffic flows after each."""
    before = pair()
    builder.apply(plan(None, before))
    a, b = before.hosts
    moved = tuple(msgspec.structs.replace(x, cidr=x.cidr.replace("2/", "3/")) for x in b.addresses)
    after = msgspec.structs.replace(
        pair(mtu=1400), hosts=(a, msgspec.structs.replace(b, addresses=moved))
    )
    builder.apply(plan(before, after))
    with Responder() as responder:
        responder.listen("b", builder.fd("b"), Listener("b", 80))
        # A link made anew may lose its first neighbour solicitation, and the next comes after 1 s.
        outcomes = probe_all(
            Probe(to, 80, namespace=builder.fd("a"), timeout=10.0) for to in ("10.0.0.3", "fd00::3")
        )
    assert [outcome.reach for outcome in outcomes] == [Reach.REACHED, Reach.REACHED]
    builder.apply(plan(after, before))
    assert reach(before, builder) == [Reach.REACHED, Reach.REACHED]


def test_a_rate_alone_needs_no_netem(builder: Builder) -> None:
    """tbf is in every kernel."""
    network = pair(shape=Shape(rate=100_000_000))
    builder.apply(plan(None, network))
    assert reach(network, builder) == [Reach.REACHED, Reach.REACHED]


def test_what_a_kernel_lacks_is_named(builder: Builder, netem: bool) -> None:
    """Delay works, or is a MachineError that names netem and the link."""
    network = pair(shape=Shape(delay=0.001))
    if netem:
        builder.apply(plan(None, network))
        assert reach(network, builder) == [Reach.REACHED, Reach.REACHED]
        return
    with pytest.raises(MachineError, match="netem") as caught:
        builder.apply(plan(None, network))
    assert "a:eth0" in caught.value.where


def test_a_namespace_is_recorded_before_it_is_made(made: list[str]) -> None:
    """Whoever dies in between leaves a name that is harmless to remove."""
    seen: list[bool] = []

    def note(name: str) -> None:
        seen.append(netns.exists(name))
        made.append(name)

    with Builder(LAB, on_namespace=note) as builder:
        builder.apply([MakeHost(Host("a"))])
    assert seen == [False]
    assert netns.exists("kp-fapply-a")


def test_a_refusal_names_the_step(builder: Builder) -> None:
    """The kernel's no says what was tried where."""
    builder.apply([MakeHost(Host("a"))])
    with pytest.raises(NetlinkError, match="interface eth9 of a"):
        builder.apply([AddAddress("a", Address("eth9", "10.0.0.1/24"))])


def test_a_host_that_is_there_already_is_an_error(builder: Builder) -> None:
    """Namespaces of others are never taken over."""
    builder.apply([MakeHost(Host("a"))])
    with pytest.raises(LabError, match="exists"):
        builder.apply([MakeHost(Host("a"))])
