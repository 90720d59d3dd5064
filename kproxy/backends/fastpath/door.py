"""The door to the kernel for what leads packets to the engine: device, sysctls, rules, nft table.

In the network namespace of the calling thread. The table is read as nft prints it; how it prints
chains differs between versions, so what ours look like is learned once from a table in a scratch
namespace.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from kproxy.backends.fastpath import steer
from kproxy.backends.fastpath.gate import Gate
from kproxy.backends.fastpath.held import Members
from kproxy.backends.fastpath.steer import (
    HOSTS,
    LIBERAL,
    PORTS,
    RESERVED,
    SERVICES,
    TABLE,
    WORD,
    Frame,
    Member,
)
from kproxy.backends.xtables.localnet import ROUTE_LOCALNET
from kproxy.core.objects import Family
from kproxy.core.snapshot import LocalDetector
from kproxy.core.steering import Part
from kproxy.kernel import command, netns, steering, sysctl, tun
from kproxy.kernel.netlink import open_route

_CHECKS = "net/ipv4/conf/all/rp_filter"

#: Sysctls that outlive the device.
OUTLIVING = frozenset({RESERVED, LIBERAL[0], ROUTE_LOCALNET[0]})

_NOTHING: Members = {SERVICES: frozenset(), PORTS: frozenset(), HOSTS: frozenset()}


class SteerDoor:
    """One family's; ``records`` is where sysctls of the node are recorded."""

    def __init__(self, family: Family, *, records: Path = sysctl.RECORDS) -> None:
        self.family = family
        self.plan = steer.plan(family)
        self.records = records
        self.gate = Gate(family)

    # --- device, route, rules ---

    def parts(self) -> frozenset[Part]:
        return steering.held(self.plan)

    def put(self, parts: Iterable[Part]) -> None:
        steering.put(self.plan, parts)

    def take(self) -> bool:
        """Undo all of it, the device as well; whether there was anything."""
        there = self.parts()
        # Somebody else may do without the first rule, as long as ours is not there.
        ours = there if Part.LATER in there else there - {Part.NOT_FIRST}
        steering.take(self.plan, ours)
        return tun.delete(self.plan.device) or bool(ours)

    # --- sysctls ---

    def sysctls(self) -> frozenset[str]:
        """Names of those that are as the mode wants them."""
        return frozenset(name for name, value in self._values().items() if _has(name, value))

    def _values(self) -> dict[str, str]:
        frame = Frame(self.family, localhost=self.family is Family.IPV4)
        return steer.sysctls(frame, checked=sysctl.read(_CHECKS) != "0")

    def set(self, names: Iterable[str]) -> None:
        """Those of the device go with it; what is the node's is recorded."""
        values = self._values()
        for name in names:
            value = values[name]
            if name not in OUTLIVING:
                sysctl.write(name, value)
                continue
            if name == RESERVED:
                value = ",".join(filter(None, (sysctl.read(name), value)))
            sysctl.change(name, value, records=self.records)

    def forget(self, names: Iterable[str] = OUTLIVING) -> None:
        """Set back what is the node's."""
        sysctl.restore(only=set(names), records=self.records)

    # --- the table ---

    def table(self) -> tuple[Frame | None, Members]:
        """The frame for which the chains stand (None: for none), and the members of the sets."""
        listed = _listing(self.family)
        if listed is None:
            return None, _NOTHING
        chains, members = _split(listed)
        forms = (True, False) if self.family is Family.IPV4 else (False,)
        frames = (
            Frame(self.family, localhost, new) for localhost in forms for new in _limits(chains)
        )
        return next((each for each in frames if learned(each) == chains), None), members

    def run(self, script: str) -> None:
        """One transaction. CommandError when it is refused; nothing has changed then."""
        command.run(["nft", "-f", "-"], stdin=script.encode())

    def stands(self) -> bool:
        """Whether the table or the device is there."""
        return self.has_table() or self.has_device()

    def has_table(self) -> bool:
        """Whoever's."""
        return _listing(self.family, terse=True) is not None

    def has_device(self) -> bool:
        """Whether there is a TUN device of the name."""
        return tun.exists(self.plan.device)

    def delete_table(self) -> bool:
        """Whether it was there."""
        if not self.has_table():
            return False
        command.run(["nft", "delete", "table", WORD[self.family], TABLE])
        return True

    # --- pods ---

    def pods(self, detector: LocalDetector | None) -> tuple[str, ...]:
        """Ranges that are behind the interfaces by which pods are told, sorted.

        A packet does not show the engine where it came in, but routes say where pods are.
        """
        if detector is None:
            return ()
        with open_route() as route:
            names = {
                link["index"]: dict(link["attrs"])["IFLA_IFNAME"] for link in route.get_links()
            }
            pods = {index for index, name in names.items() if _tells(detector, name)}
            return tuple(sorted(set(_behind(route, self.family, pods)))) if pods else ()


