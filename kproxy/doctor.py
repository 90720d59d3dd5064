"""What this kernel and machine can do, found by doing it in a scratch network namespace.

Every probe tries the real thing (makes the device, loads the rule, opens the socket) where nobody
sees it; the namespace ends with the probes. Nothing is asked of the host's own namespace, and what
a probe needs of a kernel module is loaded by the kernel itself or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial

from pyroute2.netlink.exceptions import NetlinkError as RefusedByKernel

from kproxy.backends import registry
from kproxy.core.objects import Family, Value
from kproxy.doctor_probes import FEATURE_PROBES, MODE_PROBES, Probe
from kproxy.errors import KproxyError
from kproxy.kernel import capabilities, netns
from kproxy.kernel.netlink import open_route


class Finding(Value, frozen=True):
    """One answer. ``why`` is what was seen, ``remedy`` the command or choice that would mend it."""

    name: str
    ok: bool
    why: str
    remedy: str = ""
    needed_for: str = ""


class ModeFinding(Value, frozen=True):
    """One mode in one family. ``kernel``: this machine can; ``built``: this kproxy has it."""

    name: str
    family: int
    kernel: bool
    built: bool
    why: str
    remedy: str = ""

    @property
    def works(self) -> bool:
        return self.kernel and self.built


class Report(Value, frozen=True):
    """All of it. ``modes`` first: that is the question most people have."""

    modes: tuple[ModeFinding, ...]
    features: tuple[Finding, ...]

    @property
    def usable(self) -> bool:
        """At least one mode works in one family."""
        return any(mode.works for mode in self.modes)


def examine() -> Report:
    """Try everything. The calling thread visits a scratch namespace and comes back."""
    lacking = capabilities.missing("CAP_NET_ADMIN", "CAP_SYS_ADMIN")
    if lacking:
        return _without_root(lacking)
    try:
        with netns.fresh():
            with open_route() as route:
                route.link("set", index=1, state="up")
            modes = tuple(_modes())
            features = tuple(_features(scratch="made and left"))
    except KproxyError as refused:
        return _without_namespace(refused)
    return Report(modes, features)


def tried(name: str) -> Finding:
    """One mode (in both families) or feature by its name in the report; a KeyError for no name."""
    modes = {mode: (probe, remedy) for mode, probe, remedy in MODE_PROBES}
    features = {feature: (probe, remedy) for feature, _, probe, remedy in FEATURE_PROBES}
    try:
        with netns.fresh():
            if name in modes:
                whole, remedy = modes[name]
                answers = [_answer(name, partial(whole, family), remedy) for family in Family]
                return next((answer for answer in answers if not answer.ok), answers[0])
            return _answer(name, *features[name])
    except KproxyError as refused:
        return Finding(name, False, refused.what, refused.hint)


def _modes() -> Iterator[ModeFinding]:
    for name, probe, remedy in MODE_PROBES:
        for family in Family:
            built = registry.built(name.partition("-")[0])
            answer = _answer(name, partial(probe, family), remedy)
            yield ModeFinding(name, int(family), answer.ok, built, answer.why, answer.remedy)


def _features(scratch: str) -> Iterator[Finding]:
    yield Finding("root", True, "CAP_NET_ADMIN, CAP_SYS_ADMIN", "", "everything but render")
    yield Finding("network namespaces", True, scratch, "", "lab, scenario")
    for name, needed_for, probe, remedy in FEATURE_PROBES:
        yield _answer(name, probe, remedy, needed_for)


def _answer(name: str, probe: Probe, remedy: str, needed_for: str = "") -> Finding:
    """Run one probe; whatever way it says no becomes a finding."""
    try:
        return Finding(name, True, probe(), "", needed_for)
    except KproxyError as refused:
        hint = refused.hint.removeprefix("try: ")
        return Finding(name, False, refused.what, hint or remedy, needed_for)
    except RefusedByKernel as refused:
        return Finding(name, False, os.strerror(refused.code), remedy, needed_for)
    except OSError as refused:
        return Finding(name, False, refused.strerror or str(refused), remedy, needed_for)


# -- when nothing can be tried --------------------------------------------------------------------


def _without_root(lacking: tuple[str, ...]) -> Report:
    root = Finding(
        "root",
        False,
        f"{', '.join(lacking)} missing",
        "sudo kproxy doctor",
        "everything but render",
    )
    return _untried(root)


def _without_namespace(refused: KproxyError) -> Report:
    option = "a kernel with CONFIG_NET_NS, or a container with more rights"
    return _untried(
        Finding("network namespaces", False, refused.what, refused.hint or option, "lab, scenario")
    )


def _untried(obstacle: Finding) -> Report:
    """What needs neither rights nor a namespace is still looked at."""
    why = f"not tried: {obstacle.why}"
    modes = tuple(
        ModeFinding(
            name, int(family), False, registry.built(name.partition("-")[0]), why, obstacle.remedy
        )
        for name, _, _ in MODE_PROBES
        for family in Family
    )
    harmless = ("SCTP", "open files", "user-mode Linux")
    features = tuple(
        _answer(name, probe, remedy, needed_for)
        if name in harmless or name.endswith(" tool")
        else Finding(name, False, why, obstacle.remedy, needed_for)
        for name, needed_for, probe, remedy in FEATURE_PROBES
    )
    return Report(modes, (obstacle, *features))
