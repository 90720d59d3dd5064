"""The relay in both builds."""

from __future__ import annotations

from types import ModuleType

import pytest

from tests.conftest import BUILDS, load_build


@pytest.fixture(scope="session", params=list(BUILDS))
def relays(request: pytest.FixtureRequest) -> ModuleType:
    """``kproxy._relay``, once in each build."""
    return load_build("_relay", request.param)
