"""From one mode to another, between two daemons of one network namespace."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from kproxy import changeover
from kproxy.errors import OccupiedError
from kproxy.kernel import command, netns
from kproxy.occupancy import occupant
from tests.test_daemon import Proxy, put, service

pytestmark = pytest.mark.kernel


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Proxy]:
    """In iptables mode, in sync."""
    name = f"kp-o{os.getpid()}"
    netns.create(name)
    try:
        with Proxy(name, tmp_path) as proxy:
            yield from _in_sync(proxy)
    finally:
        netns.remove(name)


def _in_sync(proxy: Proxy) -> Iterator[Proxy]:
    file = proxy.manifests / "web.yaml"
    put(file, service())
    proxy.start()
    proxy.until_in_force(file)
    with netns.entered(proxy.namespace):
        yield proxy


def standing(proxy: Proxy) -> changeover.Standing:
    here = occupant()
    assert here is not None
    assert proxy.process is not None
    assert here.pid == proxy.process.pid
    return changeover.Standing(here.pid)


def test_another_language_is_refused(
    serving: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the versions of both; nothing has changed then."""
    before = serving.rules()
    monkeypatch.setattr(changeover, "VERSION", 7)
    with closing(standing(serving)) as other, pytest.raises(OccupiedError, match=r"version 1 .* 7"):
        other.locks("ipvs", tmp_path)
    assert standing(serving)
    assert serving.rules() == before


def test_one_that_breaks_off_gives_the_place_back(serving: Proxy, tmp_path: Path) -> None:
    """Rules that were changed meanwhile are written again, and the place is to be had again."""
    before = serving.rules()
    for _ in range(2):
        with closing(standing(serving)) as other:
            assert other.locks("ipvs", tmp_path)
            command.run(["iptables-nft", "-t", "nat", "-F", "KUBE-SERVICES"])
            assert serving.rules() != before
        serving.until(lambda: sorted(serving.rules().splitlines()) == sorted(before.splitlines()))
