"""From which of the node's addresses endpoints are connected to."""

from __future__ import annotations

import pytest

from kproxy.backends.userspace.sources import MOST_SOURCES, sources_of
from tests.backends.iptables.plans import settings


@pytest.mark.parametrize(
    ("local", "sources"),
    [
        ((), ()),
        (("10.0.0.1",), ("10.0.0.1",)),
        (("10.0.0.2", "10.0.0.1"), ("10.0.0.2", "10.0.0.1")),
        # Private and public: those that are like the first.
        (("10.0.0.1", "8.8.8.8", "172.16.0.1"), ("10.0.0.1", "172.16.0.1")),
        (("8.8.8.8", "10.0.0.1"), ("8.8.8.8",)),
        (("fd00::1", "2606:4700::1", "fd00::2"), ("fd00::1", "fd00::2")),
        # Nobody is answered there.
        (("10.0.0.1", "127.0.0.1", "169.254.1.1"), ("10.0.0.1",)),
        (("fd00::1", "::1", "fe80::1"), ("fd00::1",)),
        (
            tuple(f"10.0.0.{last}" for last in range(1, 30)),
            tuple(f"10.0.0.{last}" for last in range(1, MOST_SOURCES + 1)),
        ),
    ],
)
def test_addresses_of_the_same_scope(local: tuple[str, ...], sources: tuple[str, ...]) -> None:
    """In the node's order, at most as many as the relay takes."""
    assert sources_of(settings(local_addresses=local)) == sources
