"""The slow way through an object with a wrong type in it: find what can be left out, and leave it.

msgspec reads a good object in one go and stops at the first wrong type with its path. Only then
is the object gone through by the table below: a wrong list member becomes null (its index stays),
a wrong optional field goes, and a wrong type anywhere else condemns the object.
"""

from __future__ import annotations

import copy
import re
from typing import Any, TypeVar

import msgspec

from kproxy.core.decode import wire
from kproxy.core.decode.report import Report

W = TypeVar("W", bound=wire.Wire)
Path = tuple[str | int, ...]

#: Type -> lists and maps whose members may be left out alone, with the type of a member.
_MEMBERS: dict[type, dict[Path, Any]] = {
    wire.Service: {
        ("metadata", "labels"): str | None,
        ("metadata", "annotations"): str | None,
        ("spec", "externalIPs"): str | None,
        ("spec", "loadBalancerSourceRanges"): str | None,
        ("status", "loadBalancer", "ingress"): wire.Ingress | None,
    },
    wire.EndpointSlice: {
        ("metadata", "labels"): str | None,
        ("metadata", "annotations"): str | None,
        ("endpoints",): wire.Endpoint | None,
    },
    wire.Endpoints: {
        ("metadata", "labels"): str | None,
        ("metadata", "annotations"): str | None,
        ("subsets", "#", "addresses"): wire.SubsetAddress | None,
        ("subsets", "#", "notReadyAddresses"): wire.SubsetAddress | None,
    },
    wire.Node: {
        ("metadata", "labels"): str | None,
        ("metadata", "annotations"): str | None,
        ("spec", "podCIDRs"): str | None,
        ("spec", "taints"): wire.Taint | None,
        ("status", "addresses"): wire.NodeAddress | None,
    },
}

#: Type -> fields that fall back to their default when they are of a wrong type.
_FIELDS: dict[type, tuple[Path, ...]] = {
    wire.Service: (
        ("metadata", "creationTimestamp"),
        ("metadata", "deletionTimestamp"),
        ("metadata", "annotations"),
        ("metadata", "labels"),
        ("spec", "externalIPs"),
        ("spec", "loadBalancerSourceRanges"),
        ("spec", "sessionAffinityConfig"),
        ("spec", "sessionAffinity"),
        ("spec", "internalTrafficPolicy"),
        ("spec", "externalTrafficPolicy"),
        ("spec", "healthCheckNodePort"),
        ("status",),
    ),
    wire.EndpointSlice: (
        ("metadata", "creationTimestamp"),
        ("metadata", "deletionTimestamp"),
        ("metadata", "annotations"),
    ),
    wire.Endpoints: (
        ("metadata", "creationTimestamp"),
        ("metadata", "deletionTimestamp"),
        ("metadata", "annotations"),
        ("metadata", "labels"),
    ),
    wire.Node: (
        ("metadata", "creationTimestamp"),
        ("metadata", "annotations"),
        ("metadata", "labels"),
        ("spec", "podCIDRs"),
        ("spec", "podCIDR"),
        ("spec", "taints"),
        ("status",),
    ),
}

#: What a wrong type is worth saying, in the words of the file's author.
_WORDS = {
    "str": "text",
    "int": "a number",
    "bool": "true or false",
    "float": "a decimal number",
    "object": "a mapping",
    "array": "a list",
    "null": "null",
}
_EXPECTED = re.compile(r"Expected `([^`]+)`, got `([^`]+)`")
_PATH = re.compile(r"`\$([^`]*)`")
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]")


def repair(document: dict[str, Any], kind: type[W], report: Report) -> W | None:
    """Reads ``document`` without its broken members; None when it is condemned.

    Every pass mends one list, map or field, so the passes are bounded by their number, not by
    how many members are broken.
    """
    document = copy.deepcopy(document)
    while True:
        try:
            return msgspec.convert(document, kind)
        except msgspec.ValidationError as fault:
            path = _path_of(fault)
            if not _mend(document, kind, path, report):
                report.condemn(dotted(path), explain(fault))
                return None


def _mend(document: dict[str, Any], kind: type, path: Path, report: Report) -> bool:
    """Takes out what made the fault at ``path``; False when it may not be taken out."""
    for pattern, member in _MEMBERS[kind].items():
        place = _prefix(pattern, path)
        if (
            place is not None
            and isinstance(holder := _at(document, place), list | dict)
            and _blank(holder, member, place, report)
        ):
            return True
    for field in _FIELDS[kind]:
        if _prefix(field, path) is not None:
            holder = _at(document, field[:-1])
            report.member(dotted(path), explain_at(holder[field[-1]], kind, field))
            del holder[field[-1]]
            return True
    return False


def _prefix(pattern: Path, path: Path) -> Path | None:
    """The beginning of ``path`` that ``pattern`` matches (``#`` is any index), else None."""
    head = path[: len(pattern)]
    if len(head) == len(pattern) and all(
        isinstance(step, int) if want == "#" else step == want
        for want, step in zip(pattern, head, strict=True)
    ):
        return head
    return None


def _at(document: Any, path: Path) -> Any:
    for step in path:
        document = document[step]
    return document


def _blank(holder: Any, member: Any, place: Path, report: Report) -> bool:
    """Nulls every member of a list, drops every entry of a map, that has not type ``member``."""
    found = False
    entries = list(enumerate(holder)) if isinstance(holder, list) else list(holder.items())
    for at, value in entries:
        try:
            if isinstance(holder, dict) and not isinstance(at, str):
                raise msgspec.ValidationError("Expected `str`, got `int`")
            msgspec.convert(value, member)
        except msgspec.ValidationError as fault:
            found = True
            report.member(dotted((*place, at, *_path_of(fault))), explain(fault))
            if isinstance(holder, list):
                holder[at] = None
            else:
                del holder[at]
    return found


def explain_at(value: Any, kind: type, field: Path) -> str:
    """The message for one field, without the part of the path that the Refusal names already."""
    nested: Any = value
    for step in reversed(field):
        nested = {step: nested}
    try:
        msgspec.convert(nested, kind)
    except msgspec.ValidationError as fault:
        return explain(fault)
    return "has a wrong type; correct it"


def explain(fault: msgspec.ValidationError) -> str:
    """A type error in plain words, with what to do."""
    text = str(fault)
    match = _EXPECTED.search(text)
    if match is None:
        return f"{text.split(' - at ')[0]}; correct the value"
    wanted = " or ".join(_WORDS.get(word, word) for word in match[1].split(" | ") if word != "null")
    got = _WORDS.get(match[2], match[2])
    if wanted == "text":
        return f"must be text, not {got}; put it in quotes"
    if wanted == "a number" and got == "text":
        return "must be a number, not text; remove the quotes"
    return f"must be {wanted}, not {got}; correct the value"


def _path_of(fault: msgspec.ValidationError) -> Path:
    match = _PATH.search(str(fault))
    if match is None:
        return ()
    return tuple(
        name or (int(index) if index.isdigit() else index)
        for name, index in _STEP.findall(match[1])
    )


def dotted(path: Path) -> str:
    """``spec.ports[1].port``."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.removeprefix(".")
