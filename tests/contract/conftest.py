"""One backend of each kind, on the in-memory kernel and in a fresh namespace of the real one.

``backend`` is one of iptables mode, ``ipvs`` one of IPVS mode, ``userspace`` one of userspace mode
(with sockets of its own on the real kernel), ``fastpath`` one of fastpath mode, ``nftables`` one of
nftables mode, ``any_backend`` one of any mode.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from kproxy.backends.base import Backend
from kproxy.backends.fake import FakeIptables
from kproxy.backends.fake_ipvs import FakeIpvs
from kproxy.backends.fastpath.apply import FastpathBackend
from kproxy.backends.fastpath.door import SteerDoor
from kproxy.backends.iptables.apply import IptablesBackend
from kproxy.backends.iptables.host import Machine
from kproxy.backends.ipvs import host
from kproxy.backends.ipvs.apply import IpvsBackend
from kproxy.backends.ipvs.door import KernelDoor
from kproxy.backends.nftables.apply import NftablesBackend
from kproxy.backends.userspace.apply import UserspaceBackend
from kproxy.backends.userspace.door import RelayDoor
from kproxy.backends.xtables.door import ToolDoor
from kproxy.backends.xtables.variant import Variant
from kproxy.core.objects import Family
from tests.backends.userspace.relay import FakeRelay
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

USERSPACE_KINDS = [
    pytest.param(
        (f"userspace-{variant}", family, real),
        id=f"userspace-{variant}-ipv{family.value}-{'kernel' if real else 'fake'}",
        marks=[pytest.mark.kernel] if real else [],
    )
    for variant, real in ((Variant.NFT, False), (Variant.NFT, True), (Variant.LEGACY, True))
    for family in Family
]

#: A packet engine cannot do without a device: there is no fake.
FASTPATH_KINDS = [
    pytest.param(
        ("fastpath", family, True), id=f"fastpath-ipv{family.value}", marks=[pytest.mark.kernel]
    )
    for family in Family
]

#: What maps and verdicts do is the kernel's.
NFTABLES_KINDS = [
    pytest.param(
        ("nftables", family, True), id=f"nftables-ipv{family.value}", marks=[pytest.mark.kernel]
    )
    for family in Family
]

AnyBackend = Backend[Any, Any, Any]


def made(kind: tuple[str, Family, bool], records: Path) -> Iterator[AnyBackend]:
    """A backend on an empty kernel; the real one is the test's own namespace."""
    form, family, real = kind
    mode, _, variant = form.partition("-")
    if mode == "fastpath":
        yield from _fastpath(family, records)
        return
    if mode == "nftables":
        with scratch(), closing(NftablesBackend(family)) as nftables_backend:
            yield nftables_backend
        return
    if mode == "userspace":
        yield from _userspace(family, variant, records if real else None)
        return
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


def _userspace(family: Family, variant: str, records: Path | None) -> Iterator[UserspaceBackend]:
    if records is None:
        yield UserspaceBackend(family, variant, door=FakeIptables(), relay=FakeRelay())
        return
    with scratch(loopback=True), closing(RelayDoor(family)) as relay:
        door = ToolDoor(family, Variant(variant), records=records)
        yield UserspaceBackend(family, variant, door=door, relay=relay)


def _fastpath(family: Family, records: Path) -> Iterator[FastpathBackend]:
    with scratch(loopback=True):
        made = FastpathBackend(family, door=SteerDoor(family, records=records))
        with closing(made):
            yield made


@pytest.fixture(params=KINDS)
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AnyBackend]:
    yield from made(request.param, tmp_path / "records")


@pytest.fixture(params=IPVS_KINDS)
def ipvs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AnyBackend]:
    yield from made(request.param, tmp_path / "records")


@pytest.fixture(params=USERSPACE_KINDS)
def userspace(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AnyBackend]:
    yield from made(request.param, tmp_path / "records")


@pytest.fixture(params=FASTPATH_KINDS)
def fastpath(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AnyBackend]:
    yield from made(request.param, tmp_path / "records")


@pytest.fixture(params=NFTABLES_KINDS)
def nftables(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AnyBackend]:
    yield from made(request.param, tmp_path / "records")


@pytest.fixture(params=[*KINDS, *IPVS_KINDS, *USERSPACE_KINDS, *FASTPATH_KINDS, *NFTABLES_KINDS])
def any_backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AnyBackend]:
    yield from made(request.param, tmp_path / "records")
