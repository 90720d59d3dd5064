"""What this host's kernel has for IPVS mode, and which iptables tools work beside it."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Sequence
from functools import partial

from kproxy.backends.ipvs.plan import server_key
from kproxy.backends.ipvs.sets import kinds
from kproxy.backends.ipvs.sysctls import KernelVersion
from kproxy.backends.xtables import host
from kproxy.backends.xtables.host import (
    Feature,
    asks_sets,
    common_features,
    drops_invalid,
    knows_random_fully,
    require,
)
from kproxy.backends.xtables.rules import Table
from kproxy.backends.xtables.variant import Variant
from kproxy.core.objects import Family, Protocol, Value
from kproxy.core.servers import Order, Scheduling, Verb
from kproxy.errors import MachineError, NetlinkError
from kproxy.kernel import dummy, netns
from kproxy.kernel.ipset import KINDS, IpSets
from kproxy.kernel.ipvs import Ipvs, told

#: What to do on a machine whose kernel cannot.
_ELSEWHERE = (
    "or run it in user-mode Linux: kproxy lab up --kernel uml, kproxy scenario run --kernel uml"
)


class Machine(Value, frozen=True):
    """What the rules and the sysctls have to know of the host."""

    random_fully: bool = True
    drop_invalid: bool = True
    kernel: KernelVersion = (6, 1)


def machine(family: Family, variant: Variant) -> Machine:
    """Asks the tool and the kernel for their versions, and this namespace for its sysctls."""
    return Machine(
        random_fully=knows_random_fully(family, variant),
        drop_invalid=drops_invalid(),
        kernel=kernel_version(os.uname().release),
    )


def kernel_version(release: str) -> KernelVersion:
    """(6, 1) of ``6.1.176-something``. MachineError when that is no version."""
    found = re.match(r"(\d+)\.(\d+)", release)
    if found is None:
        raise MachineError(f"the kernel does not say its version: {release!r}")
    return int(found[1]), int(found[2])


def features(family: Family) -> tuple[Feature, ...]:
    """Everything that the rules beside the virtual servers are made of, but for sets."""
    own = "drops of the node's own", Table.MANGLE, "-j DROP", "iptable_mangle", "IP_NF_MANGLE"
    return (*common_features(family), Feature(*own))


def working_variant() -> Variant:
    """The iptables variant for this host; see :mod:`kproxy.backends.xtables.host`."""
    return host.working_variant(features)


def probe(family: Family, variant: Variant, scheduler: str) -> None:
    """MachineError that names what is missing and what would give it.

    All of it is tried in a scratch namespace: nothing of the host is touched.
    """
    with netns.fresh():
        _try("virtual servers", ("ip_vs", f"ip_vs_{scheduler}"), lambda: _serve(family, scheduler))
        _try("dummy devices", ("dummy",), dummy.ensure)
        for kind in dict.fromkeys(kinds(family).values()):
            _try(f"sets of type {kind}", (KINDS[kind].module,), partial(_make, family, kind))
    require("ipvs", family, variant, features(family))
    if not asks_sets(family, variant):
        raise _lacking("rules that ask sets", ("xt_set",), "the tools or the kernel lack the match")


#: Virtual servers of this address and port serve nobody: the range is for documentation (RFC 5737),
#: and for the other family (RFC 3849).
_TRIAL = {
    Family.IPV4: server_key("198.51.100.0", 20000, Protocol.TCP),
    Family.IPV6: server_key("2001:db8::", 20000, Protocol.TCP),
}


def _serve(family: Family, scheduler: str) -> None:
    """A virtual server with the scheduler that is wanted."""
    with Ipvs(family) as ipvs:
        order = Order(Verb.ADD_SERVER, _TRIAL[family], scheduling=Scheduling(scheduler))
        for refused in ipvs.send([order]):
            no_scheduler = refused.errno == errno.ENOENT
            what = f"there is no scheduler {scheduler}" if no_scheduler else told(refused)
            raise NetlinkError(what, refused.errno)


def _make(family: Family, kind: str) -> None:
    with IpSets(family) as sets:
        sets.create("KP", kind)
        sets.destroy("KP")


def _try(what: str, modules: Sequence[str], attempt: Callable[[], object]) -> None:
    try:
        attempt()
    except NetlinkError as refused:
        raise _lacking(what, modules, refused.what) from refused


def _lacking(what: str, modules: Sequence[str], why: str) -> MachineError:
    return MachineError(
        f"ipvs cannot do {what}: {why}",
        hint=f"try: modprobe -a {' '.join(modules)}, {_ELSEWHERE}",
    )
