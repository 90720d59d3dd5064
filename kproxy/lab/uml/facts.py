"""What a lab in a machine looks like, asked from the host."""

from __future__ import annotations

import os
import sys

import msgspec

from kproxy.errors import KproxyError, LabError
from kproxy.lab.survey import LabFacts
from kproxy.lab.uml import carry, resident

KERNEL = "uml"

_COMPLETING = "_KPROXY_COMPLETE"


def kproxy(*words: str) -> list[str]:
    """A kproxy command line that means the same inside, whatever is in PATH there."""
    return [sys.executable, "-P", "-m", "kproxy", *words]


def survey(lab: str) -> LabFacts:
    """The lab as it is seen inside. A machine that is gone, or does not answer, is a fault."""
    if not resident.running(lab):
        return LabFacts(lab, kernel=KERNEL, fault="its machine is gone")
    try:
        told = _told(lab, "lab", "ls", "--name", lab, "-o", "json")
        (facts,) = msgspec.json.decode(told, type=list[LabFacts])
    except (KproxyError, msgspec.DecodeError) as wrong:
        why = wrong.what if isinstance(wrong, KproxyError) else str(wrong)
        return LabFacts(lab, kernel=KERNEL, fault=f"its machine does not tell: {why}")
    return msgspec.structs.replace(facts, kernel=KERNEL)


def workloads(lab: str) -> list[str]:
    """Names of the lab's workloads; LabError when its machine is gone."""
    lines = _told(lab, "lab", "get", "--name", lab, "workloads", "-o", "name").decode().split()
    return [line.partition("/")[2] for line in lines]


def _told(lab: str, *words: str) -> bytes:
    # A shell that completes a word says so in the environment: it does not mean this command.
    environment = {name: text for name, text in os.environ.items() if name != _COMPLETING}
    status, output, errors = carry.ask(lab, kproxy(*words), environment)
    if status:
        said = errors.decode(errors="replace").strip().removeprefix("kproxy: ")
        raise LabError(said or f"kproxy ended with {status} in the machine of lab {lab}")
    return output
