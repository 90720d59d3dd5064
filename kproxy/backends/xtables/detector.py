"""Rules for traffic of this node's own pods, or for everybody else's. Pure."""

from __future__ import annotations

from msgspec.structs import replace

from kproxy.backends.xtables.rules import Rule
from kproxy.core.snapshot import LocalDetector


def of_pods(rule: Rule, detector: LocalDetector) -> Rule:
    """``rule`` for what this node's pods send, as the detector tells it."""
    field, value = _match(detector)
    return replace(rule, **{field: value})


def of_others(rule: Rule, detector: LocalDetector) -> Rule | None:
    """``rule`` for what anybody else sends. None when the detector holds every source for a pod:
    nobody is left, and the nft variant refuses ``! -s 0.0.0.0/0``."""
    if detector.cidr.endswith("/0"):
        return None
    field, value = _match(detector)
    return replace(rule, **{field: value}, negated=(*rule.negated, field))


def _match(detector: LocalDetector) -> tuple[str, str]:
    """Field of a rule, and what it has to be."""
    if detector.cidr:
        return "source", detector.cidr
    return "in_interface", detector.bridge or f"{detector.prefix}+"
