"""The fingerprint says what decides about figures, and nobody's name."""

from __future__ import annotations

import getpass
import os
import socket
import time
from pathlib import Path

import msgspec
import pytest

from kproxy.bench import fingerprint
from kproxy.kernel import command
from tests.conftest import ROOT


def test_the_machine_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processor, memory, kernel, Python; versions of the tools that are here; settings."""
    monkeypatch.setattr(fingerprint, "_PATIENCE", 60.0)
    found = fingerprint.taken()
    assert found.cpu
    assert found.cores == os.cpu_count()
    assert found.memory > 1 << 28
    assert found.kernel == os.uname().release
    assert found.sysctls["node (tuned): net.ipv4.tcp_tw_reuse"] == "1"
    assert found.sysctls["node: net.ipv4.ip_forward"] == "1"
    assert "net.ipv4.tcp_congestion_control" in found.sysctls
    assert found.tools["nft"].startswith("1.")
    assert found.tools["iptables"].endswith(("(nf_tables)", "(legacy)"))
    assert {name for name in found.tools if command.find(name) is None} == set()


def test_no_one_is_named() -> None:
    """No host, user, path, time zone: in no field."""
    text = msgspec.json.encode(fingerprint.taken()).decode()
    zone = os.readlink("/etc/localtime") if os.path.islink("/etc/localtime") else "/zoneinfo"
    words = (socket.gethostname(), getpass.getuser(), str(ROOT), str(Path.home()), zone)
    for word in words:
        assert f'"{word}' not in text
        assert f" {word} " not in text
    assert "/" not in "".join(fingerprint.taken().sysctls)
    assert time.tzname[0] not in text


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("echo 'iptables v1.8.9 (nf_tables)'", "1.8.9 (nf_tables)"),
        ("echo 'iptables v1.8.9 (nf_tables)' >&2; exit 2", "1.8.9 (nf_tables)"),
        ("echo nothing of the kind", "unknown"),
        ("exit 1", "unknown"),
    ],
)
def test_tools_are_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, version: str
) -> None:
    """Of either output, whatever the status; one that says something else is not believed."""
    tool = tmp_path / "iptables"
    tool.write_text(f"#!/bin/sh\n{said}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert fingerprint.tools()["iptables"] == version
