"""The door to nf_tables: netlink messages of our own, with rules that libnftables has made.

In the network namespace of the thread that first uses it. How the kernel gives back a rule depends
on the library that made it: what ours look like is learned once from a table in a scratch
namespace, and sent as those bytes.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from typing import TypeVar

from kproxy.backends.nftables import wire
from kproxy.backends.nftables.elements import KINDS, Record, attribute, attributes
from kproxy.backends.nftables.held import Held
from kproxy.backends.nftables.library import Nft
from kproxy.backends.nftables.rules import TABLE, WORD, Chain, Frame, base, leads
from kproxy.backends.nftables.script import chain_text, skeleton
from kproxy.core.objects import Family, Value
from kproxy.errors import ApplyError, NetlinkError
from kproxy.kernel import netns
from kproxy.kernel.nftables import Kind, Listener

#: The table of kube-proxy's nftables mode.
KUBE_PROXYS = "kube-proxy"

_NETLINK_NETFILTER = 12
_SOL_NETLINK, _CAP_ACK, _EXT_ACK = 270, 10, 11
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_BUFFER = 1 << 20
_TRIES = 5
#: Listings of a set whose elements are on the move, at most.
_MOVES = 20
#: No such table, or a kernel that has no tables of the family, or none at all.
_NOT_THERE = frozenset({errno.ENOENT, errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.EINVAL})
#: A kernel without netlink for filters at all.
_NO_NETFILTER = frozenset({errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT})
#: linux/netfilter/nf_tables.h, attributes of tables, chains, rules and sets.
_GETTABLE, _TABLE_FLAGS = 1, 2
_NAME, _HOOK, _POLICY, _TYPE = 3, 4, 5, 7
_RULE_CHAIN, _EXPRESSIONS = 2, 4
_CHAIN_FLAGS, _BINDING = 10, 0x4
_HOOK_NUMBER, _HOOK_PRIORITY = 1, 2
#: Flags, types and lengths of key and data; size, time-out, and what each element carries.
_SET_NAME, _SET_ESSENCE = 2, (3, 4, 5, 6, 7, 9, 11, 17, 18)
#: … of these, lists of attributes; and how the library would have a set shown.
_SET_FLAGS, _SET_NESTS, _SET_NOTE, _NEST = 3, (9, 17, 18), 13, 0x8000
_OF_TABLE = 1
#: Of tables and sets, among their flags.
_DORMANT, _ANONYMOUS = 0x1, 0x1
_VERSIONS = {Family.IPV4: 2, Family.IPV6: 10}

#: How the kernel gives a chain back: what makes it a base chain (hook, policy and type, as
#: attributes; b"" for others), and the expressions of its rules.
Form = tuple[bytes, tuple[bytes, ...]]

Made = TypeVar("Made")


class Refused(ApplyError):
    """A transaction of elements was refused; ``record`` of ``set_name`` is to blame, None where
    the kernel does not say."""

    def __init__(self, what: str, code: int, set_name: str = "", record: Record | None = None):
        self.code, self.set_name, self.record = code, set_name, record
        super().__init__(what)


class Forms(Value, frozen=True):
    """What stands in a table, as the kernel gives it back. ``sets`` are attributes that say flags,
    types and lengths, ``notes`` such that say how to show them. ``asleep``: none of it is in
    force."""

    chains: dict[str, Form]
    sets: Mapping[str, bytes]
    notes: Mapping[str, bytes]
    asleep: bool = False

    def anew(self) -> wire.Anew:
        """To make the same table of."""
        sets = {name: made + self.notes[name] for name, made in self.sets.items()}
        return wire.Anew(sets, {name: head for name, (head, _) in self.chains.items() if head})


class NftDoor:
    """One family's table."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self._socket: socket.socket | None = None
        self._nft: Nft | None = None
        self._learned: dict[Frame, Forms] = {}
        #: Hears whether it is our table that changes, while it is listed.
        self._ear: Listener | None = None

    # --- writing ---

    def run(self, script: str) -> None:
        """What nft reads: one transaction."""
        if self._nft is None:
            self._nft = Nft()
        self._nft.run(script)

    def change(self, change: wire.Change) -> None:
        """One transaction. Refused when it is not taken; nothing has changed then."""
        batch = wire.batch(self.family, TABLE, change)
        self._send(batch.data)
        self._await(batch)

    def _await(self, batch: wire.Batch) -> None:
        last, refused = len(batch.messages), None
        for answer in self._answers():
            if answer.error is None:
                continue
            if answer.error and refused is None:
                refused = _refused(batch, answer)
            # Number 0 is of the transaction as a whole.
            if answer.number in (0, last):
                break
        if refused is not None:
            raise refused

    # --- reading ---

    def read(self, frame: Frame, wanted: Mapping[str, Chain]) -> Held:
        """``wanted`` are the chains that something may be found to be; see
        :class:`kproxy.backends.nftables.held.Held`."""
        with self._listening():
            return self._read(frame, wanted)

    def _read(self, frame: Frame, wanted: Mapping[str, Chain]) -> Held:
        there = self._settled(self.forms)
        if not there.sets and not there.chains:
            return Held(table=False)
        known = self.learned(frame, wanted)
        # A map of others may lead to chains of ours, which then cannot go.
        whole = there.sets == known.sets and not there.asleep
        chains = {
            name: wanted[name] if name in wanted and known.chains[name] == form else None
            for name, form in there.chains.items()
        }
        for name, chain in wanted.items():
            # One whose hook is another cannot be mended.
            if name in chains and there.chains[name][0] != known.chains[name][0]:
                whole = False
            if chain.hook is not None and name not in chains:
                whole = False
        members = {name: self.members(name) for name in KINDS} if whole else None
        return Held(table=whole, chains=chains, elements=members, family=self.family)

    def forms(self, table: str = TABLE) -> Forms:
        """Chains, rules and sets, without elements."""
        heads: dict[str, bytes] = {}
        rules: dict[str, list[bytes]] = {}
        named = table.encode() + b"\0"
        for body in self._listing(wire.ask(wire.GETCHAIN, self.family, table)):
            found = attributes(body)
            # The kernel lists the chains of all tables.
            # What a rule leads to without a name goes with the rule, and cannot be deleted.
            bound = int.from_bytes(found.get(_CHAIN_FLAGS, b"")) & _BINDING
            if found.get(_OF_TABLE) == named and not bound:
                heads[_text(found[_NAME])] = _head(found)
        for body in self._listing(wire.ask(wire.GETRULE, self.family, table)):
            found = attributes(body)
            expressions = found.get(_EXPRESSIONS, b"")
            rules.setdefault(_text(found[_RULE_CHAIN]), []).append(expressions)
        sets, notes = {}, {}
        for body in self._listing(wire.ask(wire.GETSET, self.family, table)):
            found = attributes(body)
            # What a rule has without a name goes with the rule.
            if not int.from_bytes(found.get(_SET_FLAGS, b"")) & _ANONYMOUS:
                name = _text(found[_SET_NAME])
                sets[name] = _packed(found, _SET_ESSENCE, _SET_NESTS)
                notes[name] = _packed(found, (_SET_NOTE,))
        chains = {name: (head, tuple(rules.get(name, ()))) for name, head in heads.items()}
        return Forms(chains, sets, notes, bool((self._flags(table) or 0) & _DORMANT))

    def _flags(self, table: str) -> int | None:
        """Of a table; None when there is none."""
        named = table.encode() + b"\0"
        for body in self._listing(wire.ask(_GETTABLE, self.family, "")):
            found = attributes(body)
            if found.get(_OF_TABLE) == named:
                return int.from_bytes(found.get(_TABLE_FLAGS, b""))
        return None

    def members(self, name: str) -> set[Record]:
        """The elements of one set.

        For a while after many were added the kernel moves them to larger tables, and a listing that
        is made meanwhile has some of them twice, others not at all (nft_set_hash's walk goes on by
        counting). None is there that the set has not: several listings together are whole.
        """
        request = wire.ask(wire.GETSETELEM, self.family, TABLE, name)
        found: set[Record] = set()
        for _ in range(_MOVES):
            listed = self._settled(lambda: wire.records(self._listing(request)))
            members = set(listed)
            if len(members) == len(listed):
                return members
            found |= members
        return found

    def stands(self, table: str = TABLE) -> bool:
        """Whether there is a table, whatever is in it."""
        try:
            return self._settled(lambda: self._flags(table)) is not None
        except OSError as error:
            if error.errno in _NO_NETFILTER:
                return False
            raise

    def delete(self, table: str = TABLE) -> bool:
        """Take a table away, whatever is in it; whether there was one."""
        found = self.stands(table)
        if found:
            self.run(f"delete table {WORD[self.family]} {table}\n")
        return found

    def learned(self, frame: Frame, wanted: Mapping[str, Chain]) -> Forms:
        """How the kernel gives back what the mode makes; of all chains since the frame changed."""
        known = self._learned.get(frame, Forms({}, {}, {}))
        more = wanted.keys() - known.chains.keys()
        if not more and known.sets:
            return known
        fixed = {chain.name for chain in base(frame)}
        chains = [chain for name, chain in wanted.items() if name in more - fixed]
        # What they go to has to be there.
        led = {go for chain in chains for go in leads(chain)} - more - fixed
        stubs = "".join(f"add chain {WORD[self.family]} {TABLE} {name}\n" for name in sorted(led))
        script = skeleton(frame) + stubs + "".join(chain_text(chain, frame) for chain in chains)
        with netns.fresh(), closing(NftDoor(self.family)) as scratch:
            scratch.run(script)
            found = scratch.forms()
        for name in led:
            del found.chains[name]
        known = Forms({**found.chains, **known.chains}, found.sets, found.notes)
        self._learned = {frame: known}
        return known

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        if self._nft is not None:
            self._nft.close()
        self._socket = self._nft = None

    # --- netlink ---

    def _open(self) -> socket.socket:
        if self._socket is None:
            kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
            made = socket.socket(socket.AF_NETLINK, kind, _NETLINK_NETFILTER)
            made.bind((0, 0))
            for option in (_CAP_ACK, _EXT_ACK):
                made.setsockopt(_SOL_NETLINK, option, 1)
            made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 4 * _BUFFER)
            self._socket = made
        return self._socket

    def _send(self, data: bytes) -> None:
        opened = self._open()
        try:
            # The kernel doubles what it is told, and keeps some for itself.
            opened.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, len(data) + 4096)
            opened.send(data)
        except OSError as error:
            raise _failed("send a transaction", error.errno or 0) from error

    def _answers(self) -> Iterator[wire.Answer]:
        opened = self._open()
        while True:
            try:
                yield from wire.answers(opened.recv(_BUFFER))
            except OSError as error:
                # What is still to come is no answer to what is asked next.
                opened.close()
                self._socket = None
                raise _failed("hear what became of elements", error.errno or 0) from error

    def _listing(self, request: bytes) -> Iterable[bytes]:
        """All that is listed; _Torn when it changed meanwhile, nothing when it is not there."""
        self._send(request)
        found: list[bytes] = []
        torn = False
        for answer in self._answers():
            torn = torn or answer.torn
            if answer.over:
                break
            if answer.error is not None:
                if answer.error in _NOT_THERE:
                    break
                raise _failed("list rules", answer.error)
            found.append(answer.body)
        # The kernel says so after any transaction, also one on a table of somebody else.
        if torn and (self._ear is None or _ours(self._ear, self.family)):
            raise _Torn
        return found

    def _settled(self, look: Callable[[], Made]) -> Made:
        with self._listening():
            for _ in range(_TRIES):
                with suppress(_Torn):
                    return look()
        raise NetlinkError("rules change faster than they can be read", errno.EINTR)

    @contextmanager
    def _listening(self) -> Iterator[None]:
        if self._ear is not None:
            yield
            return
        with closing(Listener()) as self._ear:
            try:
                yield
            finally:
                self._ear = None


