"""One YAML document to plain values, read as Kubernetes' own YAML reader does.

That reader is go-yaml v2 with YAML 1.1 scalars: ``yes``, ``no``, ``on``, ``off``, ``y`` and ``n``
are booleans, ``0644`` and ``0o644`` are octal, ``1e3`` is a number; but ``12:30`` and dates are
text. So a manifest means here what ``kubectl apply`` makes of it. Stricter in one thing, as kubectl
is by default: a key that is there twice is a fault.

The parser of libyaml gives events and this module builds values from them without recursion.
Building nodes first, as PyYAML's loaders do, calls into Python several times a scalar and is half
as fast; without recursion deep nesting cannot exhaust a stack.
"""

from __future__ import annotations

import re
from typing import Any

import yaml
from yaml._yaml import CParser
from yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    DocumentEndEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceStartEvent,
    StreamEndEvent,
)

#: Deeper than any object: custom resource schemas nest about sixty levels.
MAX_DEPTH = 500
#: How many values aliases may stand for in total; a few lines can otherwise mean 10^9 of them.
MAX_ALIASED = 1_000_000

_WORDS: dict[str, Any] = {
    **dict.fromkeys(
        ("y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"), True
    ),
    **dict.fromkeys(
        ("n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"), False
    ),
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}
#: Decimal, hexadecimal, binary and octal (with and without the o), after removing underscores.
_INTEGERS: tuple[tuple[re.Pattern[str], int], ...] = (
    (re.compile(r"[-+]?(?:0|[1-9][0-9]*)"), 10),
    (re.compile(r"[-+]?0[xX][0-9a-fA-F]+"), 16),
    (re.compile(r"[-+]?0[bB][01]+"), 2),
    (re.compile(r"[-+]?0[oO]?[0-7]+"), 8),
)
_FLOAT = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
#: Longer numbers mean nothing in a manifest, and Python refuses to convert them past 4300 digits.
_MAX_DIGITS = 300

_TAG = "tag:yaml.org,2002:"
_MERGE = "<<"
_NO_KEY: Any = object()


def resolve(text: str) -> Any:
    """The value of a plain (unquoted, untagged) scalar."""
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in "+-.0123456789" or len(text) > _MAX_DIGITS:
        return text
    digits = text.replace("_", "")
    for pattern, base in _INTEGERS:
        if pattern.fullmatch(digits):
            # int() takes the prefixes 0x, 0o and 0b itself, but no C-style leading zero.
            return int(digits, base)
    if not _FLOAT.fullmatch(digits):
        return text
    number = float(digits)
    # JSON, through which Kubernetes reads, has one kind of number: 80.0 is 80.
    return int(number) if number.is_integer() else number


class _Frame:
    """A list or mapping that is being filled."""

    __slots__ = ("anchor", "at", "container", "key", "merges", "path")

    def __init__(self, container: Any, anchor: str | None, at: int, path: str) -> None:
        self.container = container
        self.anchor = anchor
        self.at = at
        self.path = path
        self.key: Any = _NO_KEY
        self.merges: list[Any] | None = None


