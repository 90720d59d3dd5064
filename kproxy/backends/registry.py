"""Names of modes and their variants, and what can be had by them: backends, watches, texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kproxy.backends.base import Watch
from kproxy.backends.built import BUILT, AnyBackend
from kproxy.backends.xtables.layout import Layout
from kproxy.config_check import MODES
from kproxy.core.objects import Family, Value
from kproxy.core.snapshot import ModeSettings, Snapshot
from kproxy.core.stale_flows import Former
from kproxy.errors import UsageError

__all__ = [
    "AUTO", "AnyBackend", "Choice", "built", "choices", "counts", "create", "former", "named",
    "names", "parse", "prepare", "resolve", "sweep", "text", "variants", "watch",
]  # fmt: skip

AUTO = "auto"


class Choice(Value, frozen=True):
    """A mode and its variant: ``auto`` where the host decides, "" where there is only one form."""

    mode: str
    variant: str = ""

    def __str__(self) -> str:
        named = self.variant not in ("", AUTO) and self.mode in BUILT and variants(self.mode)
        return f"{self.mode}-{self.variant}" if named else self.mode


def built(mode: str) -> bool:
    """Whether this version of kproxy has the mode."""
    return mode in BUILT


def variants(mode: str) -> tuple[str, ...]:
    """The variants of a mode that is built, to choose from; () when it has only one form."""
    return BUILT[mode].variants if BUILT[mode].offered else ()


def names() -> tuple[str, ...]:
    """Every name that :func:`parse` takes, modes before their variants."""
    return tuple(str(Choice(mode, variant)) for mode in BUILT for variant in ("", *variants(mode)))


def choices() -> tuple[Choice, ...]:
    """What ``--mode all`` stands for: each variant of each built mode."""
    return tuple(
        Choice(mode, variant)
        for mode, form in BUILT.items()
        for variant in variants(mode) or (_alone(mode),)
    )


def _alone(mode: str) -> str:
    """The variant of a mode by its bare name."""
    return AUTO if BUILT[mode].variants else ""


def parse(name: str) -> Choice:
    """``iptables`` or ``iptables-nft``. UsageError, naming what there is, for anything else."""
    mode, _, variant = name.partition("-")
    if mode in MODES and not built(mode):
        raise UsageError(
            f"mode {mode} is not in this version of kproxy", hint=f"it has: {', '.join(names())}"
        )
    if mode not in BUILT or (variant and variant not in variants(mode)):
        raise UsageError(f"unknown mode {name!r}", hint=f"there are: {', '.join(names())}")
    return Choice(mode, variant or _alone(mode))


def named(mode: str, variant: str = AUTO) -> Choice:
    """The choice that a mode and a ``--iptables-variant`` mean together; UsageError as above."""
    choice = parse(mode)
    if variant == AUTO:
        return choice
    known = BUILT[choice.mode].variants
    if variant not in known:
        there = f"there are: {', '.join(known)}" if known else "leave --iptables-variant out"
        raise UsageError(f"mode {choice.mode} has no variant {variant!r}", hint=there)
    return Choice(choice.mode, variant)


def resolve(choice: Choice) -> Choice:
    """The same with ``auto`` replaced by what this host uses (looks at the host)."""
    if choice.variant != AUTO:
        return choice
    return Choice(choice.mode, BUILT[choice.mode].detect())


def create(
    choice: Choice,
    family: Family,
    asked: ModeSettings = ModeSettings(),  # noqa: B008 (frozen)
) -> AnyBackend:
    """A backend for one family in the calling thread's network namespace; not yet probed.

    ``asked`` is what the operator wants of single modes: each looks at its own.
    """
    return BUILT[choice.mode].make(family, resolve(choice).variant, asked)


def watch(choice: Choice, families: Iterable[Family], spared: Iterable[str] = ()) -> Watch:
    """Notices what others change, in the calling thread's namespace. ``spared`` are ranges in which
    virtual servers (ipvs mode) are somebody else's."""
    return BUILT[choice.mode].watch(choice.variant, families, spared)


def sweep(standing: Choice, families: Iterable[Family]) -> tuple[Choice, ...]:
    """Take away what every other mode and variant left in the calling thread's namespace, and what
    kube-proxy left of this one, where that is not what ours has taken over.

    To be called when ``standing`` serves all of ``families``, so that no packet meets neither.
    Returns those of which there was something.
    """
    left = []
    for mode, form in BUILT.items():
        for variant in form.variants or ("",):
            other = Choice(mode, variant)
            if other != standing or form.rival:
                spared = _spared(standing, variant)
                swept = [form.sweep(each, variant, standing.mode, spared) for each in families]
                left += [other] * any(swept)
    return tuple(left)


def _spared(standing: Choice, variant: str) -> Layout | None:
    """What a sweep of this variant must leave alone."""
    layout = BUILT[standing.mode].layout
    return layout() if layout is not None and standing.variant == variant else None


def text(choice: Choice, snapshot: Snapshot) -> Iterator[str]:
    """A Snapshot's rules as text, piece by piece, for a typical host; touches nothing."""
    built = BUILT[choice.mode]
    variant = built.variants[0] if choice.variant == AUTO else choice.variant
    return built.text(snapshot, variant)


def counts(mode: str, desired: Any) -> Mapping[str, int]:
    """How many objects (rules, elements) of each table ``desired`` puts in force."""
    return BUILT[mode].counts(desired)


def former(mode: str, actual: Any) -> Former:
    """What the rules that a backend has read from the kernel do for UDP."""
    return BUILT[mode].former(actual)


def prepare(mode: str, backend: AnyBackend, snapshot: Snapshot) -> tuple[tuple[str, str], ...]:
    """What a mode needs done with more rights than its daemon may have; the sysctls it set."""
    return BUILT[mode].prepare(backend, snapshot)
