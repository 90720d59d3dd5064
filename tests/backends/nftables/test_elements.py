"""Elements: what is packed says what it was made of, and the library packs them alike."""

from __future__ import annotations

from contextlib import closing

import pytest

from kproxy.backends.nftables.door import NftDoor
from kproxy.backends.nftables.elements import KINDS, bare, text, unpack
from kproxy.backends.nftables.render import render
from kproxy.backends.nftables.rules import base
from kproxy.backends.nftables.text import script
from kproxy.core.objects import Family
from tests.backends.iptables.plans import MATRIX, snapshot
from tests.contract.namespaces import scratch
from tests.contract.test_backend import apart


def everything(family: Family):
    """All shapes of service ports."""
    plans = [plan for each, plan in MATRIX if each is family]
    return render(snapshot(*[apart(n, plan) for n, plan in enumerate(plans)], family=family), None)


@pytest.mark.parametrize("family", Family)
def test_elements_say_what_they_are(family: Family) -> None:
    """Every element has an own key in its set, and its text has all of its parts."""
    for name, records in everything(family).elements().items():
        kind = KINDS[name]
        found = [unpack(kind, record, family) for record in records]
        assert len({each.key for each in found}) == len(found), name
        for each, record in zip(found, records, strict=True):
            assert len(each.key) == len(kind.key)
            assert text(each).count(" . ") >= len(kind.key) - 1
            assert unpack(kind, bare(kind, record), family).key == each.key if not kind.data else 1


@pytest.mark.kernel
@pytest.mark.parametrize("family", Family)
def test_the_library_packs_them_alike(family: Family) -> None:
    """What is loaded from the text is, byte for byte, what is sent in messages of our own."""
    wanted = everything(family)
    with scratch(), closing(NftDoor(family)) as door:
        door.run("".join(script(wanted)))
        for name, records in wanted.elements().items():
            assert door.members(name) == records, name
        forms = door.forms()
        assert forms.chains.keys() == wanted.chains.keys()
        assert {chain.name for chain in base(wanted.frame)} <= forms.chains.keys()
