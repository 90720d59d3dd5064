"""TUN devices and what leads packets to them, in namespaces of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from kproxy.core.objects import Family
from kproxy.core.steering import Part, Plan
from kproxy.core.steering import wanted as all_of
from kproxy.errors import KernelError
from kproxy.kernel import command, netns, steering, tun

pytestmark = pytest.mark.kernel

NAME = "kp-test"


@pytest.fixture
def empty() -> Iterator[None]:
    with netns.fresh():
        yield


def plan(family: Family) -> Plan:
    address = {Family.IPV4: "169.254.77.1", Family.IPV6: ""}[family]
    return Plan(family, NAME, 0x10000, 102, 20, 50, address)


def rules(family: Family) -> list[str]:
    text = command.run(["ip", f"-{int(family)}", "rule"]).stdout.decode()
    return [line.split(":")[0] for line in text.splitlines()]


def test_a_device_stays_without_its_queues(empty: None) -> None:
    """It is made by its first queue, taken up again by the next, and gone when it is deleted."""
    assert not tun.exists(NAME)
    for count in (2, 3):
        for queue in tun.open_queues(NAME, count):
            os.close(queue)
        assert tun.exists(NAME)
    assert tun.delete(NAME)
    assert not tun.exists(NAME)
    assert not tun.delete(NAME)


def test_nothing_queues_before_the_reader(empty: None) -> None:
    """Also where a device that is up had the kernel's queueing disciplines."""
    for queue in tun.open_queues(NAME, 1):
        os.close(queue)
    for words in (f"qdisc replace dev {NAME} root pfifo", f"qdisc show dev {NAME}"):
        told = command.run(["tc", *words.split()]).stdout.decode()
    assert told.startswith("qdisc pfifo ")
    for up in (False, True):
        if up:
            command.run(["ip", "link", "set", NAME, "up"])
        for queue in tun.open_queues(NAME, 2):
            os.close(queue)
        told = command.run(["tc", "qdisc", "show", "dev", NAME]).stdout.decode()
        assert [line.split()[1] for line in told.splitlines()] == ["noqueue"]


def test_a_device_of_another_kind_is_left_alone(empty: None) -> None:
    """Neither opened nor deleted."""
    command.run(["ip", "link", "add", NAME, "type", "bridge"])
    with pytest.raises(KernelError, match=NAME):
        tun.open_queues(NAME, 1)
    assert not tun.exists(NAME)
    assert not tun.delete(NAME)


@pytest.mark.parametrize("family", Family)
def test_parts_are_made_and_undone(empty: None, family: Family) -> None:
    """All of them at once; then there is nothing of them left."""
    before, wanted = rules(family), all_of(plan(family))
    queues = tun.open_queues(NAME, 1)
    assert steering.held(plan(family)) == frozenset()
    steering.put(plan(family), wanted)
    assert steering.held(plan(family)) == wanted
    assert rules(family)[:2] == ["20", "50"]
    steering.take(plan(family), wanted)
    assert steering.held(plan(family)) == frozenset()
    assert rules(family) == before
    os.close(queues[0])


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize("part", Part)
def test_each_part_is_seen_by_itself(empty: None, family: Family, part: Part) -> None:
    """One that is undone is missed, alone but for what the kernel takes along, and made again."""
    queues = tun.open_queues(NAME, 1)
    wanted = all_of(plan(family))
    steering.put(plan(family), wanted)
    if part in wanted:
        steering.take(plan(family), {part})
        held = steering.held(plan(family))
        assert part not in held
        steering.put(plan(family), wanted - held)
        assert steering.held(plan(family)) == wanted
    os.close(queues[0])


@pytest.mark.parametrize("family", Family)
def test_local_is_always_looked_up(empty: None, family: Family) -> None:
    """Whatever part is made or undone last, some rule looks up the node's own addresses."""
    queues = tun.open_queues(NAME, 1)
    wanted = all_of(plan(family))
    for part in Part:
        if part in wanted:
            steering.put(plan(family), {part})
            assert {"0", "50"} & set(rules(family))
    for part in reversed(Part):
        steering.take(plan(family), {part} & wanted)
        assert {"0", "50"} & set(rules(family))
    os.close(queues[0])
