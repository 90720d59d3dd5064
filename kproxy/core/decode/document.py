"""The parts of a decoded document, and the walk that finds the objects in one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from kproxy.core.decode import wire
from kproxy.core.decode.node import read_node
from kproxy.core.decode.repair import repair
from kproxy.core.decode.report import Report, is_label, is_subdomain, quoted
from kproxy.core.decode.service import read_service
from kproxy.core.decode.slices import mirror_endpoints, read_slice
from kproxy.core.events import Ref
from kproxy.core.objects import ClusterObject, ObjectKey, Refusal, Value


class Item(Value, frozen=True):
    """What one object of a document came to.

    ``ref`` names it as it is written (kind ``Endpoints`` too); None when it could not be told what
    it is. ``objects`` is empty when it is condemned or none of a proxy's business, one value as a
    rule, several for Endpoints. ``refused``: condemned, so that a last good version may stand.
    ``path`` is its place in the document (``items[3]``, "" for the document itself), ``line`` the
    line of its file on which that document begins (0 unknown).
    """

    ref: Ref | None
    objects: tuple[ClusterObject, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    refused: bool = False
    path: str = ""
    line: int = 0

    @property
    def mirrored(self) -> bool:
        """True when ``objects`` are slices made from Endpoints."""
        return self.ref is not None and self.ref.kind == "Endpoints"


class Notice(Value, frozen=True):
    """Objects of one kind that are skipped because a service proxy does not read them."""

    kind: str
    count: int = 1
    file: str = ""

    def __str__(self) -> str:
        where = f"{self.file}: " if self.file else ""
        objects = "1 object" if self.count == 1 else f"{self.count} objects"
        return (
            f"{where}{objects} of kind {self.kind} skipped; only Service, EndpointSlice, "
            "Endpoints and Node are read"
        )


class Document(Value, frozen=True):
    """All that one document holds, in its order."""

    items: tuple[Item, ...] = ()
    notices: tuple[Notice, ...] = ()

    @property
    def objects(self) -> list[ClusterObject]:
        """Everything readable, mirrored slices too, without regard for repeats."""
        return [obj for item in self.items for obj in item.objects]

    @property
    def refusals(self) -> list[Refusal]:
        """Everything that was left out."""
        return [refusal for item in self.items for refusal in item.refusals]


Reader = Callable[[Any, ObjectKey, Report], tuple[ClusterObject, ...]]


class _Kind(NamedTuple):
    """How a kind is read: wire shape, API version, reader, whether it lives in a namespace."""

    shape: type[wire.WireObject]
    version: str
    read: Reader
    namespaced: bool = True


def _one(reader: Callable[[Any, ObjectKey, Report], ClusterObject | None]) -> Reader:
    def read(obj: Any, key: ObjectKey, report: Report) -> tuple[ClusterObject, ...]:
        value = reader(obj, key, report)
        return () if value is None else (value,)

    return read


_DISCOVERY = "discovery.k8s.io/v1"
_KINDS: dict[tuple[str, str], _Kind] = {
    ("", "Service"): _Kind(wire.Service, "v1", _one(read_service)),
    ("", "Node"): _Kind(wire.Node, "v1", _one(read_node), namespaced=False),
    ("", "Endpoints"): _Kind(wire.Endpoints, "v1", mirror_endpoints),
    ("discovery.k8s.io", "EndpointSlice"): _Kind(wire.EndpointSlice, _DISCOVERY, _one(read_slice)),
}
_GROUPS = {kind: group for group, kind in _KINDS}

#: Lists may hold lists; nobody writes more than two levels, and a bound keeps the stack small.
_MAX_LISTS = 8


class Walk:
    """Reads one document; ``items`` and ``skipped`` fill up on the way."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.items: list[Item] = []
        self.skipped: dict[str, int] = {}

    def done(self) -> Document:
        notices = (Notice(kind, count, self.file) for kind, count in self.skipped.items())
        return Document(tuple(self.items), tuple(notices))

    def stray(self, path: str, message: str) -> None:
        """Something that cannot be told apart as an object."""
        refusal = Refusal(message=message, file=self.file, field=path)
        self.items.append(Item(None, refusals=(refusal,), refused=True, path=path))

    # --- bytes of JSON -----------------------------------------------------------------------

    def json(self, raw: Any, path: str = "", kind: str = "", depth: int = 0) -> None:
        """``kind`` is what an item of a typed list is when it does not say so itself."""
        try:
            head = _decode_head(raw)
        except msgspec.ValidationError:
            self.value(msgspec.json.decode(raw), path, kind, depth)
            return
        name = head.kind or kind
        if _is_list(name) and depth < _MAX_LISTS:
            for at, item in enumerate(head.items or ()):
                self.json(item, _join(path, f"items[{at}]"), name[:-4], depth + 1)
            return
        known = self._known(name, head.api_version, path)
        if known is None:
            return
        try:
            obj = _DECODERS[known.shape](raw)
        except msgspec.ValidationError:
            self.value(msgspec.json.decode(raw), path, kind, depth)
            return
        self._read(known, name, obj, path, Report(name, file=self.file))

    # --- parsed values -----------------------------------------------------------------------

    def value(self, document: Any, path: str = "", kind: str = "", depth: int = 0) -> None:
        if document is None and not path:
            return
        if isinstance(document, list) and not path:
            for at, item in enumerate(document):
                self.value(item, f"[{at}]", kind, depth + 1)
            return
        if not isinstance(document, dict):
            self.stray(path, f"{quoted(document)} is no object; write a mapping with a kind")
            return
        name, version = document.get("kind"), document.get("apiVersion")
        if name is None or name == "":
            name = kind
        if not isinstance(name, str) or not isinstance(version, str | None):
            field = "apiVersion" if isinstance(name, str) else "kind"
            self.stray(_join(path, field), "must be text; put it in quotes")
            return
        if _is_list(name) and depth < _MAX_LISTS:
            self._list(document, name, path, depth)
            return
        known = self._known(name, version, path)
        if known is not None:
            self._convert(known, name, document, path)

    def _list(self, document: dict[str, Any], name: str, path: str, depth: int) -> None:
        items = document.get("items")
        if items is None:
            return
        if not isinstance(items, list):
            self.stray(_join(path, "items"), "must be a list; start every object with -")
            return
        for at, item in enumerate(items):
            self.value(item, _join(path, f"items[{at}]"), name[:-4], depth + 1)

    def _convert(self, known: _Kind, name: str, document: dict[str, Any], path: str) -> None:
        report = Report(name, file=self.file)
        try:
            obj = msgspec.convert(document, known.shape)
        except msgspec.ValidationError:
            ref = _ref_of_broken(document, name, known)
            report.key = str(ref.key) if ref else ""
            mended = repair(document, known.shape, report)
            if mended is None:
                self.items.append(
                    Item(ref, refusals=tuple(report.refusals), refused=True, path=path)
                )
                return
            obj = mended
        self._read(known, name, obj, path, report)

    # --- both --------------------------------------------------------------------------------

    def _known(self, name: str, version: str | None, path: str) -> _Kind | None:
        """How to read it; None after a notice or a refusal. An absent apiVersion is ours."""
        if not name:
            self.stray(_join(path, "kind"), "is missing; say what object this is")
            return None
        group, _, number = (version or "").rpartition("/")
        if not version:
            group = _GROUPS.get(name, "")
        known = _KINDS.get((group, name))
        if known is None:
            shown = f"{name}.{group}" if group and name in _GROUPS else name
            self.skipped[shown] = self.skipped.get(shown, 0) + 1
            return None
        if version and number != "v1":
            self.stray(
                _join(path, "apiVersion"),
                f"{name} of version {quoted(version)} is not read; convert it to {known.version}",
            )
            return None
        return known

    def _read(
        self, known: _Kind, name: str, obj: wire.WireObject, path: str, report: Report
    ) -> None:
        meta = obj.metadata
        key = ObjectKey(
            ((meta.namespace if meta else None) or "default") if known.namespaced else "",
            (meta.name if meta else None) or "",
        )
        report.key = str(key) if key.name else ""
        if not _check_key(key, report):
            self.items.append(Item(None, refusals=tuple(report.refusals), refused=True, path=path))
            return
        objects = known.read(obj, key, report)
        self.items.append(
            Item(
                Ref(name, key),
                () if report.whole else objects,
                tuple(report.refusals),
                report.whole,
                path,
            )
        )


