"""What a source tells the tracker: which objects are new or different, and which are gone.

A :class:`Delta` is level-triggered in effect: applying the same one twice changes nothing. A
source that has not yet read everything it was told to read has not sent its first Delta, so the
first one also means "all of this kind of input is known now", also when it is empty.
"""

from __future__ import annotations

from typing import NamedTuple

from kproxy.core.objects import ClusterObject, EndpointSlice, Node, ObjectKey, Service, Value

KINDS: dict[type, str] = {Service: "Service", EndpointSlice: "EndpointSlice", Node: "Node"}


class Ref(NamedTuple):
    """The identity of an object: its kind (``Service``, ``EndpointSlice``, ``Node``) and key."""

    kind: str
    key: ObjectKey

    def __str__(self) -> str:
        return f"{self.kind} {self.key}"


def ref_of(obj: ClusterObject) -> Ref:
    """Identity of an object."""
    return Ref(KINDS[type(obj)], obj.key)


class Delta(Value, frozen=True):
    """One batch of changes: ``upserted`` replace what had the same :class:`Ref`, ``deleted`` go.

    No Ref is in both.
    """

    upserted: tuple[ClusterObject, ...] = ()
    deleted: tuple[Ref, ...] = ()

    def __bool__(self) -> bool:
        """False when nothing changes."""
        return bool(self.upserted or self.deleted)
