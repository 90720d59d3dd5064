"""The door of IPVS mode to the kernel: rules, sets, virtual servers, addresses and sysctls.

Everything acts in the network namespace of the calling thread, for one family. Nothing here knows
what is wanted; refusals come back as values, because the caller knows whose they are.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Protocol

from kproxy.backends.xtables.door import ToolDoor, destroy_sets
from kproxy.backends.xtables.variant import Variant
from kproxy.core.objects import Family
from kproxy.core.servers import Held, HeldReal, Order, Refused, Timeouts
from kproxy.errors import NetlinkError
from kproxy.kernel import addresses, dummy, sysctl
from kproxy.kernel.dummy import RefusedAddress
from kproxy.kernel.ipset import Change, IpSets
from kproxy.kernel.ipvs import Ipvs

#: There when IPVS is, in the namespace of the thread that looks.
_LISTING = Path("/proc/thread-self/net/ip_vs")

#: Sysctls that are there when IPVS is.
_IPVS = "net/ipv4/vs/"


class Door(Protocol):
    """What the backend needs of a kernel; the in-memory one is
    :mod:`kproxy.backends.fake_ipvs`."""

    def restore(self, chunks: Iterable[bytes]) -> None:
        """One call of the restore tool, nothing flushed that is not named.

        All or nothing in each table. CommandError when refused.
        """

    def save(self) -> str:
        """All tables as the save tool prints them."""

    def read_sets(
        self, kinds: Mapping[str, str], *, any_form: bool = False
    ) -> Mapping[str, AbstractSet[bytes] | None]:
        """Members of sets, packed, for names and their kinds; None where there is no such set as
        :meth:`make_sets` makes, or, in ``any_form``, none of that kind."""

    def make_sets(self, kinds: Mapping[str, str]) -> None:
        """Make sets that are missing; one of another form gives way to an empty one, and one of
        another kind as well unless a rule asks it (NetlinkError)."""

    def change_sets(self, changes: Iterable[Change]) -> None:
        """Put members in and take members out. MemberError names the first that is refused; others
        behind it may be in."""

    def destroy_sets(self, names: Iterable[str], *, wait: bool = False) -> tuple[str, ...]:
        """Those that stay, because a rule asks them. ``wait``: such rules have just been deleted,
        and the kernel may need a moment to let go."""

    def servers(self) -> Held:
        """All virtual servers of the family with their real ones."""

    def send(self, orders: Iterable[Order]) -> Sequence[Refused]:
        """Carry out orders, in this order; goes on past those that are refused."""

    def reals(self, servers: Collection[bytes]) -> Mapping[bytes, Mapping[bytes, HeldReal]]:
        """Real servers of some virtual ones; none for one that is not there."""

    def timeouts(self) -> Timeouts:
        """Of idle connections, for both families."""

    def set_timeouts(self, timeouts: Timeouts) -> None: ...

    def addresses(self) -> frozenset[str] | None:
        """Of the family on the dummy device; None when there is no device."""

    def bind(self, addresses: Collection[str]) -> Sequence[RefusedAddress]:
        """Put addresses on the dummy device, which is made when it is missing."""

    def unbind(self, addresses: Collection[str]) -> Sequence[RefusedAddress]:
        """Take addresses off it."""

    def host_addresses(self) -> Collection[str]:
        """The node's own, of both families: all but those on the dummy device."""

    def remove_device(self) -> None:
        """The dummy device goes when no address of either family is on it; fine when there is
        none."""

    def sysctl(self, name: str) -> str | None:
        """Current value, None when this kernel has no such sysctl."""

    def set_sysctl(self, name: str, value: str) -> None:
        """Set it, and remember what it was."""

    def forget_sysctls(self) -> None:
        """Set back what :meth:`set_sysctl` changed."""


class KernelDoor:
    """The kernel itself; ``records`` is where sysctls are recorded."""

    def __init__(self, family: Family, variant: Variant, *, records: Path = sysctl.RECORDS) -> None:
        self.family = family
        self.records = records
        self._rules = ToolDoor(family, variant, records=records)

    def restore(self, chunks: Iterable[bytes]) -> None:
        self._rules.restore(chunks)

    def save(self) -> str:
        return self._rules.save()

    def read_sets(
        self, kinds: Mapping[str, str], *, any_form: bool = False
    ) -> Mapping[str, AbstractSet[bytes] | None]:
        with IpSets(self.family) as sets:
            return sets.read(kinds, any_form=any_form)

    def make_sets(self, kinds: Mapping[str, str]) -> None:
        with IpSets(self.family) as sets:
            for name, kind in kinds.items():
                sets.create(name, kind)

    def change_sets(self, changes: Iterable[Change]) -> None:
        with IpSets(self.family) as sets:
            sets.change(changes)

    def destroy_sets(self, names: Iterable[str], *, wait: bool = False) -> tuple[str, ...]:
        return destroy_sets(self.family, names, wait=wait)

    def servers(self) -> Held:
        if not _LISTING.exists():
            # Asking would load IPVS into a kernel of which nobody wants it.
            return Held({})
        with Ipvs(self.family) as ipvs:
            return ipvs.dump()

    def send(self, orders: Iterable[Order]) -> Sequence[Refused]:
        with Ipvs(self.family) as ipvs:
            return ipvs.send(orders)

    def reals(self, servers: Collection[bytes]) -> Mapping[bytes, Mapping[bytes, HeldReal]]:
        with Ipvs(self.family) as ipvs:
            return ipvs.reals(servers)

    def timeouts(self) -> Timeouts:
        if not _LISTING.exists():
            return Timeouts()
        with Ipvs(self.family) as ipvs:
            return ipvs.timeouts()

    def set_timeouts(self, timeouts: Timeouts) -> None:
        with Ipvs(self.family) as ipvs:
            ipvs.set_timeouts(timeouts)

    def addresses(self) -> frozenset[str] | None:
        return dummy.addresses(family=self.family)

    def bind(self, addresses: Collection[str]) -> Sequence[RefusedAddress]:
        if addresses:
            try:
                return dummy.add(addresses)
            except NetlinkError as refused:
                if refused.errno != errno.ENODEV:
                    raise
        dummy.ensure()
        return dummy.add(addresses)

    def unbind(self, addresses: Collection[str]) -> Sequence[RefusedAddress]:
        return dummy.remove(addresses)

    def host_addresses(self) -> Collection[str]:
        return addresses.host_addresses()

    def remove_device(self) -> None:
        if not dummy.addresses():
            dummy.delete()

    def sysctl(self, name: str) -> str | None:
        return sysctl.read(name)

    def set_sysctl(self, name: str, value: str) -> None:
        if name.startswith(_IPVS) and not _LISTING.exists():
            Ipvs(self.family).close()  # loads the module, which brings the sysctl
        sysctl.change(name, value, records=self.records)

    def forget_sysctls(self) -> None:
        sysctl.restore(records=self.records)
