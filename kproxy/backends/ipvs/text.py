"""What IPVS mode puts in force, as text that the bare tools read. Pure.

The parts stand in the order in which they are brought into force, and each begins with a comment
that names the tool which reads it, so that a learner can try a part by hand, and compare it with
what ``ipset save``, ``iptables-save`` and ``ipvsadm --save -n`` print of a node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from ipaddress import ip_address

from kproxy.backends.ipvs.fixed import Context
from kproxy.backends.ipvs.render import Desired, render
from kproxy.backends.ipvs.sets import KINDS, in_family, names
from kproxy.backends.ipvs.sysctls import KernelVersion
from kproxy.backends.xtables import ruleset
from kproxy.core.members import address_text, made, protocol_text, told
from kproxy.core.objects import Family
from kproxy.core.servers import MH_FALLBACK, MH_PORT, PERSISTENT, Scheduling
from kproxy.core.snapshot import Snapshot

#: The dummy device that has the addresses.
DEVICE = "kube-ipvs0"

#: A typical one: what older ones need besides is in :mod:`kproxy.backends.ipvs.sysctls`.
KERNEL: KernelVersion = (6, 1)

#: protocol -> ipvsadm's option for a server of it.
_PROTOCOLS = {"tcp": "-t", "udp": "-u", "sctp": "--sctp-service"}

_RESTORE = {Family.IPV4: "iptables-restore", Family.IPV6: "ip6tables-restore"}
#: What `ip` is told with an address. Every node of a cluster has the same ones, so IPv6 must not
#: look for others that have them.
_WHOLE = {Family.IPV4: "/32", Family.IPV6: "/128 nodad"}

#: Flags of the schedulers that hash, sh's are of the same bits: (flag, the tool's name for it).
_FLAGS = ((MH_FALLBACK, "fallback"), (MH_PORT, "port"))


def text(snapshot: Snapshot) -> Iterator[str]:
    """All parts of a Snapshot, line by line, as for a host on which everything works."""
    desired = render(snapshot, Context(snapshot.family, snapshot.settings), KERNEL, None)
    for number, (tool, lines) in enumerate(PARTS[snapshot.family].items()):
        yield f"\n# {tool}\n" if number else f"# {tool}\n"
        yield from lines(desired)


def sysctls(desired: Desired) -> Iterator[str]:
    """For ``sysctl -p``."""
    for name, value in sorted(desired.sysctls):
        yield f"{name} = {value}\n"


def sets(desired: Desired) -> Iterator[str]:
    """For ``ipset restore``: every set with its members, sorted."""
    family = desired.snapshot.family
    held: dict[str, list[bytes]] = {name: [] for name in names(family)}
    for name, member in desired.members.all:
        held[name].append(member)
    for name, members in held.items():
        known, kind = in_family(name, family), KINDS[name]
        yield f"create {made(known, kind, family)}\n"
        for member in sorted(members):
            yield f"add {known} {told(kind, family, member)}\n"


def rules(desired: Desired) -> Iterator[str]:
    """For the restore tool of iptables, with --noflush: whole chains, and jumps to them."""
    patch = ruleset.diff(desired.rules, ruleset.RulesHeld())
    if patch is not None:
        yield from ruleset.call(patch)


def servers(desired: Desired) -> Iterator[str]:
    """For ``ipvsadm --restore``: a virtual server, then its real ones, as it saves them."""
    for name, block in desired.blocks.items():
        for key in block.servers:
            virtual, owner = desired.servers[key]
            if owner != name:
                continue
            where = f"{_PROTOCOLS[protocol_text(key[-1])]} {_place(key[:-1])}"
            yield f"-A {where} {_scheduling(virtual.scheduling)}\n"
            for real, weight in virtual.weighed:
                yield f"-a {where} -r {_place(real)} -m -w {weight}\n"


def addresses(desired: Desired) -> Iterator[str]:
    """For ``ip -batch``: the dummy device, which stays down, and its addresses."""
    yield f"link add {DEVICE} type dummy\n"
    for address in sorted(desired.addresses.all, key=ip_address):
        yield f"address add {address}{_WHOLE[desired.snapshot.family]} dev {DEVICE}\n"


def _scheduling(how: Scheduling) -> str:
    words = f"-s {how.scheduler}"
    if how.flags & PERSISTENT:
        words += f" -p {how.timeout}"
    named = [name for flag, name in _FLAGS if how.flags & flag]
    if named:
        words += f" -b {','.join(f'{how.scheduler}-{name}' for name in named)}"
    return words


def _place(packed: bytes) -> str:
    """Address and port of a server."""
    address, port = address_text(packed[:-2]), int.from_bytes(packed[-2:], "big")
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


Lines = Callable[[Desired], Iterator[str]]

#: Family -> the tool that reads a part -> the part, in the order in which they are put in force.
PARTS: Mapping[Family, Mapping[str, Lines]] = {
    family: {
        "sysctl -p -": sysctls,
        "ipset restore": sets,
        f"{restore} --noflush": rules,
        "ipvsadm --restore": servers,
        "ip -batch -": addresses,
    }
    for family, restore in _RESTORE.items()
}
