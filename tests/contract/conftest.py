"""One backend of each kind, on the in-memory kernel and in a fresh namespace of the real one.

``backend`` is one of iptables mode, ``ipvs`` one of IPVS mode, ``any_backend`` one of any mode.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kproxy.backends.base import Backend
from kproxy.backends.fake import FakeIptables
from kproxy.backends.fake_ipvs import FakeIpvs
from kproxy.backends.iptables.apply import IptablesBackend
from kproxy.backends.iptables.host import Machine
from kproxy.backends.ipvs import host
from kproxy.backends.ipvs.apply import IpvsBackend
from kproxy.backends.ipvs.door import KernelDoor
from kproxy.backends.xtables.door import ToolDoor
from kproxy.backends.xtables.variant import Variant
from kproxy.core.objects import Family
from tests.contract.namespaces import scratch

KINDS = [
    pytest.param(
        (variant, family, real),
        id=f"{variant}-ipv{family.value}-{'kernel' if real else 'fake'}",
        marks=[pytest.mark.kernel] if real else [],
    )
    for real in (False, True)
    for variant in Variant
    for family in Family
]


IPVS_KINDS = [
    pytest.param(
        ("ipvs", family, real),
        id=f"ipvs-ipv{family.value}-{'kernel' if real else 'fake'}",
        marks=[pytest.mark.ipvs] if real else [],
    )
    for real in (False, True)
    for family in Family
]

AnyBackend = Backend[Any, Any, Any]


def made(kind: tuple[str, Family, bool], records: Path) -> Iterator[AnyBackend]:
    """A backend on an empty kernel; the real one is the test's own namespace."""
    form, family, real = kind
    if not real:
        yield _ipvs(family, None) if form == "ipvs" else _iptables(family, form, None)
        return
    with scratch(loopback=form == "ipvs"):
        yield _ipvs(family, records) if form == "ipvs" else _iptables(family, form, records)


def _iptables(family: Family, variant: str, records: Path | None) -> IptablesBackend:
    if records is None:
        return IptablesBackend(family, variant, door=FakeIptables(), machine=Machine())
    door = ToolDoor(family, Variant(variant), records=records)
    return IptablesBackend(family, variant, door=door)


def _ipvs(family: Family, records: Path | None) -> IpvsBackend:
    if records is None:
        return IpvsBackend(family, Variant.NFT, door=FakeIpvs(family), machine=host.Machine())
    variant = host.working_variant()
    return IpvsBackend(family, variant, door=KernelDoor(family, variant, records=records))


@pytest.fixture(params=KINDS)
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AnyBackend]:
    yield from made(request.param, tmp_path / "records")


@pytest.fixture(params=IPVS_KINDS)
def ipvs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AnyBackend]:
    yield from made(request.param, tmp_path / "records")


@pytest.fixture(params=[*KINDS, *IPVS_KINDS])
def any_backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AnyBackend]:
    yield from made(request.param, tmp_path / "records")
