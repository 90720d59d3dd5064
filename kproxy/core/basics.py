"""Names and kinds that all values of the core are built of: families, protocols, identities.

:mod:`kproxy.core.objects` hands them on; it is the place to import them from.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import NamedTuple

import msgspec


class Family(IntEnum):
    """IP family; the value is the IP version number."""

    IPV4 = 4
    IPV6 = 6


def family_of(address: str) -> Family:
    """Family of a canonical address or CIDR: only IPv6 text has a colon."""
    return Family.IPV6 if ":" in address else Family.IPV4


class Protocol(StrEnum):
    """Transport protocols of a Service port, spelled as the API spells them."""

    TCP = "TCP"
    UDP = "UDP"
    SCTP = "SCTP"


class ObjectKey(NamedTuple):
    """Namespace and name; namespace is "" for cluster-scoped objects (Node)."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


class PortName(NamedTuple):
    """The identity of one service port: what kube-proxy calls ServicePortName."""

    namespace: str
    name: str
    port: str
    protocol: Protocol

    @property
    def service(self) -> ObjectKey:
        return ObjectKey(self.namespace, self.name)

    def __str__(self) -> str:
        """``ns/name:port``, or ``ns/name`` when the port has no name: hashed into chain names."""
        text = f"{self.namespace}/{self.name}"
        return f"{text}:{self.port}" if self.port else text


class Value(msgspec.Struct, frozen=True):
    """Base of all frozen values of the core: compared by content, hashable, never edited."""
