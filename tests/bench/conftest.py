"""Both builds of the load generator, and a loopback to run it on."""

from __future__ import annotations

import importlib.util
import sysconfig
from collections.abc import Iterator
from types import ModuleType

import pytest

from kproxy.kernel import command, netns
from tests.conftest import ROOT

_PLACES = {
    "release": ROOT / "kproxy" / "bench",
    "debug": ROOT / "build" / "debug" / "kproxy" / "bench",
}


def _build(build: str) -> ModuleType:
    path = _PLACES[build] / f"_load{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not path.exists():
        pytest.fail(f"no {build} build of kproxy.bench._load: run `make {build}`", pytrace=False)
    spec = importlib.util.spec_from_file_location("kproxy.bench._load", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session", params=list(_PLACES))
def generator(request: pytest.FixtureRequest) -> ModuleType:
    """``kproxy.bench._load``, once in each build."""
    return _build(request.param)


@pytest.fixture
def loopback() -> Iterator[None]:
    """The test's thread, and those that it starts, have a network of their own: a loopback."""
    with netns.fresh():
        command.run(["ip", "link", "set", "lo", "up"])
        yield
