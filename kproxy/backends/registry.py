"""Names of modes and their variants, and the backend that each name stands for.

A mode's code is imported when a backend of it is made: a daemon in one mode never pays for others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from kproxy.backends.base import Backend, Watch
from kproxy.backends.xtables.layout import Layout
from kproxy.config_check import MODES
from kproxy.core.objects import Family, Value
from kproxy.core.snapshot import ModeSettings, Snapshot
from kproxy.core.stale_flows import Former
from kproxy.errors import UsageError

AUTO = "auto"

AnyBackend = Backend[Any, Any, Any]


class Built(Value, frozen=True):
    """A mode that this version has. ``variants`` () means that it has only one form.

    ``offered``: one chooses between the variants; else they only say whose tools write the rules
    that go with the mode, and the host decides.
    ``make(family, variant, asked)`` gives its backend; ``asked`` is what the operator wants of
    single modes. ``detect()`` is the variant that this host uses, and ``text(snapshot, variant)``
    its rules for reading, without a look at any host.
    ``watch(variant, families, spared)`` notices what others change of it. ``sweep(family, variant,
    standing)`` takes away what the mode, kube-proxy's too, left in that variant, now that the mode
    ``standing`` serves instead; it returns whether there was anything.
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
    sweep: Callable[[Family, str, Choice], bool]
    offered: bool = True


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


def _iptables_sweep(family: Family, variant: str, standing: Choice) -> bool:
    from kproxy.backends.iptables.apply import sweep
    from kproxy.backends.xtables.variant import Variant

    return sweep(family, Variant(variant), standing.mode, _spared(standing, variant))


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


def _ipvs_sweep(family: Family, variant: str, standing: Choice) -> bool:
    from kproxy.backends.ipvs.sweep import sweep
    from kproxy.backends.xtables.variant import Variant

    return sweep(family, Variant(variant), standing.mode, _spared(standing, variant))


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


def _userspace_sweep(family: Family, variant: str, standing: Choice) -> bool:
    from kproxy.backends.userspace.sweep import sweep
    from kproxy.backends.xtables.variant import Variant

    return sweep(family, Variant(variant), standing.mode, _spared(standing, variant))


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


def _fastpath_sweep(family: Family, variant: str, standing: Choice) -> bool:
    from kproxy.backends.fastpath.sweep import sweep

    return sweep(family, standing.mode)


#: Which chains and rules of the kernel's tables are a mode's, for the modes that have some.
_LAYOUTS: dict[str, Callable[[], Layout]] = {
    "iptables": _iptables_layout,
    "ipvs": _ipvs_layout,
    "userspace": _userspace_layout,
}


def _spared(standing: Choice, variant: str) -> Layout | None:
    """What a sweep of this variant must leave alone."""
    layout = _LAYOUTS.get(standing.mode)
    return layout() if layout is not None and standing.variant == variant else None


#: Modes that are not here come in later versions. The first variant is the one that is shown when
#: nobody says which.
_BUILT: dict[str, Built] = {
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
}


class Choice(Value, frozen=True):
    """A mode and its variant: ``auto`` where the host decides, "" where there is only one form."""

    mode: str
    variant: str = ""

    def __str__(self) -> str:
        named = self.variant not in ("", AUTO) and self.mode in _BUILT and variants(self.mode)
        return f"{self.mode}-{self.variant}" if named else self.mode


def built(mode: str) -> bool:
    """Whether this version of kproxy has the mode."""
    return mode in _BUILT


def variants(mode: str) -> tuple[str, ...]:
    """The variants of a mode that is built, to choose from; () when it has only one form."""
    return _BUILT[mode].variants if _BUILT[mode].offered else ()


def names() -> tuple[str, ...]:
    """Every name that :func:`parse` takes, modes before their variants."""
    return tuple(str(Choice(mode, variant)) for mode in _BUILT for variant in ("", *variants(mode)))


def choices() -> tuple[Choice, ...]:
    """What ``--mode all`` stands for: each variant of each built mode."""
    return tuple(
        Choice(mode, variant) for mode in _BUILT for variant in variants(mode) or (_alone(mode),)
    )


def _alone(mode: str) -> str:
    """The variant of a mode by its bare name."""
    return AUTO if _BUILT[mode].variants else ""


def parse(name: str) -> Choice:
    """``iptables`` or ``iptables-nft``. UsageError, naming what there is, for anything else."""
    mode, _, variant = name.partition("-")
    if mode in MODES and not built(mode):
        raise UsageError(
            f"mode {mode} is not in this version of kproxy", hint=f"it has: {', '.join(names())}"
        )
    if mode not in _BUILT or (variant and variant not in variants(mode)):
        raise UsageError(f"unknown mode {name!r}", hint=f"there are: {', '.join(names())}")
    return Choice(mode, variant or _alone(mode))


def named(mode: str, variant: str = AUTO) -> Choice:
    """The choice that a mode and a ``--iptables-variant`` mean together; UsageError as above."""
    choice = parse(mode)
    if variant == AUTO or variant not in _BUILT[choice.mode].variants:
        return choice if variant == AUTO else parse(f"{choice.mode}-{variant}")
    return Choice(choice.mode, variant)


def resolve(choice: Choice) -> Choice:
    """The same with ``auto`` replaced by what this host uses (looks at the host)."""
    if choice.variant != AUTO:
        return choice
    return Choice(choice.mode, _BUILT[choice.mode].detect())


def create(
    choice: Choice,
    family: Family,
    asked: ModeSettings = ModeSettings(),  # noqa: B008 (frozen)
) -> AnyBackend:
    """A backend for one family in the calling thread's network namespace; not yet probed.

    ``asked`` is what the operator wants of single modes: each looks at its own.
    """
    return _BUILT[choice.mode].make(family, resolve(choice).variant, asked)


def watch(choice: Choice, families: Iterable[Family], spared: Iterable[str] = ()) -> Watch:
    """Notices what others change, in the calling thread's namespace. ``spared`` are ranges in which
    virtual servers (ipvs mode) are somebody else's."""
    return _BUILT[choice.mode].watch(choice.variant, families, spared)


def sweep(standing: Choice, families: Iterable[Family]) -> tuple[Choice, ...]:
    """Take away what every other mode and variant left in the calling thread's namespace.

    To be called when ``standing`` serves all of ``families``, so that no packet meets neither.
    Returns those of which there was something.
    """
    left = []
    for mode, form in _BUILT.items():
        for variant in form.variants or ("",):
            other = Choice(mode, variant)
            if other != standing:
                swept = [form.sweep(each, variant, standing) for each in families]
                left += [other] * any(swept)
    return tuple(left)


def text(choice: Choice, snapshot: Snapshot) -> Iterator[str]:
    """A Snapshot's rules as text, piece by piece, for a typical host; touches nothing."""
    built = _BUILT[choice.mode]
    variant = built.variants[0] if choice.variant == AUTO else choice.variant
    return built.text(snapshot, variant)


def counts(mode: str, desired: Any) -> Mapping[str, int]:
    """How many objects (rules, elements) of each table ``desired`` puts in force."""
    return _BUILT[mode].counts(desired)


def former(mode: str, actual: Any) -> Former:
    """What the rules that a backend has read from the kernel do for UDP."""
    return _BUILT[mode].former(actual)


def prepare(mode: str, backend: AnyBackend, snapshot: Snapshot) -> tuple[tuple[str, str], ...]:
    """What a mode needs done with more rights than its daemon may have; the sysctls it set."""
    return _BUILT[mode].prepare(backend, snapshot)
