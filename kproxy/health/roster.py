"""Which targets the service ports of both families want checked, and who wants each. Pure.

A target that several ports name is one target; it goes when the last of them names it no more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from kproxy.core.health.values import Place, Target, target_of
from kproxy.core.health.verdict import PortHealth
from kproxy.core.objects import Family, PortName, family_of

#: A service port in one family.
Owner = tuple[Family, PortName]

Verdicts = Mapping[PortName, PortHealth]


class Turn(NamedTuple):
    """The verdict on a service port is another one. None: there was none, or is none any more."""

    owner: Owner
    before: PortHealth | None
    after: PortHealth | None


class Roster:
    """Follows the verdicts of both families; work follows what differs."""

    def __init__(self) -> None:
        self._verdicts: dict[Family, Verdicts] = {}
        self._targets: dict[Owner, frozenset[Target]] = {}
        self._owners: dict[Target, set[Owner]] = {}

    def __len__(self) -> int:
        return len(self._owners)

    def __contains__(self, target: object) -> bool:
        return target in self._owners

    def follow(self, family: Family, verdicts: Verdicts) -> list[Turn]:
        """These are in force now. Returns those that differ from before."""
        last = self._verdicts.get(family, {})
        if verdicts is last:
            return []
        self._verdicts[family] = verdicts
        turns = [
            Turn((family, name), last.get(name), now)
            for name, now in verdicts.items()
            if last.get(name) is not now
        ]
        turns += [
            Turn((family, name), was, None) for name, was in last.items() if name not in verdicts
        ]
        return turns

    def enlist(self, turns: Collection[Turn]) -> tuple[list[Target], list[Target]]:
        """What is to be checked from now on, and what no more."""
        touched: dict[Target, bool] = {}
        for owner, before, after in turns:
            if before is not None and after is not None and _same_targets(before, after):
                continue
            old = self._targets.pop(owner, frozenset())
            new = frozenset(after.targets()) if after is not None else frozenset()
            if new:
                self._targets[owner] = new
            for target in new - old:
                touched.setdefault(target, target in self._owners)
                self._owners.setdefault(target, set()).add(owner)
            for target in old - new:
                touched.setdefault(target, True)
                self._owners[target].discard(owner)
        added, removed = [], []
        for target, was in touched.items():
            wanted = bool(self._owners[target])
            if wanted and not was:
                added.append(target)
            elif not wanted:
                del self._owners[target]
                if was:
                    removed.append(target)
        return added, removed

    def target(self, name: PortName, ip: str, port: int) -> Target | None:
        """What is checked for an endpoint of a service port; None: nothing."""
        health = self._verdicts.get(family_of(ip), {}).get(name)
        check = health.policy.check if health is not None else None
        return target_of(check, ip, port) if check is not None else None

    def owners(self, target: Target) -> Iterator[tuple[Owner, Place]]:
        """The endpoints of service ports that stand or fall with a target."""
        for owner in self._owners.get(target, ()):
            family, name = owner
            health = self._verdicts[family][name]
            check = health.policy.check
            for each in health.judged if check is not None else ():
                place = each.endpoint.ip, each.endpoint.port
                if check is not None and target_of(check, *place) == target:
                    yield owner, place


def _same_targets(before: PortHealth, after: PortHealth) -> bool:
    """Quick, and right when it says so: most turns change opinions and no endpoint."""
    return (
        before.policy.check == after.policy.check
        and len(before.judged) == len(after.judged)
        and all(
            was.endpoint is now.endpoint
            or (was.endpoint.ip, was.endpoint.port) == (now.endpoint.ip, now.endpoint.port)
            for was, now in zip(before.judged, after.judged, strict=True)
        )
    )