_decode_head = msgspec.json.Decoder(wire.Head).decode
_DECODERS: Mapping[type, Callable[[Any], Any]] = {
    known.shape: msgspec.json.Decoder(known.shape).decode for known in _KINDS.values()
}


def _is_list(name: str) -> bool:
    return name == "List" or (name.endswith("List") and name[:-4] in _GROUPS)


def _join(path: str, step: str) -> str:
    return f"{path}.{step}" if path else step


def _check_key(key: ObjectKey, report: Report) -> bool:
    if not key.name:
        report.condemn("metadata.name", "is missing; name the object")
    elif not is_subdomain(key.name):
        report.condemn(
            "metadata.name",
            f"{quoted(key.name)} is no object name; use lower-case letters, digits, - and .",
        )
    if key.namespace and not is_label(key.namespace):
        report.condemn(
            "metadata.namespace",
            f"{quoted(key.namespace)} is no namespace; use lower-case letters, digits and -",
        )
    return not report.whole


def _ref_of_broken(document: Mapping[str, Any], name: str, known: _Kind) -> Ref | None:
    """The identity of an object that has a wrong type somewhere; None if that is where."""
    meta = document.get("metadata")
    if not isinstance(meta, dict):
        return None
    own, namespace = meta.get("name"), meta.get("namespace")
    if not isinstance(own, str) or not isinstance(namespace, str | None):
        return None
    key = ObjectKey((namespace or "default") if known.namespaced else "", own)
    return Ref(name, key) if _check_key(key, Report(name)) else None
