"""Slices of one service are joined by port name and protocol, each place once."""

from __future__ import annotations

from itertools import permutations

import pytest

from kproxy.core.objects import Family, Protocol, SlicePort
from kproxy.core.slices import join
from tests.factories import make_endpoint, make_slice

TCP, UDP, SCTP = Protocol.TCP, Protocol.UDP, Protocol.SCTP
V4, V6 = Family.IPV4, Family.IPV6


def ports(*entries):
    return tuple(SlicePort(name, protocol, number) for name, protocol, number in entries)


def texts(slices, name="http", protocol=TCP, family=V4, node="node1"):
    return [str(endpoint) for endpoint in join(slices, family, name, protocol, node)]


@pytest.mark.parametrize(
    ("slices", "asked", "expected"),
    [
        pytest.param([], {}, [], id="no slice"),
        pytest.param([make_slice(ports=ports(("http", TCP, 80)))], {}, [], id="no endpoint"),
        pytest.param([make_slice("10.180.0.1")], {}, ["10.180.0.1:8080"], id="one"),
        pytest.param(
            [make_slice("10.180.0.1", name="a"), make_slice("10.180.0.2", name="b")],
            {},
            ["10.180.0.1:8080", "10.180.0.2:8080"],
            id="several slices are merged",
        ),
        pytest.param(
            [make_slice("10.180.0.1", ports=ports(("", TCP, 80)))],
            {"name": ""},
            ["10.180.0.1:80"],
            id="a port without a name has the name ''",
        ),
        pytest.param(
            [make_slice("10.180.0.1", ports=ports(("", TCP, 80)))],
            {"name": "http"},
            [],
            id="'' is no wildcard",
        ),
        pytest.param(
            [make_slice("10.180.0.1", ports=ports(("http", UDP, 80)))],
            {},
            [],
            id="another protocol is another port",
        ),
        pytest.param(
            [
                make_slice(
                    "10.180.0.1", ports=ports(("d", TCP, 5353), ("d", UDP, 53), ("e", UDP, 9))
                )
            ],
            {"name": "d", "protocol": UDP},
            ["10.180.0.1:53"],
            id="name and protocol together",
        ),
        pytest.param(
            [
                make_slice("10.180.0.1", name="a", ports=ports(("http", TCP, 80))),
                make_slice("10.180.0.2", name="b", ports=ports(("http", TCP, 8080))),
            ],
            {},
            ["10.180.0.1:80", "10.180.0.2:8080"],
            id="a named target port differs between pods",
        ),
        pytest.param(
            [
                make_slice("10.180.0.1", name="a"),
                make_slice("fd00:10::1", name="b"),
            ],
            {},
            ["10.180.0.1:8080"],
            id="IPv4 takes IPv4 slices",
        ),
        pytest.param(
            [
                make_slice("10.180.0.1", name="a"),
                make_slice("fd00:10::1", name="b"),
            ],
            {"family": V6},
            ["[fd00:10::1]:8080"],
            id="IPv6 takes IPv6 slices",
        ),
        pytest.param(
            [make_slice("10.180.0.1", name="a"), make_slice("10.180.0.1", name="b")],
            {},
            ["10.180.0.1:8080"],
            id="equal place in two slices is one endpoint",
        ),
        pytest.param(
            [make_slice("10.180.0.1", "10.180.0.1")],
            {},
            ["10.180.0.1:8080"],
            id="equal place twice in one slice is one endpoint",
        ),
        pytest.param(
            [
                make_slice("10.180.0.1", name="a", ports=ports(("http", TCP, 80))),
                make_slice("10.180.0.1", name="b", ports=ports(("http", TCP, 81))),
            ],
            {},
            ["10.180.0.1:80", "10.180.0.1:81"],
            id="equal address on another port is another endpoint",
        ),
        pytest.param(
            [make_slice("10.180.0.10", "10.180.0.9", "10.180.0.1")],
            {},
            ["10.180.0.1:8080", "10.180.0.10:8080", "10.180.0.9:8080"],
            id="sorted by the text of the address",
        ),
    ],
)
def test_join(slices, asked, expected):
    """Every rule about ports and places, whatever order the slices come in."""
    for order in permutations(slices):
        assert texts(order, **asked) == expected


READY = {}
GHOST = {"ready": False, "serving": False, "terminating": True}
DRAINING = {"ready": False, "serving": True, "terminating": True}
STARTING = {"ready": False, "serving": False}
ODD = {"ready": False, "serving": True}


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        pytest.param(READY, GHOST, id="living before ghost"),
        pytest.param(READY, DRAINING, id="ready before draining"),
        pytest.param(READY, STARTING, id="ready before starting"),
        pytest.param(READY, {"terminating": True}, id="staying before going"),
        pytest.param(DRAINING, GHOST, id="serving before dead"),
        pytest.param(DRAINING, STARTING, id="serving before starting"),
        pytest.param(DRAINING, ODD, id="usable before unusable"),
        pytest.param(STARTING, GHOST, id="coming before going"),
        pytest.param({"node": "node1"}, {}, id="known node before unknown"),
        pytest.param({**READY, "node": "node2"}, {**GHOST, "node": "node1"}, id="alive elsewhere"),
    ],
)
def test_twins(better, worse):
    """Of two entries for one place the one that can serve is believed, in any order."""
    good, bad = make_endpoint("10.180.0.1", **better), make_endpoint("10.180.0.1", **worse)
    for first, second in ((good, bad), (bad, good)):
        for slices in (
            [make_slice(first, name="a"), make_slice(second, name="b")],
            [make_slice(first, second)],
        ):
            (got,) = join(slices, V4, "http", TCP, "node1")
            assert (got.ready, got.serving, got.terminating, got.node) == (
                good.ready,
                good.serving,
                good.terminating,
                good.node,
            )


@pytest.mark.parametrize(
    ("node", "ours", "local"),
    [("node1", "node1", True), ("node2", "node1", False), ("", "node1", False), ("", "", False)],
)
def test_local(node, ours, local):
    """Local is on a node with our name; no name is nobody's."""
    (got,) = join([make_slice(make_endpoint("10.180.0.1", node))], V4, "http", TCP, ours)
    assert got.local is local


def test_everything_is_carried_over():
    """Conditions, node and hints of the entry arrive in the endpoint's own fields."""
    entry = make_endpoint(
        "10.180.0.1",
        "node2",
        ready=False,
        serving=True,
        terminating=True,
        zone_hints=("a",),
        node_hints=("n",),
    )
    (got,) = join([make_slice(entry)], V4, "http", TCP, "node1")
    assert (got.ip, got.port, got.local) == ("10.180.0.1", 8080, False)
    assert (got.ready, got.serving, got.terminating) == (False, True, True)
    assert (got.node, got.zone_hints, got.node_hints) == ("node2", ("a",), ("n",))
