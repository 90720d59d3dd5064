"""What a refusal of the kernel means in IPVS mode: nothing, a service port's fault, bad luck."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence

from kproxy.backends.ipvs.diff import Patch
from kproxy.core.objects import PortName
from kproxy.core.servers import Refused, Verb
from kproxy.errors import ApplyError, CommandError, ContentError, MemberError
from kproxy.kernel.dummy import RefusedAddress
from kproxy.kernel.ipvs import told
from kproxy.kernel.xtables import lock_holder

_HINT = "see what this kernel lacks with: kproxy doctor"
_AGAIN = "it is tried again"

#: Nobody's fault: memory or a right is missing, the kernel is busy.
_PASSING = frozenset(
    {
        errno.ENOMEM,
        errno.ENOBUFS,
        errno.EAGAIN,
        errno.EINTR,
        errno.EBUSY,
        errno.EPERM,
        errno.EACCES,
    }
)

#: (verb, errno) of orders that ask for what is so already: others were quicker.
_DONE = frozenset(
    {
        (Verb.REMOVE_SERVER, errno.ESRCH),
        (Verb.REMOVE_REAL, errno.ESRCH),
        (Verb.REMOVE_REAL, errno.ENOENT),
    }
)

#: Most refusals that are told in words.
_MOST = 3


def returns(refused: Refused) -> bool:
    """Whether a real server was to be added that is there: it is to be set instead."""
    return refused.order.verb is Verb.ADD_REAL and refused.errno == errno.EEXIST


def raise_for_servers(refused: Iterable[Refused], patch: Patch | None) -> None:
    """For orders about servers; what is so already is fine. ``patch`` knows whose they are."""
    left = [each for each in refused if not _harmless(each)]
    if not left:
        return
    names = [patch.owner(each.order.server) for each in left] if patch is not None else []
    raise _error(
        [told(each) for each in left],
        [each.errno for each in left],
        [name for name in names if name is not None],
    )


def raise_for_addresses(refused: Sequence[RefusedAddress], patch: Patch) -> None:
    if refused:
        owners = [name for each in refused for name in patch.owners_of_address(each.address)]
        raise _error([str(each) for each in refused], [each.errno for each in refused], owners)


def of_member(error: MemberError, patch: Patch) -> ApplyError:
    owners = patch.owners_of_member(error.set_name, error.member)
    return _error([error.what], [error.errno], owners)


def of_rules(error: CommandError) -> ApplyError:
    """The rules are the same for all services: none is to blame."""
    said = " ".join(error.stderr.split()) or f"status {error.status}"
    holder = lock_holder() if "xtables lock" in said else ""
    where = f" It is held by {holder}." if holder else ""
    return ApplyError(f"{error.argv[0]}: {said}{where}", hint=_AGAIN if holder else _HINT)


def _harmless(refused: Refused) -> bool:
    order, code = refused
    # What was to be let go is gone already.
    quiet = (
        order.verb is Verb.SET_REAL and order.weight == 0 and code in (errno.ENOENT, errno.ESRCH)
    )
    return quiet or (order.verb, code) in _DONE


def _error(words: Sequence[str], codes: Iterable[int], owners: Sequence[PortName]) -> ApplyError:
    more = f" and {len(words) - _MOST} more" if len(words) > _MOST else ""
    what = "; ".join(words[:_MOST]) + more
    if any(code in _PASSING for code in codes):
        return ApplyError(what, hint=_AGAIN)
    return ContentError(what, suspects=tuple(dict.fromkeys(owners)), hint=_HINT)
