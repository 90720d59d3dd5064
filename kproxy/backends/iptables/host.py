"""What this host's iptables can do, and which variant is the host's own."""

from __future__ import annotations

import re
from collections.abc import Callable

from kproxy.backends.iptables.door import ToolDoor, tool
from kproxy.backends.iptables.rules import Table
from kproxy.backends.iptables.script import Variant
from kproxy.core.objects import Family, Value
from kproxy.errors import CommandError, KernelError, MachineError, NetlinkError
from kproxy.kernel import command, netns, sysctl

_BE_LIBERAL = "net/netfilter/nf_conntrack_tcp_be_liberal"

#: MASQUERADE --random-fully, and restore's own -w, came with this version.
_RANDOM_FULLY_SINCE = (1, 6, 2)


class Machine(Value, frozen=True):
    """What the rules have to know of the host; see :class:`service.Context`."""

    random_fully: bool = True
    drop_invalid: bool = True
    endpoint_set: bool = True


def machine(family: Family, variant: Variant) -> Machine:
    """Asks the tool for its version, and the calling thread's namespace for its sysctls."""
    return Machine(
        random_fully=version(family, variant) >= _RANDOM_FULLY_SINCE,
        # With tcp_be_liberal conntrack calls fewer packets INVALID, and those are better let
        # through (kubernetes issue 117924).
        drop_invalid=sysctl.read(_BE_LIBERAL) in (None, "0"),
        endpoint_set=asks_sets(family, variant),
    )


def version(family: Family, variant: Variant) -> tuple[int, ...]:
    """Version of the tool."""
    argv = [tool(family, variant), "--version"]
    text = command.run(argv).stdout.decode()
    found = re.search(r"v(\d+(?:\.\d+)*)", text)
    if found is None:
        raise MachineError(f"{argv[0]} does not say its version: {text.strip()!r}")
    return tuple(int(part) for part in found.group(1).split("."))


class Feature(Value, frozen=True):
    """One thing that the rules use. ``row`` is a rule of chain KP in ``table``, ``module`` the
    kernel module that has it, ``option`` its build option."""

    name: str
    table: Table
    row: str
    module: str
    option: str


_REJECT = {Family.IPV4: "ipt_REJECT", Family.IPV6: "ip6t_REJECT"}
_COMMENT = '-m comment --comment "kproxy probe"'


def features(family: Family) -> tuple[Feature, ...]:
    """Everything that rules of ours are made of."""
    localhost = {Family.IPV4: "127.0.0.1", Family.IPV6: "[::1]"}[family]
    rows = (
        ("comments", Table.NAT, _COMMENT, "xt_comment", "NETFILTER_XT_MATCH_COMMENT"),
        ("port matches", Table.NAT, "-p tcp -m tcp --dport 80", "xt_tcpudp", "NETFILTER_XTABLES"),
        (
            "load balancing",
            Table.NAT,
            "-m statistic --mode random --probability 0.5",
            "xt_statistic",
            "NETFILTER_XT_MATCH_STATISTIC",
        ),
        (
            "session affinity",
            Table.NAT,
            "-m recent --name KP --set",
            "xt_recent",
            "NETFILTER_XT_MATCH_RECENT",
        ),
        (
            "node ports",
            Table.NAT,
            "-m addrtype --dst-type LOCAL",
            "xt_addrtype",
            "NETFILTER_XT_MATCH_ADDRTYPE",
        ),
        (
            "destination NAT",
            Table.NAT,
            f"-p tcp -m tcp -j DNAT --to-destination {localhost}:80",
            "xt_nat",
            "NETFILTER_XT_NAT",
        ),
        ("masquerading", Table.NAT, "-j MASQUERADE", "xt_MASQUERADE", "IP_NF_TARGET_MASQUERADE"),
        ("marks", Table.NAT, "-j MARK --set-xmark 0x1/0x1", "xt_MARK", "NETFILTER_XT_MARK"),
        (
            "mark matches",
            Table.FILTER,
            "-m mark --mark 0x1/0x1",
            "xt_mark",
            "NETFILTER_XT_MARK",
        ),
        (
            "connection states",
            Table.FILTER,
            "-m conntrack --ctstate NEW",
            "xt_conntrack",
            "NETFILTER_XT_MATCH_CONNTRACK",
        ),
        ("refusals", Table.FILTER, "-j REJECT", _REJECT[family], "IP_NF_TARGET_REJECT"),
    )
    return tuple(Feature(*row) for row in rows)


