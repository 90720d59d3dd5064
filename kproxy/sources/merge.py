"""Which version of which object is in force, over all files. Values in, a Delta out; no I/O.

Three rules are kept here. An object that turns bad keeps its last good version, and so does every
object of a file that cannot be read in part. Of an object that is in two files, the first file in
order counts and the other is refused, until the first one lets go of it. Slices mirrored from
Endpoints count only while their Service has no EndpointSlice of its own.

The last rule is simpler than the mirroring controller's, which looks for a Service without a
selector: controllers make slices for Services with one, so wherever both are exported from a
cluster the real slices (with zones, hints and conditions) win, and wherever only Endpoints are
written by hand they serve, whether the Service has a selector or not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import msgspec

from kproxy.core.decode import Item, Notice
from kproxy.core.events import Delta, Ref, ref_of
from kproxy.core.objects import ClusterObject, EndpointSlice, ObjectKey, Refusal
from kproxy.sources.text import Contents

#: Where a file stands: its argument's place, then its name within a folder.
Order = tuple[int, str]


class Merge:
    """All objects of all files. Call ``put`` and ``drop``, then ``delta`` for what came of it."""

    def __init__(self) -> None:
        self._order: dict[str, Order] = {}
        self._refusals: dict[str, list[Refusal]] = {}
        self._notices: dict[str, tuple[Notice, ...]] = {}
        #: file -> its objects, the last good version of each
        self._good: dict[str, dict[Ref, Item]] = {}
        #: object as written -> the files that have it
        self._claims: dict[Ref, dict[str, Item]] = {}
        self._winners: dict[Ref, Item] = {}
        self._shadowed: dict[Ref, list[Refusal]] = {}
        #: Service -> how many slices of its own are in force
        self._sliced: Counter[ObjectKey] = Counter()
        self._mirrored: dict[Ref, EndpointSlice] = {}
        self._in_force: dict[Ref, ClusterObject] = {}
        #: objects as written, and as they come out, that may be different now (ordered sets)
        self._touched: dict[Ref, None] = {}
        self._dirty: dict[Ref, None] = {}

    # --- what files say ----------------------------------------------------------------------

    def put(
        self, file: str, order: Order, contents: Contents, *, hold: bool = False, log: bool = False
    ) -> bool:
        """A file was read. True when objects that it had are gone from it.

        ``hold``: those stay all the same, for now. ``log``: the contents are an addition to what
        the file said before, and the latest version of an object counts (a stream).
        """
        self._order[file] = order
        old = self._good.get(file, {})
        new: dict[Ref, Item] = dict(old) if log else {}
        refusals: list[Refusal] = []
        seen: set[Ref] = set()
        for item in contents.items:
            refusals += self._faults(item, old)
            if item.ref is None:
                continue
            if item.ref in seen and not log:
                refusals.append(_twice(item, file))
            elif item.refused:
                if item.ref in old:
                    new[item.ref] = old[item.ref]
                    seen.add(item.ref)
            else:
                before = old.get(item.ref)
                same = before is not None and before.objects == item.objects
                new[item.ref] = before if same and before is not None else item
                seen.add(item.ref)
        missing = [ref for ref in old if ref not in new]
        gone = bool(missing) and not contents.broken
        if missing and (hold or contents.broken):
            new |= {ref: old[ref] for ref in missing}
        self._replace(file, old, new)
        self._refusals[file] = _logged(self._refusals.get(file, []), refusals, contents, log)
        self._notices[file] = contents.notices
        return gone

    def drop(self, file: str) -> None:
        """A file is gone for good, with all that it had."""
        self._replace(file, self._good.get(file, {}), {})
        for table in (self._good, self._refusals, self._notices, self._order):
            table.pop(file, None)

    def _faults(self, item: Item, old: Mapping[Ref, Item]) -> Iterable[Refusal]:
        if not item.refused or not item.refusals:
            return item.refusals
        kept = bool(old) if item.ref is None else item.ref in old
        if not kept:
            return item.refusals
        stays = (
            "objects last read from this file stay in force"
            if item.ref is None
            else "its last good version stays in force"
        )
        return (
            msgspec.structs.replace(refusal, message=f"{refusal.message} ({stays})")
            if refusal.whole
            else refusal
            for refusal in item.refusals
        )

    def _replace(self, file: str, old: Mapping[Ref, Item], new: dict[Ref, Item]) -> None:
        for ref in old:
            if ref not in new:
                claims = self._claims[ref]
                del claims[file]
                if not claims:
                    del self._claims[ref]
                self._touched[ref] = None
        for ref, item in new.items():
            if old.get(ref) is not item:
                self._claims.setdefault(ref, {})[file] = item
                self._touched[ref] = None
        self._good[file] = new

    # --- what comes out ----------------------------------------------------------------------

    def delta(self) -> Delta:
        """What changed since the last call; an object that came back unchanged is not in it."""
        for ref in self._touched:
            self._decide(ref)
        self._touched.clear()
        upserted: list[ClusterObject] = []
        deleted: list[Ref] = []
        for ref in self._dirty:
            before, now = self._in_force.get(ref), self._wanted(ref)
            if now is None:
                if before is not None:
                    del self._in_force[ref]
                    deleted.append(ref)
            elif before is None or before != now:
                self._in_force[ref] = now
                upserted.append(now)
        self._dirty.clear()
        return Delta(tuple(upserted), tuple(deleted))

    def _decide(self, ref: Ref) -> None:
        claims = self._claims.get(ref, {})
        files = sorted(claims, key=self._order.__getitem__)
        if len(files) > 1:
            self._shadowed[ref] = [
                _second(ref, file, claims[file].line, files[0]) for file in files[1:]
            ]
        else:
            self._shadowed.pop(ref, None)
        before = self._winners.pop(ref, None)
        now = claims[files[0]] if files else None
        if now is not None:
            self._winners[ref] = now
        if before is now:
            return
        self._withdraw(before)
        self._enter(now)

    def _withdraw(self, item: Item | None) -> None:
        for obj in item.objects if item else ():
            self._dirty[ref_of(obj)] = None
            if item is not None and item.mirrored:
                del self._mirrored[ref_of(obj)]
            elif isinstance(obj, EndpointSlice):
                self._sliced[obj.service_key] -= 1
                self._touch_mirrors(obj.service_key)

    def _enter(self, item: Item | None) -> None:
        for obj in item.objects if item else ():
            self._dirty[ref_of(obj)] = None
            if isinstance(obj, EndpointSlice):
                if item is not None and item.mirrored:
                    self._mirrored[ref_of(obj)] = obj
                else:
                    self._sliced[obj.service_key] += 1
                    self._touch_mirrors(obj.service_key)

    def _touch_mirrors(self, service: ObjectKey) -> None:
        if self._sliced[service] == 0:
            del self._sliced[service]
        endpoints = self._winners.get(Ref("Endpoints", service))
        for obj in endpoints.objects if endpoints else ():
            self._dirty[ref_of(obj)] = None

    def _wanted(self, ref: Ref) -> ClusterObject | None:
        item = self._winners.get(ref)
        if item is not None and item.objects:
            return item.objects[0]
        mirror = self._mirrored.get(ref)
        if mirror is None or mirror.service_key in self._sliced:
            return None
        return mirror

    # --- what is wrong -----------------------------------------------------------------------

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """All that is left out now, in the order of the files."""
        files = sorted(self._refusals, key=self._order.__getitem__)
        own = [refusal for file in files for refusal in self._refusals[file]]
        return (*own, *(refusal for shadowed in self._shadowed.values() for refusal in shadowed))

    @property
    def notices(self) -> tuple[Notice, ...]:
        files = sorted(self._notices, key=self._order.__getitem__)
        return tuple(notice for file in files for notice in self._notices[file])


#: A stream may go on for ever; of what was wrong in it the latest is worth keeping.
_MAX_STREAM_REFUSALS = 100


def _logged(
    before: list[Refusal], now: list[Refusal], contents: Contents, log: bool
) -> list[Refusal]:
    """Refusals of a file are those of its last reading; a stream forgets those of an object when
    a new version of it arrives."""
    if not log:
        return now
    again = {(item.ref.kind, str(item.ref.key)) for item in contents.items if item.ref}
    kept = [refusal for refusal in before if (refusal.kind, refusal.key) not in again]
    return [*kept, *now][-_MAX_STREAM_REFUSALS:]


def _twice(item: Item, file: str) -> Refusal:
    assert item.ref is not None
    return Refusal(
        message="is there twice in this file, the first one counts; remove one of them",
        file=file,
        line=item.line,
        kind=item.ref.kind,
        key=str(item.ref.key),
    )


def _second(ref: Ref, file: str, line: int, winner: str) -> Refusal:
    return Refusal(
        message=f"is in {winner} as well, that one counts; remove one of them",
        file=file,
        line=line,
        kind=ref.kind,
        key=str(ref.key),
    )
