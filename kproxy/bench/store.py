"""The file that a result is kept in, ``results.json``: written whole or not at all, and read back.

Nothing in it is anybody's secret, and it is made to be handed on: everyone may read it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from kproxy.bench.results import FORMAT, Results
from kproxy.errors import KernelError, UsageError

NAME = "results.json"


class _Head(msgspec.Struct):
    """What any version of the file begins with; 0: it says nothing."""

    format: int = 0


def encode(results: Results) -> bytes:
    """As it stands in the file: JSON with a field on each line, and each row of figures on one."""
    fields = msgspec.to_builtins(results)
    sections = [
        _object(each, {"rows": _array(each["rows"], "   ")}, "  ") for each in fields["sections"]
    ]
    whole = _object(fields, {"sections": _lines("[", sections, "]", " ")}, "")
    return whole.encode() + b"\n"


def _object(fields: dict[str, Any], written: dict[str, str], indent: str) -> str:
    lines = [f'"{name}": {written.get(name) or _text(value)}' for name, value in fields.items()]
    return _lines("{", lines, "}", indent)


def _array(values: list[Any], indent: str) -> str:
    return _lines("[", list(map(_text, values)), "]", indent)


def _lines(begin: str, lines: list[str], end: str, indent: str) -> str:
    inside = ",\n".join(f"{indent} {line}" for line in lines)
    return f"{begin}\n{inside}\n{indent}{end}" if lines else begin + end


def _text(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def write(results: Results, folder: Path) -> Path:
    """Replace ``folder``/results.json; where it is. KernelError: it cannot be written."""
    target = folder / NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, fresh = tempfile.mkstemp(dir=folder, prefix=f".{NAME}-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(encode(results))
                file.flush()
                os.fsync(file.fileno())
                os.fchmod(file.fileno(), 0o644)
            os.rename(fresh, target)
        except BaseException:
            os.unlink(fresh)
            raise
    except OSError as failed:
        raise KernelError(
            f"cannot be written: {failed.strerror}",
            where=str(target),
            hint="make room, or name another folder with --out",
        ) from failed
    return target


def read(path: Path) -> Results:
    """A result, from its file or the folder that it is in. UsageError: there is none, or it is none
    that this version can read."""
    file = path / NAME if path.is_dir() else path
    try:
        content = file.read_bytes()
    except OSError as failed:
        raise UsageError(
            f"cannot be read: {failed.strerror}",
            where=str(file),
            hint="name a results.json, or the folder that kproxy bench wrote",
        ) from failed
    return decode(content, str(file))


def decode(content: bytes, where: str) -> Results:
    """UsageError: it is no result, or of another format."""
    try:
        found = msgspec.json.decode(content, type=_Head).format
        if found != FORMAT:
            raise UsageError(
                f"has format {found or 'of its own'}, this kproxy reads {FORMAT}",
                where=where,
                hint="read it with the version that wrote it",
            )
        results = msgspec.json.decode(content, type=Results)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as wrong:
        raise UsageError(
            f"is no result of kproxy bench: {wrong}",
            where=where,
            hint="kproxy bench writes one",
        ) from wrong
    for section in results.sections:
        strangers = {row.point.measure for row in section.rows}
        strangers -= {measure.name for measure in section.measures}
        if strangers:
            raise UsageError(
                f"is no result of kproxy bench: it does not say what {min(strangers)} is",
                where=where,
                hint="kproxy bench writes one",
            )
    return results


def prepare(folder: Path) -> None:
    """See that ``folder`` can be made, or written to, before hours are spent on what goes there;
    nothing of the trial is left. KernelError: it cannot."""
    there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    try:
        with tempfile.TemporaryDirectory(dir=there, prefix=f".{NAME}-"):
            pass
    except OSError as failed:
        raise KernelError(
            f"cannot be written: {failed.strerror}",
            where=str(folder),
            hint="name another folder with --out",
        ) from failed


def free(folder: Path, names: Iterable[str] = ()) -> None:
    """UsageError: a result is in there already, or a file with one of the ``names`` of what is
    written beside it."""
    there = next((name for name in (NAME, *names) if os.path.lexists(folder / name)), None)
    if there is not None:
        what = "a result" if there == NAME else f"a file {there}"
        raise UsageError(
            f"has {what} already", where=str(folder), hint="name another folder with --out"
        )


def fresh(day: str, within: Path = Path()) -> Path:
    """A folder for a run of that day that no other has."""
    return beside(within / f"kproxy-bench-{day}")


def beside(first: Path) -> Path:
    """That folder, or one of its name with a number, that there is not yet."""
    number, folder = 1, first
    while folder.exists():
        number += 1
        folder = first.with_name(f"{first.name}-{number}")
    return folder
