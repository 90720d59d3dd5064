"""Fresh network namespaces with the host's iptables in them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from kproxy.backends.xtables.door import ToolDoor
from kproxy.backends.xtables.rules import Table
from kproxy.backends.xtables.saved import parse
from kproxy.backends.xtables.variant import Variant
from kproxy.core.objects import Family
from kproxy.kernel import netns
from kproxy.kernel.netlink import open_route

#: Every kind of kernel iptables.
KERNEL = [
    pytest.param(family, variant, id=f"{variant}-ipv{family.value}")
    for family in Family
    for variant in Variant
]


@contextmanager
def scratch(*, loopback: bool = False) -> Iterator[None]:
    """The calling thread in a new namespace, with a lock of its own: the default one is shared by
    all namespaces of a host. ``loopback`` is up for IPVS, which calls no address unicast as long as
    the namespace has none."""
    before = os.environ.get("XTABLES_LOCKFILE")
    with TemporaryDirectory() as folder, netns.fresh():
        if loopback:
            with open_route() as route:
                route.link("set", index=1, state="up")
        os.environ["XTABLES_LOCKFILE"] = str(Path(folder) / "lock")
        try:
            yield
        finally:
            if before is None:
                del os.environ["XTABLES_LOCKFILE"]
            else:
                os.environ["XTABLES_LOCKFILE"] = before


def restored(
    family: Family,
    variant: Variant,
    rows: Mapping[Table, Sequence[str]],
    chains: Sequence[str],
) -> dict[Table, list[str]]:
    """What the save tool prints after these rows were restored into new ``chains``; chain by
    chain, in the order in which they first occur in ``rows``. Sets that they ask are there,
    empty, and so are the counters that they name."""
    text = "".join(
        "\n".join([f"*{table}", *(f":{chain} - [0:0]" for chain in chains), *lines, "COMMIT", ""])
        for table, lines in rows.items()
    )
    with scratch():
        door = ToolDoor(family, variant)
        for name in re.findall(r"--match-set (\S+) ", text):
            door.fill(name, (), create=True)
        for name in re.findall(r"--nfacct-name (\S+) ", text):
            door.make_counter(name)
        door.restore([text.encode()])
        saved = parse(door.save())
    return {
        table: [
            row
            for chain in dict.fromkeys(line.split()[1] for line in lines)
            for row in saved[table][chain]
        ]
        for table, lines in rows.items()
    }
