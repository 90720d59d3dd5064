"""What this host's iptables tools and kernel are, found by asking and by trying."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from kproxy.backends.xtables.door import ToolDoor, tool
from kproxy.backends.xtables.rules import Table
from kproxy.backends.xtables.variant import Variant
from kproxy.core.objects import Family, Value
from kproxy.errors import CommandError, KernelError, MachineError, NetlinkError
from kproxy.kernel import command, netns, sysctl


def version(family: Family, variant: Variant) -> tuple[int, ...]:
    """Version of the tool."""
    argv = [tool(family, variant), "--version"]
    text = command.run(argv).stdout.decode()
    found = re.search(r"v(\d+(?:\.\d+)*)", text)
    if found is None:
        raise MachineError(f"{argv[0]} does not say its version: {text.strip()!r}")
    return tuple(int(part) for part in found.group(1).split("."))


_BE_LIBERAL = "net/netfilter/nf_conntrack_tcp_be_liberal"

#: MASQUERADE --random-fully, and restore's own -w, came with this version.
_RANDOM_FULLY_SINCE = (1, 6, 2)


def knows_random_fully(family: Family, variant: Variant) -> bool:
    """Whether the tool has that flag of MASQUERADE."""
    return version(family, variant) >= _RANDOM_FULLY_SINCE


def drops_invalid() -> bool:
    """Whether INVALID packets are to be dropped in the calling thread's namespace.

    With tcp_be_liberal conntrack calls fewer packets INVALID, and those are better let through
    (kubernetes issue 117924).
    """
    return sysctl.read(_BE_LIBERAL) in (None, "0")


class Feature(Value, frozen=True):
    """One thing that the rules use. ``row`` is a rule of chain KP in ``table``, ``module`` the
    kernel module that has it, ``option`` its build option."""

    name: str
    table: Table
    row: str
    module: str
    option: str


_COMMENT = '-m comment --comment "kproxy probe"'
_REJECT = {Family.IPV4: "ipt_REJECT", Family.IPV6: "ip6t_REJECT"}


def common_features(family: Family) -> tuple[Feature, ...]:
    """What the rules of every mode are made of."""
    rows = (
        ("comments", Table.NAT, _COMMENT, "xt_comment", "NETFILTER_XT_MATCH_COMMENT"),
        (
            "node ports",
            Table.NAT,
            "-m addrtype --dst-type LOCAL",
            "xt_addrtype",
            "NETFILTER_XT_MATCH_ADDRTYPE",
        ),
        ("masquerading", Table.NAT, "-j MASQUERADE", "xt_MASQUERADE", "IP_NF_TARGET_MASQUERADE"),
        ("marks", Table.NAT, "-j MARK --set-xmark 0x1/0x1", "xt_MARK", "NETFILTER_XT_MARK"),
        ("mark matches", Table.FILTER, "-m mark --mark 0x1/0x1", "xt_mark", "NETFILTER_XT_MARK"),
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


def lacking(
    family: Family, variant: Variant, wanted: tuple[Feature, ...]
) -> tuple[tuple[Feature, str], ...]:
    """The features that this kernel or tool has not, each with the tool's words.

    Tried in a scratch namespace: nothing of the host is touched. MachineError when the tools are
    missing or there is no right to make a namespace.
    """
    command.require(tool(family, variant, "restore"))
    door = ToolDoor(family, variant)
    with netns.fresh():
        if tried(door, wanted) is None:
            return ()
        words = [(feature, tried(door, (feature,))) for feature in wanted]
    return tuple((feature, said) for feature, said in words if said is not None)


def require(mode: str, family: Family, variant: Variant, wanted: Iterable[Feature]) -> None:
    """MachineError that names what ``mode`` misses and what would give it."""
    missing = lacking(family, variant, tuple(wanted))
    if not missing:
        return
    feature, said = missing[0]
    names = ", ".join(each.name for each, _ in missing)
    modules = " ".join(dict.fromkeys(each.module for each, _ in missing))
    raise MachineError(
        f"{mode} ({variant}, IPv{family.value}) cannot do {names}: {said}",
        hint=f"try: modprobe -a {modules} (kernel option CONFIG_{feature.option})",
    )


def tried(door: ToolDoor, wanted: tuple[Feature, ...]) -> str | None:
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


#: A rule that asks a set, which a proxy can do without.
_ASKS = Feature("sets", Table.FILTER, "-m set --match-set KP src,src", "xt_set", "NETFILTER_XT_SET")


def asks_sets(family: Family, variant: Variant) -> bool:
    """Whether this kernel has sets of addresses and ports, and rules can ask them.

    Tried in a scratch namespace. KernelError when the lock of the tools is held: then it is not
    known.
    """
    return _can(family, variant, _ASKS, lambda door: door.fill("KP", (), create=True))


#: A rule that counts with an object of the kernel, which a proxy can do without.
_COUNTS = Feature(
    "counters", Table.FILTER, "-m nfacct --nfacct-name KP", "xt_nfacct", "NETFILTER_XT_MATCH_NFACCT"
)


def counts_packets(family: Family, variant: Variant) -> bool:
    """Whether this kernel has counters, and rules can count with them. As :func:`asks_sets`."""
    return _can(family, variant, _COUNTS, lambda door: door.make_counter("KP"))


def _can(
    family: Family, variant: Variant, feature: Feature, ready: Callable[[ToolDoor], None]
) -> bool:
    """Whether a rule loads in a scratch namespace; ``ready`` makes there what it names."""
    door = ToolDoor(family, variant)
    with netns.fresh():
        try:
            ready(door)
        except NetlinkError:
            return False
        said = tried(door, (feature,))
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


def working_variant(wanted: Callable[[Family], tuple[Feature, ...]]) -> Variant:
    """The iptables variant that this host uses, if it works here, else the other if that does.

    A kernel may lack either: the one of user-mode Linux has no nat in nf_tables. Where neither
    works it is the host's, whose lack a probe then explains.
    """
    used = detect_variant()
    other = Variant.LEGACY if used is Variant.NFT else Variant.NFT
    return used if _works(used, wanted) or not _works(other, wanted) else other


def _works(variant: Variant, wanted: Callable[[Family], tuple[Feature, ...]]) -> bool:
    """In one family: a kernel that does not have the other one still serves this one."""
    if command.find(tool(Family.IPV4, variant, "restore")) is None:
        return False
    return not lacking(Family.IPV4, variant, wanted(Family.IPV4))


def _saved(variant: Variant) -> str:
    """The rules of both families; nothing when that variant's tools or kernel part are missing."""
    texts = []
    for family in Family:
        name = tool(family, variant, "save")
        if command.find(name) is not None:
            texts.append(command.run([name], check=False).stdout.decode(errors="replace"))
    return "".join(texts)
