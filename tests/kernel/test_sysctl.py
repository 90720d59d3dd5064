"""Sysctls in a fresh network namespace: changed, recorded, set back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kproxy.errors import KernelError
from kproxy.kernel import netns, sysctl

pytestmark = pytest.mark.kernel

NAME = "net/ipv4/conf/all/route_localnet"
OTHER = "net/netfilter/nf_conntrack_udp_timeout"


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with netns.fresh():
        yield


def test_what_was_changed_is_set_back(tmp_path: Path) -> None:
    """The value before us returns, and the record, for root alone, is gone."""
    before = sysctl.read(OTHER)
    assert sysctl.change(OTHER, "77", records=tmp_path)
    assert sysctl.change(NAME, "1", records=tmp_path)
    assert sysctl.read(OTHER) == "77"
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    assert sorted(sysctl.restore(records=tmp_path)) == [NAME, OTHER]
    assert (sysctl.read(NAME), sysctl.read(OTHER)) == ("0", before)
    assert list(tmp_path.iterdir()) == []
    assert sysctl.restore(records=tmp_path) == ()


def test_what_is_right_already_is_not_ours(tmp_path: Path) -> None:
    """A value that needed no change is not recorded, and stays at cleanup."""
    sysctl.write(NAME, "1")
    assert not sysctl.change(NAME, "1", records=tmp_path)
    assert sysctl.restore(records=tmp_path) == ()
    assert sysctl.read(NAME) == "1"


def test_two_changes_go_back_to_the_first_value(tmp_path: Path) -> None:
    """Settings changed between two starts do not make the first start's value the original."""
    before = sysctl.read(OTHER)
    sysctl.change(OTHER, "77", records=tmp_path)
    sysctl.change(OTHER, "78", records=tmp_path)
    sysctl.restore(records=tmp_path)
    assert sysctl.read(OTHER) == before


def test_who_sets_another_value_meant_it(tmp_path: Path) -> None:
    """A value that somebody set after us is left alone."""
    sysctl.change(OTHER, "77", records=tmp_path)
    sysctl.write(OTHER, "55")
    assert sysctl.restore(records=tmp_path) == ()
    assert sysctl.read(OTHER) == "55"


def test_who_makes_namespaces_may_name_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KPROXY_RECORDS stands for the default folder, and for no other."""
    named, own = tmp_path / "named", tmp_path / "own"
    monkeypatch.setenv("KPROXY_RECORDS", str(named))
    sysctl.change(OTHER, "77")
    sysctl.change(NAME, "1", records=own)
    assert [len(list(folder.iterdir())) for folder in (named, own)] == [1, 1]
    assert sysctl.restore() == (OTHER,)
    assert sysctl.restore(records=own) == (NAME,)


@pytest.mark.parametrize("name", ["net/netfilter/nf_conntrack_max", "net/ipv4/no_such_thing"])
def test_what_cannot_be_set_says_so(name: str, tmp_path: Path) -> None:
    """Read-only in a namespace, or not there at all: an error by name, and no record."""
    with pytest.raises(KernelError, match=name):
        sysctl.change(name, "12345", records=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_broken_record_is_told(tmp_path: Path) -> None:
    """Its path is named: nobody knows what to set back."""
    sysctl.change(NAME, "1", records=tmp_path)
    (record,) = tmp_path.iterdir()
    record.write_text("{")
    with pytest.raises(KernelError, match="unreadable"):
        sysctl.restore(records=tmp_path)


def test_what_cannot_be_recorded_is_told_with_both_values(tmp_path: Path) -> None:
    """The folder cannot be made: the value is set, and the message holds what it was."""
    (tmp_path / "file").touch()
    before = sysctl.read(OTHER)
    with pytest.raises(KernelError, match=f"was {before} and is 77"):
        sysctl.change(OTHER, "77", records=tmp_path / "file")
