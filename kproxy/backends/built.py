"""The modes that this version has, and how each of them does what every mode does.

A mode's code is imported when something of it is needed: a daemon in one mode never pays for
others. :mod:`kproxy.backends.registry` knows the modes by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from kproxy.backends.base import Backend, Watch
from kproxy.backends.xtables.layout import Layout
from kproxy.core.objects import Family, Value
from kproxy.core.snapshot import ModeSettings, Snapshot
from kproxy.core.stale_flows import Former

AnyBackend = Backend[Any, Any, Any]


class Built(Value, frozen=True):
    """A mode that this version has. ``variants`` () means that it has only one form.

    ``offered``: one chooses between the variants; else they only say whose tools write the rules
    that go with the mode, and the host decides.
    ``make(family, variant, asked)`` gives its backend; ``asked`` is what the operator wants of
    single modes. ``detect()`` is the variant that this host uses, and ``text(snapshot, variant)``
    its rules for reading, without a look at any host.
    ``watch(variant, families, spared)`` notices what others change of it. ``sweep(family, variant,
    standing, spared)`` takes away what the mode, kube-proxy's too, left in that variant, now that
    the mode ``standing`` serves instead, which has what is ``spared``; it returns whether there was
    anything. ``layout()`` are the mode's own chains and rules in the kernel's tables, if any.
    ``rival``: kube-proxy's form of the mode stands beside ours under names of its own, so that
    there is something to sweep also when the mode itself serves.
    ``former(actual)`` is what rules found in the kernel do for UDP.
    ``counts(desired)`` are its objects in force by table, and ``prepare(backend, snapshot)`` does
    what needs more rights than the daemon may have; it returns the sysctls that it set.
    """

    variants: tuple[str, ...]
    make: Callable[[Family, str, ModeSettings], AnyBackend]
    detect: Callable[[], str]
    text: Callable[[Snapshot, str], Iterator[str]]
    counts: Callable[[Any], Mapping[str, int]]
    prepare: Callable[[Any, Snapshot], tuple[tuple[str, str], ...]]
    former: Callable[[Any], Former]
    watch: Callable[[str, Iterable[Family], Iterable[str]], Watch]
    sweep: Callable[[Family, str, str, Layout | None], bool]
    layout: Callable[[], Layout] | None = None
    offered: bool = True
    rival: bool = False


def _iptables(family: Family, variant: str, asked: ModeSettings) -> AnyBackend:
    from kproxy.backends.iptables.apply import IptablesBackend

    return IptablesBackend(family, variant)


def _iptables_variant() -> str:
    from kproxy.backends.xtables.host import detect_variant

    return str(detect_variant())


def _iptables_text(snapshot: Snapshot, variant: str) -> Iterator[str]:
    from kproxy.backends.iptables.apply import IptablesBackend
    from kproxy.backends.iptables.host import Machine

    return IptablesBackend(snapshot.family, variant, machine=Machine()).text(snapshot)


def _iptables_counts(desired: Any) -> Mapping[str, int]:
    from kproxy.backends.iptables.counts import rules_by_table

    return rules_by_table(desired)


def _iptables_prepare(backend: Any, snapshot: Snapshot) -> tuple[tuple[str, str], ...]:
    from kproxy.backends.iptables.prepare import prepare

    return prepare(backend, snapshot)


def _iptables_former(actual: Any) -> Former:
    from kproxy.backends.iptables.former import former

    return former(actual)


def _iptables_watch(variant: str, families: Iterable[Family], spared: Iterable[str]) -> Watch:
    from kproxy.backends.iptables.watch import watch
    from kproxy.backends.xtables.variant import Variant

    return watch(Variant(variant), families)


def _iptables_sweep(family: Family, variant: str, standing: str, spared: Layout | None) -> bool:
    from kproxy.backends.iptables.apply import sweep
    from kproxy.backends.xtables.variant import Variant

    return sweep(family, Variant(variant), standing, spared)


def _iptables_layout() -> Layout:
    from kproxy.backends.iptables.layout import LAYOUT

    return LAYOUT


def _ipvs(family: Family, variant: str, asked: ModeSettings) -> AnyBackend:
    from kproxy.backends.ipvs.apply import IpvsBackend

    scheduler = asked.ipvs.scheduler
    if family is Family.IPV6:
        return IpvsBackend(family, variant, scheduler=scheduler)
    from kproxy.backends.ipvs.loopback import Loopback

    return IpvsBackend(family, variant, scheduler=scheduler, loopback=Loopback())


def _ipvs_variant() -> str:
    from kproxy.backends.ipvs.host import working_variant

    return str(working_variant())


def _ipvs_text(snapshot: Snapshot, variant: str) -> Iterator[str]:
    from kproxy.backends.ipvs.text import text

    return text(snapshot)


def _ipvs_counts(desired: Any) -> Mapping[str, int]:
    from kproxy.backends.ipvs.counts import rules_by_table

    return rules_by_table(desired)


def _ipvs_prepare(backend: Any, snapshot: Snapshot) -> tuple[tuple[str, str], ...]:
    from kproxy.backends.ipvs.prepare import prepare

    return prepare(backend, snapshot)


def _ipvs_former(actual: Any) -> Former:
    from kproxy.backends.ipvs.former import former

    return former(actual)


def _ipvs_watch(variant: str, families: Iterable[Family], spared: Iterable[str]) -> Watch:
    from kproxy.backends.ipvs.watch import watch
    from kproxy.backends.xtables.variant import Variant

    return watch(Variant(variant), families, spared)


def _ipvs_sweep(family: Family, variant: str, standing: str, spared: Layout | None) -> bool:
    from kproxy.backends.ipvs.sweep import sweep
    from kproxy.backends.xtables.variant import Variant

    return sweep(family, Variant(variant), standing, spared)


def _ipvs_layout() -> Layout:
    from kproxy.backends.ipvs.chains import LAYOUT

    return LAYOUT


def _userspace(family: Family, variant: str, asked: ModeSettings) -> AnyBackend:
    from kproxy.backends.userspace.apply import UserspaceBackend

    return UserspaceBackend(family, variant, settings=asked.userspace)


def _userspace_variant() -> str:
    from kproxy.backends.userspace.host import working_variant

    return str(working_variant())


def _userspace_text(snapshot: Snapshot, variant: str) -> Iterator[str]:
    from kproxy.backends.userspace.text import text

    return text(snapshot)


def _userspace_counts(desired: Any) -> Mapping[str, int]:
    from kproxy.backends.userspace.counts import rules_by_table

    return rules_by_table(desired)


def _userspace_prepare(backend: Any, snapshot: Snapshot) -> tuple[tuple[str, str], ...]:
    from kproxy.backends.userspace.prepare import prepare

    return prepare(backend, snapshot)


def _userspace_former(actual: Any) -> Former:
    from kproxy.backends.userspace.found import former

    return former(actual.rules)


def _userspace_watch(variant: str, families: Iterable[Family], spared: Iterable[str]) -> Watch:
    from kproxy.backends.userspace.watch import watch
    from kproxy.backends.xtables.variant import Variant

    return watch(Variant(variant), families)


def _userspace_sweep(family: Family, variant: str, standing: str, spared: Layout | None) -> bool:
    from kproxy.backends.userspace.sweep import sweep
    from kproxy.backends.xtables.variant import Variant

    return sweep(family, Variant(variant), standing, spared)


def _userspace_layout() -> Layout:
    from kproxy.backends.userspace.chains import LAYOUT

    return LAYOUT


def _fastpath(family: Family, variant: str, asked: ModeSettings) -> AnyBackend:
    from kproxy.backends.fastpath.apply import FastpathBackend

    return FastpathBackend(family, settings=asked.fastpath)


def _fastpath_text(snapshot: Snapshot, variant: str) -> Iterator[str]:
    from kproxy.backends.fastpath.text import text

    return text(snapshot)


def _fastpath_counts(desired: Any) -> Mapping[str, int]:
    from kproxy.backends.fastpath.counts import objects

    return objects(desired)


def _fastpath_prepare(backend: Any, snapshot: Snapshot) -> tuple[tuple[str, str], ...]:
    from kproxy.backends.fastpath.prepare import prepare

    return prepare(backend, snapshot)


def _fastpath_former(actual: Any) -> Former:
    # The engine looks at each UDP flow anew when its tables change.
    return Former()


def _fastpath_watch(variant: str, families: Iterable[Family], spared: Iterable[str]) -> Watch:
    from kproxy.backends.fastpath.watch import watch

    return watch(families)


def _fastpath_sweep(family: Family, variant: str, standing: str, spared: Layout | None) -> bool:
    from kproxy.backends.fastpath.sweep import sweep

    return sweep(family, standing)


def _nftables(family: Family, variant: str, asked: ModeSettings) -> AnyBackend:
    from kproxy.backends.nftables.apply import NftablesBackend

    return NftablesBackend(family, choice=asked.nftables.choice)


def _nftables_text(snapshot: Snapshot, variant: str) -> Iterator[str]:
    from kproxy.backends.nftables.text import text

    return text(snapshot)


def _nftables_counts(desired: Any) -> Mapping[str, int]:
    from kproxy.backends.nftables.counts import objects

    return objects(desired)


def _nftables_prepare(backend: Any, snapshot: Snapshot) -> tuple[tuple[str, str], ...]:
    from kproxy.backends.nftables.prepare import prepare

    return prepare(backend, snapshot)


def _nftables_former(actual: Any) -> Former:
    from kproxy.backends.nftables.former import former

    return former(actual)


def _nftables_watch(variant: str, families: Iterable[Family], spared: Iterable[str]) -> Watch:
    from kproxy.backends.nftables.watch import watch

    return watch(families)


def _nftables_sweep(family: Family, variant: str, standing: str, spared: Layout | None) -> bool:
    from kproxy.backends.nftables.sweep import sweep

    return sweep(family, standing)


#: Modes that are not here come in later versions. The first variant is the one that is shown when
#: nobody says which.
BUILT: dict[str, Built] = {
    "iptables": Built(
        variants=("nft", "legacy"),
        make=_iptables,
        detect=_iptables_variant,
        text=_iptables_text,
        counts=_iptables_counts,
        prepare=_iptables_prepare,
        former=_iptables_former,
        watch=_iptables_watch,
        sweep=_iptables_sweep,
        layout=_iptables_layout,
    ),
    "ipvs": Built(
        variants=("nft", "legacy"),
        make=_ipvs,
        detect=_ipvs_variant,
        text=_ipvs_text,
        counts=_ipvs_counts,
        prepare=_ipvs_prepare,
        former=_ipvs_former,
        watch=_ipvs_watch,
        sweep=_ipvs_sweep,
        layout=_ipvs_layout,
        offered=False,
    ),
    "userspace": Built(
        variants=("nft", "legacy"),
        make=_userspace,
        detect=_userspace_variant,
        text=_userspace_text,
        counts=_userspace_counts,
        prepare=_userspace_prepare,
        former=_userspace_former,
        watch=_userspace_watch,
        sweep=_userspace_sweep,
        layout=_userspace_layout,
        offered=False,
    ),
    "fastpath": Built(
        variants=(),
        make=_fastpath,
        detect=lambda: "",
        text=_fastpath_text,
        counts=_fastpath_counts,
        prepare=_fastpath_prepare,
        former=_fastpath_former,
        watch=_fastpath_watch,
        sweep=_fastpath_sweep,
    ),
    "nftables": Built(
        variants=(),
        make=_nftables,
        detect=lambda: "",
        text=_nftables_text,
        counts=_nftables_counts,
        prepare=_nftables_prepare,
        former=_nftables_former,
        watch=_nftables_watch,
        sweep=_nftables_sweep,
        rival=True,
    ),
}
