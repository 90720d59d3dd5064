"""Faults of our own in a check: told in the log once each, and never the endpoint's."""

from __future__ import annotations

from kproxy import logs
from kproxy.core.health.values import Target
from kproxy.health.checks.outcome import Outcome, own
from kproxy.health.checks.text import plain

_log = logs.get("checks")

#: So many different ones are told: an exception's words may quote what a stranger has sent.
_MOST = 100

#: What has broken checks off so far.
_known: set[str] = set()


def broken_off(error: Exception, target: Target) -> Outcome:
    """The outcome of a try that an exception has ended."""
    what = f"{type(error).__name__}: {error}"
    if what not in _known and len(_known) < _MOST:
        # Once: it comes again with every try.
        _known.add(what)
        _log.fault("a check broke off", error, target=target)
    return own(f"the check broke off: {plain(what)[:120]}")
