"""Which kernel a mode runs on: this host's, or user-mode Linux where the host lacks something."""

from __future__ import annotations

from collections.abc import Iterable

from kproxy.backends import registry
from kproxy.core.objects import Value
from kproxy.errors import MachineError
from kproxy.kernel import capabilities
from kproxy.lab.scenario.runner import NONE, probed

HOST, UML, AUTO = "host", "uml", "auto"
KERNELS = (HOST, UML, AUTO)

#: Modes that user-mode Linux can run where the host cannot: Debian's has their modules.
INSIDE = ("ipvs",)


class Places(Value, frozen=True):
    """Mode names for each kernel. ``tentative``: nobody asked for those inside by name."""

    here: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()
    tentative: bool = False


def place(names: Iterable[str], kernel: str) -> Places:
    """Where each of the modes runs (``none`` and ``all`` are names as well).

    ``auto``: on the host, but those of :data:`INSIDE` that it cannot run. UsageError for a name
    that there is not.
    """
    wanted = tuple(dict.fromkeys(names))
    for name in wanted:
        if name not in (NONE, "all"):
            registry.parse(name)
    if kernel == HOST:
        return Places(wanted)
    if kernel == UML:
        return Places((), wanted)
    asked = tuple(mode for mode in INSIDE if mode in wanted or "all" in wanted)
    lacked = tuple(mode for mode in asked if registry.built(mode) and not host_runs(mode))
    here = tuple(name for name in wanted if name not in lacked)
    return Places(here, lacked, not set(lacked) & set(wanted))


def host_runs(mode: str) -> bool:
    """Whether this process could run a mode in a namespace of this host."""
    if capabilities.missing("CAP_SYS_ADMIN", "CAP_NET_ADMIN"):
        return False
    try:
        probed(registry.resolve(registry.parse(mode)))
    except MachineError:
        return False
    return True
