"""What one service port becomes: chains by count and treatment, and elements."""

from __future__ import annotations

from itertools import product

import pytest
from msgspec.structs import replace

from kproxy.backends.nftables.elements import KINDS, text, unpack
from kproxy.backends.nftables.plan import CHOICE_ANNOTATION, Block, block
from kproxy.backends.nftables.render import always, frame_of, render
from kproxy.backends.nftables.rules import ALWAYS, Choose, Fence, Pick, Spec, chain_of
from kproxy.backends.nftables.walk import Fate, Outcome, Packet, Walker
from kproxy.core.objects import Family
from kproxy.core.snapshot import Endpoint, EndpointSets
from tests.backends.iptables.plans import LOCAL, port, settings, snapshot, successor, weighed

V4 = Family.IPV4


def texts(made: Block, name: str) -> list[str]:
    return [text(unpack(KINDS[name], record, V4)) for record in made.own.get(name, ())]


def names(made: Block) -> set[str]:
    return {spec.name for spec in made.specs}


def test_a_cluster_ip() -> None:
    """The address leads to a chain for the count, slots to endpoints."""
    made = block(port(pods=2), settings())
    assert texts(made, "ways") == ["172.30.0.41 . tcp . 80 : goto inside-2"]
    assert texts(made, "endpoints") == [
        "172.30.0.41 . tcp . 80 . 0 : 10.180.0.1 . 80",
        "172.30.0.41 . tcp . 80 . 1 : 10.180.0.2 . 80",
    ]
    assert names(made) == {"inside-2", "pick-2"}
    assert set(made.shared) == {"cluster-ips", "hairpin"}


@pytest.mark.parametrize(
    ("shape", "ways", "local", "unserved"),
    [
        ({"pods": 3}, ["outside-3"], [], []),
        ({"pods": 3, "external": LOCAL}, ["near-3"], ["local-pick-1"], []),
        ({"pods": 3, "local_pods": 0, "external": LOCAL}, ["near-3"], [], ["drop"]),
        ({"pods": 0}, ["outside-0"], [], ["goto refuse"]),
        ({"pods": 0, "external": LOCAL}, ["near-0"], [], ["goto refuse"]),
    ],
)
def test_external_addresses(
    shape: dict[str, object], ways: list[str], local: list[str], unserved: list[str]
) -> None:
    """By policy and endpoints: what leads to a chain, for whom, and what is refused or dropped."""
    made = block(port(ways="e", **shape), settings())  # type: ignore[arg-type]
    key = "198.51.100.7 . tcp . 80"
    assert texts(made, "ways") == [f"{key} : goto {chain}" for chain in ways]
    assert texts(made, "local-ways") == [f"{key} : goto {chain}" for chain in local]
    assert texts(made, "unserved") == [f"{key} : {what}" for what in unserved]


def many(count: int) -> EndpointSets:
    ends = tuple(Endpoint(f"10.180.7.{each}", 80, local=False) for each in range(1, count + 1))
    return EndpointSets(cluster=ends, local=None, all=ends, has_any=True)


@pytest.mark.parametrize("choice", ["random", "hash"])
@pytest.mark.parametrize(
    ("count", "places", "others"),
    [(ALWAYS, "endpoints", "known"), (ALWAYS + 1, "known", "endpoints")],
)
def test_many_slots(choice: str, count: int, places: str, others: str) -> None:
    """Their endpoints are in another map, by the same slots, and packets come to all of them."""
    plan = replace(port(ways="cn"), endpoints=many(count))
    made = render(snapshot(plan), None, choice)
    for way, key in (("", "172.30.0.41 . tcp . 80"), ("node-", "tcp . 30080")):
        assert texts(made.blocks[plan.name], f"{way}{others}") == []
        rows = texts(made.blocks[plan.name], f"{way}{places}")
        assert rows[-1] == f"{key} . {count - 1} : 10.180.7.{count} . 80"
    walker = Walker(made, ["192.168.0.2"])
    for address, number in (("172.30.0.41", 80), ("192.168.0.2", 30080)):
        found = walker.outcomes(Packet("203.0.113.9", address, "tcp", number, "eth0"))
        assert {one.endpoint for one in found} == {(end.ip, end.port) for end in plan.endpoints.all}


def test_no_chain_for_many_slots_looks_up_endpoints() -> None:
    """For one that does, the kernel walks along all of them."""
    frame = frame_of(snapshot(port()))
    specs: list[Spec] = [Pick(ALWAYS + 1, *ways) for ways in product((False, True), repeat=2)]
    for spec in specs:
        (rule,) = chain_of(spec, frame).rules
        assert not any(isinstance(action, Choose) for action in rule.then)


def test_an_address_comes_before_a_node_port() -> None:
    """A service without endpoints refuses on its address, though that be another's node port."""
    plan = replace(port("a", ways="e", pods=0, number=30080), external_ips=("192.168.0.2",))
    both = render(snapshot(plan, port("b", ways="n")), None)
    walker = Walker(both, ["192.168.0.2"])
    packet = Packet("203.0.113.9", "192.168.0.2", "tcp", 30080, "eth0")
    assert walker.outcomes(packet) == {Outcome(Fate.REFUSED)}


