"""The text: nft takes it, and it makes what is wanted."""

from __future__ import annotations

from contextlib import closing

import pytest
from msgspec.structs import replace

from kproxy.backends.nftables.door import NftDoor
from kproxy.backends.nftables.render import render
from kproxy.backends.nftables.rules import ALWAYS
from kproxy.backends.nftables.text import text
from kproxy.core.objects import Family
from kproxy.core.snapshot import Snapshot
from tests.backends.iptables.plans import LOCAL, port, snapshot
from tests.contract.namespaces import scratch
from tests.contract.test_backend import apart


def some(family: Family) -> Snapshot:
    shapes = ({"pods": 3}, {"ways": "nel", "external": LOCAL}, {"ways": "cn", "affinity": 60})
    plans = [
        apart(number, port(f"svc{number}", family, **shape))  # type: ignore[arg-type]
        for number, shape in enumerate(shapes)
    ]
    last = apart(9, port("many", family, pods=1))
    (end,) = last.endpoints.all
    many = tuple(replace(end, port=each) for each in range(1, ALWAYS + 2))
    ends = replace(last.endpoints, cluster=many, all=many)
    return snapshot(*plans, replace(last, endpoints=ends), family=family)


def test_chains_that_nothing_leads_to_are_left_out() -> None:
    """Those that stand ready for numbers of slots that nobody has."""
    desired = render(some(Family.IPV4), None)
    used = {"inside-3", "pick-3", "pick-2", f"pick-{ALWAYS + 1}"}
    assert used <= desired.chains.keys() - desired.idle
    assert {"inside-0", "inside-2", "inside-16", "pick-1", "node-pick-1"} <= desired.idle
    said = "".join(text(some(Family.IPV4)))
    assert all(f" {name}\n" not in said for name in desired.idle)
    assert all(f" {name} " in said for name in desired.chains.keys() - desired.idle)


@pytest.mark.kernel
@pytest.mark.parametrize("family", Family)
def test_the_kernel_takes_it(family: Family) -> None:
    """All else stands then."""
    desired = render(some(family), None)
    with scratch(), closing(NftDoor(family)) as door:
        door.run("".join(text(some(family))))
        assert door.forms().chains.keys() == desired.chains.keys() - desired.idle
        for name, records in desired.elements().items():
            assert door.members(name) == records, name
