"""All who can be measured, by the names that tables and commands use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from kproxy.bench.ours import BareRelay, Mode
from kproxy.bench.peers import Direct, HAProxy, Nginx, Subject
from kproxy.errors import UsageError

#: The same as direct, measured beside it: how far two equals are apart is the noise floor.
DIRECT, AGAIN = "direct", "direct again"

#: Name -> how to make it.
SUBJECTS: Mapping[str, Callable[[], Subject]] = {
    DIRECT: Direct,
    AGAIN: lambda: Direct(AGAIN),
    "haproxy": HAProxy,
    "nginx": Nginx,
    "relay": BareRelay,
    "userspace": lambda: Mode("userspace"),
    "iptables": lambda: Mode("iptables"),
}

#: Those that serve no UDP.
TCP_ONLY = frozenset({"haproxy"})


def made(names: Sequence[str]) -> dict[str, Subject]:
    """Subjects by name. UsageError: an unknown name."""
    unknown = [name for name in names if name not in SUBJECTS]
    if unknown:
        raise UsageError(f"no subject {', '.join(unknown)}", hint=f"there are {list(SUBJECTS)}")
    return {name: SUBJECTS[name]() for name in names}
