"""What is wrong with an object, said as an API server says it: field, value, what it must be.

Pure. All faults of an object are collected before it is refused, so that one reading mends it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from kproxy.core.objects import Refusal


class Faults:
    """Collects the faults of one object. True when one of them refuses it as a whole."""

    def __init__(self, obj: Mapping[str, Any]) -> None:
        self._kind = str(obj.get("kind", ""))
        self._key = key_of(obj)
        self.found: list[Refusal] = []

    def __bool__(self) -> bool:
        return any(refusal.whole for refusal in self.found)

    def add(self, field: str, message: str, *, whole: bool = True) -> None:
        self.found.append(
            Refusal(message, kind=self._kind, key=self._key, field=field, whole=whole)
        )

    def required(self, field: str, why: str = "") -> None:
        self.add(field, f"Required value: {why}" if why else "Required value")

    def invalid(self, field: str, value: object, why: str, *, whole: bool = True) -> None:
        """``whole`` false: only this member is left out, the object is served without it."""
        self.add(field, f"Invalid value: {json.dumps(value, default=str)}: {why}", whole=whole)

    def unsupported(self, field: str, value: object, known: Iterable[str]) -> None:
        supported = ", ".join(f'"{name}"' for name in known)
        self.add(
            field, f"Unsupported value: {json.dumps(value, default=str)}: supported: {supported}"
        )

    def duplicate(self, field: str, value: object) -> None:
        self.add(field, f"Duplicate value: {json.dumps(value, default=str)}")


def key_of(obj: Mapping[str, Any]) -> str:
    """``namespace/name`` of a namespaced object, as far as it has them."""
    meta = obj.get("metadata")
    meta = meta if isinstance(meta, Mapping) else {}
    return f"{meta.get('namespace') or 'default'}/{meta.get('name', '')}"
