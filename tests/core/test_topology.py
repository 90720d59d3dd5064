"""Which endpoints a node may use: readiness, locality, hints, and what a set of None means."""

from __future__ import annotations

from itertools import product

import pytest

from kproxy.core.objects import TrafficPolicy
from kproxy.core.snapshot import Endpoint
from kproxy.core.topology import STANDING, USES, Standing, categorize, spare

CLUSTER, LOCAL = TrafficPolicy.CLUSTER, TrafficPolicy.LOCAL

# How rows spell an endpoint: "1" is 10.0.0.1:80; a letter after it says more.
LETTERS = {
    "r": {},  # ready
    "u": {"ready": False, "serving": False},  # not ready
    "d": {"ready": False, "serving": True, "terminating": True},  # draining
    "g": {"ready": False, "serving": False, "terminating": True},  # gone: terminating, not serving
    "o": {"ready": False, "serving": True},  # serving, neither ready nor terminating
    "t": {"terminating": True},  # ready although terminating (publishNotReadyAddresses)
    "l": {"local": True},
    "A": {"zone_hints": ("a",)},
    "B": {"zone_hints": ("b",)},
    "M": {"zone_hints": ("b", "a")},
    "E": {"zone_hints": ("",)},
    "1": {"node_hints": ("node1",)},
    "2": {"node_hints": ("node2",)},
    "3": {"node_hints": ("node3", "node1")},
}


def endpoint(text):
    """``"4 l A"``: 10.0.0.4:80, local, hinted for zone a."""
    number, *letters = text.split()
    fields = {}
    for letter in letters:
        fields |= LETTERS[letter]
    return Endpoint(f"10.0.0.{number}", 80, **fields)


def numbers(endpoints):
    return None if endpoints is None else [it.ip.rpartition(".")[2] for it in endpoints]


def choose(texts, *, internal=CLUSTER, external=CLUSTER, entry=False, node="node1", zone=""):
    sets = categorize(
        tuple(endpoint(text) for text in texts),
        internal=internal,
        external=external,
        entry=entry,
        node=node,
        zone=zone,
    )
    return numbers(sets.cluster), numbers(sets.local), numbers(sets.all), sets.has_any


ITP = {"internal": LOCAL}
ETP = {"external": LOCAL, "entry": True}
BOTH = {"internal": LOCAL, "external": LOCAL, "entry": True}
ZONE = {"zone": "a"}


