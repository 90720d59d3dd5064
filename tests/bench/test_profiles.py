"""Profiles: what is asked for is measured, nothing else, and what there is not is refused."""

from __future__ import annotations

import pytest

from kproxy.bench import profiles
from kproxy.bench.ours import MODES
from kproxy.bench.profiles import ALWAYS, MEASURES, PEERS, PROFILES, Asked
from kproxy.bench.rounds import VERDICT_LEVEL, needed
from kproxy.bench.subjects import COMPARED
from kproxy.errors import UsageError

ALL = (*ALWAYS, *MODES, *PEERS)


def asked(profile: str, *measures: str, **more: object) -> Asked:
    """Of all subjects."""
    return Asked(profile, ALL, measures=profiles.resolved(measures), **more)  # type: ignore[arg-type]


def test_everybody_is_one_of_three() -> None:
    """The twins, a mode, or a peer; nobody twice."""
    assert sorted(ALL) == sorted(COMPARED)


@pytest.mark.kernel
@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("kernel", ["host", "uml"])
def test_each_group_has_its_measures(profile: str, kernel: profiles.Kernel) -> None:
    """Those of the profile, which are the group's own, in the order of tables."""
    jobs = profiles.jobs(asked(profile, kernel=kernel))
    parts = profiles.of(profile, kernel).parts
    assert [job.group.name for job in jobs] == [name for name in parts if parts[name].measures]
    for job in jobs:
        part = parts[job.group.name]
        assert tuple(measure.name for measure in job.measures) == part.measures
        assert {measure.group for measure in job.measures} == {job.group.name}
        assert (job.rounds, job.warmup) == (part.rounds, part.warmup)
        assert job.wanted >= job.first > 0


@pytest.mark.kernel
def test_full_measures_everything_in_rounds_enough() -> None:
    """Every measure of every group, and 99.9 % can be reached in all of them."""
    jobs = profiles.jobs(asked("full"))
    found = {job.group.name: tuple(each.name for each in job.measures) for job in jobs}
    assert found == dict(MEASURES)
    assert min(job.rounds for job in jobs) >= needed(VERDICT_LEVEL)


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("crr",), {"traffic": ["crr"]}),
        (("stream4", "crr-p50"), {"traffic": ["crr-p50", "stream4"]}),
        (("first-packet", "udp"), {"traffic": ["udp"], "first-packet": ["first-packet"]}),
        (("convergence",), {"programming": ["convergence"]}),
        (("burst",), {"programming": ["burst"]}),
        (("kill-gap", "rolling-held"), {"survival": ["kill-gap", "rolling-held"]}),
    ],
)
def test_measures_are_chosen_by_name(names: tuple[str, ...], found: dict[str, list[str]]) -> None:
    """Also those that the profile leaves out; groups of which nothing is wanted are not there."""
    jobs = profiles.jobs(asked("quick", *names))
    assert {job.group.name: [each.name for each in job.measures] for job in jobs} == found


@pytest.mark.kernel
@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("kernel", ["host", "uml"])
def test_what_is_asked_for_has_sizes(profile: str, kernel: profiles.Kernel) -> None:
    """A profile that leaves convergence out still knows with how many services it would be
    measured; what nobody asks for is not."""
    for name, at in (("convergence", "_converging"), ("burst", "_sizes")):
        (job,) = profiles.jobs(asked(profile, name, kernel=kernel))
        of = {each: getattr(job.group, each) for each in ("_converging", "_sizes")}
        assert [each for each, sizes in of.items() if sizes] == [at]


@pytest.mark.kernel
def test_a_groups_name_stands_for_its_measures() -> None:
    (job,) = profiles.jobs(asked("quick", "traffic", rounds=2))
    assert tuple(each.name for each in job.measures) == MEASURES["traffic"]
    assert job.rounds == 2


def test_what_there_is_not_is_refused() -> None:
    """With what there is."""
    with pytest.raises(UsageError, match="no measure speed, cr; there are traffic: crr, "):
        profiles.resolved(["crr", "speed", "cr"])
    with pytest.raises(UsageError, match="no profile slow; there are quick, medium, full"):
        profiles.of("slow", "host")


def test_profiles_end_when_they_should() -> None:
    """quick in two minutes, with time for the report; medium in some twenty; full in two hours.
    Other kernels included."""
    whole = {
        name: sum(each.seconds for each in kernels.values() if not each.shared)
        for name, kernels in PROFILES.items()
    }
    assert whole["quick"] <= 105
    assert whole["medium"] <= 1300
    assert whole["full"] <= 7200
