"""The doctor's answers, compared with what the machine does when it is asked directly."""

from __future__ import annotations

import os

import pytest

from kproxy import doctor, doctor_probes
from kproxy.core.objects import Family
from kproxy.errors import KernelError, MachineError
from kproxy.kernel import command


def refuses(error: Exception) -> doctor_probes.Probe:
    def probe() -> str:
        raise error

    return probe


@pytest.mark.parametrize(
    ("error", "why", "remedy"),
    [
        (MachineError("no x", hint="try: apt-get install x"), "no x", "apt-get install x"),
        (KernelError("said no"), "said no", "the usual"),
        (OSError(93, "Protocol not supported"), "Protocol not supported", "the usual"),
    ],
)
def test_every_way_to_say_no_is_a_finding(error: Exception, why: str, remedy: str) -> None:
    """A probe that raises is an answer: what it saw, and its own remedy before the usual one."""
    found = doctor._answer("x", refuses(error), "the usual")
    assert (found.ok, found.why, found.remedy) == (False, why, remedy)


def test_without_rights_nothing_is_claimed() -> None:
    """What could not be tried is a no that says so; tools are still looked up."""
    report = doctor._without_root(("CAP_NET_ADMIN",))
    assert not report.usable
    assert all(not mode.kernel and "not tried" in mode.why for mode in report.modes)
    by_name = {found.name: found for found in report.features}
    assert by_name["root"].remedy == "sudo kproxy doctor"
    assert "not tried" in by_name["veth"].why
    assert by_name["iptables tool"].ok == (command.find("iptables-restore") is not None)


def test_a_kernel_that_can_is_no_use_to_a_mode_that_is_not_there() -> None:
    """Only a mode that both the kernel and this kproxy have makes a machine usable."""
    later = doctor.ModeFinding("ipvs", 4, kernel=True, built=False, why="")
    now = doctor.ModeFinding("iptables-nft", 4, kernel=True, built=True, why="")
    assert not doctor.Report((later,), ()).usable
    assert doctor.Report((later, now), ()).usable


@pytest.mark.kernel
def test_the_examination_is_whole_and_leaves_no_trace() -> None:
    """Each mode in each family, a remedy with each no, and the thread is back where it was."""
    home = os.stat("/proc/thread-self/ns/net").st_ino
    report = doctor.examine()
    assert os.stat("/proc/thread-self/ns/net").st_ino == home
    names = [name for name, _, _ in doctor_probes.MODE_PROBES]
    assert [(m.name, m.family) for m in report.modes] == [
        (n, int(f)) for n in names for f in Family
    ]
    for found in (*report.modes, *report.features):
        works = found.kernel if isinstance(found, doctor.ModeFinding) else found.ok
        assert works or found.remedy, found
        assert found.why, found
    assert report.usable


@pytest.mark.kernel
def test_matches_in_rules_are_told_by_variant() -> None:
    """In which rules a match loads that modes can do without; when in none, that it does not."""
    assert doctor_probes.in_rules(lambda family, variant: variant == "nft")() == "in rules of nft"
    assert doctor_probes.in_rules(lambda family, variant: True)() == "in rules of legacy and nft"
    with pytest.raises(MachineError, match="do not load"):
        doctor_probes.in_rules(lambda family, variant: False)()
