"""Runs the golden files of this folder; README.md says what they look like."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from kproxy.backends.iptables import chains
from kproxy.backends.iptables.apply import IptablesBackend
from kproxy.backends.iptables.host import Machine
from kproxy.backends.ipvs import text as ipvs_text
from kproxy.backends.userspace import text as userspace_text
from kproxy.backends.xtables.rules import Table
from kproxy.config import config_from_mapping
from kproxy.core.decode import decode_objects
from kproxy.core.events import Delta
from kproxy.core.objects import Family, Refusal
from kproxy.core.planner import Planner
from kproxy.core.settings import node_settings
from kproxy.core.tracker import Tracker

FOLDER = Path(__file__).parent
FILES = sorted(FOLDER.glob("*.golden"))
UPDATE = os.environ.get("KPROXY_GOLDEN") == "update"

_HEADER = re.compile(r"^-- (\S+) --$", re.MULTILINE)
_DEFAULT_NODE = {"name": "node1", "ips": ["192.168.0.2", "2001:db8::1"]}


class Computed:
    """What kproxy makes of one file."""

    def __init__(self, config: dict[str, Any], objects: str) -> None:
        node = {**_DEFAULT_NODE, **config.pop("node", {})}
        elsewhere = config.pop("endpointsElsewhere", 0)
        self.machine = Machine(**config.pop("machine", {}))
        settings, warnings = config_from_mapping(config)
        assert warnings == ()
        self.mode = settings.effective_mode
        found, self.refusals = decode_objects(yaml.safe_load_all(objects))
        tracker = Tracker()
        tracker.apply(Delta(upserted=tuple(found)))
        self.snapshots = {}
        for family in Family:
            its = node_settings(settings, None, node["name"], family, node["ips"])
            plan = Planner(family).plan(tracker, its)
            count = plan.endpoint_count + elsewhere
            self.snapshots[family] = msgspec.structs.replace(plan, endpoint_count=count)

    def refused(self) -> str:
        refusals: list[Refusal] = list(self.refusals)
        for snapshot in self.snapshots.values():
            refusals += snapshot.conflicts
        return "".join(f"{refusal}\n" for refusal in refusals)

    def all(self, family: Family) -> str:
        return "".join(self._backend(family).text(self.snapshots[family]))

    def rules(self, family: Family, table: Table) -> str:
        """The lines of dispatch chains and of services' chains, in the order of sending."""
        desired = self._backend(family).render(self.snapshots[family], None)
        texts = [
            text
            for block in desired.blocks.values()
            for text in (block.chains.values() if table is Table.NAT else ())
        ]
        texts += [text for place, text in desired.dispatch.items() if place[0] is table]
        return "".join(texts)

    def ipvs(self, family: Family) -> str:
        """All parts that IPVS mode puts in force."""
        return "".join(ipvs_text.text(self.snapshots[family]))

    def userspace(self, family: Family) -> str:
        """What the relay serves, and the rules that lead to it."""
        return "".join(userspace_text.text(self.snapshots[family]))

    def shown(self, family: Family) -> dict[str, str]:
        """What depends on services -> the section for it."""
        number = int(family)
        if self.mode in ("ipvs", "userspace"):
            return {f"{self.mode}{number}": "".join(map(str, self.snapshots[family].ports))}
        return {
            f"{table}{number}": "".join(
                row
                for row in self.rules(family, table).splitlines()
                if not (row.startswith(f"-A {chains.SERVICES} ") and "NOTE" in row)
            )
            for table in (Table.NAT, Table.FILTER)
        }

    def _backend(self, family: Family) -> IptablesBackend:
        return IptablesBackend(family, "legacy", machine=self.machine)


SECTIONS: dict[str, Callable[[Computed], str]] = {
    "nat4": lambda made: made.rules(Family.IPV4, Table.NAT),
    "filter4": lambda made: made.rules(Family.IPV4, Table.FILTER),
    "nat6": lambda made: made.rules(Family.IPV6, Table.NAT),
    "filter6": lambda made: made.rules(Family.IPV6, Table.FILTER),
    "all4": lambda made: made.all(Family.IPV4),
    "all6": lambda made: made.all(Family.IPV6),
    "ipvs4": lambda made: made.ipvs(Family.IPV4),
    "ipvs6": lambda made: made.ipvs(Family.IPV6),
    "userspace4": lambda made: made.userspace(Family.IPV4),
    "userspace6": lambda made: made.userspace(Family.IPV6),
    "refused": Computed.refused,
}
INPUTS = ("config", "objects")


def read(text: str) -> tuple[str, dict[str, str]]:
    """The paragraph at the top, and section -> content."""
    about, *parts = _HEADER.split(text)
    return about, dict(zip(parts[::2], (part.lstrip("\n") for part in parts[1::2]), strict=True))


def write(about: str, sections: dict[str, str]) -> str:
    return about + "".join(f"-- {name} --\n{content}" for name, content in sections.items())


def computed(sections: dict[str, str]) -> Computed:
    return Computed(yaml.safe_load(sections.get("config", "")) or {}, sections["objects"])


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_golden(path: Path) -> None:
    """Every section of the file is what kproxy makes of its objects."""
    about, sections = read(path.read_text())
    made = computed(sections)
    expected = {name: content for name, content in sections.items() if name not in INPUTS}
    got = {name: SECTIONS[name](made) for name in expected if name in SECTIONS}
    if UPDATE:
        path.write_text(write(about, {**sections, **got}))
        return
    assert got == expected


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_nothing_goes_unread(path: Path) -> None:
    """Known sections only, at least one of them computed, and none missing for a family whose
    services have rules, nor for something that is left out."""
    about, sections = read(path.read_text())
    assert about.strip()
    assert set(sections) - set(INPUTS) <= set(SECTIONS)
    assert "objects" in sections
    made = computed(sections)
    for family in Family:
        for name, content in made.shown(family).items():
            sufficient = {name, f"all{int(family)}"}
            assert not content or sufficient & set(sections), f"{name} is not there: {content}"
    assert ("refused" in sections) == bool(made.refused())


def test_there_are_golden_files() -> None:
    """The folder is not empty: a wrong path must not look like success."""
    assert len(FILES) >= 10
