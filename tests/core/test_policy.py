"""Who is served by which set, who is masqueraded, who is refused."""

from __future__ import annotations

from itertools import product

import pytest

from kproxy.core.objects import TrafficPolicy
from kproxy.core.policy import EXTERNAL, INTERNAL, Client, Entry, Use, Verdict, treatment, verdict
from kproxy.core.snapshot import Endpoint, EndpointSets, LocalDetector
from tests.factories import make_settings

CLUSTER, LOCAL = TrafficPolicy.CLUSTER, TrafficPolicy.LOCAL
DETECTOR = LocalDetector(cidr="10.0.0.0/8")
SOMEBODY = (Endpoint("10.180.0.1", 80),)


@pytest.mark.parametrize("client", Client)
@pytest.mark.parametrize(
    ("detector", "masquerade_all", "masqueraded"),
    [
        (None, False, set()),
        (DETECTOR, False, {Client.NODE, Client.OTHER}),
        (None, True, set(Client)),
        (DETECTOR, True, set(Client)),
    ],
)
@pytest.mark.parametrize(("policy", "use"), [(CLUSTER, Use.CLUSTER), (LOCAL, Use.LOCAL)])
def test_internal(client, detector, masquerade_all, masqueraded, policy, use):
    """A cluster IP masquerades whom the detector does not know as a pod, or everybody."""
    settings = make_settings(detector=detector, masquerade_all=masquerade_all)
    got = treatment(settings, Entry.INTERNAL, client, internal=policy, external=CLUSTER)
    assert (got.use, got.masquerade) == (use, client in masqueraded)


@pytest.mark.parametrize(
    ("policy", "client", "use", "masquerade"),
    [
        (CLUSTER, Client.POD, Use.CLUSTER, True),
        (CLUSTER, Client.NODE, Use.CLUSTER, True),
        (CLUSTER, Client.OTHER, Use.CLUSTER, True),
        (LOCAL, Client.POD, Use.CLUSTER, False),
        (LOCAL, Client.NODE, Use.CLUSTER, True),
        (LOCAL, Client.OTHER, Use.LOCAL, False),
    ],
)
@pytest.mark.parametrize("masquerade_all", [False, True])
def test_external(policy, client, use, masquerade, masquerade_all):
    """External entries follow the external policy alone; Local keeps a foreign client's address."""
    settings = make_settings(detector=DETECTOR, masquerade_all=masquerade_all)
    got = treatment(settings, Entry.EXTERNAL, client, internal=LOCAL, external=policy)
    assert (got.use, got.masquerade) == (use, masquerade)


def test_tables_are_whole():
    """Every combination that can be asked for has a row."""
    assert set(EXTERNAL) == set(product(TrafficPolicy, Client))
    assert set(INTERNAL) == set(TrafficPolicy)


@pytest.mark.parametrize(
    ("cluster", "local", "has_any", "by_cluster", "by_local"),
    [
        (SOMEBODY, SOMEBODY, True, Verdict.FORWARD, Verdict.FORWARD),
        (SOMEBODY, (), True, Verdict.FORWARD, Verdict.DROP),
        (None, (), True, Verdict.DROP, Verdict.DROP),
        ((), (), False, Verdict.REFUSE, Verdict.REFUSE),
    ],
)
def test_verdict(cluster, local, has_any, by_cluster, by_local):
    """Nobody anywhere is refused; somebody, but not for this client, is dropped."""
    sets = EndpointSets(cluster, local, cluster or local or (), has_any)
    assert verdict(sets, Use.CLUSTER) is by_cluster
    assert verdict(sets, Use.LOCAL) is by_local
