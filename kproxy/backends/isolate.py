"""Which members of a change spoil it: a search that leaves all others in force. Pure.

A refusal that names members is believed: one try. Else all is tried once more and then halved: for
one bad member among n that takes log2(n) tries, of which the good ones bring a part of the change
about, and a last one for all the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from kproxy.errors import ContentError

T = TypeVar("T")

#: Bad members that one search looks for; what is left then waits for the next sync.
LIMIT = 16


def isolate(
    names: Iterable[T],
    refusal: ContentError,
    attempt: Callable[[frozenset[T]], ContentError | None],
    bad: dict[T, str],
) -> None:
    """Fill ``bad`` with the members that are refused, each with the reason.

    ``attempt(left_out)`` brings everything about but what is left out, or says why not;
    ``refusal`` is its answer to leaving nothing out but ``bad``. When it returns, everything but
    ``bad`` is in force. ContentError when the reason is in no member, or more than :data:`LIMIT`
    are bad; whatever ``attempt`` raises ends the search as well.
    """
    waiting = [name for name in names if name not in bad]
    error: ContentError | None = refusal
    if not refusal.suspects:
        # The tools do not always say why: what passes by itself is nobody's fault.
        error = attempt(frozenset(bad))
    limit = len(bad) + LIMIT
    while error is not None:
        if len(bad) >= limit or not waiting:
            raise error
        named = [name for name in waiting if name in error.suspects]
        if named:
            bad.update(dict.fromkeys(named, error.what))
        else:
            culprit, reason, good = _culprit(waiting, error, attempt, bad)
            waiting = [name for name in waiting if name not in good]
            bad[culprit] = reason
        waiting = [name for name in waiting if name not in bad]
        error = attempt(frozenset(bad))


def _culprit(
    waiting: list[T],
    error: ContentError,
    attempt: Callable[[frozenset[T]], ContentError | None],
    bad: dict[T, str],
) -> tuple[T, str, set[T]]:
    """One bad member of ``waiting``, why, and those that were found good on the way."""
    good: set[T] = set()
    suspects = waiting
    while len(suspects) > 1:
        half = suspects[: len(suspects) // 2]
        trial = good.union(half)
        answer = attempt(frozenset(bad).union(name for name in waiting if name not in trial))
        if answer is None:
            good = trial
            suspects = suspects[len(half) :]
        else:
            suspects, error = half, answer
    if not good:
        # Nothing was taken so far: perhaps nothing is, with or without these members.
        answer = attempt(frozenset(bad).union(waiting))
        if answer is not None:
            raise answer
    return suspects[0], error.what, good
