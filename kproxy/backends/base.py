"""What every mode is: Snapshot → Desired → Patch → kernel, each step a value.

A backend serves one IP family in the network namespace of the calling thread. ``render`` and
``diff`` are pure; ``read`` and ``apply`` touch the kernel. :class:`kproxy.backends.syncer.Syncer`
puts them together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Protocol, TypeVar, runtime_checkable

from kproxy.core.objects import Family, PortName, Value
from kproxy.core.snapshot import Snapshot
from kproxy.core.stale_flows import FlowJudge

Desired = TypeVar("Desired")
Actual = TypeVar("Actual")
Patch = TypeVar("Patch")
Believed_contra = TypeVar("Believed_contra", contravariant=True)
Read_co = TypeVar("Read_co", covariant=True)
Wanted = TypeVar("Wanted")
Read_contra = TypeVar("Read_contra", contravariant=True)


class Applied(Value, frozen=True):
    """What one sync did. ``full``: the kernel was read and everything compared.

    ``written`` counts objects of the mode (rules, elements, servers) sent to the kernel, ``tables``
    the same by table in modes that have tables, ``refused`` the service ports that the kernel did
    not take and why. ``transactions`` are those that the kernel committed, None when that is not
    known. ``foreign``: what was in force after the last sync had been changed by others.
    """

    full: bool
    written: int = 0
    refused: tuple[tuple[PortName, str], ...] = ()
    tables: tuple[tuple[str, int], ...] = ()
    transactions: int | None = 0
    foreign: bool = False


class Backend(Protocol[Desired, Actual, Patch]):
    """One mode, one family, one network namespace: that of the calling thread.

    Text and messages may be made lazily, when somebody looks at them: a patch that is applied while
    it is made keeps two cores busy. A value never looks different the second time.
    """

    mode: str
    family: Family

    def probe(self) -> None:
        """Raise MachineError, naming the remedy, when this kernel or machine cannot do it."""

    def render(self, snapshot: Snapshot, previous: Desired | None) -> Desired:
        """Pure. ``previous`` is the last result: what did not change is taken from it."""

    def read(self) -> Actual:
        """What the kernel holds of ours now, all attributes."""

    def settled(self, desired: Desired) -> Actual:
        """Pure: equal to what ``read`` gives once ``desired`` is in force."""

    def diff(self, desired: Desired, actual: Actual) -> Patch | None:
        """Pure: the smallest change from ``actual`` to ``desired``; None when there is nothing."""

    def touched(self, patch: Patch) -> Iterable[PortName]:
        """Pure: the service ports of which a patch writes something."""

    def apply(self, patch: Patch) -> Applied:
        """All or nothing for every service; KernelError when refused.

        ContentError only when the same would be refused again for what it says. A mode that needs
        several transactions orders them so that nothing half-made is ever reachable: after a
        refusal each service is served as before or as wanted.
        """

    def cleanup(self) -> None:
        """Take away every trace of ours from this namespace; fine when there is none."""


@runtime_checkable
class Tending(Protocol):
    """A backend with things to finish by itself between syncs, such as connections that end."""

    def tend(self) -> float | None:
        """Do what is due; the seconds after which it wants to be called again, None: nothing waits.

        To be called after a good sync, and then when it says; work follows what waits, not the
        cluster. KernelError when refused: it is called again later.
        """


@runtime_checkable
class Keeping(Protocol):
    """A backend that carries packets itself, and has something that outlives its process."""

    def keep(self, folder: str) -> None:
        """Before the first sync: the daemon's state directory."""

    def close(self) -> None:
        """The process ends: carry nothing any more. What is in the kernel stays."""


@runtime_checkable
class Leaving(Protocol):
    """A backend whose connections need its own rules, and can be made to do without."""

    def leave(self) -> int:
        """Another mode's rules stand beside ours, which are taken away next: bring connections
        where they go on; how many."""


@runtime_checkable
class Judging(Protocol):
    """A backend that knows by itself which UDP flows of conntrack are stale."""

    def flow_judge(self) -> FlowJudge:
        """One that follows the plans from here on."""


@runtime_checkable
class Partial(Protocol):
    """A backend that leaves something out by itself, and tries again when it reads."""

    def left_out(self) -> Iterable[tuple[PortName, str]]:
        """After a sync: service ports of which something is not served, and why."""


class Outcome(StrEnum):
    """What a connection told about the endpoint that it was led to; OK is the first success after
    anything else. RESET: before the endpoint had sent a byte."""

    REFUSED = "refused"
    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"
    RESET = "reset"
    OK = "ok"


class Finding(Value, frozen=True):
    """One of them; the address as canonical text."""

    name: PortName
    ip: str
    port: int
    outcome: Outcome


@runtime_checkable
class Witnessing(Protocol):
    """A backend that carries connections itself, and sees which endpoints do not take them."""

    def findings(self) -> list[Finding]:
        """All since the last call, oldest first; how many are kept is bounded. For any thread."""


class Scope(Value, frozen=True):
    """Where in one family's rules others were at work: anywhere in ``tables``, and in single
    ``chains`` (table, chain)."""

    tables: frozenset[str] = frozenset()
    chains: frozenset[tuple[str, str]] = frozenset()

    def __or__(self, other: Scope) -> Scope:
        return Scope(self.tables | other.tables, self.chains | other.chains)


#: By family, those that are not named were left alone. None: it may be anywhere.
Harm = Mapping[Family, Scope] | None


def worse(one: Harm, other: Harm) -> Harm:
    """Both."""
    if one is None or other is None:
        return None
    families = one.keys() | other.keys()
    return {family: one.get(family, Scope()) | other.get(family, Scope()) for family in families}


@runtime_checkable
class Rereading(Protocol[Believed_contra, Read_co]):
    """A backend that can read a part of what it holds, which costs as much as the part."""

    def reread(self, believed: Believed_contra, scope: Scope) -> Read_co:
        """As ``read``, when ``believed`` is in force but for what others did within ``scope``."""


@runtime_checkable
class Adopting(Protocol[Wanted, Read_contra]):
    """A backend to which some of what it finds is as good as what it would have made."""

    def adopted(self, desired: Wanted, actual: Read_contra) -> Wanted:
        """Pure: what means the same as ``desired`` and lies nearest to ``actual``."""


@runtime_checkable
class Counting(Protocol):
    """A backend that knows how large the tables are which it shares with others."""

    @property
    def entries(self) -> Mapping[str, int] | None:
        """Table -> entries of everybody after the last ``read`` and ``apply``, as the kernel counts
        them; None when that is not known, or of no use to the mode's Watch."""


class Watch(Protocol):
    """Notices when others change what one mode wrote, for all families, in the namespace of the
    thread that made it.

    It says what it noticed in words, "" for nothing. Between :meth:`pause` and :meth:`resume`,
    which may be called in another thread, :meth:`look` notices nothing.
    """

    def fileno(self) -> int:
        """Readable when there is a reason to look."""

    def look(self) -> str:
        """What others did since the last :meth:`resume`. Not readable any more afterwards."""

    def pause(self) -> str:
        """We are about to write. Says what :meth:`look` would have said."""

    def resume(
        self, transactions: int | None, entries: Mapping[Family, Mapping[str, int]] | None = None
    ) -> str:
        """What is there now is as it should be, after so many transactions of ours (None: it is
        not known how many). ``entries``: how large tables should be now, where a backend knows it
        (:class:`Counting`). Says what others did in between, as far as that can be told."""

    def harm(self) -> Harm:
        """Where all that is that was said since this was last asked."""

    def close(self) -> None:
        """Nothing is noticed any more."""
