"""What is known of the cluster, and what has changed since somebody last asked.

The tracker keeps the current Services, EndpointSlices and Nodes, and for every object that changed
since the last :meth:`Tracker.take` the value it had then. An object that is back to that value is
no change any more: flapping costs nothing. It knows nothing of families or of this node; one
tracker serves the planners of both families, which are given the same :class:`Changes`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from kproxy.core.events import Delta, Ref, ref_of
from kproxy.core.objects import ClusterObject, EndpointSlice, Node, ObjectKey, Service, Value


class Counts(Value, frozen=True):
    """Numbers of changed objects, for kube-proxy's ``…_changes_pending`` and ``…_changes_total``.

    ``services`` counts Service objects, ``endpoints`` EndpointSlice objects.
    """

    services: int = 0
    endpoints: int = 0


class Changes(Value, frozen=True):
    """Everything that differs from the state at the previous ``take``.

    ``services`` are keys of Services whose object or slices differ (also keys for which there is no
    Service: slices may come first), ``nodes`` names of Nodes, ``counts`` how many objects.
    """

    services: frozenset[ObjectKey] = frozenset()
    nodes: frozenset[str] = frozenset()
    counts: Counts = Counts()

    def __bool__(self) -> bool:
        """False when nothing changed."""
        return bool(self.services or self.nodes)


class Tracker:
    """Current objects, and pending changes as the values that objects had before them."""

    def __init__(self) -> None:
        self._objects: dict[Ref, ClusterObject] = {}
        self._services: dict[ObjectKey, Service] = {}
        self._nodes: dict[str, Node] = {}
        # Slices by the service that they name: an endpoint may move between two slices of one
        # service, so a service is always planned from all of its slices.
        self._slices: dict[ObjectKey, dict[ObjectKey, EndpointSlice]] = {}
        self._previous: dict[Ref, ClusterObject | None] = {}
        self._total = {"Service": 0, "EndpointSlice": 0, "Node": 0}

    def apply(self, delta: Delta) -> None:
        """Take a batch of changes in. Applying the same one again changes nothing."""
        for ref in delta.deleted:
            self._put(ref, None)
        for obj in delta.upserted:
            self._put(ref_of(obj), obj)

    def take(self) -> Changes:
        """All pending changes at once; afterwards there are none."""
        services: set[ObjectKey] = set()
        nodes: set[str] = set()
        for ref, previous in self._previous.items():
            for obj in (previous, self._objects.get(ref)):
                match obj:
                    case Service():
                        services.add(obj.key)
                    case EndpointSlice():
                        services.add(obj.service_key)
                    case Node():
                        nodes.add(obj.name)
        changes = Changes(frozenset(services), frozenset(nodes), self.pending)
        self._previous = {}
        return changes

    @property
    def pending(self) -> Counts:
        """How many objects differ from the state at the last ``take``."""
        kinds = [ref.kind for ref in self._previous]
        return Counts(kinds.count("Service"), kinds.count("EndpointSlice"))

    @property
    def total(self) -> Counts:
        """How many changes of objects were ever taken in; only grows."""
        return Counts(self._total["Service"], self._total["EndpointSlice"])

    def service(self, key: ObjectKey) -> Service | None:
        """The Service of that key."""
        return self._services.get(key)

    def slices_of(self, service: ObjectKey) -> Collection[EndpointSlice]:
        """All slices that name the service, of both families, whether or not the Service exists."""
        slices = self._slices.get(service)
        return slices.values() if slices is not None else ()

    def node(self, name: str) -> Node | None:
        """The Node of that name."""
        return self._nodes.get(name)

    def services(self) -> Collection[Service]:
        """All Services, in no particular order."""
        return self._services.values()

    def slices(self) -> Iterator[EndpointSlice]:
        """All EndpointSlices, in no particular order."""
        for group in self._slices.values():
            yield from group.values()

    def nodes(self) -> Collection[Node]:
        """All Nodes, in no particular order."""
        return self._nodes.values()

    def _put(self, ref: Ref, new: ClusterObject | None) -> None:
        old = self._objects.get(ref)
        if new == old:
            return
        self._total[ref.kind] += 1
        before = self._previous.setdefault(ref, old)
        if before == new:
            del self._previous[ref]
        if new is None:
            del self._objects[ref]
        else:
            self._objects[ref] = new
        if old is not None:
            self._unlist(old)
        if new is not None:
            self._list(new)

    def _list(self, obj: ClusterObject) -> None:
        match obj:
            case Service():
                self._services[obj.key] = obj
            case EndpointSlice():
                self._slices.setdefault(obj.service_key, {})[obj.key] = obj
            case Node():
                self._nodes[obj.name] = obj

    def _unlist(self, obj: ClusterObject) -> None:
        match obj:
            case Service():
                del self._services[obj.key]
            case EndpointSlice():
                group = self._slices[obj.service_key]
                del group[obj.key]
                if not group:
                    del self._slices[obj.service_key]
            case Node():
                del self._nodes[obj.name]
