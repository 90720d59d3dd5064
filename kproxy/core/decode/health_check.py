"""The annotation ``kproxy/health-check`` of a Service: a word, or a map in YAML or JSON.

Whoever may write a Service may write it, so it is limited: in size, in depth by that, and it may
not refer to itself. The same few texts stand on very many Services; each is read once.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache, partial
from typing import Any

import yaml
from msgspec.structs import replace

from kproxy.core.decode.policy import Fault, read_policy
from kproxy.core.decode.report import Report, quoted
from kproxy.core.health.values import Policy, speaks
from kproxy.core.objects import Protocol

ANNOTATION = "kproxy/health-check"
MAX_BYTES = 4096
#: A policy has three levels.
MAX_DEPTH = 8


def read_health_check(text: str | None, protocols: Collection[Protocol], report: Report) -> Policy:
    """What the annotation asks for; of a faulty one nothing, and every fault is reported. So is a
    check that can speak none of the ``protocols`` of the Service's ports, and it is left out."""
    policy, faults = read_text(text or "")
    for field, message in faults:
        place = f"metadata.annotations.{ANNOTATION}"
        report.member(f"{place}.{field}" if field else place, f"{message}; it is served unchecked")
    if protocols and policy.check and not any(map(partial(speaks, policy.check.probe), protocols)):
        report.member(
            f"metadata.annotations.{ANNOTATION}",
            f"a {type(policy.check.probe).__name__.lower()} check cannot speak "
            f"{' or '.join(sorted(protocols))}, as the Service's ports do; use a check that can, "
            "or give it a port of the pods with port; it is served unchecked",
        )
        return replace(policy, check=None)
    return policy


@lru_cache(maxsize=512)
def read_text(text: str) -> tuple[Policy, tuple[Fault, ...]]:
    """The policy of such a text, and what is wrong with it."""
    if len(text.encode(errors="replace")) > MAX_BYTES:
        return Policy(), (("", f"is larger than {MAX_BYTES} bytes"),)
    if not text.strip():
        return Policy(), (("", "is empty; write none, or a check such as tcp"),)
    if text.isalpha():
        return read_policy(text)
    try:
        return read_policy(_value(text))
    except _Refused as refused:
        return Policy(), (("", str(refused)),)
    except yaml.YAMLError as broken:
        return Policy(), (("", f"is neither YAML nor JSON: {_first_line(broken)}"),)


class _Refused(Exception):
    """YAML that is sound, and not taken."""


def _value(text: str) -> Any:
    """Plain values of one document."""
    try:
        _look_over(text)
        loader = yaml.CSafeLoader(text)
        try:
            node = loader.get_single_node()
            return _plain(loader, node) if node is not None else None
        finally:
            loader.dispose()
    except (yaml.YAMLError, _Refused):
        raise
    except Exception as wrong:  # noqa: BLE001
        # A date that is none, half a character, a tag beside a value of another kind (!!bool 5, an
        # empty !!int): of these the library makes exceptions of five types at least.
        raise _Refused(f"holds a value that cannot be read: {_first_line(wrong)}") from None


def _look_over(text: str) -> None:
    """Refuses what must not be built: the parser's events come without recursion, while 4 kB of
    brackets exhaust the stack of whoever makes nodes of them."""
    depth = 0
    for event in yaml.parse(text, yaml.CSafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise _Refused("holds an alias (*); write the value out")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise _Refused("is nested too deeply")


def _plain(loader: yaml.CSafeLoader, node: yaml.Node) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return [_plain(loader, each) for each in node.value]
    if not isinstance(node, yaml.MappingNode):
        return loader.construct_object(node)
    found: dict[str, Any] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise _Refused("has a key that is no text")
        if key_node.value in found:
            raise _Refused(f"has the key {quoted(key_node.value)} twice; remove one of them")
        found[key_node.value] = _plain(loader, value_node)
    return found


def _first_line(fault: Exception) -> str:
    problem = getattr(fault, "problem", None) or str(fault)
    return (str(problem).splitlines() or ["unreadable"])[0][:120]
