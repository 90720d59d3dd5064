"""nftables mode: the backend that keeps a table in step with a plan.

Whatever has to be done is one transaction: chains, elements and the end of chains that nothing
leads to any more. So is a whole table in place of one that cannot be mended: services are served
all the while.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

from kproxy.backends.base import Applied
from kproxy.backends.nftables import host, wire
from kproxy.backends.nftables.adopt import adopted
from kproxy.backends.nftables.door import NftDoor, Refused
from kproxy.backends.nftables.elements import KINDS, Record, text, unpack
from kproxy.backends.nftables.held import Held, Patch, diff, settled
from kproxy.backends.nftables.render import Desired, render
from kproxy.backends.nftables.rules import Chain, Treat, chain_of, together
from kproxy.core.objects import Family, PortName
from kproxy.core.snapshot import Snapshot
from kproxy.errors import ContentError

#: These are no verdict on what a transaction says.
_MACHINES = frozenset({errno.EPERM, errno.ENOMEM, errno.ENOBUFS, errno.EINTR})


class NftablesBackend:
    """One family, in the network namespace of the calling thread. ``choice``: how endpoints are
    picked where a Service says nothing of it."""

    mode = "nftables"

    def __init__(
        self, family: Family, *, choice: str = "random", door: NftDoor | None = None
    ) -> None:
        self.family = family
        self.door = NftDoor(family) if door is None else door
        self._choice = choice
        #: What reading may find: the chains that were last wanted.
        self._wanted: Desired | None = None

    def probe(self) -> None:
        host.probe(self.family)

    def render(self, snapshot: Snapshot, previous: Desired | None) -> Desired:
        self._wanted = render(snapshot, previous, self._choice)
        return self._wanted

    def adopted(self, desired: Desired, actual: Held) -> Desired:
        self._wanted = adopted(desired, actual)
        return self._wanted

    def read(self) -> Held:
        wanted = self._wanted
        if wanted is None:
            # Nothing of it can be told apart: nobody has said yet what there should be.
            return Held(table=self.door.stands(), family=self.family)
        return self.door.read(wanted.frame, wanted.chains)

    def settled(self, desired: Desired) -> Held:
        return settled(desired)

    def diff(self, desired: Desired, actual: Held) -> Patch | None:
        return diff(desired, actual)

    def touched(self, patch: Patch) -> Iterator[PortName]:
        return patch.names()

    def apply(self, patch: Patch) -> Applied:
        transactions = self._change(patch)
        rules = sum(len(chain.rules) for chain in patch.chains)
        elements = sum(
            len(records) for sets in (patch.added, patch.gone) for records in sets.values()
        )
        written = {"rules": rules, "elements": elements}
        return Applied(
            full=patch.full,
            written=rules + elements + len(patch.spare),
            tables=tuple((name, count) for name, count in written.items() if count),
            transactions=transactions,
        )

    def _change(self, patch: Patch) -> int:
        """Bring it about; the number of transactions."""
        chains: dict[str, tuple[bytes, ...]] = {}
        anew = None
        if patch.chains:
            forms = self.door.learned(patch.desired.frame, _learnt(patch))
            chains = {chain.name: forms.chains[chain.name][1] for chain in patch.chains}
            anew = forms.anew() if patch.rebuild else None
        change = wire.Change(patch.gone, patch.added, chains, patch.spare, anew)
        if not change:
            return 0
        try:
            self.door.change(change)
        except Refused as refused:
            if refused.code in _MACHINES:
                raise
            raise _content(patch, refused, self.family) from refused
        return 1

    def left_out(self) -> Iterator[tuple[PortName, str]]:
        """Service ports whose annotation makes no sense: they are served without."""
        if self._wanted is not None:
            yield from sorted(self._wanted.notices.items())

    def close(self) -> None:
        self.door.close()

    def cleanup(self) -> None:
        self.door.delete()
        self.door.close()


def _learnt(patch: Patch) -> dict[str, Chain]:
    """The chains of a patch, and others of their kinds: the next number of slots finds them
    learned."""
    frame, made = patch.desired.frame, {chain.name: chain for chain in patch.chains}
    kinds = [spec for spec in patch.desired.specs if spec.name in made]
    near = {one for spec in kinds for one in together(spec)}
    # What others go to comes first.
    specs = sorted(near, key=lambda spec: (isinstance(spec, Treat), spec.name))
    return {spec.name: chain_of(spec, frame) for spec in specs} | made


def _content(patch: Patch, refused: Refused, family: Family) -> ContentError:
    """Names the service ports that the kernel's word is about."""
    if refused.record is None:
        return ContentError(refused.what)
    said = text(unpack(KINDS[refused.set_name], refused.record, family))
    owners = [
        name
        for name, block in patch.desired.blocks.items()
        if _has(block.own.get(refused.set_name, ()), refused.record)
    ]
    return ContentError(f"{refused.what}: {said}", suspects=owners)


def _has(records: tuple[Record, ...], record: Record) -> bool:
    return record in records
