"""Records rounds of equals by the harness, for the tests of what is said of rounds.

    python -m tests.bench.record NAME [--rounds N] [--seconds S] [--measures M,…]

Whoever is measured is measured twice or three times under different names: direct routing, a mode
of the kernel, a relay. Whatever is found to differ between two of them is wrong. Kept are the
figures alone, in tests/bench/data/NAME.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence

from kproxy.bench import fingerprint
from kproxy.bench.conductor import Conductor, Job, Step
from kproxy.bench.measures.traffic import Traffic
from kproxy.bench.ours import PODS, Mode
from kproxy.bench.peers import Direct
from kproxy.bench.results import Section
from kproxy.bench.subjects import AGAIN, DIRECT
from tests.bench.machines import DATA, recorded

#: Digits of a figure: rounds are no surer.
_DIGITS = 4


class Third(Direct):
    """Direct routing, a third time."""

    def __init__(self) -> None:
        super().__init__("direct 3")


class NftTwin(Mode):
    """The mode iptables-nft, a second time."""

    def __init__(self) -> None:
        super().__init__("iptables", "--iptables-variant", "nft", *PODS, name="iptables-nft 2")


class UserspaceTwin(Mode):
    """The mode userspace, a second time."""

    def __init__(self) -> None:
        super().__init__("userspace", *PODS, name="userspace 2")


#: Those that are the same.
EQUALS: Sequence[Sequence[str]] = (
    (DIRECT, AGAIN, "direct 3"),
    ("iptables-nft", "iptables-nft 2"),
    ("userspace", "userspace 2"),
)

_SUBJECTS = (
    DIRECT,
    AGAIN,
    "tests.bench.record:Third",
    "iptables-nft",
    "tests.bench.record:NftTwin",
    "userspace",
    "tests.bench.record:UserspaceTwin",
)


def kept(section: Section) -> Mapping[str, list[dict[str, float]]]:
    """Measure -> subject -> figure, round by round."""
    return {
        row.point.measure: [
            {name: float(f"{figure.value:.{_DIGITS}g}") for name, figure in each.items()}
            for each in row.rounds
        ]
        for row in section.rows
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=0.1)
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--measures", default="crr,rr,stream1,udp")
    parser.add_argument("--append", action="store_true")
    parser.add_argument("--time", type=float, default=220.0)
    given = parser.parse_args()
    group = Traffic(
        _SUBJECTS,
        seconds=given.seconds,
        fresh=given.fresh,
        measures=given.measures.split(","),
    )
    conductor = Conductor(
        [Job(group, rounds=given.rounds, each=1.0)], seconds=given.time, told=_tell
    )
    conductor.run()
    section = conductor.section("host", "", {})
    earlier = recorded(given.name) if given.append else {}
    machine = fingerprint.taken()
    content = {
        "of": f"{given.seconds:g} s, {'fresh' if given.fresh else 'standing'}",
        "machine": {"cpu": machine.cpu, "cores": machine.cores, "load": machine.load},
        "failures": {
            row.point.measure: sum(f.failures for each in row.rounds for f in each.values())
            for row in section.rows
        },
        "rounds": {name: [*earlier.get(name, ()), *taken] for name, taken in kept(section).items()},
    }
    (DATA / f"{given.name}.json").write_text(_text(content))
    for absent in section.absent:
        sys.stderr.write(f"{absent.subject} {absent.measure}: {absent.reason}\n")


def _text(content: Mapping[str, object]) -> str:
    """A round on a line."""
    head = {key: value for key, value in content.items() if key != "rounds"}
    rounds = content["rounds"]
    assert isinstance(rounds, dict)
    measures = ",\n".join(
        f' "{name}": [\n' + ",\n".join(f"  {json.dumps(each)}" for each in taken) + "\n ]"
        for name, taken in rounds.items()
    )
    return f'{json.dumps(head)[:-1]}, "rounds": {{\n{measures}\n}}}}\n'


def _tell(step: Step) -> None:
    if step.kind in ("round", "note"):
        sys.stderr.write(f"{step.rounds} rounds, {step.elapsed:.0f} s {step.note}\n")


if __name__ == "__main__":
    main()
