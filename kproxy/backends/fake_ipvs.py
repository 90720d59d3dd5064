"""An in-memory kernel with IPVS, sets of every kind and a dummy device, behind the same door.

It refuses what the kernel refuses, with the same errno: unknown schedulers, servers that are there
already or not at all, members of the wrong size, sets that a rule asks. It is a verified fake: one
table of scripts is run here and on the kernel, and both must end alike.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet

import msgspec

from kproxy.backends.fake import FakeIptables
from kproxy.backends.ipvs.sysctls import NAMES
from kproxy.core.members import LAYOUTS, size_of, told
from kproxy.core.objects import Family
from kproxy.core.servers import Held, HeldReal, HeldServer, Order, Refused, Timeouts, Verb
from kproxy.errors import MemberError, NetlinkError
from kproxy.kernel.dummy import RefusedAddress
from kproxy.kernel.ipset import Change

SCHEDULERS = frozenset(
    ("rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "mh", "sed", "nq", "fo", "ovf", "twos")
)

_PREFIX = {Family.IPV4: 32, Family.IPV6: 128}


class FakeIpvs(FakeIptables):
    """One family of one network namespace.

    ``ipvs`` are the virtual servers, ``device`` the addresses of the dummy device (None: there is
    none), ``spoilt`` server keys of which the kernel takes nothing, with the errno that it says,
    ``spoilt_members`` the same for members of sets, ``hosts`` the node's own addresses.
    """

    def __init__(self, family: Family = Family.IPV4) -> None:
        super().__init__()
        self.family = family
        self.kinds: dict[str, str] = {}
        self.ipvs: dict[bytes, HeldServer] = {}
        self.device: set[str] | None = None
        self.spoilt: dict[bytes, int] = {}
        self.spoilt_members: dict[bytes, int] = {}
        self.hosts: tuple[str, ...] = ()
        self.idle = Timeouts()
        self.sysctls = dict.fromkeys(NAMES, "0")

    # --- sets ----------------------------------------------------------------------------------

    def read_sets(
        self, kinds: Mapping[str, str], *, any_form: bool = False
    ) -> Mapping[str, AbstractSet[bytes] | None]:
        return {
            name: frozenset(self.sets[name]) if self.kinds.get(name) == kind else None
            for name, kind in kinds.items()
        }

    def make_sets(self, kinds: Mapping[str, str]) -> None:
        for name, kind in kinds.items():
            if self.kinds.get(name, kind) != kind and not self.destroy(name):
                raise NetlinkError(f"set {name} is another program's", errno.EEXIST)
            self.kinds[name] = kind
            self.sets.setdefault(name, set())

    def change_sets(self, changes: Iterable[Change]) -> None:
        for change in changes:
            members = self._set(change.name)
            for member in change.added:
                self._check(change.name, member)
            members.difference_update(change.gone)
            members.update(change.added)

    def destroy_sets(self, names: Iterable[str], *, wait: bool = False) -> tuple[str, ...]:
        stay = tuple(name for name in names if not self.destroy(name))
        self.kinds = {name: kind for name, kind in self.kinds.items() if name in self.sets}
        return stay

    def _check(self, name: str, member: bytes) -> None:
        kind = self.kinds[name]
        if len(member) != sum(size_of(part, self.family) for part in LAYOUTS[kind]):
            raise MemberError("no member of that set", errno.EINVAL, set_name=name, member=member)
        if member in self.spoilt_members:
            what = f"cannot add {told(kind, self.family, member)}: set {name}"
            raise MemberError(what, self.spoilt_members[member], set_name=name, member=member)

    # --- servers -------------------------------------------------------------------------------

    def servers(self) -> Held:
        return Held(dict(self.ipvs))

    def send(self, orders: Iterable[Order]) -> Sequence[Refused]:
        found = []
        for order in orders:
            code = self.spoilt.get(order.server) or _ACTS[order.verb](self, order)
            if code:
                found.append(Refused(order, code))
        return found

    def reals(self, servers: Collection[bytes]) -> Mapping[bytes, Mapping[bytes, HeldReal]]:
        there = self.ipvs
        return {each: dict(there[each].reals) if each in there else {} for each in servers}

    def load(self, server: bytes, real: bytes, connections: int) -> None:
        """Clients come or go."""
        held = self.ipvs[server]
        changed = msgspec.structs.replace(held.reals[real], active=connections)
        self._put(server, {**held.reals, real: changed})

    def _put(self, server: bytes, reals: Mapping[bytes, HeldReal]) -> None:
        self.ipvs[server] = msgspec.structs.replace(self.ipvs[server], reals=reals)

    def _add_server(self, order: Order) -> int:
        if order.server in self.ipvs:
            return errno.EEXIST
        return self._schedule(order, {})

    def _set_server(self, order: Order) -> int:
        held = self.ipvs.get(order.server)
        return errno.ESRCH if held is None else self._schedule(order, held.reals)

    def _schedule(self, order: Order, reals: Mapping[bytes, HeldReal]) -> int:
        if order.scheduling.scheduler not in SCHEDULERS:
            return errno.ENOENT
        self.ipvs[order.server] = HeldServer(order.scheduling, _PREFIX[self.family], reals)
        return 0

    def _remove_server(self, order: Order) -> int:
        return 0 if self.ipvs.pop(order.server, None) is not None else errno.ESRCH

    def _add_real(self, order: Order) -> int:
        return self._weigh(order, there=False)

    def _set_real(self, order: Order) -> int:
        return self._weigh(order, there=True)

    def _weigh(self, order: Order, *, there: bool) -> int:
        held = self.ipvs.get(order.server)
        if held is None:
            return errno.ESRCH
        known = held.reals.get(order.real)
        if (known is not None) != there:
            return errno.ENOENT if there else errno.EEXIST
        real = msgspec.structs.replace(known or HeldReal(0), weight=order.weight)
        self._put(order.server, {**held.reals, order.real: real})
        return 0

    def _remove_real(self, order: Order) -> int:
        held = self.ipvs.get(order.server)
        if held is None:
            return errno.ESRCH
        if order.real not in held.reals:
            return errno.ENOENT
        left = {real: state for real, state in held.reals.items() if real != order.real}
        self._put(order.server, left)
        return 0

    def timeouts(self) -> Timeouts:
        return self.idle

    def set_timeouts(self, timeouts: Timeouts) -> None:
        self.idle = timeouts

    # --- addresses -----------------------------------------------------------------------------

    def addresses(self) -> frozenset[str] | None:
        return None if self.device is None else frozenset(self.device)

    def bind(self, addresses: Collection[str]) -> Sequence[RefusedAddress]:
        self.device = (self.device or set()) | set(addresses)
        return []

    def unbind(self, addresses: Collection[str]) -> Sequence[RefusedAddress]:
        if self.device is not None:
            self.device -= set(addresses)
        return []

    def host_addresses(self) -> Collection[str]:
        return self.hosts

    def remove_device(self) -> None:
        if not self.device:
            self.device = None


_ACTS: dict[Verb, Callable[[FakeIpvs, Order], int]] = {
    Verb.ADD_SERVER: FakeIpvs._add_server,
    Verb.SET_SERVER: FakeIpvs._set_server,
    Verb.REMOVE_SERVER: FakeIpvs._remove_server,
    Verb.ADD_REAL: FakeIpvs._add_real,
    Verb.SET_REAL: FakeIpvs._set_real,
    Verb.REMOVE_REAL: FakeIpvs._remove_real,
}
