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
from kproxy.sources.text import Piece, Splitter
from kproxy.sources.yaml_reader import parse, where_and_why

_SUFFIXES = (".yaml", ".yml", ".json")


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

    SourceError for a path that cannot be read at all.
    """
    objects: list[Raw] = []
    refusals: list[Refusal] = []
    for file, data in _texts(paths):
        found = read_text(data, file)
        objects += found.objects
        refusals += found.refusals
    return Read(tuple(objects), tuple(refusals))


def _texts(paths: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    for name in paths:
        if name == "-":
            yield "stdin", sys.stdin.buffer.read()
            continue
        path = Path(name)
        try:
            files = (
                sorted(p for p in path.iterdir() if p.suffix in _SUFFIXES)
                if path.is_dir()
                else [path]
            )
            for file in files:
                yield str(file), file.read_bytes()
        except OSError as wrong:
            raise SourceError(
                f"cannot be read: {wrong.strerror}", where=name, hint="check the path"
            ) from wrong


def read_text(data: bytes, file: str) -> Read:
    """Objects of one file's text; lists are taken apart."""
    objects: list[Raw] = []
    refusals: list[Refusal] = []
    for piece in Splitter().close(data):
        try:
            value = parse(piece.data)
        except yaml.YAMLError as fault:
            line, why = where_and_why(fault)
            refusals.append(
                Refusal(f"{why}; correct the YAML", file=file, line=piece.line + max(line, 0))
            )
            continue
        for obj in _flat(value):
            if isinstance(obj, dict) and isinstance(obj.get("kind"), str):
                objects.append(Raw(obj, file, _first_line(piece)))
            elif obj is not None:
                refusals.append(
                    Refusal(
                        "is no Kubernetes object: it has no kind",
                        file=file,
                        line=_first_line(piece),
                    )
                )
    return Read(tuple(objects), tuple(refusals))


def _flat(value: Any) -> Iterator[Any]:
    """Members of lists (``kind: List``, ``ServiceList``), anything else itself."""
    if isinstance(value, dict) and str(value.get("kind", "")).endswith("List"):
        for item in value.get("items") or ():
            yield from _flat(item)
    else:
        yield value


def _first_line(piece: Piece) -> int:
    """The line on which the document's text begins, its separator and blank lines skipped."""
    for offset, line in enumerate(piece.data.splitlines()):
        text = line.strip()
        if text and not text.startswith((b"---", b"#", b"%")):
            return piece.line + offset
    return piece.line