def _has(name: str, value: str) -> bool:
    """Whether a sysctl has a value, or the range of ports among others."""
    found = sysctl.read(name)
    if name != RESERVED or found is None:
        return found == value
    ((first, last),) = _ranges(value)
    return any(low <= first and last <= high for low, high in _ranges(found))


def _ranges(text: str) -> Iterator[tuple[int, int]]:
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        yield int(first), int(last or first)


def _tells(detector: LocalDetector, name: str) -> bool:
    if detector.bridge:
        return name == detector.bridge
    return name.startswith(detector.prefix)


def _behind(route: Any, family: Family, devices: set[int]) -> Iterator[str]:
    version = socket.AF_INET if family is Family.IPV4 else socket.AF_INET6
    for found in route.get_routes(family=version, table=254):
        attributes = dict(found["attrs"])
        # The default route says nothing of who is behind it.
        if attributes.get("RTA_OIF") not in devices or "RTA_DST" not in attributes:
            continue
        address = attributes["RTA_DST"]
        if not address.startswith("fe80:"):
            yield f"{address}/{found['dst_len']}"


# --- what nft prints ----------------------------------------------------------------------------


#: Of what is printed: numbers that the kernel gives, members, what a counter has counted.
_VARYING = frozenset({"handle", "elem", "packets", "bytes"})


def _listing(family: Family, *, terse: bool = False) -> list[dict[str, Any]] | None:
    """None when there is no such table."""
    options = ["-t"] if terse else []
    argv = ["nft", "-j", *options, "list", "table", WORD[family], TABLE]
    listed = command.run(argv, check=False)
    if listed.returncode != 0:
        return None
    found: list[dict[str, Any]] = msgspec.json.decode(listed.stdout)["nftables"]
    return found


def _split(listed: list[dict[str, Any]]) -> tuple[list[object], Members]:
    """Everything but members, without the numbers that the kernel gives; and the members."""
    rest: list[object] = []
    members = dict(_NOTHING)
    for item in listed:
        ((kind, value),) = item.items()
        if kind == "metainfo":
            continue
        value = {key: each for key, each in value.items() if key not in _VARYING}
        if kind == "set":
            members[value["name"]] = frozenset(map(_member, item[kind].get("elem", ())))
        rest.append((kind, value))
    return sorted(rest, key=_order), members


def _limits(chains: list[Any]) -> list[int]:
    """The rates that rules have, one when they are ours."""
    statements = (each for kind, value in chains if kind == "rule" for each in value["expr"])
    limits = (each.get("limit") for each in statements)
    rates = (each.get("rate") for each in limits if isinstance(each, dict))
    return [rate for rate in rates if isinstance(rate, int)]


def _order(item: Any) -> tuple[str, str]:
    """Rules keep the order that they have in their chain; chains may have been made anew."""
    kind, value = item
    return kind, str(value.get("chain") or value.get("name"))


def _member(element: Any) -> Member:
    if isinstance(element, str):
        return element
    found: Member = tuple(element["concat"])
    return found


@cache
def learned(frame: Frame) -> list[object]:
    """What this nft prints of our chains. CommandError when it does not take them."""
    with netns.fresh():
        command.run(["nft", "-f", "-"], stdin=steer.skeleton(frame).encode())
        listed = _listing(frame.family)
    assert listed is not None
    return _split(listed)[0]
