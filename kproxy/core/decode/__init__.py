"""Kubernetes documents in, frozen values out. This package alone spells Kubernetes field names.

One document (a parsed YAML value or the bytes of a JSON one) gives a :class:`Document`: an
:class:`Item` for each object in it, and a :class:`Notice` for each kind that a service proxy does
not read. Nothing here raises for what a document holds. What is wrong travels as
:class:`~kproxy.core.objects.Refusal`: a broken list member is left out alone, a broken key field
condemns its object, and the objects around it are read as if it were not there.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from kproxy.core.decode.document import Document, Item, Notice, Walk
from kproxy.core.objects import ClusterObject, EndpointSlice, Refusal

__all__ = ["Document", "Item", "Notice", "decode_json", "decode_objects", "decode_value"]


def decode_value(document: object, *, file: str = "") -> Document:
    """Reads one parsed document: an object, a list kind, or a plain list of objects.

    ``document`` is what a YAML or JSON parser gave (dict with text keys, list, text, number, bool,
    None); None is an empty document. ``file`` is copied into every Refusal and Notice.
    """
    walk = Walk(file)
    try:
        walk.value(document)
    except RecursionError:
        walk.stray("", "is nested too deeply; no Kubernetes object is")
    return walk.done()


def decode_json(raw: bytes, *, file: str = "") -> Document:
    """Reads one JSON document.

    Raises :class:`msgspec.DecodeError` or UnicodeDecodeError when it is no JSON at all: only the
    caller knows whether it may be YAML, and where in its file it stands.
    """
    walk = Walk(file)
    try:
        if raw.lstrip()[:1] == b"{":
            walk.json(raw)
        else:
            walk.value(msgspec.json.decode(raw))
    except RecursionError:
        walk.stray("", "is nested too deeply; no Kubernetes object is")
    return walk.done()


def decode_objects(
    documents: Iterable[object], *, file: str = ""
) -> tuple[list[ClusterObject], list[Refusal]]:
    """Reads parsed documents one after another: all objects, all refusals.

    For callers that hold a fixed set of manifests. Mirrored slices of a Service that has slices of
    its own are left out here as everywhere (:mod:`kproxy.sources.merge` says why).
    """
    items = [item for document in documents for item in decode_value(document, file=file).items]
    sliced = {
        obj.service_key
        for item in items
        for obj in item.objects
        if isinstance(obj, EndpointSlice) and not item.mirrored
    }
    objects = [
        obj
        for item in items
        for obj in item.objects
        if not (item.mirrored and isinstance(obj, EndpointSlice) and obj.service_key in sliced)
    ]
    return objects, [refusal for item in items for refusal in item.refusals]
