"""The in-memory kernel ends every script as the real one does."""

from __future__ import annotations

import pytest

from kproxy.backends.fake import FakeIptables
from kproxy.backends.xtables.door import Door, ToolDoor
from kproxy.backends.xtables.saved import Saved, parse
from kproxy.backends.xtables.variant import Variant
from kproxy.core.objects import Family
from kproxy.errors import CommandError
from tests.contract.namespaces import KERNEL, scratch

BEGIN = "*nat\n:A - [0:0]\n:B - [0:0]\n-A A -j B\n-A B -j RETURN\nCOMMIT\n"

#: (about, restore text run after BEGIN, whether it is taken)
SCRIPTS = [
    ("empty", "", True),
    ("comment and blank line", "# x\n\n*nat\nCOMMIT\n", True),
    ("append", "*nat\n-A B -p tcp -m tcp --dport 80 -j ACCEPT\nCOMMIT\n", True),
    ("append to a base chain", "*nat\n-A OUTPUT -j A\nCOMMIT\n", True),
    ("insert at the top", "*nat\n-I B 1 -j ACCEPT\nCOMMIT\n", True),
    ("insert without a place", "*nat\n-I B -j ACCEPT\nCOMMIT\n", True),
    ("insert beyond the end", "*nat\n-I B 9 -j ACCEPT\nCOMMIT\n", False),
    ("delete", "*nat\n-D B -j RETURN\nCOMMIT\n", True),
    ("delete what is not there", "*nat\n-D B -j ACCEPT\nCOMMIT\n", False),
    ("a chain line empties", "*nat\n:B - [0:0]\nCOMMIT\n", True),
    ("flush", "*nat\n-F B\nCOMMIT\n", True),
    ("flush nothing", "*nat\n-F NONE\nCOMMIT\n", False),
    ("new chain", "*nat\n-N C\nCOMMIT\n", True),
    ("new chain twice", "*nat\n-N A\nCOMMIT\n", False),
    ("delete chain", "*nat\n:A - [0:0]\n-X A\nCOMMIT\n", True),
    ("delete chain in use", "*nat\n:B - [0:0]\n-X B\nCOMMIT\n", False),
    ("delete chain with rules", "*nat\n-X A\nCOMMIT\n", False),
    ("delete both", "*nat\n:A - [0:0]\n:B - [0:0]\n-X A\n-X B\nCOMMIT\n", True),
    ("delete unknown chain", "*nat\n-X NONE\nCOMMIT\n", False),
    ("jump to unknown chain", "*nat\n-A B -j NONE\nCOMMIT\n", False),
    ("append to unknown chain", "*nat\n-A NONE -j ACCEPT\nCOMMIT\n", False),
    ("unknown table", "*none\nCOMMIT\n", False),
    ("unknown command", "*nat\n-Q A\nCOMMIT\n", False),
    ("unknown option", "*nat\n-A B --nope 1 -j ACCEPT\nCOMMIT\n", False),
    ("unknown match", "*nat\n-A B -m nope -j ACCEPT\nCOMMIT\n", False),
    ("option without its match", "*nat\n-A B -p tcp -j ACCEPT --ctstate NEW\nCOMMIT\n", False),
    ("transport without protocol", "*nat\n-A B -m tcp --dport 80 -j ACCEPT\nCOMMIT\n", False),
    ("option without argument", "*nat\n-A B -j DNAT --to-destination\nCOMMIT\n", False),
    (
        "DNAT outside nat",
        "*filter\n-A INPUT -p tcp -j DNAT --to-destination 10.0.0.1:1\nCOMMIT\n",
        False,
    ),
    ("REJECT outside filter", "*nat\n-A B -j REJECT\nCOMMIT\n", False),
    ("long chain name", f"*nat\n:{'C' * 29} - [0:0]\nCOMMIT\n", False),
    ("longest chain name", f"*nat\n:{'C' * 28} - [0:0]\nCOMMIT\n", True),
    ("long comment is cut", f'*nat\n-A B -m comment --comment "{"c " * 150}"\nCOMMIT\n', True),
    ("rules without a table", "-A B -j ACCEPT\n", False),
    (
        "the good table before a bad one stays",
        "*nat\n-A B -j ACCEPT\nCOMMIT\n*filter\n-A NONE -j DROP\nCOMMIT\n",
        False,
    ),
    ("ask a set", "*nat\n-A B -m set --match-set KP src,src -j ACCEPT\nCOMMIT\n", True),
    ("ask a missing set", "*nat\n-A B -m set --match-set NO src,src -j ACCEPT\nCOMMIT\n", False),
    ("a bad line undoes its table", "*nat\n-A B -j ACCEPT\n-A NONE -j DROP\nCOMMIT\n", False),
]


def ended(door: Door, script: str) -> tuple[bool, Saved]:
    """Whether the script was taken, and the nat and filter tables afterwards."""
    # filter as well: the tools list no table that was never used.
    door.fill("KP", (), create=True)
    door.restore([f"{BEGIN}*filter\n:F - [0:0]\nCOMMIT\n".encode()])
    try:
        door.restore([script.encode()])
        taken = True
    except CommandError:
        taken = False
    saved = parse(door.save())
    return taken, {table: rows for table, rows in saved.items() if table != "mangle"}


@pytest.mark.parametrize(("about", "script", "taken"), SCRIPTS, ids=[row[0] for row in SCRIPTS])
def test_fake_takes_and_refuses(about: str, script: str, taken: bool) -> None:
    """The in-memory kernel takes or refuses as written in the table."""
    assert ended(FakeIptables(), script)[0] == taken


@pytest.mark.kernel
@pytest.mark.parametrize(("family", "variant"), KERNEL)
def test_kernel_ends_every_script_as_the_fake_does(family: Family, variant: Variant) -> None:
    """Both take the same scripts, and hold the same chains and rules afterwards."""
    differences = []
    for about, script, _ in SCRIPTS:
        script = script if family is Family.IPV4 else script.replace("10.0.0.1:1", "[fd00::1]:1")
        with scratch():
            real = ended(ToolDoor(family, variant), script)
        fake = ended(FakeIptables(), script)
        if real != fake:
            differences.append((about, real, fake))
    assert differences == []
