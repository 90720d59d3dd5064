"""What one daemon leaves to the next: seed, flows, affinities."""

from __future__ import annotations

from pathlib import Path

import pytest

from kproxy.backends.fastpath import estate
from kproxy.backends.fastpath.carrier import Carrier
from kproxy.backends.fastpath.estate import Estate
from kproxy.backends.fastpath.render import render
from kproxy.backends.fastpath.seed import SIZE, kept_seed
from kproxy.core.objects import Family, PortName, Protocol
from kproxy.core.snapshot import FastpathSettings
from tests.backends.iptables.plans import port, snapshot

NAME = PortName("shop", "web", "http", Protocol.TCP)


def test_the_seed_stays(tmp_path: Path) -> None:
    """Made once, readable by nobody else, the same ever after; a spoiled one is made anew."""
    first = kept_seed(tmp_path)
    assert len(first) == SIZE
    assert kept_seed(tmp_path) == first
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_bytes(b"short")
    assert len(kept_seed(tmp_path)) == SIZE
    assert [each.name for each in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize("family", Family)
def test_an_estate_is_taken_once(tmp_path: Path, family: Family) -> None:
    """What was left comes back, for its family only, and is gone then."""
    left = Estate(names=((3, NAME),), records=b"abc")
    estate.leave(tmp_path, family, left)
    assert estate.path(tmp_path, family).stat().st_mode & 0o777 == 0o600
    found = estate.take(tmp_path, family)
    assert found is not None
    assert (found.names, found.records) == (left.names, left.records)
    assert estate.take(tmp_path, family) is None


@pytest.mark.parametrize("content", [b"", b"rubbish", b"\xff" * 100])
def test_what_cannot_be_read_is_passed_over(tmp_path: Path, content: bytes) -> None:
    """A start never fails because of it."""
    estate.path(tmp_path, Family.IPV4).write_bytes(content)
    assert estate.take(tmp_path, Family.IPV4) is None
    assert not list(tmp_path.iterdir())


def test_an_estate_of_another_form_is_passed_over(tmp_path: Path) -> None:
    """Another version may lay records out in another way."""
    estate.leave(tmp_path, Family.IPV4, Estate(names=(), records=b"", form=estate.FORM + 1))
    assert estate.take(tmp_path, Family.IPV4) is None


def test_spoiled_records_are_refused() -> None:
    """Nothing of them is taken."""
    carrier = Carrier(Family.IPV4, FastpathSettings(max_flows=1024), bytes(SIZE))
    desired = render(snapshot(port("svc", Family.IPV4), family=Family.IPV4), None)
    carrier.commit(desired.tables.services, ())
    with pytest.raises(ValueError, match="bytes"):
        carrier.take(b"abc", ())
    assert carrier.take(b"", ()) == 0


def test_numbers_are_used_again() -> None:
    """A service that went without a flow leaves its number to the next one."""
    carrier = Carrier(Family.IPV4, FastpathSettings(max_flows=1024), bytes(SIZE))
    names = set()
    for count in range(50):
        plan = port(f"svc{count}", Family.IPV4, number=8000)
        tables = render(snapshot(plan, family=Family.IPV4), None).tables.services
        carrier.commit(tables, ())
        names.update(number for _, number in carrier.numbers())
        carrier.commit({}, list(tables))
        assert carrier.reap() is None
    assert names == {0}
