"""What a refusal of the restore tool means: whose fault it is, and whether trying again helps."""

from __future__ import annotations

import re
from collections.abc import Callable

from kproxy.core.objects import PortName
from kproxy.errors import ApplyError, CommandError, ContentError
from kproxy.kernel.xtables import lock_holder

_LINE = re.compile(r"line:? (\d+)")

#: Words of the tools (1.8.9) when nothing is wrong with the text: the lock is held, a right or
#: memory is missing. Their exit status does not tell: nft ends with 4 for any refusal.
_PASSING = re.compile(
    r"xtables lock|Permission denied|Operation not permitted|unable to initialize table"
    r"|Could not fetch rule set generation|Memory allocation problem|Cannot allocate memory"
    r"|temporarily unavailable|No buffer space"
)
_LOCK_HELD = "xtables lock"


def refusal(
    error: CommandError, text: str, owners: Callable[[str], tuple[PortName, ...]]
) -> ApplyError:
    """``text`` is what the call was given. ContentError when it is to blame, or may be; ``owners``
    says which service ports a line of it is about."""
    said = " ".join(error.stderr.split()) or f"status {error.status}"
    if _LOCK_HELD in said:
        holder = lock_holder()
        return ApplyError(
            f"{error.argv[0]}: {said}{f' It is held by {holder}.' if holder else ''}",
            hint="it is tried again",
        )
    at = _LINE.search(said)
    row = _row(text, int(at.group(1))) if at else ""
    what = f"{error.argv[0]}: {said}{f': {row}' if row else ''}"
    hint = "see what this kernel lacks with: kproxy doctor"
    if error.status < 0 or _PASSING.search(said):
        return ApplyError(what, hint=hint)
    return ContentError(what, suspects=owners(row) if row else (), hint=hint)


def _row(text: str, number: int) -> str:
    rows = text.splitlines()
    return rows[number - 1] if 0 < number <= len(rows) else ""
