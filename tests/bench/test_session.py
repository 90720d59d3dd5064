"""A run: who is measured where and for how long, and how it is remembered."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from kproxy.bench import profiles, session, uml
from kproxy.bench.ours import MODES
from kproxy.bench.profiles import PEERS
from kproxy.bench.results import Absent, Section
from kproxy.bench.session import Request, Session, ended_once
from kproxy.errors import MachineError, UsageError
from kproxy.lab.uml import machine


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ((), tuple(MODES)),
        (("all",), tuple(MODES)),
        (("none",), ()),
        (("ipvs", "userspace"), ("ipvs", "userspace")),
        (("iptables",), ("iptables-legacy", "iptables-nft")),
        (("iptables", "iptables-nft"), ("iptables-legacy", "iptables-nft")),
    ],
)
def test_modes_by_name(asked: tuple[str, ...], found: tuple[str, ...]) -> None:
    """In the order asked for, each once; a mode without its variant is both."""
    request = Request(modes=asked, peers=("none",))
    assert tuple(session.names(request, "host")) == found


def test_peers_by_name(tmp_path: Path) -> None:
    """Those of the profile, all, none, or a class of the user's own; nobody who is none."""
    quick = profiles.of("quick", "host").peers
    assert tuple(session.names(Request(modes=("none",)), "host")) == quick
    every = Request(modes=("none",), peers=("all",))
    assert tuple(session.names(every, "host")) == PEERS
    own = tmp_path / "mine.py"
    own.write_text(
        "from kproxy.bench.peers import Direct\nclass Mine(Direct):\n    name = 'mine'\n"
    )
    named = Request(modes=("none",), peers=(f"own={own}:Mine", "nginx"))
    assert session.names(named, "host") == [f"own={own}:Mine", "nginx"]
    with pytest.raises(UsageError, match="no peer direct; there are relay, "):
        session.names(Request(peers=("direct",)), "host")


def test_a_request_is_remembered_without_paths() -> None:
    """As it could be typed."""
    request = Request(
        profile="full",
        modes=("ipvs",),
        peers=("own=/home/somebody/mine.py:Mine", "/home/a=b/theirs.py:Theirs", "nginx"),
        measures=("crr", "programming"),
        rounds=5,
        seconds=90.0,
        kernel="uml",
    )
    assert request.command == (
        "kproxy bench --profile full --modes ipvs --peers own=mine.py:Mine,theirs.py:Theirs,nginx "
        "--measures crr,programming --rounds 5 --time 90 --kernel uml"
    )
    assert Request().command == "kproxy bench --profile quick"


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (
            "['/usr/sbin/haproxy', '-f', '/home/me/x/haproxy.cfg'] ended",
            "['haproxy', '-f', 'haproxy.cfg'] ended",
        ),
        ("cannot open /var/run/me/it: no", "cannot open it: no"),
        ("10.0.0.0/8 at 5 kB/s, 1/2/3", "10.0.0.0/8 at 5 kB/s, 1/2/3"),
    ],
)
def test_what_a_tool_said_is_kept_without_folders(said: str, kept: str) -> None:
    """They are the machine's, and may name a user."""
    absent = (Absent("haproxy", "", said),)
    section = session._placeless(Section("host", "6.1", {}, (), (), absent, notes=(said,)))
    assert (section.absent[0].reason, section.notes) == (kept, (kept,))


