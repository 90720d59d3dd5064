"""The tour: what it tries, what it believes, and that it cleans up after itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import msgspec
import pytest

from kproxy import doctor
from kproxy.cli import lab_tour
from kproxy.core.objects import Family
from kproxy.errors import LabError, UsageError
from kproxy.kernel import netns
from kproxy.lab import catalogue, lifecycle, state, tour
from kproxy.lab.tour import CHECKS, ModeResult, Report, Result, tries
from kproxy.lab.uml import machine

GOOD = Result("x", Family.IPV4, True)
BAD = Result("x", Family.IPV4, False, "seen otherwise")
NOT_TRIED = Result("x", Family.IPV4, None, "nobody to send")


@pytest.mark.parametrize(
    ("results", "ok"),
    [
        ((GOOD,), True),
        ((GOOD, BAD), False),
        ((GOOD, NOT_TRIED), True),
        ((NOT_TRIED,), False),
        ((), False),
    ],
)
def test_a_report_is_good_when_something_was_tried_and_nothing_failed(
    results: tuple[Result, ...], ok: bool
) -> None:
    """Trying nothing is no success."""
    assert Report((ModeResult("m", results), ModeResult("other"))).ok is ok


@pytest.mark.parametrize(("endpoints", "wanted"), [(0, 1), (1, 1), (2, 31), (3, 54)])
def test_tries_make_a_miss_unlikely(endpoints: int, wanted: int) -> None:
    """The chance to miss any endpoint is at most one in 10⁹, with not one try too many."""
    assert tries(endpoints) == wanted
    if endpoints > 1:
        missing = [endpoints * (1 - 1 / endpoints) ** n for n in (wanted, wanted - 1)]
        assert missing[0] <= 1e-9 < missing[1]


def test_a_topology_without_pods_cannot_be_tried() -> None:
    """The message says what is missing."""
    bare = msgspec.structs.replace(catalogue.load("standard"), workloads=())
    with pytest.raises(LabError, match="no workload"):
        tour.run(bare, say=print, step=print)


@pytest.mark.kernel
def test_an_unknown_mode_is_wrong_use() -> None:
    """Nothing is tried; the message lists the modes."""
    with pytest.raises(UsageError, match="iptables-nft"):
        tour.run(catalogue.load("single"), ["iptable"], say=print, step=print)


@pytest.fixture
def clean() -> Iterator[None]:
    lifecycle.down(tour.LAB)
    yield
    lifecycle.down(tour.LAB)
    state.forget_allocations(tour.LAB)


@pytest.mark.kernel
def test_every_mode_of_this_kernel_passes_every_check(clean: None) -> None:
    """All modes that kproxy has and the kernel can, both families, all checks; then it is gone."""
    report = tour.run(catalogue.load("standard"), say=lambda line: None, step=lambda line: None)
    by_mode = {mode.mode: mode for mode in report.modes}
    findings = doctor.examine().modes
    assert by_mode.keys() == {finding.name for finding in findings}
    for finding in findings:
        family = Family(finding.family)
        results = {r.check: r for r in by_mode[finding.name].results if r.family is family}
        lacking = dict(by_mode[finding.name].lacking)
        if finding.works:
            assert [(name, results[name].ok, results[name].detail) for name in CHECKS] == [
                (name, True, "") for name in CHECKS
            ]
        else:
            assert not results
            assert lacking[family]
    assert report.ok
    assert tour.LAB not in state.list_labs()
    assert not [name for name in os.listdir(netns.RUN_DIR) if name.startswith(f"kp-{tour.LAB}-")]


@pytest.mark.kernel
def test_a_broken_proxy_fails_every_check(clean: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks see it when the rules are gone: with the daemons stopped and the rules flushed
    nothing passes, so a tick means something."""
    from kproxy.kernel import command
    from kproxy.lab import daemons

    topology = catalogue.load("standard")
    load = tour.busiest(topology)
    from kproxy.backends import registry

    choice = registry.parse("iptables-nft")
    lab = lifecycle.up(tour.LAB, topology, choice, tour.services_for(load)).lab
    daemons.stop(tour.LAB, daemons.alive(tour.LAB, daemons.ROLE_PROXY).values())
    for node in lab.nodes:
        fd = netns.open_fd(lab.network.namespace(node))
        try:
            command.run(["nft", "flush", "ruleset"], namespace=fd)
        finally:
            os.close(fd)
    results = list(tour.try_lab(lab, load, (Family.IPV4,)))
    assert {result.check for result in results} == set(CHECKS)
    by_check = {result.check: result for result in results}
    refused = by_check.pop("refused when empty")
    assert not any(result.ok for result in by_check.values())
    assert all(result.detail for result in by_check.values())
    assert refused.ok is False