def lacking(family: Family, variant: Variant) -> tuple[tuple[Feature, str], ...]:
    """The features that this kernel or tool has not, each with the tool's words.

    Tried in a scratch namespace: nothing of the host is touched. MachineError when the tools are
    missing or there is no right to make a namespace.
    """
    command.require(tool(family, variant, "restore"))
    door = ToolDoor(family, variant)
    wanted = features(family)
    with netns.fresh():
        if _tried(door, wanted) is None:
            return ()
        words = [(feature, _tried(door, (feature,))) for feature in wanted]
    return tuple((feature, said) for feature, said in words if said is not None)


def _tried(door: ToolDoor, wanted: tuple[Feature, ...]) -> str | None:
    """None when the kernel takes the rules, else what the tool says."""
    tables = {table: [f.row for f in wanted if f.table is table] for table in Table}
    text = "".join(
        f"*{table}\n:KP - [0:0]\n{''.join(f'-A KP {row}' + chr(10) for row in rows)}COMMIT\n"
        for table, rows in tables.items()
        if rows
    )
    try:
        door.restore([text.encode()])
    except CommandError as error:
        said = error.stderr.strip().splitlines()
        return said[0] if said else f"ended with {error.status}"
    return None


def probe(family: Family, variant: Variant) -> None:
    """MachineError that names what is missing and what would give it."""
    missing = lacking(family, variant)
    if not missing:
        return
    feature, said = missing[0]
    names = ", ".join(each.name for each, _ in missing)
    modules = " ".join(dict.fromkeys(each.module for each, _ in missing))
    raise MachineError(
        f"iptables ({variant}, IPv{family.value}) cannot do {names}: {said}",
        hint=f"try: modprobe -a {modules} (kernel option CONFIG_{feature.option})",
    )


#: A rule that asks a set, which a proxy can do without.
_ASKS = Feature("sets", Table.FILTER, "-m set --match-set KP src,src", "xt_set", "NETFILTER_XT_SET")


def asks_sets(family: Family, variant: Variant) -> bool:
    """Whether this kernel has sets of addresses and ports, and rules can ask them.

    Tried in a scratch namespace. KernelError when the lock of the tools is held: then it is not
    known.
    """
    door = ToolDoor(family, variant)
    with netns.fresh():
        try:
            door.fill("KP", (), create=True)
        except NetlinkError:
            return False
        said = _tried(door, (_ASKS,))
    if said is not None and "xtables lock" in said:
        raise KernelError(f"{tool(family, variant, 'restore')}: {said}", hint="it is tried again")
    return said is None


#: Chains that the kubelet makes, so that others see which variant it speaks.
_HINTS = re.compile(r"^:KUBE-(?:IPTABLES-HINT|KUBELET-CANARY) ", re.MULTILINE)


def detect_variant() -> Variant:
    """The variant that this host's other programs use, as the iptables-wrappers find it.

    The kubelet's hint decides; else who has more rules; else what ``iptables`` itself is.
    """
    texts = {variant: _saved(variant) for variant in (Variant.NFT, Variant.LEGACY)}
    tests: tuple[Callable[[str], int], ...] = (
        lambda text: len(_HINTS.findall(text)) > 0,
        lambda text: text.count("\n-A "),
    )
    for test in tests:
        nft, legacy = test(texts[Variant.NFT]), test(texts[Variant.LEGACY])
        if nft != legacy:
            return Variant.NFT if nft > legacy else Variant.LEGACY
    told = command.run(["iptables", "--version"]).stdout
    return Variant.NFT if b"nf_tables" in told else Variant.LEGACY


def _saved(variant: Variant) -> str:
    """The rules of both families; nothing when that variant's tools or kernel part are missing."""
    texts = []
    for family in Family:
        name = tool(family, variant, "save")
        if command.find(name) is not None:
            texts.append(command.run([name], check=False).stdout.decode(errors="replace"))
    return "".join(texts)
