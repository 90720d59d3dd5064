"""What ``kproxy lab ls`` says of endpoints' health."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from kproxy.cli import lab_ls
from kproxy.lab import state
from kproxy.lab.survey import Ailing, HostFacts, Judged, LabFacts

NOW = time.time()
DOWN = Ailing("10.180.1.2:8080", "down", "default/web-2", "connection refused", NOW - 3.5 * 86400)
STARTING = Ailing("10.180.1.3:8080", "starting", "default/web-3", "connected", NOW - 3.5 * 3600, 40)
WEB = Judged("default/web:http", "TCP", 4, 2, 3, endpoints=(DOWN, STARTING))
DATABASE = Judged("default/db", "TCP", 4, 0, 2, panic=True)
PODS = tuple(HostFacts(f"web-{n}", "pod", "ready", node="node1") for n in (1, 2, 3))


def lab(*health: Judged) -> LabFacts:
    nodes = (
        HostFacts("node1", "node", "synced", health=health),
        HostFacts("node2", "node", "down"),
    )
    return LabFacts("dev", "two-nodes", "iptables-nft", hosts=(*nodes, *PODS))


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[LabFacts]:
    """The labs that there are, looked at when they were made: it is long since this was loaded."""
    facts: list[LabFacts] = []
    monkeypatch.setattr(lab_ls, "time", SimpleNamespace(time=lambda: NOW))
    monkeypatch.setattr(state, "list_labs", lambda: [one.name for one in facts])
    monkeypatch.setattr(lab_ls, "_look", lambda name, wide: facts[0])
    return facts


def ls(*argv: str) -> str:
    done = CliRunner().invoke(lab_ls.command, list(argv))
    assert done.exit_code == 0, done.output
    return done.output


def test_nodes_sum_up_and_pods_say_who_thinks_ill_of_them(shown: list[LabFacts]) -> None:
    """One word for each; nothing of what is plainly up."""
    shown.append(lab(WEB, DATABASE))
    head, *rows = ls().splitlines()
    place = head.index("HEALTH") if "HEALTH" in head else head.lower().index("health")
    words = {row.split()[1]: row[place:].split("  ")[0].strip() for row in rows[:5]}
    assert words == {
        "node1": "2/5 up, 1 in panic",
        "node2": "-",
        "web-1": "-",
        "web-2": "down on node1",
        "web-3": "starting on node1",
    }


def test_no_column_without_checks(shown: list[LabFacts]) -> None:
    """A lab whose services ask for nothing looks as ever."""
    shown.append(lab())
    assert "health" not in ls().lower()


def test_wide_says_what_is_wrong_with_which(shown: list[LabFacts]) -> None:
    """With the reason and for how long, and the weight of who starts."""
    shown.append(lab(WEB, DATABASE))
    lines = [line.strip() for line in ls("-o", "wide").splitlines()]
    at = lines.index("health   default/web:http TCP IPv4: 2 of 3 endpoints up")
    assert lines[at + 1].startswith(
        "down  10.180.1.2:8080 (default/web-2): connection refused, 3d ago"
    )
    assert lines[at + 2].startswith("starting  10.180.1.3:8080 (default/web-3): weight 40, 3h ago")
    assert (
        lines[at + 3] == "health   default/db TCP IPv4: 0 of 2 endpoints up; too few, all are used"
    )


def test_json_has_all_of_it(shown: list[LabFacts]) -> None:
    """By field, for scripts."""
    shown.append(lab(WEB))
    node = json.loads(ls("-o", "json"))[0]["hosts"][0]
    (port,) = node["health"]
    assert (port["up"], port["of"], port["panic"]) == (2, 3, False)
    assert port["endpoints"][0]["state"] == "down"
    assert port["endpoints"][1]["weight"] == 40
