"""Every kind of set in both families, beside pyroute2 as the slow twin and the host's tool."""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Iterator

import pytest
from pyroute2.ipset import IPSet

from kproxy.core.members import KINDS, LAYOUTS, Part, made, size_of, told
from kproxy.core.objects import Family
from kproxy.errors import MemberError, NetlinkError
from kproxy.kernel import command, netns
from kproxy.kernel.ipset import Change, Head, IpSets
from kproxy.kernel.ipset_codec import form, head_of

pytestmark = pytest.mark.kernel

V4, V6 = Family.IPV4, Family.IPV6
CODES = {V4: socket.AF_INET, V6: socket.AF_INET6}
WORDS = {V4: "inet", V6: "inet6"}
FIRST = {V4: int(ipaddress.ip_address("10.0.0.1")), V6: int(ipaddress.ip_address("fd00::1"))}
NAME, OTHER = "KP-TEST", "KP-OTHER"

#: (part, family) -> bytes of the part in member ``number``; neighbours differ in every part.
PARTS = {
    Part.ADDRESS: lambda family, number: (FIRST[family] + number).to_bytes(size(family)),
    Part.PORT: lambda _, number: (8000 + number % 30000).to_bytes(2),
    Part.PROTOCOL: lambda _, number: bytes(((6, 17, 132)[number % 3],)),
    Part.OTHER: lambda family, number: network(family, number),
    Part.PREFIX: lambda family, number: bytes((16 + number % 2,)),
    Part.LENGTH: lambda family, number: bytes((8 * size(family),)),
}


def size(family: Family) -> int:
    return size_of(Part.ADDRESS, family)


def network(family: Family, number: int) -> bytes:
    """Even numbers have a /16 and odd ones a /17 (see PARTS): no bit further down is set."""
    first = (FIRST[family] >> 8 * size(family) - 8).to_bytes(1)
    return first + bytes((number % 200,)) + bytes(size(family) - 2)


def some(kind: str, family: Family, count: int) -> set[bytes]:
    return {
        b"".join(PARTS[part](family, number) for part in LAYOUTS[kind]) for number in range(count)
    }


def twin(kind: str, family: Family, name: str) -> set[bytes]:
    """The members as pyroute2 lists them."""
    address = f"IPSET_ATTR_IPADDR_IPV{family.value}"
    found = set()
    with IPSet(nfgen_family=CODES[family]) as slow:
        for message in slow.list(name):
            for entry in message.get_attr("IPSET_ATTR_ADT").get_attrs("IPSET_ATTR_DATA"):
                values = dict(entry["attrs"])
                member = b""
                for part in LAYOUTS[kind]:
                    if part in (Part.ADDRESS, Part.OTHER):
                        place = {Part.ADDRESS: "IP_FROM", Part.OTHER: "IP2"}[part]
                        text = values[f"IPSET_ATTR_{place}"].get_attr(address)
                        member += ipaddress.ip_address(text).packed
                    elif part is Part.PORT:
                        member += struct.pack(">H", values["IPSET_ATTR_PORT_FROM"])
                    else:
                        word = {Part.PROTOCOL: "PROTO", Part.PREFIX: "CIDR2", Part.LENGTH: "CIDR"}[
                            part
                        ]
                        member += bytes((values[f"IPSET_ATTR_{word}"],))
                found.add(member)
    return found


def tool(kind: str, family: Family, *more: str) -> list[str]:
    """The tool's command for the set that we would make."""
    return ["ipset", "create", *made(NAME, kind, family).split(), *more]


@pytest.fixture(params=[V4, V6], ids=["ipv4", "ipv6"])
def sets(request: pytest.FixtureRequest) -> Iterator[IpSets]:
    with netns.fresh(), IpSets(request.param) as made:
        yield made


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_what_is_put_in_is_listed(sets: IpSets, kind: str) -> None:
    """Here, by pyroute2 and by the tool, over several sends and datagrams; and taken out again."""
    wanted = some(kind, sets.family, 3000)
    sets.create(NAME, kind)
    sets.add(NAME, wanted, kind)
    assert sets.members(NAME, kind) == wanted == twin(kind, sets.family, NAME)
    text = command.run(["ipset", "list", NAME]).stdout.decode()
    assert set(text.split("Members:\n")[1].split()) == {sets.told(one, kind) for one in wanted}
    sets.remove(NAME, wanted, kind)
    assert sets.members(NAME, kind) == set() == twin(kind, sets.family, NAME)


