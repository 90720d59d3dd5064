"""Notices when others change the rules of userspace mode: :mod:`kproxy.backends.xtables.watch`."""

from __future__ import annotations

from collections.abc import Iterable

from kproxy.backends.base import Watch
from kproxy.backends.userspace.chains import LAYOUT
from kproxy.backends.xtables import watch as rules
from kproxy.backends.xtables.variant import Variant
from kproxy.core.objects import Family


def watch(variant: Variant, families: Iterable[Family]) -> Watch:
    """The watch of a variant, in the namespace of the calling thread."""
    return rules.watch(variant, families, LAYOUT)
