"""Taking the rules of userspace mode away."""

from __future__ import annotations

from collections.abc import Collection

from kproxy.backends.userspace.chains import LAYOUT
from kproxy.backends.xtables.cleanup import cleanup_calls
from kproxy.backends.xtables.door import Door
from kproxy.backends.xtables.layout import Layout, Place
from kproxy.backends.xtables.saved import parse
from kproxy.backends.xtables.script import chunks
from kproxy.backends.xtables.variant import Variant
from kproxy.core.objects import Family


def clean(
    door: Door,
    family: Family,
    variant: Variant,
    spared: Layout | None = None,
    kept: Collection[Place] = (),
) -> bool:
    """Take the rules of the mode away, but for what ``spared`` has as well and for chains that are
    ``kept``; whether there were any."""
    found, saved = False, parse(door.save())
    for text in cleanup_calls(LAYOUT, saved, family, variant, spared=spared, kept=kept):
        door.restore(chunks(text))
        found = True
    return found
