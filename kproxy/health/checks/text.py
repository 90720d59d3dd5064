"""What others sent, made fit for a reason: short, printable, on one line."""

from __future__ import annotations

#: Characters of foreign text in a reason.
MOST = 80


def quoted(raw: bytes | str, most: int = MOST) -> str:
    """In double quotes, with escapes for what cannot be printed; ``…`` where it was cut."""
    text = raw if isinstance(raw, str) else raw[: most * 4].decode("utf-8", "backslashreplace")
    cut = len(text) > most or (isinstance(raw, bytes) and len(raw) > most * 4)
    return f'"{plain(text[:most])}{"…" if cut else ""}"'


def plain(text: str) -> str:
    """Without quotes around it: control characters escaped, so no log or terminal obeys them."""
    return "".join(each if each.isprintable() else _escaped(each) for each in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
