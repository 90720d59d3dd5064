"""Raw Kubernetes objects out of files, for commands that keep them as their user wrote them.

What the nodes' proxies read goes through :mod:`kproxy.sources` and is decoded there; a lab needs
the object itself, unknown fields and all, to fill in what is missing. A fault in one document
leaves the others readable.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from kproxy.core.objects import Refusal, Value
from kproxy.errors import SourceError
from kproxy.sources.files import find, read
from kproxy.sources.text import encoding_fault, pieces_of
from kproxy.sources.yaml_reader import parse, where_and_why

_CHECK = "check the path"


class Raw(Value, frozen=True):
    """One object as written. ``line`` is where its document begins, counted from 1."""

    obj: dict[str, Any]
    file: str = ""
    line: int = 0


class Read(Value, frozen=True):
    objects: tuple[Raw, ...]
    refusals: tuple[Refusal, ...] = ()


def read_paths(paths: Iterable[str]) -> Read:
    """Objects of files, folders (one level) and ``-`` for standard input, in order.

    SourceError for a path that cannot be read at all; a file of a folder is refused alone.
    """
    objects: list[Raw] = []
    refusals: list[Refusal] = []
    for path in paths:
        for found in _read_path(path):
            objects += found.objects
            refusals += found.refusals
    return Read(tuple(objects), tuple(refusals))


def _read_path(path: str) -> Iterator[Read]:
    if path == "-":
        yield read_text(sys.stdin.buffer.read(), "stdin")
        return
    found = find(path)
    if found.fault:
        raise SourceError(f"cannot be read: {found.fault}", where=path or "-f", hint=_CHECK)
    for file in found.files:
        try:
            # A pipe that was named is read to its end; one that lies in a folder stops nobody.
            data = Path(file).read_bytes() if found.stream else read(file)[1]
        except OSError as wrong:
            why = f"cannot be read: {wrong.strerror or wrong}"
            if not found.folder:
                raise SourceError(why, where=path, hint=_CHECK) from wrong
            yield Read((), (Refusal(f"{why}; mend or remove it", file=file),))
            continue
        yield read_text(data, file)


def read_text(data: bytes, file: str) -> Read:
    """Objects of one file's text; lists are taken apart."""
    objects: list[Raw] = []
    refusals: list[Refusal] = []
    for piece in pieces_of(data):
        fault = encoding_fault(piece)
        try:
            value = None if fault else parse(piece.data)
        except yaml.YAMLError as wrong:
            line, why = where_and_why(wrong)
            fault = piece.line + max(line, 0), f"{why}; correct the YAML"
        if fault:
            refusals.append(Refusal(fault[1], file=file, line=fault[0]))
            continue
        for obj in _flat(value):
            if isinstance(obj, dict) and isinstance(obj.get("kind"), str):
                objects.append(Raw(obj, file, piece.first_line))
            elif obj is not None:
                refusals.append(
                    Refusal(
                        "is no Kubernetes object: it has no kind", file=file, line=piece.first_line
                    )
                )
    return Read(tuple(objects), tuple(refusals))


def _flat(value: Any) -> Iterator[Any]:
    """Members of lists (``kind: List``, ``ServiceList``), anything else itself."""
    if not (isinstance(value, dict) and str(value.get("kind", "")).endswith("List")):
        yield value
        return
    items = value.get("items")
    if isinstance(items, list):
        for item in items:
            yield from _flat(item)
    elif items is not None:
        yield items
