"""One backend of each kind, on the in-memory kernel and in a fresh namespace of the real one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kproxy.backends.base import Backend
from kproxy.backends.fake import FakeIptables
from kproxy.backends.iptables.apply import IptablesBackend
from kproxy.backends.iptables.host import Machine
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


@pytest.fixture(params=KINDS)
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend[Any, Any, Any]]:
    """A backend on an empty kernel; the real one is the test's own namespace."""
    variant, family, real = request.param
    if real:
        with scratch():
            door = ToolDoor(family, variant, records=tmp_path / "records")
            yield IptablesBackend(family, variant, door=door)
    else:
        yield IptablesBackend(family, variant, door=FakeIptables(), machine=Machine())