def test_what_the_tool_puts_in_is_listed(sets: IpSets, kind: str) -> None:
    """Its sets are ours when they have our options; making one again keeps the members."""
    wanted = some(kind, sets.family, 3)
    command.run(tool(kind, sets.family))
    for one in wanted:
        command.run(["ipset", "add", NAME, told(kind, sets.family, one)])
    sets.create(NAME, kind)
    assert sets.members(NAME, kind) == wanted
    assert sets.heads() == {NAME: Head(kind, 3, ours=True)}


@pytest.mark.parametrize("options", [["timeout", "60"], ["counters"], ["comment"]], ids=str)
def test_a_set_with_other_options_gives_way(sets: IpSets, kind: str, options: list[str]) -> None:
    """It is none of ours to read; made anew it is empty, and no other set is left."""
    command.run(tool(kind, sets.family, *options))
    sets.add(NAME, some(kind, sets.family, 3), kind)
    assert sets.members(NAME, kind) is None
    assert sets.read({NAME: kind}) == {NAME: None}
    assert not sets.heads()[NAME].ours
    sets.create(NAME, kind)
    assert sets.members(NAME, kind) == set()
    assert list(sets.heads()) == [NAME]


def test_a_set_of_the_other_family_is_not_ours(sets: IpSets, kind: str) -> None:
    """But a set of ports has no family."""
    other = V6 if sets.family is V4 else V4
    command.run(tool(kind, other))
    assert sets.heads()[NAME].ours == (kind == "bitmap:port")
    assert (sets.members(NAME, kind) is None) == (kind != "bitmap:port")


def test_narrower_sets_are_not_ours(sets: IpSets) -> None:
    """A netmask folds addresses together, a shorter range of ports holds fewer."""
    command.run(tool("hash:ip", sets.family, "netmask", "24"))
    command.run(["ipset", "create", OTHER, "bitmap:port", "range", "0-65534"])
    assert [head.ours for head in sets.heads().values()] == [False, False]


def test_many_sets_change_in_one_call(sets: IpSets) -> None:
    """Every kind at once, what goes before what comes, over several sends."""
    before = {kind: some(kind, sets.family, 1500) for kind in KINDS}
    after = {kind: some(kind, sets.family, 2500) - some(kind, sets.family, 700) for kind in KINDS}
    names = {f"KP-{number}": kind for number, kind in enumerate(KINDS)}
    for name, kind in names.items():
        sets.create(name, kind)
    sets.change(Change(name, kind, added=before[kind]) for name, kind in names.items())
    assert sets.read(names) == {name: before[kind] for name, kind in names.items()}
    sets.change(
        Change(name, kind, after[kind] - before[kind], before[kind] - after[kind])
        for name, kind in names.items()
    )
    assert sets.read(names) == {name: after[kind] for name, kind in names.items()}
    for name, kind in names.items():
        assert twin(kind, sets.family, name) == after[kind]
        assert sets.heads()[name] == Head(kind, len(after[kind]), ours=True)


def test_sets_that_are_read_at_once(sets: IpSets) -> None:
    """Full, empty, of another kind, not there."""
    few = some("hash:ip", sets.family, 2)
    sets.create(NAME, "hash:ip")
    sets.add(NAME, few, "hash:ip")
    sets.create(OTHER, "hash:ip")
    sets.create("KP-PORTS", "bitmap:port")
    wanted = {NAME: "hash:ip", OTHER: "hash:ip", "KP-PORTS": "hash:ip", "KP-NONE": "hash:ip"}
    assert sets.read(wanted) == {NAME: few, OTHER: set(), "KP-PORTS": None, "KP-NONE": None}
    assert sets.read({NAME: "hash:ip,port"}) == {NAME: None}


