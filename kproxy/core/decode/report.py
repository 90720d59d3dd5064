"""Gathers what is wrong with one object while it is read, so that all faults are named at once."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from kproxy.core.address import canonical_ip, special_use
from kproxy.core.objects import Protocol, Refusal

#: Names reach rule comments and chain hashes, so nothing but the API's own alphabet may pass.
_LABEL = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?").fullmatch
_SUBDOMAIN = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*"
).fullmatch

_PROTOCOLS: dict[str | None, Protocol] = {
    None: Protocol.TCP,
    "": Protocol.TCP,
    **{str(item): item for item in Protocol},
}


def is_label(text: str) -> bool:
    """A DNS label (RFC 1123) in lower case: namespaces, Services, port names."""
    return _LABEL(text) is not None


def is_subdomain(text: str) -> bool:
    """DNS labels with dots between: slices, Endpoints, Nodes."""
    return _SUBDOMAIN(text) is not None


def quoted(value: object) -> str:
    """A value for a message: short, on one line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def seconds_of(text: str) -> float | None:
    """A time as the API writes it (RFC 3339, UTC when it says no zone), in seconds since the epoch;
    None when it is none."""
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


class Report:
    """Faults of one object. ``whole`` turns true with the first that condemns it."""

    __slots__ = ("_seen", "file", "key", "kind", "refusals", "whole")

    def __init__(self, kind: str, key: str = "", file: str = "") -> None:
        self.kind = kind
        self.key = key
        self.file = file
        self.whole = False
        self.refusals: list[Refusal] = []
        self._seen: set[str] = set()

    def member(self, field: str, message: str) -> None:
        """Only ``field`` is left out; the rest of the object is served."""
        self._add(field, message, whole=False)

    def condemn(self, field: str, message: str) -> None:
        """The object as such is left out."""
        self.whole = True
        self._add(field, message, whole=True)

    def _add(self, field: str, message: str, *, whole: bool) -> None:
        # A member with a wrong type was refused by the repair already and reads as null after it.
        if field in self._seen:
            return
        self._seen.add(field)
        self.refusals.append(
            Refusal(
                message=message,
                file=self.file,
                kind=self.kind,
                key=self.key,
                field=field,
                whole=whole,
            )
        )

    def has_fault(self, field: str) -> bool:
        """Whether anything at or below ``field`` was refused."""
        return any(seen.startswith(field) for seen in self._seen)

    def address(self, text: str | None, field: str) -> str | None:
        """Canonical text of an address that is a list member; refused and None when unusable."""
        address = canonical_ip(text) if text else None
        if address is None:
            self.member(field, f"{quoted(text)} is no IP address; write one such as 192.0.2.1")
            return None
        why = special_use(address)
        if why:
            self.member(field, f"{address} is {why}; use an address that others can reach")
            return None
        return address

    def protocol(self, text: str | None, field: str) -> Protocol:
        """TCP when absent; an unknown one condemns."""
        protocol = _PROTOCOLS.get(text)
        if protocol is None:
            self.condemn(field, f"unknown protocol {quoted(text)}; use TCP, UDP or SCTP")
            return Protocol.TCP
        return protocol

    def port_name(self, text: str | None, field: str) -> str:
        """ "" when absent; a name that is no DNS label condemns."""
        if not text:
            return ""
        if not is_label(text):
            self.condemn(
                field, f"{quoted(text)} is no port name; use lower-case letters, digits and -"
            )
        return text


def port_fault(number: int) -> str:
    """What is wrong with a port number; "" when it is fine."""
    if 1 <= number <= 65535:
        return ""
    return f"port {quoted(number)} does not exist; use a number from 1 to 65535"
