"""A command in user-mode Linux, for what this host's kernel lacks."""

from __future__ import annotations

from kproxy.bench.helper import ROOT
from kproxy.lab.uml.boot import Boot


def in_machine(argv: list[str]) -> bytes:
    """What it wrote to its standard output, in a machine of its own. AssertionError: it failed, and
    with which words."""
    said = {1: b"", 2: b""}

    def take(stream: int, data: bytes) -> None:
        said[stream] += data

    with Boot(memory="1G") as machine:
        status = machine.run(argv, take=take, directory=ROOT)
    assert status == 0, said[2].decode()
    return said[1]
