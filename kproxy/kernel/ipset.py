"""Sets of addresses and ports that rules may ask about: made, filled, listed and taken away.

Own packed messages on a netlink socket, because a set has fifty thousand members and a tool takes
one system call for each. Messages of any number of sets go in batches and only the last one is
acknowledged; what the kernel refuses is answered all the same (linux/netlink.h), with the number
of the message, so that set and member are known.

A member is packed as :mod:`kproxy.core.members` tells for its kind of set; the form of the
messages is :mod:`kproxy.kernel.ipset_codec`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple, Self

from kproxy.core.members import KINDS, MAX_MEMBERS, told
from kproxy.core.objects import Family
from kproxy.errors import MemberError, NetlinkError
from kproxy.kernel import ipset_codec as codec
from kproxy.kernel.channel import BATCH, Channel
from kproxy.kernel.ctnetlink import attribute, contents
from kproxy.kernel.ipset_codec import ADD, DEL, Head

__all__ = ["BUSY", "IP_PORT", "KINDS", "MAX_MEMBERS", "MAX_NAME", "TYPE_MISMATCH", "Change", "Head",
           "IpSets"]  # fmt: skip

_NETLINK_NETFILTER = 12

#: The kind that a set has when nothing is said.
IP_PORT = "hash:ip,port"

#: The kernel's limit for names, without the closing zero.
MAX_NAME = 31

#: What ipset says beside the usual errors.
BUSY, TYPE_MISMATCH = 4100, 4102
_WORDS = {
    4097: "it speaks another version of ipset",
    4098: "the kernel has no such type of set",
    4099: "there are too many sets",
    BUSY: "the set is in use",
    TYPE_MISMATCH: "the sets are of different types",
    4101: "there is no such prefix length",
    4106: "the type has no such family",
    4108: "the set is in use",
    4352: "the set is full",
    4354: "there is no such protocol",
}
#: How a destroyed set says that a rule uses it: by version of the kernel.
_IN_USE = (BUSY, 4108, errno.EBUSY)

#: How a kernel says that it has no ipset, or not this type of set.
_ABSENT = (errno.EINVAL, errno.ENOENT, errno.EOPNOTSUPP, 4098)

_VERBS = {codec.CREATE: "make", codec.DESTROY: "destroy", codec.SWAP: "swap",
          ADD: "add", DEL: "remove"}  # fmt: skip


class Change(NamedTuple):
    """What becomes of one set: members that go, then members that come."""

    name: str
    kind: str
    added: Collection[bytes] = ()
    gone: Collection[bytes] = ()


class _Run(NamedTuple):
    """Messages of one batch about one set, numbered from ``first``."""

    first: int
    command: int
    name: str
    kind: str
    members: list[bytes]


class IpSets:
    """Sets of one family in the network namespace of the thread that makes it.

    ``kind`` is ipset's own name of the type, one of :data:`KINDS`. A set of ports (bitmap:port) has
    no family: it is the same one, whichever family is asked. NetlinkError when the kernel refuses,
    naming the set; MemberError naming set and member.
    """

    def __init__(self, family: Family) -> None:
        self.family = family
        self._revisions: dict[str, int | None] = {}
        self._channel = Channel(_NETLINK_NETFILTER, "sets")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    # --- sets ----------------------------------------------------------------------------------

    def revision(self, kind: str = IP_PORT) -> int | None:
        """The newest revision of the type that this kernel has; None when it has no ipset."""
        if kind not in self._revisions:
            self._revisions[kind] = self._ask_revision(kind)
        return self._revisions[kind]

    def create(self, name: str, kind: str = IP_PORT) -> None:
        """Make a set. Fine when there is the very same; another one of this name and type gives
        way to an empty one, in one step for the rules that use it; one of another type as well,
        unless a rule uses it: that rule would ask it for what it does not have."""
        try:
            self._create(name, kind)
        except NetlinkError as refused:
            if refused.errno != errno.EEXIST:
                raise
            self._replace(name, kind)

    def destroy(self, name: str) -> bool:
        """Whether there is no such set now: a rule that uses it keeps it."""
        try:
            self._order(codec.DESTROY, name)
        except NetlinkError as refused:
            if refused.errno in _IN_USE:
                return False
            if refused.errno not in _ABSENT:
                raise
        return True

    def swap(self, name: str, other: str) -> None:
        """Each gets the other's members, and the rules that use it."""
        self._order(codec.SWAP, name, attribute(codec.NAME2, codec.text(other)))

    def heads(self) -> dict[str, Head]:
        """All sets of the namespace without their members: one question, a datagram or two.

        The kernel walks a hashed set to count it: 0.25 ms for 55,000 members, where a listing of
        them takes 7."""
        flags = codec.number(codec.FLAGS, codec.LIST_HEADERS)
        found = (codec.head_of(*message, self.family) for message in self._listing(flags))
        return dict(named for named in found if named is not None)

    def _ask_revision(self, kind: str) -> int | None:
        code = codec.family_code(kind, self.family)
        body = attribute(codec.TYPE_NAME, codec.text(kind))
        body += attribute(codec.FAMILY, bytes((code,)))
        try:
            answer = self._channel.ask(codec.SUBSYSTEM | codec.TYPE, self._body(body))
        except NetlinkError as refused:
            if refused.errno not in _ABSENT:
                raise
            return None
        for _, buffer, at, end in answer:
            for number, start, _ in contents(buffer, at + codec.HEAD, end):
                if number == codec.REVISION:
                    return buffer[start]
        return None

    def _create(self, name: str, kind: str) -> None:
        revision = self.revision(kind)
        if revision is None:
            raise NetlinkError(
                f"cannot make set {name}: this kernel has no sets of type {kind}",
                errno.EOPNOTSUPP,
                hint=f"try: modprobe -a {KINDS[kind].module} xt_set",
            )
        code = codec.family_code(kind, self.family)
        body = attribute(codec.TYPE_NAME, codec.text(kind))
        body += attribute(codec.REVISION, bytes((revision,)))
        body += attribute(codec.FAMILY, bytes((code,)))
        body += attribute(codec.DATA | codec.NESTED, codec.options(kind))
        self._order(codec.CREATE, name, body)

    def _replace(self, name: str, kind: str) -> None:
        spare = f"{name[: MAX_NAME - 4]}-NEW"
        self.destroy(spare)
        self._create(spare, kind)
        try:
            self.swap(name, spare)
        except NetlinkError as refused:
            if refused.errno != TYPE_MISMATCH:
                raise
            self._supplant(name, kind)
        finally:
            self.destroy(spare)

    def _supplant(self, name: str, kind: str) -> None:
        """Make a set where there is one of another type, or of the other family."""
        if not self.destroy(name):
            there = self.heads().get(name)
            other = there is not None and there.kind != kind
            what = f"of type {there.kind}" if there and other else "of the other family"
            raise NetlinkError(
                f"set {name} is another program's, {what}, and a rule uses it",
                TYPE_MISMATCH,
                hint=f"find that rule with: iptables-save | grep -w -e {name} (also ip6tables-save,"
                f" and iptables-legacy-save), delete it, then: ipset destroy {name}",
            )
        self._create(name, kind)

    # --- members -------------------------------------------------------------------------------

    def add(self, name: str, members: Iterable[bytes], kind: str = IP_PORT) -> None:
        """Put members in; those that are there already are fine."""
        self._work_off([(ADD, name, kind, members)])

    def remove(self, name: str, members: Iterable[bytes], kind: str = IP_PORT) -> None:
        """Take members out; those that are gone already are fine."""
        self._work_off([(DEL, name, kind, members)])

    def change(self, changes: Iterable[Change]) -> None:
        """Bring several sets to their changes, in this order, in as few sends as they fill.

        A MemberError leaves done what came before the refused member, and what stood behind it in
        the same send; all of it may be asked for again."""
        self._work_off(
            (command, change.name, change.kind, members)
            for change in changes
            for command, members in ((DEL, change.gone), (ADD, change.added))
        )

    def members(
        self, name: str, kind: str = IP_PORT, *, any_form: bool = False
    ) -> set[bytes] | None:
        """All members; None when there is no such set as :meth:`create` makes. ``any_form``: one of
        this kind that holds more or fewer, or says more of each, will do."""
        form = codec.form(kind, self.family)
        found: set[bytes] = set()
        ours = False
        for buffer, at, end in self._listing(attribute(codec.NAME, codec.text(name))):
            head = codec.head_of(buffer, at, end, self.family)
            if head is not None:
                ours = _readable(head[1], kind, any_form=any_form)
            if not ours:
                continue
            for number, start, stop in contents(buffer, at, end):
                if number == codec.ADT:
                    found.update(form.unpack(buffer[start:stop]))
        if any_form:
            found = {one[: form.size] for one in found}
        return found if ours else None

    def read(
        self, kinds: Mapping[str, str], *, any_form: bool = False
    ) -> dict[str, set[bytes] | None]:
        """:meth:`members` of many sets, name -> kind. Empty ones are not asked one by one."""
        heads = self.heads()
        found: dict[str, set[bytes] | None] = {}
        for name, kind in kinds.items():
            head = heads.get(name)
            if head is None or not _readable(head, kind, any_form=any_form):
                found[name] = None
            elif head.elements:
                found[name] = self.members(name, kind, any_form=any_form)
            else:
                found[name] = set()
        return found

    def told(self, member: bytes, kind: str = IP_PORT) -> str:
        """A member as people write it."""
        return told(kind, self.family, member)

    def _work_off(self, orders: Iterable[tuple[int, str, str, Iterable[bytes]]]) -> None:
        """(command, set, kind, members) of each, packed into batches of several sets."""
        batch, runs, unit, count = bytearray(), list[_Run](), 0, 0
        for command, name, kind, members in orders:
            form = codec.form(kind, self.family)
            wanted, at = self._fitting(form, command, name, list(members)), 0
            while at < len(wanted):
                room = min((BATCH - len(batch)) // form.unit(name), self._channel.most - count)
                if room <= 0:
                    self._deliver(batch, runs, unit)
                    batch, runs, count = bytearray(), [], 0
                    continue
                some, at = wanted[at : at + room], at + room
                run = _Run(self._channel.number(len(some)), command, name, kind, some)
                batch += form.orders(command, name, some, run.first)
                runs.append(run)
                unit, count = form.unit(name), count + len(some)
        if batch:
            self._deliver(batch, runs, unit)

    def _fitting(self, form: codec.Form, command: int, name: str, members: list[bytes]
                 ) -> list[bytes]:  # fmt: skip
        """Members of the size of their kind. What a listing marks with a byte more is taken out by
        what it is without."""
        if set(map(len, members)) <= {form.size}:
            return members
        if command == DEL:
            members = [one[: form.size] for one in members]
        for one in members:
            if len(one) != form.size:
                what = f"add {one.hex()}: set {name}: no member of a {form.kind} set"
                raise MemberError(f"cannot {what}", errno.EINVAL, set_name=name, member=one)
        return members

    def _deliver(self, batch: bytearray, runs: list[_Run], unit: int) -> None:
        """One send, whose last message has ``unit`` bytes, and its answer."""
        refused = self._channel.deliver(batch, len(batch) - unit)
        if not refused:
            return
        number, code = refused[0]
        run = next(one for one in reversed(runs) if one.first <= number)
        member = run.members[number - run.first]
        what = f"{_VERBS[run.command]} {self.told(member, run.kind)}: set {run.name}"
        raise MemberError(_sentence(what, code), code, set_name=run.name, member=member)

    # --- messages ------------------------------------------------------------------------------

    def _order(self, command: int, name: str, more: bytes = b"") -> None:
        """One message that is acknowledged."""
        body = codec.head(self.family) + codec.named(name) + more
        code = self._channel.order(codec.SUBSYSTEM | command, 0, body)
        if code:
            raise NetlinkError(_sentence(f"{_VERBS[command]} set {name}", code), code)

    def _body(self, body: bytes) -> bytes:
        return codec.head(self.family) + codec.version() + body

    def _listing(self, body: bytes) -> Iterator[tuple[bytes, int, int]]:
        """(datagram, start, end of the attributes) of each message of a listing; none when there is
        no such set, or no ipset."""
        try:
            found = self._channel.dump(codec.SUBSYSTEM | codec.LIST, self._body(body))
        except NetlinkError as refused:
            if refused.errno not in _ABSENT:
                raise
            return
        for _, buffer, at, end in found:
            yield buffer, at + codec.HEAD, end


def _readable(head: Head, kind: str, *, any_form: bool) -> bool:
    return head.kind == kind and (head.family if any_form else head.ours)


def _sentence(what: str, code: int) -> str:
    return f"cannot {what}: {_WORDS.get(code) or os.strerror(code)}"
