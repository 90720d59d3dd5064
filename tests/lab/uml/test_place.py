"""Which kernel a mode runs on, as a table."""

from __future__ import annotations

import pytest

from kproxy.backends import registry
from kproxy.errors import UsageError
from kproxy.lab.uml import place
from kproxy.lab.uml.place import AUTO, HOST, UML, Places


@pytest.mark.parametrize(
    ("names", "kernel", "host_has", "places"),
    [
        (["iptables"], AUTO, False, Places(("iptables",))),
        (["none", "iptables-nft"], AUTO, False, Places(("none", "iptables-nft"))),
        (["ipvs"], AUTO, False, Places((), ("ipvs",))),
        (["ipvs"], AUTO, True, Places(("ipvs",))),
        (["ipvs"], HOST, False, Places(("ipvs",))),
        (["iptables", "ipvs"], UML, True, Places((), ("iptables", "ipvs"))),
        (["iptables", "ipvs", "ipvs"], AUTO, False, Places(("iptables",), ("ipvs",))),
        (["all"], AUTO, False, Places(("all",), ("ipvs",), tentative=True)),
        (["all", "ipvs"], AUTO, False, Places(("all",), ("ipvs",))),
        (["all"], AUTO, True, Places(("all",), (), tentative=True)),
        ([], AUTO, False, Places((), (), tentative=True)),
    ],
)
def test_places(
    monkeypatch: pytest.MonkeyPatch,
    names: list[str],
    kernel: str,
    host_has: bool,
    places: Places,
) -> None:
    """The host where it can; what it lacks inside; what was named is not tentative."""
    monkeypatch.setattr(place, "host_runs", lambda mode: host_has)
    found = place.place(names, kernel)
    assert (found.here, found.inside) == (places.here, places.inside)
    assert found.tentative == places.tentative or not found.inside


@pytest.mark.parametrize("kernel", [AUTO, HOST, UML])
def test_a_name_that_there_is_not(kernel: str) -> None:
    """Is found before any kernel is asked."""
    with pytest.raises(UsageError, match="carrier-pigeon"):
        place.place(["carrier-pigeon"], kernel)


def test_what_runs_inside_is_built() -> None:
    assert all(registry.built(mode) for mode in place.INSIDE)
