"""All who can be measured, by the names that tables and commands use; and users' own.

A name is one of :data:`SUBJECTS`, or says where a class derived from
:class:`~kproxy.bench.peers.Subject` is: ``FILE.py:CLASS`` or ``MODULE:CLASS``, with ``NAME=`` in
front of it for another name than the class's own. docs/bench.md has an example.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from types import ModuleType

from kproxy.bench.floors import Ipvsadm, NftDnat
from kproxy.bench.ours import MODES, PODS, BareRelay, Mode
from kproxy.bench.peers import Direct, HAProxy, Nginx, Subject
from kproxy.errors import UsageError

#: The same as direct, measured beside it: how far two equals are apart is the noise floor.
DIRECT, AGAIN = "direct", "direct again"

#: Name -> how to make it. The modes' client is a pod; ``iptables`` is the host's own variant, and
#: its client comes from outside.
SUBJECTS: Mapping[str, Callable[[], Subject]] = {
    DIRECT: Direct,
    AGAIN: partial(Direct, AGAIN),
    **{name: partial(Mode.named, name, *PODS) for name in MODES},
    "iptables": partial(Mode, "iptables"),
    "relay": BareRelay,
    "haproxy": HAProxy,
    "nginx": Nginx,
    "nft-dnat": NftDnat,
    "ipvsadm": Ipvsadm,
}

#: What `kproxy bench` measures unless it is told otherwise, in the order of its tables.
COMPARED = (
    *(DIRECT, AGAIN, *MODES),
    *("relay", "haproxy", "nginx", "nft-dnat", "ipvsadm"),
)

#: Those that serve no UDP.
TCP_ONLY = frozenset({"haproxy"})


def made(names: Sequence[str]) -> dict[str, Subject]:
    """Subjects by name, in the order asked for; each name once. UsageError: an unknown name, a
    class that is not there or is no subject."""
    found: dict[str, Subject] = {}
    for asked in names:
        name, subject = _made(asked)
        if name in found:
            raise UsageError(f"two subjects are called {name}", hint="say NAME=FILE.py:CLASS")
        found[name] = subject
    return found


def parted(names: Sequence[str]) -> tuple[dict[str, Subject], dict[str, str]]:
    """Those of ``names`` that this machine can run, and why it cannot run the others. UsageError
    as of :func:`made`."""
    all_ = made(names)
    # Several groups ask, and a probe takes tenths of a second: what a machine lacks stays lacking.
    reasons = {
        name: _lacking(asked) if asked in SUBJECTS else subject.absent()
        for asked, (name, subject) in zip(names, all_.items())
    }
    return (
        {name: subject for name, subject in all_.items() if not reasons[name]},
        {name: reason for name, reason in reasons.items() if reason},
    )


@cache
def _lacking(name: str) -> str:
    return SUBJECTS[name]().absent()


def _made(asked: str) -> tuple[str, Subject]:
    if asked in SUBJECTS:
        return asked, SUBJECTS[asked]()
    name, equals, where = asked.partition("=")
    if "/" in name:
        name, equals, where = "", "", asked  # a path may have one as well
    source, colon, kind = (where if equals else asked).rpartition(":")
    if not colon:
        raise UsageError(
            f"no subject {asked}",
            hint=f"there are {', '.join(SUBJECTS)}, or a class of yours as FILE.py:CLASS",
        )
    subject = _own(source, kind)
    if equals:
        subject.name = name
    return subject.name, subject


def _own(source: str, kind: str) -> Subject:
    """An instance of a user's class."""
    try:
        found = getattr(_module(source), kind)
    except AttributeError:
        raise UsageError(f"there is no {kind} in it", where=source) from None
    if not isinstance(found, type) or not issubclass(found, Subject):
        raise UsageError(
            f"{kind} is no subject", where=source, hint="derive it from kproxy.bench.peers.Subject"
        )
    if found.__abstractmethods__:
        raise UsageError(
            f"{kind} has no {', '.join(sorted(found.__abstractmethods__))}", where=source
        )
    subject = found()
    if not hasattr(subject, "name"):
        raise UsageError(f"{kind} has no name", where=source)
    return subject


def _module(source: str) -> ModuleType:
    if not source.endswith(".py"):
        try:
            return importlib.import_module(source)
        except ModuleNotFoundError as missing:
            raise UsageError(f"no module {missing.name}", where=source) from None
    path = Path(source)
    if not path.is_file():
        raise UsageError("there is no such file", where=source)
    spec = importlib.util.spec_from_file_location(f"kproxy_peer_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