@pytest.mark.parametrize(
    ("texts", "asked", "cluster", "local", "every", "has_any"),
    [
        # Cluster policy: ready, else serving and terminating.
        pytest.param([], {}, [], None, [], False, id="nobody"),
        pytest.param(["1", "2"], {}, ["1", "2"], None, ["1", "2"], True, id="all ready"),
        pytest.param(["1 u", "2"], {}, ["2"], None, ["2"], True, id="not ready left out"),
        pytest.param(["1 u", "2 u"], {}, [], None, [], False, id="nobody ready"),
        pytest.param(["1 d", "2"], {}, ["2"], None, ["2"], True, id="draining needs no ready"),
        pytest.param(["1 d", "2 d"], {}, ["1", "2"], None, ["1", "2"], True, id="all draining"),
        pytest.param(["1 d", "2 u"], {}, ["1"], None, ["1"], True, id="draining, not unready"),
        pytest.param(["1 g", "2 o"], {}, [], None, [], False, id="neither gone nor merely serving"),
        pytest.param(["1 t", "2 d"], {}, ["1"], None, ["1"], True, id="ready though terminating"),
        # Which sets are used at all.
        pytest.param(["1 l", "2"], ITP, None, ["1"], ["1"], True, id="internal Local"),
        pytest.param(["1", "2"], ITP, None, [], [], True, id="internal Local, all remote"),
        pytest.param([], ITP, None, [], [], False, id="internal Local, nobody"),
        pytest.param(["1 u"], ITP, None, [], [], False, id="internal Local, remote unready"),
        pytest.param(["1 d"], ITP, None, [], [], True, id="internal Local, remote draining"),
        pytest.param(
            ["1 l", "2"],
            {"external": LOCAL},
            ["1", "2"],
            None,
            ["1", "2"],
            True,
            id="external Local means nothing without an external entry",
        ),
        pytest.param(["1 l", "2"], ETP, ["1", "2"], ["1"], ["1", "2"], True, id="external Local"),
        pytest.param([], ETP, [], [], [], False, id="external Local, nobody"),
        pytest.param(
            ["1 l", "2"],
            {"internal": LOCAL, "entry": True},
            ["1", "2"],
            ["1"],
            ["1", "2"],
            True,
            id="internal Local, external Cluster",
        ),
        pytest.param(["1 l", "2"], BOTH, ["1", "2"], ["1"], ["1", "2"], True, id="both Local"),
        pytest.param(
            ["1 d", "2 d"], BOTH, ["1", "2"], [], ["1", "2"], True, id="both Local, draining afar"
        ),
        # Both sets fall back to draining endpoints on their own.
        pytest.param(
            ["1", "2 l d"], ETP, ["1"], ["2"], ["1", "2"], True, id="local draining, ready afar"
        ),
        pytest.param(
            ["1", "2 u l", "3 d l", "4 d"],
            ETP,
            ["1"],
            ["3"],
            ["1", "3"],
            True,
            id="only local ones drain",
        ),
        pytest.param(["1 l", "2 l d"], ETP, ["1"], ["1"], ["1"], True, id="local ready first"),
        pytest.param(["1 l d", "2 d"], ETP, ["1", "2"], ["1"], ["1", "2"], True, id="all drain"),
        # Zone hints.
        pytest.param(["1 A", "2 B", "3 A"], ZONE, ["1", "3"], None, ["1", "3"], True, id="zone"),
        pytest.param(["1 M", "2 B"], ZONE, ["1"], None, ["1"], True, id="one of several zones"),
        pytest.param(
            ["1 A", "2"], ZONE, ["1", "2"], None, ["1", "2"], True, id="a hint is missing"
        ),
        pytest.param(
            ["1 B", "2 B"], ZONE, ["1", "2"], None, ["1", "2"], True, id="no hint for our zone"
        ),
        pytest.param(["1 A", "2 B"], {}, ["1", "2"], None, ["1", "2"], True, id="node has no zone"),
        pytest.param(
            ["1 E", "2 B"], {}, ["1", "2"], None, ["1", "2"], True, id="'' hint, node has no zone"
        ),
        pytest.param(["1 A", "2 u"], ZONE, ["1"], None, ["1"], True, id="unready needs no hint"),
        pytest.param(
            ["1 u A", "2 B"], ZONE, ["2"], None, ["2"], True, id="only unready in our zone"
        ),
        pytest.param(
            ["1 d A", "2 d B"], ZONE, ["1", "2"], None, ["1", "2"], True, id="no hints to drain"
        ),
        # Node hints go before zone hints.
        pytest.param(["1 1", "2 2"], {}, ["1"], None, ["1"], True, id="node"),
        pytest.param(["1 3", "2 2"], {}, ["1"], None, ["1"], True, id="one of several nodes"),
        pytest.param(["1 1 B", "2 2 A"], ZONE, ["1"], None, ["1"], True, id="node before zone"),
        pytest.param(
            ["1 1 B", "2 A"], ZONE, ["2"], None, ["2"], True, id="a node hint missing: zone"
        ),
        pytest.param(
            ["1 2 B", "2 2 A"], ZONE, ["2"], None, ["2"], True, id="no node hint for us: zone"
        ),
        pytest.param(["1 2", "2 2"], {}, ["1", "2"], None, ["1", "2"], True, id="nothing for us"),
        # Hints never narrow the Local set.
        pytest.param(
            ["1 l A", "2 l B", "3 A", "4 B"],
            ETP | ZONE,
            ["1", "3"],
            ["1", "2"],
            ["1", "2", "3"],
            True,
            id="hints and Local",
        ),
        pytest.param(
            ["1 l 2", "2 2"], ITP, None, ["1"], ["1"], True, id="hints and internal Local"
        ),
        pytest.param(
            ["1 l A", "2 l B"],
            ETP | ZONE,
            ["1"],
            ["1", "2"],
            ["1", "2"],
            True,
            id="Local covers Cluster",
        ),
    ],
)
def test_choice(texts, asked, cluster, local, every, has_any):
    """Every rule of "which endpoints"; None is a set that no rule uses."""
    assert choose(texts, **asked) == (cluster, local, every, has_any)


def test_all_is_shared_where_one_set_covers_the_other():
    """A plan of many endpoints holds one tuple, not three."""
    endpoints = tuple(endpoint(f"{number} l") for number in range(1, 5))
    asked = {"node": "node1", "zone": ""}
    plain = categorize(endpoints, internal=CLUSTER, external=CLUSTER, entry=False, **asked)
    assert plain.cluster is plain.all is endpoints
    both = categorize(endpoints, internal=CLUSTER, external=LOCAL, entry=True, **asked)
    assert both.all is both.cluster


@pytest.mark.parametrize(
    ("texts", "asked", "spared"),
    [
        (["1", "2 l"], {}, []),
        (["1", "2 d", "3 u", "4 g", "5 o"], {}, ["2", "5"]),
        (["1 d", "2 d"], {}, []),
        (["1 l", "2"], ITP, ["2"]),
        (["1 l", "2"], ETP, []),
        (["1 A", "2 B"], ZONE, ["2"]),
        (["1 1", "2 2"], {}, ["2"]),
        (["1 u", "2 g"], {}, []),
    ],
)
def test_spared(texts, asked, spared):
    """Who serves on without being chosen: flows that exist may go on."""
    endpoints = tuple(endpoint(text) for text in texts)
    asked = {"internal": CLUSTER, "external": CLUSTER, "entry": False, "node": "node1", **asked}
    sets = categorize(endpoints, **{"zone": "", **asked})
    with_spared = spare(sets, endpoints)
    assert numbers(with_spared.spared) == spared
    assert spared or with_spared is sets


def test_tables_are_whole():
    """Every combination has a row, and ready alone decides about readiness."""
    assert set(STANDING) == set(product((True, False), repeat=3))
    assert set(USES) == set(product(TrafficPolicy, TrafficPolicy, (True, False)))
    assert all((standing is Standing.READY) == key[0] for key, standing in STANDING.items())
    assert all(cluster or local for cluster, local in USES.values())