@pytest.fixture
def without_ipvs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose kernel has no IPVS, and that can run machines."""
    monkeypatch.setattr(uml, "host_has_ipvs", lambda: False)
    monkeypatch.setattr(machine, "lacking", lambda: None)


@pytest.mark.usefixtures("without_ipvs")
def test_ipvs_is_measured_where_there_is_one() -> None:
    """In a section of its own with those that it is compared with; the rest here, and the time is
    shared."""
    request = Request()
    assert session._kernels(request) == ("host", "uml")
    here, inside = (session._of(request, kernel) for kernel in ("host", "uml"))
    assert here is not None
    assert inside is not None
    assert "ipvs" not in here.subjects
    assert {"direct", "direct again", "userspace", "nginx"} <= set(here.subjects)
    assert inside.subjects == ("direct", "direct again", "iptables-legacy", "ipvs")
    assert inside.kernel == "uml"
    assert here.seconds is not None
    assert inside.seconds is not None
    assert here.seconds + inside.seconds == profiles.of("quick", "host").seconds
    longer = [session._of(Request(seconds=400.0), kernel) for kernel in ("host", "uml")]
    assert sum(each.seconds or 0.0 for each in longer if each is not None) == pytest.approx(400)


@pytest.mark.usefixtures("without_ipvs")
@pytest.mark.parametrize(
    ("request_", "kernels"),
    [
        (Request(kernel="host"), ("host",)),
        (Request(kernel="uml"), ("uml",)),
        (Request(modes=("userspace",)), ("host",)),
        (Request(modes=("userspace",), peers=("ipvsadm",)), ("host", "uml")),
    ],
)
def test_where_is_measured(request_: Request, kernels: tuple[str, ...]) -> None:
    assert session._kernels(request_) == kernels


def test_a_host_that_has_it_or_can_run_no_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody is measured here, or said to be absent here."""
    monkeypatch.setattr(machine, "lacking", lambda: None)
    monkeypatch.setattr(uml, "host_has_ipvs", lambda: True)
    assert session._kernels(Request()) == ("host",)
    monkeypatch.setattr(uml, "host_has_ipvs", lambda: False)
    monkeypatch.setattr(machine, "lacking", lambda: MachineError("no user-mode Linux"))
    assert session._kernels(Request()) == ("host",)
    asked = session._of(Request(), "host")
    assert asked is not None
    assert "ipvs" in asked.subjects


@pytest.mark.usefixtures("without_ipvs")
@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (Request(), "IPVS is in a section of its own"),
        (Request(modes=("userspace",)), ""),
        (Request(kernel="host"), ""),
    ],
)
def test_where_ipvs_is_said(request_: Request, said: str) -> None:
    """To who asked for it, in the section that does not have it."""
    assert Session(request_)._of_ipvs(()).startswith(said)
    assert bool(Session(request_)._of_ipvs(())) == bool(said)


def test_without_a_machine_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the host's section, for who asked for IPVS."""
    monkeypatch.setattr(uml, "host_has_ipvs", lambda: False)
    monkeypatch.setattr(machine, "KERNEL", "linux.uml-is-not-there")
    found = Session(Request())._of_ipvs(("userspace",))
    assert "not measured in user-mode Linux either" in found
    assert "apt-get install" in found


@pytest.mark.usefixtures("without_ipvs")
def test_a_machine_that_does_not_start_costs_only_its_section(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the host has given is kept, and the reason stands in the other section."""
    monkeypatch.setattr(machine, "KERNEL", "false")
    asked = session._of(Request(), "uml")
    assert asked is not None
    with pytest.raises(MachineError, match="did not start"):
        Session(Request())._inside(asked)
    run = Session(Request())
    run._sections["host"] = lambda: Section("host", "6.18", {}, (), ())
    run._inside(asked)
    host, inside = run.results().sections
    assert (host.name, inside.name) == ("host", "uml")
    assert {each.subject for each in inside.absent} == {"ipvs"}
    assert "did not start" in inside.notes[0]


@pytest.mark.usefixtures("without_ipvs")
@pytest.mark.parametrize(("over", "left"), [(0.0, 25.0), (10.0, 15.0), (20.0, None)])
def test_what_the_host_took_too_much_the_machine_has_less(
    over: float, left: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a slow machine ends about when it should; where too little is left it is not booted,
    which the section says."""
    given: list[float | None] = []
    monkeypatch.setattr(uml, "section", lambda asked, **told: given.append(asked.seconds))
    run = Session(Request())
    asked = session._of(Request(), "uml")
    assert asked is not None
    run._over = over
    run._inside(asked)
    assert given == ([left] if left is not None else [])
    if left is None:
        (inside,) = run.results().sections
        assert "no time was left: the host's section took 20 s too much" in inside.notes[0]


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_only_the_first_signal_ends_it(number: signal.Signals, error: type[BaseException]) -> None:
    """The next ones do not disturb what is being taken down; afterwards all is as before."""
    before = signal.getsignal(number)
    with ended_once():
        with pytest.raises(error):
            os.kill(os.getpid(), number)
        for again in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), again)
    assert signal.getsignal(number) is before
