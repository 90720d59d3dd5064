"""nftables mode where the kernel has IPVS: user-mode Linux lacks nf_tables for IP, and says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from kproxy import doctor
from kproxy.backends import registry
from kproxy.backends.registry import Choice
from kproxy.backends.syncer import Syncer
from kproxy.cli.cleanup import clean
from kproxy.core.objects import Family
from kproxy.errors import MachineError
from kproxy.lab.scenario.runner import modes
from tests.contract.namespaces import scratch
from tests.contract.test_backend import some

pytestmark = pytest.mark.ipvs

NFTABLES = Choice("nftables")


@pytest.fixture(autouse=True)
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where sysctls are recorded: sweeps look there too."""
    monkeypatch.setenv("KPROXY_RECORDS", str(tmp_path / "records"))


def lacks() -> bool:
    """Whether this kernel cannot make a table of IPv4, found without any code of the mode."""
    from kproxy.kernel import command

    with scratch():
        return command.run(["nft", "add", "table", "ip", "x"], check=False).returncode != 0


def test_what_is_missing_is_told() -> None:
    """By the doctor, with a remedy, and by all who would run it: named it is refused, among all it
    is listed as missing. Where it is there, it works."""
    found = doctor.tried("nftables")
    assert found.ok is not lacks()
    if found.ok:
        assert NFTABLES in modes(["all"]).choices
        return
    assert found.why.startswith("nftables mode: ")
    assert "CONFIG_NF_TABLES" in found.remedy
    with pytest.raises(MachineError, match="nftables mode"):
        modes(["nftables"])
    assert NFTABLES in [choice for choice, _ in modes(["all"]).missing]


def test_others_do_without_it(capsys: pytest.CaptureFixture[str]) -> None:
    """A mode that serves sweeps, and a cleanup cleans, where no table of nftables can be."""
    with scratch():
        for family in Family:
            Syncer(registry.create(Choice("iptables", "legacy"), family)).sync(some(family))
        assert registry.sweep(Choice("iptables", "legacy"), list(Family)) == ()
        clean(force=True)
        assert "removed: iptables-legacy IPv4" in capsys.readouterr().out