def test_affinity_is_by_ids() -> None:
    """An endpoint keeps its id while others come and go, and over all ways in."""
    three = block(port(ways="cn", pods=3, affinity=60), settings())
    two = block(port(ways="cn", pods=2, affinity=60), settings())
    assert names(three) == {
        *("inside-3-stay-60", "pick-3-stay-60", "node-outside-3-stay-60", "node-pick-3-stay-60")
    }
    assert set(texts(two, "known")) < set(texts(three, "known"))
    assert set(texts(two, "node-known")) < set(texts(three, "node-known"))
    (one,), (other,) = texts(three, "names"), texts(three, "node-names")
    assert one.rpartition(" : ")[2] == other.rpartition(" : ")[2]
    assert "endpoints" not in three.own


def test_a_weight_is_a_number_of_slots() -> None:
    """Slots are shared out as weights are."""
    made = block(weighed(port(pods=2), 10, 30), settings())
    assert [row.rpartition(" : ")[2] for row in texts(made, "endpoints")] == [
        *("10.180.0.1 . 80", "10.180.0.2 . 80", "10.180.0.2 . 80", "10.180.0.2 . 80")
    ]
    assert names(made) == {"inside-4", "pick-4"}


def test_the_choice_can_be_the_clients() -> None:
    """By annotation or for all; a wrong annotation is said, and changes nothing."""
    asks = replace(port(), annotations=((CHOICE_ANNOTATION, "hash"),))
    wrong = replace(port(), annotations=((CHOICE_ANNOTATION, "dice"),))
    assert names(block(asks, settings())) == {"inside-2-hash", "pick-2-hash"}
    assert names(block(port(), settings(), "hash")) == {"inside-2-hash", "pick-2-hash"}
    assert names(block(wrong, settings())) == {"inside-2", "pick-2"}
    assert "dice" in block(wrong, settings()).notice


def test_an_annotation_that_makes_no_sense_is_told_of() -> None:
    """As long as it is there, whether anything else changes with it or not."""
    asks = {
        word: replace(port(), annotations=((CHOICE_ANNOTATION, word),))
        for word in ("dice", "random")
    }
    first = render(snapshot(asks["random"], port("other")), None)
    second = render(successor(first.snapshot, asks["dice"]), first)
    third = render(successor(second.snapshot, port("other")), second)
    assert (second.elements(), first.notices) == (first.elements(), {})
    assert list(second.notices) == list(third.notices) == [port().name]
    assert third.notices is second.notices
    for snapshot_ in (
        successor(third.snapshot, asks["random"]),
        successor(third.snapshot, removed=(port().name,)),
    ):
        assert render(snapshot_, third).notices == {}


def test_a_restricted_address_names_its_sources() -> None:
    """Ranges that are within each other become one; the chain asks for the lengths that there are.
    Everything restricts nobody."""
    plan = port(ways="l", restricted=True)
    made = block(replace(plan, source_ranges=("203.0.113.0/25", "203.0.113.0/24")), settings())
    assert texts(made, "restricted") == ["203.0.113.7 . tcp . 80 : goto fence-24"]
    assert texts(made, "sources") == ["203.0.113.7 . tcp . 80 . 203.0.113.128"]
    made = block(replace(plan, source_ranges=("192.0.2.1/32", "10.0.0.0/8")), settings())
    assert texts(made, "restricted") == ["203.0.113.7 . tcp . 80 : goto fence-8-32"]
    made = block(replace(plan, source_ranges=("0.0.0.0/1", "128.0.0.0/1")), settings())
    assert texts(made, "restricted") == texts(made, "sources") == []
    made = block(replace(plan, source_ranges=()), settings())
    assert texts(made, "restricted") == ["203.0.113.7 . tcp . 80 : goto fence-nobody"]


def test_a_fence_of_many_lengths_has_a_name_that_fits() -> None:
    """Nothing that a Service says makes a name too long for the kernel."""
    names = {Fence(tuple(range(1, last))).name for last in range(2, 129)}
    assert len(names) == 127
    assert max(map(len, names)) < 128


def test_what_is_shared_is_counted() -> None:
    """A cluster IP of two ports stays until both are gone; work follows the change."""
    one, two = port("a", number=80), port("b", number=81)
    first = render(snapshot(one, two), None)
    now = successor(first.snapshot, removed=(one.name,))
    second = render(now, first)
    assert second.elements() == render(snapshot(two), None).elements()
    assert second.blocks[two.name] is first.blocks[two.name]
    assert (second.own, second.chains) == (first.own - 3, first.chains)
    last = render(successor(now, removed=(two.name,)), second)
    assert not any(last.elements().values())
    assert last.specs.keys() == set(always("random"))
