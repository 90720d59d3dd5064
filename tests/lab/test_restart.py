"""``kproxy lab restart``, and what ``lab ls`` tells of what nodes carry themselves."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from kproxy.errors import LabError
from kproxy.kernel import netns
from kproxy.lab import catalogue, daemons, lifecycle, state
from kproxy.lab.model import LabState
from kproxy.lab.undo import UndoLog
from tests.lab.test_lab_commands import kproxy

pytestmark = pytest.mark.kernel

LAB = "frst"


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    lifecycle.down(LAB)
    yield
    lifecycle.down(LAB)
    state.forget_allocations(LAB)


def up(mode: str) -> LabState:
    return lifecycle.up(LAB, catalogue.load("standard"), lifecycle.mode_of(mode)).lab


def cluster_ip() -> str:
    (found,) = [
        obj["spec"]["clusterIP"]
        for obj in lifecycle.objects_of(LAB)
        if (obj["kind"], obj["metadata"]["name"]) == ("Service", "web")
    ]
    return str(found)


def connect(lab: LabState, host: str) -> socket.socket:
    """An open connection to the service, as a client that goes on asking."""
    fd = netns.open_fd(lab.network.namespace(host))
    try:
        with netns.entered(fd):
            made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    finally:
        os.close(fd)
    made.settimeout(20)
    made.connect((cluster_ip(), 80))
    return made


def asked(client: socket.socket) -> str:
    """Which pod answers on an open connection."""
    client.sendall(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")
    answer = http.client.HTTPResponse(client)
    try:
        answer.begin()
        body = answer.read()
    except http.client.HTTPException as cut:
        raise ConnectionError("no whole answer") from cut
    assert answer.status == 200
    return str(json.loads(body)["name"])


@pytest.mark.parametrize("mode", ["iptables-nft", "userspace"])
def test_a_restart_disturbs_no_connection(mode: str) -> None:
    """A new process on each node that is named, and only there; what is open goes on."""
    lab = up(mode)
    before = daemons.alive(LAB, daemons.ROLE_PROXY)
    with connect(lab, "echo-0") as client:
        pod = asked(client)
        done = kproxy("lab", "restart", "--name", LAB, "node1")
        assert done.returncode == 0, done.stderr
        after = daemons.alive(LAB, daemons.ROLE_PROXY)
        assert done.stdout == (
            f"node1: process {after['node1'].pid} in place of {before['node1'].pid}\n"
        )
        assert after["node1"] != before["node1"]
        assert after["node2"] == before["node2"]
        assert asked(client) == pod
        with connect(lab, "echo-0") as other:
            assert asked(other) in ("web-0", "web-1")
        processes = UndoLog(LAB).read().processes
        # In userspace mode the old one carries the connection, and lab down ends both.
        assert before["node1"].alive() is (mode == "userspace")
        assert lifecycle.down(LAB)
    assert not any(process.alive() for process in processes)


def test_all_nodes_or_those_that_there_are() -> None:
    """Without a name every node gets a new process; an unknown name restarts none."""
    up("iptables-nft")
    before = daemons.alive(LAB, daemons.ROLE_PROXY)
    with pytest.raises(LabError, match="no node nowhere; it has: node1, node2"):
        lifecycle.restart(LAB, ["node1", "nowhere"])
    assert daemons.alive(LAB, daemons.ROLE_PROXY) == before
    changed = lifecycle.restart(LAB)
    assert {(node, old) for node, old, _ in changed} == {
        (node, process.pid) for node, process in before.items()
    }


def test_ls_tells_what_is_carried() -> None:
    """By node and service port, as far as there was any; the wide form and JSON tell all."""
    lab = up("userspace")
    plain = kproxy("lab", "ls", "--name", LAB).stdout
    assert "CONNECTIONS" not in plain
    with connect(lab, "echo-0") as client:
        pod = asked(client)
        text = kproxy("lab", "ls", "--name", LAB).stdout
        head, row = text.split("\n\n")[1].splitlines()
        assert head.split() == [
            "LAB", "NODE", "SERVICE", "PROTOCOL",
            "CONNECTIONS", "ACTIVE", "RETRIES", "FAILURES", "IN", "OUT",
        ]  # fmt: skip
        pods = {pod.name: pod.node for pod in lab.pods}
        assert row.split()[:6] == [LAB, pods["echo-0"], "default/web:http", "TCP", "1", "1"]
        wide = kproxy("lab", "ls", "--name", LAB, "-o", "wide").stdout
        assert "carried  default/web:http TCP: 1 connections, 1 active, 0 retries" in wide
        place = next(each.addresses[0] for each in lab.pods if each.name == pod)
        taken = rf"      to  {re.escape(place)}:\d+ \(default/{pod}\): 1 connections, 1 active, 0 "
        assert re.search(taken, wide)
    (facts,) = json.loads(kproxy("lab", "ls", "--name", LAB, "-o", "json").stdout)
    carried = {
        (host["name"], one["name"]): one["connections"]
        for host in facts["hosts"]
        for one in host["carried"]
    }
    assert carried[pods["echo-0"], "default/web:http"] == 1
    assert sum(carried.values()) == 1
    _tells_of_endpoints(lab, facts, pod)


def _tells_of_endpoints(lab: LabState, facts: dict[str, Any], pod: str) -> None:
    """Each pod of the service with each of its addresses, on every node; the one that answered has
    had the connection."""
    web = {each.name: each for each in lab.pods if each.workload == "web"}
    nodes = [host for host in facts["hosts"] if host["kind"] == "node"]
    assert nodes
    for host in nodes:
        (of_web,) = [one for one in host["carried"] if one["name"] == "default/web:http"]
        told = {(each["pod"], each["address"].rpartition(":")[0]) for each in of_web["endpoints"]}
        assert told == {
            (f"default/{name}", f"[{address}]" if ":" in address else address)
            for name, each in web.items()
            for address in each.addresses
        }
        taken = [each["pod"] for each in of_web["endpoints"] if each["connections"]]
        assert taken == ([f"default/{pod}"] if of_web["connections"] else [])
