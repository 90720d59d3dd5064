"""Sets of addresses and ports, beside pyroute2 as the slow twin and the host's tool."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Iterator

import pytest
from pyroute2.ipset import IPSet, PortEntry

from kproxy.core.objects import Family
from kproxy.errors import NetlinkError
from kproxy.kernel import command, netns
from kproxy.kernel.ipset import IP_PORT, MAX_MEMBERS, IpSets

pytestmark = pytest.mark.kernel

V4, V6 = Family.IPV4, Family.IPV6
FIRST = {V4: "10.0.0.1", V6: "fd00::1"}
CODES = {V4: socket.AF_INET, V6: socket.AF_INET6}
NAME = "KP-TEST"


@pytest.fixture(params=[V4, V6], ids=["ipv4", "ipv6"])
def sets(request: pytest.FixtureRequest) -> Iterator[IpSets]:
    with netns.fresh(), IpSets(request.param) as made:
        yield made


def member(family: Family, number: int, protocol: int = 6) -> bytes:
    """Five ports for each address."""
    address = ipaddress.ip_address(FIRST[family]) + number // 5
    return address.packed + (8080 + number % 5).to_bytes(2, "big") + bytes((protocol,))


def some(family: Family, count: int) -> set[bytes]:
    return {member(family, number, (6, 17, 132)[number % 3]) for number in range(count)}


def twin(family: Family, name: str = NAME) -> set[bytes]:
    """The members as pyroute2 lists them."""
    found = set()
    with IPSet(nfgen_family=CODES[family]) as slow:
        for message in slow.list(name):
            for entry in message.get_attr("IPSET_ATTR_ADT").get_attrs("IPSET_ATTR_DATA"):
                place = entry.get_attr("IPSET_ATTR_IP_FROM")
                address = place.get_attr(f"IPSET_ATTR_IPADDR_IPV{family.value}")
                port, protocol = (
                    entry.get_attr(f"IPSET_ATTR_{name}") for name in ("PORT_FROM", "PROTO")
                )
                packed = ipaddress.ip_address(address).packed
                found.add(packed + port.to_bytes(2, "big") + bytes((protocol,)))
    return found


def test_what_is_put_in_is_listed(sets: IpSets) -> None:
    """Here, by pyroute2 and by the tool, over several sends and datagrams."""
    wanted = some(sets.family, 3000)
    sets.create(NAME)
    sets.add(NAME, wanted)
    assert sets.members(NAME) == wanted
    assert twin(sets.family) == wanted
    text = command.run(["ipset", "list", NAME]).stdout.decode()
    rows = text.split("Members:\n")[1].split()
    assert set(rows) == {sets.told(one) for one in wanted}


def test_what_pyroute2_puts_in_is_listed(sets: IpSets) -> None:
    """The other way round."""
    sets.create(NAME)
    with IPSet(nfgen_family=CODES[sets.family]) as slow:
        for port in (1, 65535):
            entry = (FIRST[sets.family], PortEntry(port, protocol=17))
            slow.add(NAME, entry, family=CODES[sets.family], etype="ip,port")
    address = ipaddress.ip_address(FIRST[sets.family]).packed
    wanted = {address + port.to_bytes(2, "big") + b"\x11" for port in (1, 65535)}
    assert sets.members(NAME) == wanted == twin(sets.family)


def test_members_come_and_go(sets: IpSets) -> None:
    """What is there may be added and what is gone removed; an empty set is a set."""
    few, more = some(sets.family, 5), some(sets.family, 9)
    sets.create(NAME)
    assert sets.members(NAME) == set()
    for _ in range(2):
        sets.add(NAME, few)
        assert sets.members(NAME) == few
    sets.add(NAME, more)
    for _ in range(2):
        sets.remove(NAME, few)
        assert sets.members(NAME) == more - few
    sets.remove(NAME, more)
    assert sets.members(NAME) == set()
    sets.add(NAME, ())


def test_a_whole_cluster_fits(sets: IpSets) -> None:
    """55,000 members, more than a set holds that is made without saying how many."""
    wanted = some(sets.family, 66_000)
    sets.create(NAME)
    sets.add(NAME, wanted)
    assert sets.members(NAME) == wanted
    sets.remove(NAME, wanted)
    assert sets.members(NAME) == set()


def test_making_a_set_again_keeps_it(sets: IpSets) -> None:
    """The next proxy finds what the last one left."""
    sets.create(NAME)
    sets.add(NAME, some(sets.family, 2))
    sets.create(NAME)
    assert sets.members(NAME) == some(sets.family, 2)


@pytest.mark.parametrize(
    "options", [["maxelem", "77"], ["timeout", "60"], ["counters"], ["comment"]], ids=str
)
def test_another_set_of_the_name_gives_way(sets: IpSets, options: list[str]) -> None:
    """It is none of ours to read; made anew it is empty, and no other set is left."""
    kind = {V4: "inet", V6: "inet6"}[sets.family]
    maker = ["ipset", "create", NAME, "hash:ip,port", "family", kind, "maxelem", str(MAX_MEMBERS)]
    command.run([*(maker[:-2] if options[0] == "maxelem" else maker), *options])
    sets.add(NAME, some(sets.family, 3))
    assert sets.members(NAME) is None
    assert sets.members(NAME, any_form=True) == some(sets.family, 3)
    assert sets.read({NAME: IP_PORT}, any_form=True) == {NAME: some(sets.family, 3)}
    sets.create(NAME)
    assert sets.members(NAME) == set()
    assert command.run(["ipset", "list", "-n"]).stdout.decode().split() == [NAME]


#: Sets that cannot be swapped with one of ours, and what is said of them.
OTHERS = [
    (["bitmap:port", "range", "0-10"], "of type bitmap:port"),
    (["hash:net"], "of type hash:net"),
    (["hash:ip,port", "family", "other"], "of the other family"),
]


def make_other(family: Family, options: list[str]) -> None:
    other = {V4: "inet6", V6: "inet"}[family]
    command.run(["ipset", "create", NAME, *(other if one == "other" else one for one in options)])


@pytest.mark.parametrize(("options", "said"), OTHERS, ids=[said for _, said in OTHERS])
def test_a_set_of_another_type_that_no_rule_uses_gives_way(
    sets: IpSets, options: list[str], said: str
) -> None:
    """Nobody depends on it, and its name is ours."""
    make_other(sets.family, options)
    assert sets.members(NAME, any_form=True) is None
    sets.create(NAME)
    assert sets.members(NAME) == set()
    assert command.run(["ipset", "list", "-n"]).stdout.decode().split() == [NAME]


@pytest.mark.parametrize(("options", "said"), OTHERS, ids=[said for _, said in OTHERS])
def test_a_set_of_another_type_that_a_rule_uses_is_left_and_named(
    sets: IpSets, options: list[str], said: str
) -> None:
    """The error says what it is, and how to find the rule, without which it gives way."""
    make_other(sets.family, options)
    tool = "ip6tables-legacy" if "other" in options and sets.family is V4 else "iptables-legacy"
    flags = ",".join(["src"] * (options[0].count(",") + 1))
    rule = ["INPUT", "-m", "set", "--match-set", NAME, flags]
    command.run([tool, "-w", "60", "-A", *rule])
    with pytest.raises(NetlinkError, match=f"{NAME} is another program's, {said}, and") as caught:
        sets.create(NAME)
    assert f"grep -w -e {NAME}" in caught.value.hint
    assert command.run(["ipset", "list", "-n"]).stdout.decode().split() == [NAME]
    command.run([tool, "-w", "60", "-D", *rule])
    sets.create(NAME)
    assert sets.members(NAME) == set()


def test_swap_changes_all_at_once(sets: IpSets) -> None:
    """Two sets exchange what they hold."""
    for name, count in ((NAME, 2), ("KP-OTHER", 3)):
        sets.create(name)
        sets.add(name, some(sets.family, count))
    sets.swap(NAME, "KP-OTHER")
    assert [len(sets.members(name) or ()) for name in (NAME, "KP-OTHER")] == [3, 2]


def test_a_set_that_is_not_there(sets: IpSets) -> None:
    """Listing gives None, destroying is done already, adding names set and member."""
    assert sets.members(NAME) is None
    assert sets.destroy(NAME)
    with pytest.raises(NetlinkError, match=f"8080: set {NAME}: No such file") as caught:
        sets.add(NAME, [member(sets.family, 0)])
    assert caught.value.errno == errno.ENOENT


def test_the_member_that_is_refused_is_named(sets: IpSets) -> None:
    """In the middle of a batch: what came before it is in, the next call gets its own answer."""
    kind = {V4: "inet", V6: "inet6"}[sets.family]
    command.run(["ipset", "create", NAME, "hash:ip,port", "family", kind])
    good = [member(sets.family, number) for number in range(2000)]
    bad = member(sets.family, 3000)[:-1] + b"\0"  # no protocol
    with pytest.raises(NetlinkError) as caught:
        sets.add(NAME, [*good[:1000], bad, *good[1000:]])
    assert sets.told(bad) in str(caught.value)
    assert set(good[:1000]) <= twin(sets.family)
    sets.remove(NAME, good)
    assert twin(sets.family) == set()


def test_a_rule_keeps_its_set(sets: IpSets) -> None:
    """A set that a rule asks is not destroyed; without the rule it is."""
    tool = {V4: "iptables-legacy", V6: "ip6tables-legacy"}[sets.family]
    sets.create(NAME)
    rule = ["INPUT", "-m", "set", "--match-set", NAME, "src,src"]
    command.run([tool, "-w", "60", "-A", *rule])
    assert not sets.destroy(NAME)
    assert sets.members(NAME) == set()
    command.run([tool, "-w", "60", "-D", *rule])
    assert sets.destroy(NAME)
    assert sets.members(NAME) is None
