"""The text of IPVS mode: what it looks like is in tests/golden, here the bare tools read it."""

from __future__ import annotations

import re

import pytest

from bench.churn import Churn
from kproxy.backends.ipvs import text
from kproxy.backends.ipvs.apply import IpvsBackend
from kproxy.backends.ipvs.host import Machine
from kproxy.backends.xtables.variant import Variant
from kproxy.core.objects import Family
from kproxy.core.snapshot import Snapshot
from kproxy.kernel import command, netns
from tests.golden.test_golden import FOLDER, computed, read

V4, V6 = Family.IPV4, Family.IPV6


def golden(family: Family) -> Snapshot:
    """Everything that the mode has."""
    _, sections = read((FOLDER / "ipvs.golden").read_text())
    return computed(sections).snapshots[family]


def parts(snapshot: Snapshot) -> dict[str, str]:
    """Tool -> what it reads, as a person would cut it out of the whole."""
    whole = "".join(text.text(snapshot))
    _, *cut = re.split(r"^# (.+)\n", whole, flags=re.MULTILINE)
    return dict(zip(cut[::2], (part.removesuffix("\n") + "\n" for part in cut[1::2]), strict=True))


@pytest.mark.parametrize("family", [V4, V6], ids=["ipv4", "ipv6"])
def test_every_part_is_there_once(family: Family) -> None:
    """In the order in which they are put in force; nothing stands twice in a part."""
    cut = parts(golden(family))
    assert list(cut) == list(text.PARTS[family])
    for tool in ("ipset restore", "ipvsadm --restore", "ip -batch -"):
        lines = cut[tool].splitlines()
        assert lines
        assert len(lines) == len(set(lines))


@pytest.mark.ipvs
@pytest.mark.parametrize(
    ("family", "churning"), [(V4, 0), (V6, 0), (V4, 60)], ids=["ipv4", "ipv6", "random"]
)
def test_the_bare_tools_bring_it_into_force(family: Family, churning: int) -> None:
    """Afterwards kproxy finds nothing to do, and ipvsadm saves the very lines that it was given."""
    snapshot = Churn(churning).snapshot if churning else golden(family)
    legacy = {V4: "iptables-legacy-restore", V6: "ip6tables-legacy-restore"}[family]
    cut = parts(snapshot)
    with netns.fresh():
        # Before it has any route, a kernel takes every address for a broadcast one.
        command.run(["ip", "link", "set", "lo", "up"])
        for tool, content in cut.items():
            name, *more = tool.split()
            argv = [legacy if name.endswith("tables-restore") else name, *more]
            command.run(argv, stdin=content.encode())
        backend = IpvsBackend(family, Variant.LEGACY, machine=Machine())
        assert backend.diff(backend.render(snapshot, None), backend.read()) is None
        saved = command.run(["ipvsadm", "--save", "-n"]).stdout.decode()
        assert set(saved.split("\n")) == set(cut["ipvsadm --restore"].split("\n"))
