"""Rules that are few: read, compared chain by chain, written where they differ."""

from __future__ import annotations

import pytest

from kproxy.backends.xtables import ruleset
from kproxy.backends.xtables.door import ToolDoor
from kproxy.backends.xtables.layout import Layout, own
from kproxy.backends.xtables.rules import Accept, Drop, Jump, Return, Rule, Table
from kproxy.backends.xtables.ruleset import Ruleset, RulesHeld, RulesPatch
from kproxy.backends.xtables.saved import parse
from kproxy.backends.xtables.variant import Variant
from kproxy.core.objects import Family
from tests.contract.namespaces import KERNEL, scratch

NAT, FILTER, MANGLE = Table.NAT, Table.FILTER, Table.MANGLE
V4 = Family.IPV4

LAYOUT = Layout(
    own=own((NAT, "KP-A"), (NAT, "KP-B"), (FILTER, "KP-C"), (MANGLE, "KP-D")),
    prefixes={NAT: ("KP-SVC-",)},
    jumps=(
        Rule(NAT, "OUTPUT", Jump("KP-A"), comment="number one"),
        Rule(NAT, "PREROUTING", Jump("KP-A"), comment="number two"),
        Rule(FILTER, "INPUT", Jump("KP-C")),
    ),
)
RULES = {
    (NAT, "KP-A"): [
        Rule(NAT, "KP-A", Jump("KP-B")),
        Rule(NAT, "KP-A", Return(), source="10.0.0.0/8"),
    ],
    (NAT, "KP-B"): [Rule(NAT, "KP-B", Accept(), protocol="tcp", dport=80)],
    (FILTER, "KP-C"): [Rule(FILTER, "KP-C", Drop(), ctstate=("INVALID",))],
    (MANGLE, "KP-D"): [],
}
FAMILY_RULES = {
    Family.IPV4: RULES,
    Family.IPV6: {
        place: [rule for rule in rules if not rule.source] for place, rules in RULES.items()
    },
}


def wanted(family: Family = V4) -> Ruleset:
    return ruleset.ruleset(LAYOUT, FAMILY_RULES[family], family)


def test_what_is_in_force_needs_no_change() -> None:
    assert ruleset.diff(wanted(), ruleset.settled(wanted())) is None


def test_only_chains_that_differ_are_written() -> None:
    """One changed, one missing, one too many, one with a foreign rule that pins it."""
    text = dict(wanted().chains)
    held = RulesHeld(
        chains={
            (NAT, "KP-A"): text[NAT, "KP-A"],
            (NAT, "KP-B"): "-A KP-B -j RETURN\n",
            (NAT, "KP-SVC-1"): "-A KP-SVC-1 -j KP-SVC-2\n",
            (NAT, "KP-SVC-2"): "",
            (FILTER, "KP-C"): text[FILTER, "KP-C"],
        },
        jumps=(*sorted(wanted().jumps), wanted().jumps[0]),
        pinned=frozenset({(NAT, "KP-SVC-2")}),
    )
    assert ruleset.diff(wanted(), held) == RulesPatch(
        written=(((NAT, "KP-B"), text[NAT, "KP-B"]), ((MANGLE, "KP-D"), "")),
        emptied=((NAT, "KP-SVC-1"),),
        doomed=((NAT, "KP-SVC-1"),),
        jumps=(wanted().jumps[0],),
        surplus=(wanted().jumps[0],) * 2,
    )


def test_a_chain_of_another_program_is_not_ours() -> None:
    """Neither it, nor its rules, nor rules of base chains that only look alike."""
    saved = parse(
        "*nat\n:OUTPUT ACCEPT [0:0]\n:MINE - [0:0]\n:KP-A - [0:0]\n"
        "-A OUTPUT -j MINE\n-A OUTPUT -j KP-A\n-A MINE -j KP-A\nCOMMIT\n"
    )
    held = ruleset.read(saved, LAYOUT, V4)
    assert held == RulesHeld(chains={(NAT, "KP-A"): ""}, pinned=frozenset({(NAT, "KP-A")}))


DAMAGE = {
    "nothing there": "",
    "a chain emptied": "*nat\n-F KP-A\nCOMMIT\n",
    "a rule added": "*filter\n-A KP-C -j ACCEPT\nCOMMIT\n",
    "a jump deleted": '*nat\n-D OUTPUT -m comment --comment "number one" -j KP-A\nCOMMIT\n',
    "a jump twice": "*filter\n-A INPUT -j KP-C\nCOMMIT\n",
    "a chain too many": "*nat\n:KP-SVC-1 - [0:0]\n-A KP-SVC-1 -j KP-B\nCOMMIT\n",
    "a chain deleted": "*mangle\n-X KP-D\nCOMMIT\n",
    "somebody uses a stale chain": (
        "*nat\n:KP-SVC-1 - [0:0]\n:MINE - [0:0]\n-A MINE -j KP-SVC-1\nCOMMIT\n"
    ),
}


@pytest.mark.kernel
@pytest.mark.parametrize("damage", list(DAMAGE))
@pytest.mark.parametrize(("family", "variant"), KERNEL)
def test_the_kernel_ends_as_wanted(family: Family, variant: Variant, damage: str) -> None:
    """Whatever was done to it, one call mends it; other people's rules stay, at their place."""
    theirs = "-A INPUT -p icmp -j ACCEPT"
    with scratch():
        door = ToolDoor(family, variant)
        door.restore([f"*filter\n{theirs}\nCOMMIT\n".encode()])
        if damage != "nothing there":
            _mend(door, family)
            door.restore([DAMAGE[damage].encode()])
        _mend(door, family)
        saved = parse(door.save())
        held = ruleset.read(saved, LAYOUT, family)
        assert ruleset.diff(wanted(family), held) is None
        if not held.pinned:
            assert held == ruleset.settled(wanted(family))
        assert saved[FILTER]["INPUT"] == ["-A INPUT -j KP-C", theirs]
        assert [row.split()[3] for row in saved[NAT]["OUTPUT"]] == ["comment"]


def _mend(door: ToolDoor, family: Family) -> RulesPatch | None:
    held = ruleset.read(parse(door.save()), LAYOUT, family)
    patch = ruleset.diff(wanted(family), held)
    if patch is not None:
        door.restore([piece.encode() for piece in ruleset.call(patch)])
    return patch