class _Torn(Exception):
    """Rules changed while they were listed."""


def _ours(ear: Listener, family: Family) -> bool:
    """Whether a table of ours, or of kube-proxy, may have changed since this was last asked."""
    found, lost = ear.heard()
    return lost or any(
        event.kind is not Kind.NEWGEN
        and event.family == _VERSIONS[family]
        and event.table in (TABLE, KUBE_PROXYS)
        for event in found
    )


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")


def _head(found: Mapping[int, bytes]) -> bytes:
    """Of a chain: its hook's number and priority, its policy and its type."""
    hook = _packed(attributes(found.get(_HOOK, b"")), (_HOOK_NUMBER, _HOOK_PRIORITY))
    return _packed({**found, _HOOK: hook}, (_HOOK, _POLICY, _TYPE), (_HOOK,))


def _packed(found: Mapping[int, bytes], kinds: Iterable[int], nests: Collection[int] = ()) -> bytes:
    """Attributes of some kinds as they are sent; those that are not there, or empty, are not."""
    return b"".join(
        attribute(kind | (_NEST if kind in nests else 0), found[kind])
        for kind in kinds
        if found.get(kind)
    )


def _refused(batch: wire.Batch, answer: wire.Answer) -> Refused:
    code = answer.error or 0
    why = f"the kernel refuses elements: {os.strerror(code)}"
    if not 1 <= answer.number <= len(batch.messages):
        return Refused(why, code)
    message = batch.messages[answer.number - 1]
    if message is None:
        return Refused(f"the kernel refuses rules: {os.strerror(code)}", code)
    return Refused(f"{why} (set {message.set})", code, message.set, message.at(answer.offset))


def _failed(what: str, code: int) -> NetlinkError:
    return NetlinkError(f"cannot {what}: {os.strerror(code)}", code, hint="run as root")
