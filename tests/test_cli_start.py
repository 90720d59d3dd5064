"""The command starts light: help loads no heavy library, a wrong word is wrong use."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from kproxy import __version__
from kproxy.cli.main import COMMANDS

#: Each takes tens of milliseconds to load, and no word of help needs it.
HEAVY = {
    "aiohttp",
    "asyncio",
    "msgspec",
    "prometheus_client",
    "pyroute2",
    "rich",
    "scapy",
    "watchfiles",
    "yaml",
}

#: Runs the command in its own process and reports on stderr which modules it had loaded.
CHILD = """
import sys
from kproxy.cli.main import main
sys.argv[0] = "kproxy"
try:
    main()
finally:
    print("loaded:", *sorted({name.split(".")[0] for name in sys.modules}), file=sys.stderr)
"""


def kproxy(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CHILD, *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def loaded(ended: subprocess.CompletedProcess[str]) -> set[str]:
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("loaded:")
    return set(last.split()[1:])


@pytest.mark.parametrize("words", [("--help",), ("-h",), ("--version",), ("nonsense",)])
def test_nothing_heavy_is_loaded(words: tuple[str, ...]):
    """What needs no command's work loads no command's libraries."""
    modules = loaded(kproxy(*words))
    assert "click" in modules
    assert modules & HEAVY == set()


def test_help_names_every_command():
    """--help lists all commands with their line, without importing one of them."""
    ended = kproxy("--help")
    assert ended.returncode == 0
    for name, (_, text) in COMMANDS.items():
        assert any(line.split()[:1] == [name] for line in ended.stdout.splitlines()), name
        assert text.split()[0] in ended.stdout


def test_version():
    """--version says the package's version."""
    ended = kproxy("--version")
    assert ended.returncode == 0
    assert ended.stdout == f"kproxy, version {__version__}\n"


@pytest.mark.parametrize("words", [("nonsense",), ("--nonsense",), ("lab", "nonsense")])
def test_unknown_words(words: tuple[str, ...]):
    """An unknown command or flag is wrong use (2) and is named on stderr."""
    ended = kproxy(*words)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert "nonsense" in ended.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_loads_and_explains_itself(name: str):
    """The table points to a module that has the command, and its help works."""
    ended = kproxy(name, "--help")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith(f"Usage: kproxy {name}")


#: Ctrl-C at the very moment at which the command line is loaded.
INTERRUPTED = """
import os, signal, sys
from kproxy.__main__ import main
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "click":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
main()
"""


def test_ctrl_c_while_loading_is_no_traceback():
    """It ends the command as it ends any program: by the signal, without a word."""
    argv = [sys.executable, "-c", INTERRUPTED, "--help"]
    ended = subprocess.run(argv, capture_output=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, b"", b"")


def test_output_that_cannot_be_written_is_one_line():
    """A full disk is told in one line, with status 1."""
    with open("/dev/full", "w") as full:
        argv = [sys.executable, "-m", "kproxy", "completion", "bash"]
        ended = subprocess.run(
            argv, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
    assert ended.returncode == 1
    assert ended.stderr == "kproxy: No space left on device\n"
