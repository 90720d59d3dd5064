"""Go durations (``1m30s``, ``250ms``), the form in which kube-proxy's settings give times."""

from __future__ import annotations

import re
from decimal import Decimal

#: Unit -> nanoseconds; both spellings of micro are Go's (U+00B5 and U+03BC).
_UNITS = {
    "ns": 1,
    "us": 1_000,
    "\u00b5s": 1_000,
    "\u03bcs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|\u00b5s|\u03bcs|ms|s|m|h)", re.ASCII)
_WHOLE = re.compile(rf"([-+]?)((?:{_PART.pattern})+)", re.ASCII)


class Seconds(float):
    """A time in seconds. A type of its own, so that decoders know that its text is a duration."""


def parse_duration(text: str) -> Seconds:
    """Seconds of a Go duration. ValueError, saying what a right one looks like, otherwise."""
    if text in ("0", "+0", "-0"):
        return Seconds(0)
    whole = _WHOLE.fullmatch(text)
    if whole is None:
        raise ValueError(f"{text!r} is no duration; write it like 30s, 1m30s or 250ms")
    nanoseconds = sum(
        (Decimal(number) * _UNITS[unit] for number, unit in _PART.findall(whole[2])), Decimal(0)
    )
    return Seconds(int(nanoseconds) * (-1 if whole[1] == "-" else 1) / 1e9)


def format_duration(seconds: float) -> str:
    """The text that Go prints for it: ``24h0m0s``, ``1m30s``, ``250ms``, ``0s``."""
    nanoseconds = round(seconds * 1e9)
    sign, nanoseconds = ("-", -nanoseconds) if nanoseconds < 0 else ("", nanoseconds)
    if nanoseconds == 0:
        return "0s"
    for unit in ("s", "ms", "\u00b5s", "ns"):
        if nanoseconds >= _UNITS[unit]:
            break
    if unit != "s":
        return f"{sign}{_plain(Decimal(nanoseconds) / _UNITS[unit])}{unit}"
    minutes, rest = divmod(nanoseconds, _UNITS["m"])
    hours, minutes = divmod(minutes, 60)
    text = f"{_plain(Decimal(rest) / _UNITS['s'])}s"
    if hours or minutes:
        text = f"{minutes}m{text}"
    return f"{sign}{hours}h{text}" if hours else f"{sign}{text}"


def _plain(number: Decimal) -> str:
    """Decimal without exponent and without zeros at its end."""
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
