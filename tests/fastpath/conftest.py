"""The engine beside its twin, in both builds."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from tests.fastpath.pair import Pair
from tests.fastpath.world import services


@pytest.fixture
def pair(fastpath: ModuleType) -> Pair:
    return Pair(fastpath, services())


@pytest.fixture
def make_pair(fastpath: ModuleType) -> Any:
    """A pair with services and settings of a test's own."""
    return lambda tables, **settings: Pair(fastpath, tables, **settings)
