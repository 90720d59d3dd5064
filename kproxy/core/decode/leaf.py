"""Reads single values of a policy (:mod:`kproxy.core.decode.policy`): text, numbers, shares, times.

Each reader gives the value in kproxy's own terms, or raises :class:`Wrong`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from kproxy.core.decode.report import port_fault, quoted
from kproxy.durations import format_duration, parse_duration


class Wrong(Exception):
    """Says what a value must be."""


def whole_number(low: int, high: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise Wrong(f"{quoted(value)} must be a number from {low} to {high}")
        return value

    return read


def seconds(low: float, high: float) -> Callable[[Any], float]:
    span = f"from {format_duration(low)} to {format_duration(high)}"

    def read(value: Any) -> float:
        if not isinstance(value, str):
            raise Wrong(f"a duration is needed, not {quoted(value)}; write it like 2s or 500ms")
        try:
            found = float(parse_duration(value))
        except ValueError as wrong:
            raise Wrong(str(wrong)) from None
        if not low <= found <= high:
            raise Wrong(f"{quoted(value)} must be {span}")
        return found

    return read


def share(high: int, *, positive: bool = False) -> Callable[[Any], float]:
    def read(value: Any) -> float:
        found = re.fullmatch(r"(\d{1,3}(?:\.\d{1,3})?)%", value) if isinstance(value, str) else None
        if found is None:
            raise Wrong(f"{quoted(value)} is no share; write it like 50%")
        percent = float(found[1])
        if percent > high or (positive and not percent):
            raise Wrong(f"{quoted(value)} must be {'more than 0%, ' * positive}at most {high}%")
        return percent / 100

    return read


def flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise Wrong(f"{quoted(value)} must be true or false")
    return value


def up_or_down(value: Any) -> bool:
    if value not in ("up", "down"):
        raise Wrong(f"{quoted(value)} must be up or down")
    return bool(value == "up")


def text(value: Any) -> str:
    if not isinstance(value, str):
        raise Wrong(f"{quoted(value)} must be text; put it in quotes")
    return value


def line(value: Any) -> str:
    """Text for a request: a line end in it would start a header of its own."""
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in text(value)):
        raise Wrong(f"{quoted(value)} must not hold control characters")
    return str(value)


def path(value: Any) -> str:
    if not re.fullmatch(r"/[!-~]*", line(value)):
        raise Wrong(f"{quoted(value)} must begin with / and hold no spaces; encode them as %20")
    return str(value)


def host(value: Any) -> str:
    """A name or an address, and a port where the header is to have one. Labels are such as TLS can
    put into its greeting (RFC 1035, 2.3.4; with the underscore that some have)."""
    name = re.sub(r":\d{1,5}$", "", line(value))
    if not (len(name) <= 253 and re.fullmatch(_NAME, name)) and not re.fullmatch(_IPV6, value):
        raise Wrong(f"{quoted(value)} is no host name")
    return str(value)


_NAME = r"(?:[A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63}\.?"
_IPV6 = r"\[[0-9A-Fa-f:.]{2,45}\](?::\d{1,5})?|[0-9A-Fa-f]*:[0-9A-Fa-f:.]{1,45}"


def headers(value: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, Mapping):
        raise Wrong(f"{quoted(value)} must be a map of names and values")
    pairs = []
    for name, content in value.items():
        if text(name).lower() in _OWN_HEADERS:
            raise Wrong(f"{quoted(name)} is set by the check itself{_OWN_HEADERS[name.lower()]}")
        pairs.append(header(name, content))
    return tuple(pairs)


def header(name: Any, content: Any) -> tuple[str, str]:
    # RFC 9110, 5.6.2.
    if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", text(name)):
        raise Wrong(f"{quoted(name)} is no name of a header")
    if not line(content).isascii():
        raise Wrong(f"{quoted(content)} must be ASCII")
    return name, content


#: Headers that belong to the connection, and what to use instead.
_OWN_HEADERS = {
    "host": "; use host",
    "connection": "",
    "content-length": "",
    "transfer-encoding": "",
}


def statuses(value: Any) -> tuple[tuple[int, int], ...]:
    items = value if isinstance(value, list | tuple) else [value]
    if not items:
        raise _no_status(value)
    return tuple(_span(item) for item in items)


def _span(value: Any) -> tuple[int, int]:
    span = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    found = re.fullmatch(r"(\d{3})(?:-(\d{3}))?", span) if isinstance(span, str) else None
    if found is None:
        raise _no_status(value)
    first, last = int(found[1]), int(found[2] or found[1])
    if not 100 <= first <= last <= 599:
        raise _no_status(value)
    return first, last


def _no_status(value: Any) -> Wrong:
    return Wrong(f"{quoted(value)} is no status; write 200, 200-299 or a list of such")


def certificates(value: Any) -> str:
    # Loaded by those alone who have certificates.
    import ssl

    try:
        if "-----BEGIN CERTIFICATE-----" not in text(value):
            raise ValueError
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=value)
    except (ssl.SSLError, ValueError):
        raise Wrong(f"{quoted(value)} must be certificates in PEM form") from None
    return str(value)


def octets(value: Any) -> bytes:
    return text(value).encode()


def hex_octets(value: Any) -> bytes:
    try:
        return bytes.fromhex(text(value))
    except ValueError:
        raise Wrong(f"{quoted(value)} must be hexadecimal digits in pairs") from None


def command(value: Any) -> tuple[str, ...]:
    items = value if isinstance(value, list | tuple) else ()
    if not items or not all(isinstance(item, str) and "\0" not in item for item in items):
        raise Wrong(f"{quoted(value)} must be a list of texts: a program and its arguments")
    if not items[0]:
        raise Wrong("the name of the program is empty")
    return tuple(items)


def port_number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise Wrong(f"{quoted(value)} must be a number from 1 to 65535")
    if fault := port_fault(value):
        raise Wrong(fault)
    return value
