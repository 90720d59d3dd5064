"""The text of a manifest file or stream: split into documents, parsed, decoded, lines found.

Documents are told apart before any of them is parsed, at lines that begin with ``---`` or ``...``
(which YAML allows nowhere else), so a fault in one leaves the others readable. JSON goes straight
through msgspec; a stream may hold JSON values one after another, without separators. No I/O here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import msgspec
import yaml

from kproxy.core.decode import Document, Item, Notice, decode_json, decode_value
from kproxy.core.objects import Refusal, Value
from kproxy.sources.yaml_reader import lines_of, parse, where_and_why

_MARKER = re.compile(rb"^(?:---|\.\.\.)(?=[ \t\r\n]|\Z)", re.MULTILINE)
#: Nothing but separators, directives, comments and blank lines: no document.
_EMPTY = re.compile(
    rb"(?:[ \t]*(?:#[^\n]*|%[^\n]*|---[ \t]*(?:#[^\n]*)?|\.\.\.[ \t]*)?\r?(?:\n|\Z))*"
)
_BLANKS = re.compile(rb"[ \t\r\n]*")
_BYTE = re.compile(r"\(byte (\d+)\)")
_TRAILING = "trailing characters"
_BOM = b"\xef\xbb\xbf"

#: Lines in JSON are found by reading it once more as YAML, at 6 MB a second: not in huge ones.
_MAX_JSON_FOR_LINES = 4_000_000


class Piece(NamedTuple):
    """The text of one document and the line of its file (from 1) on which it begins."""

    line: int
    data: bytes

    @property
    def first_line(self) -> int:
        """The line of its first word, after separator, comments and blank lines."""
        empty = _EMPTY.match(self.data)
        return self.line + (self.data.count(b"\n", 0, empty.end()) if empty else 0)


class Contents(Value, frozen=True):
    """All that a file holds. ``broken``: some of it could not be told apart as an object, so any
    object that is not seen may be there."""

    items: tuple[Item, ...] = ()
    notices: tuple[Notice, ...] = ()

    @property
    def broken(self) -> bool:
        return any(item.ref is None for item in self.items)


class Splitter:
    """Documents out of bytes that arrive bit by bit.

    A document is complete when the line that ends it (``---`` or ``...``) is, when it is a whole
    JSON value, or at the end.
    """

    def __init__(self) -> None:
        self._rest = bytearray()
        self._line = 1
        self._scanned = 0

    def feed(self, data: bytes) -> list[Piece]:
        """Takes more bytes; returns the documents that they completed."""
        # Looked for in what is new only: a line without end costs no second look.
        line_end = data.rfind(b"\n") + 1
        complete = len(self._rest) + line_end if line_end else self._scanned
        self._rest += data
        pieces = self._cut(complete)
        if self._is_whole_json():
            pieces += self.close()
        return pieces

    @property
    def waiting(self) -> int:
        """Bytes of the document that is not complete yet."""
        return len(self._rest)

    def close(self, data: bytes = b"") -> list[Piece]:
        """The last bytes of the text: what is left is the last document."""
        self._rest += data
        pieces = self._cut(len(self._rest))
        pieces += self._take(len(self._rest), len(self._rest))
        self._scanned = 0
        return pieces

    def _cut(self, end: int) -> list[Piece]:
        markers = [
            (match.start(), match.start() if match[0] == b"---" else match.end())
            for match in _MARKER.finditer(self._rest, self._scanned, end)
        ]
        pieces: list[Piece] = []
        taken = 0
        for stops, goes_on in markers:
            pieces += self._take(stops - taken, goes_on - taken)
            taken = goes_on
        # Never zero after a marker that begins the rest: it is not to be found again as its end.
        self._scanned = end - taken
        return pieces

    def _is_whole_json(self) -> bool:
        if self._rest[:64].lstrip()[:1] != b"{" or self._rest[-64:].rstrip()[-1:] != b"}":
            return False
        try:
            json_values(bytes(self._rest))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return False
        return True

    def _take(self, length: int, skip: int) -> list[Piece]:
        data, line = bytes(self._rest[:length]), self._line
        self._line += self._rest[:skip].count(b"\n")
        del self._rest[:skip]
        return [] if _EMPTY.fullmatch(data) else [Piece(line, data)]


def json_values(data: bytes) -> list[tuple[int, bytes]]:
    """Offset and text of each of the JSON values that ``data`` is made of.

    Raises :class:`msgspec.DecodeError` when it is not made of JSON values.
    """
    values: list[tuple[int, bytes]] = []
    offset = _after_blanks(data, 0)
    while offset < len(data):
        length = _value_length(memoryview(data)[offset:])
        values.append((offset, data[offset : offset + length]))
        offset = _after_blanks(data, offset + length)
    return values


def _after_blanks(data: bytes, offset: int) -> int:
    match = _BLANKS.match(data, offset)
    return match.end() if match else offset


def _value_length(view: memoryview) -> int:
    """Bytes of the first JSON value in ``view``."""
    try:
        msgspec.json.decode(view, type=msgspec.Raw)
        return len(view)
    except msgspec.DecodeError as fault:
        at = _BYTE.search(str(fault))
        if _TRAILING not in str(fault) or at is None:
            raise
        # The decoder names the byte at which it stopped, which may be one past the intruder.
        length = int(at[1])
        if bytes(view[length - 1 : length]) in (b"{", b"["):
            length -= 1
        msgspec.json.decode(view[:length], type=msgspec.Raw)
        return length


def read_text(data: bytes, file: str) -> Contents:
    """Reads a whole file. ``file`` names it in every Refusal and Notice."""
    return join(read_piece(piece, file) for piece in pieces_of(data))


def pieces_of(data: bytes) -> list[Piece]:
    """The documents of a whole file."""
    return Splitter().close(data.removeprefix(_BOM))


def join(documents: Iterator[Document]) -> Contents:
    """The documents of one file together, with one notice a kind."""
    items: list[Item] = []
    skipped: dict[str, Notice] = {}
    for document in documents:
        items += document.items
        for notice in document.notices:
            known = skipped.get(notice.kind)
            count = notice.count + (known.count if known else 0)
            skipped[notice.kind] = Notice(notice.kind, count, notice.file)
    return Contents(tuple(items), tuple(skipped.values()))


def encoding_fault(piece: Piece) -> tuple[int, str] | None:
    """Line and message of the first byte that is no UTF-8; None when all are."""
    try:
        piece.data.decode()
    except UnicodeDecodeError as fault:
        line = piece.line + piece.data[: fault.start].count(b"\n")
        return line, f"byte 0x{piece.data[fault.start]:02x} is no UTF-8; save the file as UTF-8"
    return None


def read_piece(piece: Piece, file: str) -> Document:
    """Reads one document; a fault of syntax becomes an item that nobody can name."""
    fault = encoding_fault(piece)
    if fault:
        return _unreadable(file, *fault)
    if piece.data.lstrip()[:1] in (b"{", b"["):
        try:
            return _read_json(piece, file)
        except RecursionError:
            # msgspec's own bound, far beyond any object; the YAML reader's is lower.
            return _unreadable(
                file, piece.first_line, "is nested too deeply; no Kubernetes object is"
            )
        except msgspec.DecodeError as wrong:
            if file.endswith(".json"):
                return _unreadable(file, _json_line(piece, wrong), f"{wrong}; correct the JSON")
    try:
        document = decode_value(parse(piece.data), file=file)
    except yaml.YAMLError as wrong:
        line, why = where_and_why(wrong)
        return _unreadable(file, piece.line + max(line, 0), f"{why}; correct the YAML")
    return _with_lines(document, piece)


def _read_json(piece: Piece, file: str) -> Document:
    parts: list[Document] = []
    for offset, data in json_values(piece.data):
        line = piece.line + piece.data[:offset].count(b"\n")
        parts.append(_with_lines(decode_json(data, file=file), Piece(line, data)))
    contents = join(iter(parts))
    return Document(contents.items, contents.notices)


def _unreadable(file: str, line: int, what: str) -> Document:
    refusal = Refusal(message=what, file=file, line=line)
    return Document((Item(None, refusals=(refusal,), refused=True),))


def _json_line(piece: Piece, fault: msgspec.DecodeError) -> int:
    at = _BYTE.search(str(fault))
    before = piece.data[: int(at[1])] if at else piece.data.rstrip()
    return piece.line + before.count(b"\n")


def _with_lines(document: Document, piece: Piece) -> Document:
    """Every item knows its document's line. Lines of fields are looked for only when there is
    something to refuse: it is one more pass."""
    begins = piece.first_line
    items = tuple(msgspec.structs.replace(item, line=begins) for item in document.items)
    document = Document(items, document.notices)
    if not document.refusals:
        return document
    is_json = piece.data.lstrip()[:1] in (b"{", b"[")
    if is_json and len(piece.data) > _MAX_JSON_FOR_LINES:
        return document
    try:
        lines = lines_of(piece.data)
    except yaml.YAMLError:
        return document
    items = tuple(
        msgspec.structs.replace(
            item,
            refusals=tuple(
                msgspec.structs.replace(
                    refusal, line=piece.line + _line_at(lines, item.path, refusal.field)
                )
                for refusal in item.refusals
            ),
        )
        if item.refusals
        else item
        for item in document.items
    )
    return Document(items, document.notices)


def _line_at(lines: dict[str, int], path: str, field: str) -> int:
    """Line of the field, or of the nearest thing around it that is written down."""
    place = field if field.startswith(path) else f"{path}.{field}"
    while place and place not in lines:
        place = place[: max(place.rfind("."), place.rfind("["), 0)]
    return lines.get(place, 0)