@pytest.mark.kernel
def test_a_tour_that_was_cut_short_is_cleaned_by_the_next(clean: None) -> None:
    """What a killed tour left is taken down first, and the next one says so."""
    maker = subprocess.Popen(
        [sys.executable, "-m", "kproxy", "lab", "tour", "single", "--mode", "iptables-nft"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while tour.LAB not in state.list_labs():
        assert maker.poll() is None
    maker.kill()
    maker.wait()
    said: list[str] = []
    report = tour.run(
        catalogue.load("single"), ["iptables-nft"], say=said.append, step=lambda line: None
    )
    assert any("cut short" in line for line in said)
    assert report.ok
    assert json.loads(msgspec.json.encode(report))["modes"][0]["mode"] == "iptables-nft"


def test_the_table_fits_and_says_everything_once(capsys: pytest.CaptureFixture[str]) -> None:
    """At most 100 columns; a mode that cannot run takes one row, modes that lack the same share one
    remark, and a mode that lacks one family keeps its rows."""
    ticks = tuple(Result(check, Family.IPV4, True) for check in CHECKS)
    nothing = tuple((family, "not here") for family in Family)
    lab_tour.show(
        Report(
            (
                ModeResult("iptables-legacy", ticks, ((Family.IPV6, "no ip6tables"),)),
                ModeResult("ipvs", lacking=nothing),
                ModeResult("userspace", lacking=nothing),
                ModeResult("x", lacking=((Family.IPV4, "a " * 80), (Family.IPV6, "b"))),
            )
        )
    )
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    rows = [tuple(line.split()[:3]) for line in lines if line[:1].isalpha()][1:]
    assert rows == [
        ("iptables-legacy", "IPv4", "✓"),
        ("iptables-legacy", "IPv6", "–"),
        ("ipvs", "–", "–"),
        ("userspace", "–", "–"),
        ("x", "IPv4", "–"),
        ("x", "IPv6", "–"),
    ]
    remarks = [line.strip() for line in lines if line.startswith("  –")]
    assert remarks[:2] == ["– iptables-legacy IPv6: no ip6tables", "– ipvs, userspace: not here"]
    assert [remark[:9] for remark in remarks[2:]] == ["– x IPv4:", "– x IPv6:"]


@pytest.mark.kernel
def test_a_mode_that_only_a_machine_can_run_is_in_the_table(
    clean: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside the modes of this kernel, under the same checks; the table says whose it was."""
    here = doctor.tried("ipvs").ok
    report = tour.run(
        catalogue.load("single"),
        ["ipvs", "iptables-nft"],
        say=lambda line: None,
        step=lambda line: None,
        name="single",
    )
    assert [mode.mode for mode in report.modes] == ["iptables-nft", "ipvs"]
    assert report.ok
    ipvs = report.modes[1]
    assert {result.check for result in ipvs.results} == set(CHECKS)
    assert ipvs.kernel == ("" if here else "user-mode Linux")
    lab_tour.show(report)
    assert ("ipvs: tried in user-mode Linux" in capsys.readouterr().out) is bool(ipvs.kernel)


@pytest.mark.kernel
def test_without_a_machine_the_table_says_why(clean: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """No mode fails for it, the others are tried."""
    findings = tuple(
        doctor.ModeFinding("ipvs", family.value, False, True, "no IPVS", "install a kernel")
        for family in Family
    )
    monkeypatch.setattr(machine, "KERNEL", "linux.uml-is-not-there")
    monkeypatch.setattr(doctor, "examine", lambda: doctor.Report(findings, ()))
    report = tour.run(
        catalogue.load("single"), say=lambda line: None, step=lambda line: None, name="single"
    )
    (ipvs,) = report.modes
    assert ipvs.ok
    assert {why for _, why in ipvs.lacking} == {"no IPVS; install a kernel"}
