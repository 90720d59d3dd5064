"""A link that loses packets: it shows as failures, and as no speed, whatever the figures are."""

from __future__ import annotations

from typing import Self

import pytest

from kproxy.bench import verdicts
from kproxy.bench.conductor import Conductor, Job
from kproxy.bench.measures.traffic import Traffic
from kproxy.bench.peers import Direct
from kproxy.bench.verdicts import Word
from kproxy.kernel import command

#: One of a hundred packets is dropped on the way through the node, at random, both ways. One
#: connection of fifty waits for a second SYN: most are as fast as ever, until one after the other
#: of those that run at once waits. A busy machine that opens five hundred a second has 600 in all
#: rounds, of which all are spared once in a hundred thousand runs.
DROP = """\
table inet lossy {
    chain forward {
        type filter hook forward priority 0;
        numgen random mod 100 0 drop
    }
}
"""


class Lossy(Direct):
    """Direct routing by a node that will lose packets."""

    name = "lossy"

    def __init__(self) -> None:
        super().__init__("lossy")


class LosingTraffic(Traffic):
    """The link of the lossy one loses packets from the first turn on: until then it has to prove
    that it serves."""

    def __enter__(self) -> Self:
        super().__enter__()
        node = self._standing["lossy"].path.fd("node")
        command.run(["nft", "-f", "-"], stdin=DROP.encode(), namespace=node)
        return self


@pytest.mark.kernel
def test_a_lossy_link_fails() -> None:
    """Connections that had to wait for a second SYN are failures, however fast the others were."""
    group = LosingTraffic(
        ("direct again", "tests.bench.test_lossy:Lossy"), seconds=0.3, measures=("crr",)
    )
    conductor = Conductor([Job(group, rounds=4, each=1.0)])
    conductor.run()
    section = conductor.section("host", "", {})
    assert section.absent == ()
    ((row,), (measure,)) = section.rows, section.measures
    said = verdicts.said(row, measure)
    assert said["lossy"].word is Word.FAILED
    assert said["lossy"].text.startswith("failed: ")
    assert said["direct"].failures == said["direct again"].failures == 0
