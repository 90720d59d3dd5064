"""Whether this node's proxy is healthy: a small value that is told what happens, and the time.

A family is healthy when it has had a good sync, and nothing that was asked for since has waited
longer than the time-out. kube-proxy up to 1.30 counts a family that never synced as healthy for
ever; here it is not healthy before its first success. Two more things are stricter than there: a
good sync answers only what was asked before it began, and a sync that failed has left something
undone, whoever asked for it.

Times are seconds of one monotonic clock.
"""

from __future__ import annotations

from collections.abc import Mapping

from kproxy.core.objects import Family, Value

#: kube-proxy's: the proxy may miss one whole period.
PERIODS = 2


class FamilyHealth(Value, frozen=True):
    """One family. ``updated``: when it last had a good sync, None: never.

    ``waiting``: the oldest request that no good sync has answered; ``later``: the oldest one that
    came after the running sync began.
    """

    updated: float | None = None
    waiting: float | None = None
    later: float | None = None
    running: bool = False

    def asked(self, now: float) -> FamilyHealth:
        """Something changed that this family has to be brought to."""
        later = now if self.running and self.later is None else self.later
        waiting = now if not self.running and self.waiting is None else self.waiting
        return FamilyHealth(self.updated, waiting, later, self.running)

    def began(self, now: float) -> FamilyHealth:
        """A sync starts: it answers everything that was asked before."""
        return FamilyHealth(self.updated, self.waiting if self.waiting is not None else now, None,
                            running=True)  # fmt: skip

    def ended(self, now: float, *, ok: bool) -> FamilyHealth:
        """The sync ended. After a failure its requests go on waiting."""
        if ok:
            return FamilyHealth(updated=now, waiting=self.later)
        return FamilyHealth(self.updated, self.waiting)

    def healthy(self, now: float, timeout: float) -> bool:
        """``timeout``: seconds that a request may wait."""
        late = self.waiting is not None and now - self.waiting >= timeout
        return self.updated is not None and not late


class Verdict(Value, frozen=True):
    """The proxy's health now. ``updated`` is the last good sync of the family that is worst off.

    ``families`` are ``(family, healthy, updated)``; ``eligible``: balancers may use this node.
    """

    healthy: bool
    updated: float | None
    eligible: bool = True
    families: tuple[tuple[Family, bool, float | None], ...] = ()


def judge(
    families: Mapping[Family, FamilyHealth], now: float, timeout: float, *, eligible: bool = True
) -> Verdict:
    """All families must be healthy, and there must be one: before the start none is known.

    ``healthy`` does not look at ``eligible``: /livez ignores the node, /healthz wants both.
    """
    each = tuple(
        (family, state.healthy(now, timeout), state.updated)
        for family, state in sorted(families.items())
    )
    healthy = bool(each) and all(fine for _, fine, _ in each)
    updates = [updated for _, fine, updated in each if fine is healthy]
    known = [updated for updated in updates if updated is not None]
    # The healthy show their latest success, the others the oldest, as far as all have one.
    updated = None if len(known) < len(updates) or not known else (max if healthy else min)(known)
    return Verdict(healthy, updated, eligible, each)