class _Builder:
    """Values from events. ``lines``, when given, takes the line (from 0) of every path."""

    def __init__(self, lines: dict[str, int] | None) -> None:
        self.lines = lines
        self.stack: list[_Frame] = []
        self.anchors: dict[str, tuple[Any, int]] = {}
        self.plain: dict[str, Any] = {}
        self.made = 0
        self.aliased = 0
        self.root: Any = None

    def run(self, data: bytes) -> Any:
        parser = CParser(data)
        try:
            while True:
                event: Any = parser.get_event()
                kind = type(event)
                if kind is ScalarEvent:
                    self.made += 1
                    value = self.scalar(event)
                    if event.anchor is not None:
                        self.anchors[event.anchor] = (value, 1)
                    self.place(value, event)
                elif kind is MappingStartEvent:
                    self.open({}, event)
                elif kind is SequenceStartEvent:
                    self.open([], event)
                elif isinstance(event, CollectionEndEvent):
                    self.close(event)
                elif kind is AliasEvent:
                    self.place(self.alias(event), event)
                elif kind is DocumentEndEvent or kind is StreamEndEvent:
                    return self.root
        finally:
            parser.dispose()

    def scalar(self, event: ScalarEvent) -> Any:
        text: str = event.value
        if event.tag is None or event.tag == "!":
            if not event.implicit[0]:
                return text
            # Field names and values repeat all over a manifest: each is resolved once.
            try:
                return self.plain[text]
            except KeyError:
                value = self.plain[text] = resolve(text)
                return value
        return _tagged(event, text)

    def open(self, container: Any, event: MappingStartEvent | SequenceStartEvent) -> None:
        if event.tag not in (None, "!", f"{_TAG}map", f"{_TAG}seq"):
            raise _fault(f"unknown tag {event.tag}; remove it", event)
        if len(self.stack) >= MAX_DEPTH:
            raise _fault(f"nested deeper than {MAX_DEPTH} levels; no Kubernetes object is", event)
        frame = _Frame(container, event.anchor, self.made, self.here(event))
        if event.anchor is not None:
            self.anchors.pop(event.anchor, None)
        self.made += 1
        if self.stack and self.stack[-1].key is _NO_KEY and type(self.stack[-1].container) is dict:
            raise _fault("a list or mapping cannot be a key; use text", event)
        self.stack.append(frame)

    def close(self, event: CollectionEndEvent) -> None:
        frame = self.stack.pop()
        if frame.merges:
            _merge(frame.container, frame.merges)
        if frame.anchor is not None:
            self.anchors[frame.anchor] = (frame.container, self.made - frame.at)
        self.put(frame.container, event)

    def alias(self, event: AliasEvent) -> Any:
        found = self.anchors.get(event.anchor or "")
        if found is None:
            raise _fault(
                f"*{event.anchor} refers to itself or to nothing; write &{event.anchor} before it",
                event,
            )
        value, weight = found
        self.made += weight
        self.aliased += weight
        if self.aliased > MAX_ALIASED:
            raise _fault(f"aliases stand for more than {MAX_ALIASED} values; write them out", event)
        return value

    def place(self, value: Any, event: NodeEvent) -> None:
        """A scalar or alias: a key, or a value."""
        if self.lines is not None:
            self.here(event)
        frame = self.stack[-1] if self.stack else None
        if frame is not None and frame.key is _NO_KEY and type(frame.container) is dict:
            frame.key = self.name(value, frame, event)
            if self.lines is not None:
                self.lines.setdefault(_step(frame.path, frame.key), _line(event))
        else:
            self.put(value, event)

    def name(self, value: Any, frame: _Frame, event: NodeEvent) -> str:
        """A key as JSON has it: text. Kubernetes turns numbers and booleans into text as well."""
        if type(value) is str:
            name: str = value
        elif isinstance(value, bool):
            name = "true" if value else "false"
        elif isinstance(value, int | float):
            name = str(value)
        else:
            raise _fault("null, a list or a mapping cannot be a key; use text", event)
        if name in frame.container:
            raise _fault(f"the key {name!r} is there twice; remove one of them", event)
        return name

    def put(self, value: Any, event: Any) -> None:
        if not self.stack:
            self.root = value
            return
        frame = self.stack[-1]
        if type(frame.container) is list:
            frame.container.append(value)
            return
        if frame.key == _MERGE:
            if frame.merges is None:
                frame.merges = []
            for part in value if isinstance(value, list) else [value]:
                if not isinstance(part, dict):
                    raise _fault("<< must merge a mapping; write << : *anchor", event)
                frame.merges.append(part)
        else:
            frame.container[frame.key] = value
        frame.key = _NO_KEY

    def here(self, event: NodeEvent) -> str:
        """Path of the value that starts with ``event``; notes its line. "" when nobody asks."""
        if self.lines is None:
            return ""
        frame = self.stack[-1] if self.stack else None
        if frame is None:
            path = ""
        elif type(frame.container) is list:
            path = f"{frame.path}[{len(frame.container)}]"
        elif frame.key is _NO_KEY:
            return frame.path
        else:
            path = _step(frame.path, frame.key)
        self.lines.setdefault(path, _line(event))
        return path


def _step(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _merge(container: dict[str, Any], parts: list[dict[str, Any]]) -> None:
    """Own keys win over merged ones, earlier parts over later ones (YAML's merge type)."""
    for part in parts:
        for key, value in part.items():
            container.setdefault(key, value)


def _tagged(event: ScalarEvent, text: str) -> Any:
    """A scalar with a tag written out: ``!!str 80``."""
    tag = event.tag or ""
    short = tag.removeprefix(_TAG) if tag.startswith(_TAG) else ""
    value = resolve(text)
    if short in ("str", "timestamp"):
        return text
    if short == "bool" and isinstance(value, bool):
        return value
    if short in ("int", "float") and isinstance(value, int | float) and value is not True:
        return value
    if short == "null" and value is None:
        return None
    raise _fault(f"unknown tag or unfit value: {tag} {text[:40]!r}; remove the tag", event)


def _line(event: Any) -> int:
    line: int = event.start_mark.line
    return line


def _fault(message: str, event: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=message, problem_mark=event.start_mark)


def parse(data: bytes) -> Any:
    """The first document of ``data`` (UTF-8). Raises :class:`yaml.YAMLError`."""
    return _Builder(None).run(data)


def lines_of(data: bytes) -> dict[str, int]:
    """Line, counted from 0, of every path (``spec.ports[1].port``) of the first document."""
    lines: dict[str, int] = {}
    _Builder(lines).run(data)
    return lines


def where_and_why(fault: yaml.YAMLError) -> tuple[int, str]:
    """Line, counted from 0 (-1 unknown), and message of a parser's complaint, on one line."""
    if isinstance(fault, yaml.MarkedYAMLError):
        mark = fault.problem_mark or fault.context_mark
        parts = [part for part in (fault.context, fault.problem) if part]
        return (mark.line if mark else -1), ", ".join(parts)
    reason = getattr(fault, "reason", None) or str(fault)
    return -1, " ".join(str(reason).split())
