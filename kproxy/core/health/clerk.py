"""Between a planner and the Book: has the ports judged that have a policy, and keeps the verdicts.

It lives as long as its planner; of a plan without any policy it hardly notices.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from kproxy.core.health.book import Book
from kproxy.core.health.values import Exec, HealthSettings, Policy
from kproxy.core.health.verdict import PortHealth, admitted, allowed, judge
from kproxy.core.objects import Family, ObjectKey, PortName, Refusal
from kproxy.core.snapshot import Endpoint


class Clerk:
    """Of one family. A plan is opened, its ports pass through, and it is closed."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._book: Book | None = None
        self._settings = HealthSettings()
        self._verdicts: Mapping[PortName, PortHealth] = {}
        self._forbidden: dict[ObjectKey, Refusal] = {}
        self._new: dict[PortName, PortHealth] = {}
        self._new_forbidden: dict[ObjectKey, Refusal] = {}
        self._planned: set[ObjectKey] = set()
        self._had: set[PortName] = set()

    def open(self, settings: HealthSettings, book: Book | None) -> None:
        """A plan begins. The verdicts of one that broke off are not kept."""
        self._settings, self._book = settings, book
        self._new, self._new_forbidden = {}, {}
        self._planned, self._had = set(), set()

    def pass_through(
        self, name: PortName, own: Policy | None, endpoints: tuple[Endpoint, ...]
    ) -> tuple[Endpoint, ...]:
        """The endpoints as they may be used; the verdict is kept. ``own``: the service's policy."""
        policy = own if own is not None else self._settings.default
        if policy is None or self._book is None:
            return endpoints
        policy = self._permitted(name, policy).on(name.protocol)
        if policy.idle:
            return endpoints
        usable = allowed(endpoints)
        self._book.register(self._family, name, policy, [(each.ip, each.port) for each in usable])
        health = judge(policy, name, usable, self._book)
        self._new[name] = health
        return admitted(endpoints, health)

    def planned(self, service: ObjectKey, had: Iterable[PortName]) -> None:
        """A changed service has passed; ``had`` are the ports of it in the last plan."""
        if self._verdicts:
            self._had.update(had)
        if self._forbidden:
            self._planned.add(service)

    def close(
        self, *, everything: bool
    ) -> tuple[Mapping[PortName, PortHealth], tuple[Refusal, ...]]:
        """All verdicts now (the very mapping of the last plan when none differs), and the checks
        that are not allowed. ``everything``: what this plan did not meet is gone."""
        known = self._verdicts
        gone = (known.keys() if everything else known.keys() & self._had) - self._new.keys()
        if self._book is not None:
            for name in gone:
                self._book.forget(self._family, name)
            if everything:
                self._book.settle(self._family, self._new)
        changed = {name: one for name, one in self._new.items() if known.get(name) != one}
        if changed or gone:
            merged = {**known, **changed}
            for name in gone:
                del merged[name]
            self._verdicts = merged
        return self._verdicts, self._refusals(everything)

    def _permitted(self, name: PortName, policy: Policy) -> Policy:
        """A Service is not its node's master: programs run there only where the operator says."""
        if policy.check is None or not isinstance(policy.check.probe, Exec):
            return policy
        if self._settings.allow_exec:
            return policy
        self._new_forbidden[name.service] = Refusal(
            message="exec checks are not allowed on this node, it is served without a check; "
            "set health.allowExec in its configuration",
            kind="Service",
            key=str(name.service),
            field="metadata.annotations.kproxy/health-check.exec",
            whole=False,
        )
        return msgspec.structs.replace(policy, check=None)

    def _refusals(self, everything: bool) -> tuple[Refusal, ...]:
        if not (self._forbidden or self._new_forbidden):
            return ()
        stay = {
            service: one
            for service, one in self._forbidden.items()
            if not everything and service not in self._planned
        }
        self._forbidden = stay | self._new_forbidden
        return tuple([one for _, one in sorted(self._forbidden.items())])