def test_the_refused_member_is_named_with_its_set(sets: IpSets) -> None:
    """In the middle of a batch of several sets; the sets before it have their members."""
    kinds = {NAME: "hash:ip", OTHER: "hash:ip,port,net"}
    for name, kind in kinds.items():
        sets.create(name, kind)
    good = {name: some(kind, sets.family, 400) for name, kind in kinds.items()}
    bad = next(iter(good[OTHER]))[:-1] + b"\0"
    with pytest.raises(MemberError, match=f"set {OTHER}") as caught:
        sets.change(
            [
                Change(NAME, kinds[NAME], added=good[NAME]),
                Change(OTHER, kinds[OTHER], added=[*good[OTHER], bad]),
            ]
        )
    assert (caught.value.set_name, caught.value.member) == (OTHER, bad)
    assert sets.told(bad, kinds[OTHER]) in str(caught.value)
    assert sets.read(kinds) == good
    sets.change([Change(OTHER, kinds[OTHER], gone=good[OTHER])])
    assert sets.members(OTHER, kinds[OTHER]) == set()


def test_every_message_of_a_send_may_be_refused(sets: IpSets, kind: str) -> None:
    """Their answers fit: the first member is named, and the next call gets its own answer."""
    members = sorted(some(kind, sets.family, 3000))
    with pytest.raises(MemberError, match=f"set {NAME}: No such file") as caught:
        sets.add(NAME, members, kind)
    assert caught.value.errno == errno.ENOENT
    assert caught.value.member == members[0]
    sets.create(NAME, kind)
    sets.add(NAME, members, kind)
    assert sets.heads()[NAME].elements == len(members)


def test_a_full_set_says_so(sets: IpSets) -> None:
    """In words."""
    command.run(["ipset", "create", NAME, "hash:ip", "family", WORDS[sets.family], "maxelem", "2"])
    with pytest.raises(NetlinkError, match="the set is full"):
        sets.add(NAME, some("hash:ip", sets.family, 9), "hash:ip")


def test_a_member_of_another_size_is_refused_here(sets: IpSets, kind: str) -> None:
    """Shifted bytes would become other members."""
    sets.create(NAME, kind)
    with pytest.raises(MemberError, match=f"no member of a {kind} set"):
        sets.add(NAME, [*some(kind, sets.family, 2), b"\1"], kind)
    assert sets.members(NAME, kind) == set()


def test_somebodys_exception_never_equals_a_wanted_member(sets: IpSets) -> None:
    """``nomatch`` turns a range round: such a member is listed as another one, and taken out as
    what it stands for."""
    kind = "hash:ip,port,net"
    good, bad = sorted(some(kind, sets.family, 2))
    sets.create(NAME, kind)
    sets.add(NAME, [good], kind)
    command.run(["ipset", "add", NAME, sets.told(bad, kind), "nomatch"])
    held = sets.members(NAME, kind)
    assert held == {good, bad + b"\1"}
    sets.change([Change(NAME, kind, {good, bad} - held, held - {good, bad})])
    assert sets.members(NAME, kind) == {good, bad}


def test_a_rule_asks_a_set_of_ports(sets: IpSets) -> None:
    """It has no family, as the tool makes it: rules of both families may use it."""
    sets.create(NAME, "bitmap:port")
    for prefix in ("iptables", "ip6tables"):
        rule = ["INPUT", "-p", "tcp", "-m", "set", "--match-set", NAME, "dst"]
        command.run([f"{prefix}-legacy", "-w", "60", "-A", *rule])
    assert not sets.destroy(NAME)


def test_a_listing_of_another_form_is_no_members(kind: str) -> None:
    """What the kernel never says is an error, not a wrong member."""
    shape = form(kind, V4)
    with pytest.raises(NetlinkError, match="another form"):
        list(shape.unpack(struct.pack("=HHHHI", 12, 7, 8, 6, 1)))
    with pytest.raises(NetlinkError, match="cut off"):
        list(shape.unpack(shape.listed[:-1]))
    assert head_of(b"", 0, 0, V4) is None
