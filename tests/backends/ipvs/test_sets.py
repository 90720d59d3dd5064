"""The table of sets: names, kinds, order, and that the rules ask each set as its kind wants."""

from __future__ import annotations

from itertools import chain

import pytest

from kproxy.backends.ipvs import sets
from kproxy.backends.ipvs.fixed import Context, RelayPorts, fixed_rules
from kproxy.core.members import LAYOUTS, Part
from kproxy.core.objects import Family
from tests.backends.iptables.plans import settings

#: What a rule names a direction for; the protocol goes with the port, a prefix with its address.
_ASKED = (Part.ADDRESS, Part.PORT, Part.OTHER)


@pytest.mark.parametrize("family", Family)
def test_names_fit_the_kernel(family: Family) -> None:
    """At most 31 characters, and no two alike, in the two families together."""
    names = sets.kinds(family)
    assert len(names) == len(sets.names(family))
    assert max(map(len, names)) <= 31
    assert names.keys().isdisjoint(sets.kinds(Family(10 - family)))


@pytest.mark.parametrize("family", Family)
def test_every_set_is_asked_as_its_kind_wants(family: Family) -> None:
    """A rule gives a direction for each address and port of a member; no set is kept for nothing,
    and none is asked that nobody keeps."""
    relay = RelayPorts(tcp=40001, udp=40002) if family is Family.IPV4 else None
    context = Context(family, settings(family), relay=relay)
    rules = chain.from_iterable(fixed_rules(context).values())
    kinds = sets.kinds(family)
    asked = set()
    for match in chain.from_iterable(rule.sets for rule in rules):
        parts = [part for part in LAYOUTS[kinds[match.name]] if part in _ASKED]
        assert len(match.directions) == len(parts), match
        asked.add(match.name)
    assert asked == kinds.keys()


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (sets.LOAD_BALANCER_SOURCE_RANGE, sets.LOAD_BALANCER_FIREWALL),
        (sets.LOAD_BALANCER_SOURCE_IP, sets.LOAD_BALANCER_FIREWALL),
        (sets.LOAD_BALANCER, sets.NO_LOCAL_ENDPOINT),
        (sets.CLUSTER_IP, sets.NO_ENDPOINT),
    ],
)
def test_who_is_permitted_comes_before_who_is_shut_out(first: str, then: str) -> None:
    """Members come in the order of the table, and go the other way round."""
    order = list(sets.KINDS)
    assert order.index(first) < order.index(then)


def test_the_table_in_words_is_the_table() -> None:
    """The docstring, which rules are written after, names every set."""
    words = set((sets.__doc__ or "").split())
    short = {
        "KUBE-EXTERNAL-IP(-LOCAL)": (sets.EXTERNAL_IP, sets.EXTERNAL_IP_LOCAL),
        "KUBE-NODE-PORT(-LOCAL)-TCP,": tuple(
            name for name in sets.KINDS if name.startswith("KUBE-NODE-PORT")
        ),
    }
    told = words | set(chain.from_iterable(names for word, names in short.items() if word in words))
    assert sets.KINDS.keys() <= told
