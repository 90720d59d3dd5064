"""The compiled packet functions equal their slow twins in kproxy.core.packet, in both builds."""

from __future__ import annotations

import inspect
import random
import signal
import subprocess
import sys
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kproxy.core import packet
from tests.conftest import BUILDS, load_build

LONGEST = 2048
OFFSETS = range(8)
BYTES = random.Random(9260).randbytes(LONGEST)

#: name in _fastpath -> its twin. All are compared below on every length and offset.
OF_ONE_BUFFER = {
    "ones_sum": packet.ones_sum,
    "checksum": packet.checksum,
    "crc32c": packet.crc32c,
    "crc32c_by_tables": packet.crc32c,
    "sctp_checksum": packet.sctp_checksum,
}
OF_A_CHANGE = {
    "update16": packet.update16,
    "update32": packet.update32,
    "update_range": packet.update_range,
}

#: The packet engine and what goes with it: tests/fastpath, tests/core/test_hashing.py.
OF_THE_ENGINE = {
    *("Batch", "Engine", "Pump", "leave_flows", "maglev", "measure", "measure_floor"),
    *("siphash", "take_flows"),
}

word = st.integers(0, 0xFFFF)
#: Words at the corners of one's complement arithmetic come up as often as all others.
corner = st.sampled_from([0, 1, 0xFFFE, 0xFFFF]) | word
long = st.sampled_from([0, 0xFFFF, 0xFFFF0000, 0xFFFFFFFF]) | st.integers(0, 0xFFFFFFFF)
buffers = st.binary(max_size=80) | st.lists(st.sampled_from([0, 0xFF]), max_size=40).map(bytes)

# The fixture only hands out a module: nothing of it is changed from one example to the next.
fuzzed = settings(suppress_health_check=list(HealthCheck), deadline=None)


def twin_names() -> set[str]:
    return {
        name
        for name, member in inspect.getmembers(packet, inspect.isfunction)
        if member.__module__ == packet.__name__ and not name.startswith("_")
    }


def test_every_twin_is_compared():
    """A function added to packet.py without a comparison here is noticed."""
    assert twin_names() == (OF_ONE_BUFFER | OF_A_CHANGE).keys() - {"crc32c_by_tables"}


def test_signatures(fastpath: ModuleType):
    """The compiled functions exist and are public under the same names."""
    public = {name for name in vars(fastpath) if not name.startswith("_")}
    assert public == twin_names() | OF_THE_ENGINE | {
        "crc32c_by_tables",
        "DEBUG",
        "HARDWARE_CRC32C",
    }


@pytest.mark.parametrize(("build", "debug"), [("release", False), ("debug", True)])
def test_builds_are_what_they_say(build: str, debug: bool):
    """The release build lies beside its source and the debug build checks bounds: not swapped."""
    assert load_build("_fastpath", build).DEBUG is debug


@pytest.fixture(scope="module")
def expected() -> dict[str, list[object]]:
    """What the twins say of the first 0, 1, … 2,048 bytes."""
    return {
        name: [_outcome(twin, BYTES[:length]) for length in range(LONGEST + 1)]
        for name, twin in OF_ONE_BUFFER.items()
    }


@pytest.mark.parametrize("name", OF_ONE_BUFFER)
def test_every_length_at_every_alignment(
    fastpath: ModuleType, expected: dict[str, list[object]], name: str
):
    """Equal for every length from 0 to 2,048 bytes, wherever in memory they begin."""
    fast = getattr(fastpath, name)
    for offset in OFFSETS:
        memory = memoryview(bytes([0xA5]) * offset + BYTES)
        got = [_outcome(fast, memory[offset : offset + n]) for n in range(LONGEST + 1)]
        assert got == expected[name], f"at offset {offset}"


def _outcome(function: object, *args: object) -> object:
    """The result, or the name of the error: both sides must fail alike as well."""
    assert callable(function)
    try:
        return function(*args)
    except (ValueError, OverflowError) as error:
        return type(error).__name__, str(error) if type(error) is ValueError else ""


@pytest.mark.parametrize("filler", [b"\0", b"\xff", b"\x01", b"\x80"])
@pytest.mark.parametrize("name", OF_ONE_BUFFER)
def test_extreme_bytes(fastpath: ModuleType, name: str, filler: bytes):
    """Sums of all zeros and all ones, where a lost or a surplus carry would show."""
    for length in (0, 1, 2, 3, 4, 5, 12, 20, 1499, 1500, 65535):
        data = filler * length
        assert _outcome(getattr(fastpath, name), data) == _outcome(OF_ONE_BUFFER[name], data)


@fuzzed
@given(data=buffers, initial=corner)
def test_sum_goes_on_from_an_initial_sum(fastpath: ModuleType, data: bytes, initial: int):
    """The sum of a pseudo-header carries into the sum of what follows it."""
    assert fastpath.ones_sum(data, initial) == packet.ones_sum(data, initial)
    assert fastpath.checksum(data, initial) == packet.checksum(data, initial)


@fuzzed
@given(data=buffers, crc=st.integers(0, 0xFFFFFFFF))
def test_crc_goes_on_from_a_crc(fastpath: ModuleType, data: bytes, crc: int):
    """The CRC of one part carries into the next, by tables and by the processor."""
    assert fastpath.crc32c(data, crc) == packet.crc32c(data, crc)
    assert fastpath.crc32c_by_tables(data, crc) == packet.crc32c(data, crc)


@fuzzed
@given(check=corner, old=corner, new=corner)
def test_update16(fastpath: ModuleType, check: int, old: int, new: int):
    """One replaced word, even where the old checksum was wrong: a wrong one must stay wrong."""
    assert fastpath.update16(check, old, new) == packet.update16(check, old, new)


@fuzzed
@given(check=corner, old=long, new=long)
def test_update32(fastpath: ModuleType, check: int, old: int, new: int):
    """One replaced IPv4 address."""
    assert fastpath.update32(check, old, new) == packet.update32(check, old, new)


@fuzzed
@given(check=corner, old=buffers, new=buffers, odd=st.booleans())
def test_update_range(fastpath: ModuleType, check: int, old: bytes, new: bytes, odd: bool):
    """A replaced range at an even or odd offset; unequal lengths are refused by both alike."""
    both = [
        _outcome(update, check, old, new, odd)
        for update in (fastpath.update_range, packet.update_range)
    ]
    assert both[0] == both[1]
    cut = min(len(old), len(new))
    args = (check, old[:cut], new[:cut], odd)
    assert fastpath.update_range(*args) == packet.update_range(*args)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("ones_sum", (b"", -1)),
        ("checksum", (b"", 0x10000)),
        ("update16", (0x10000, 0, 0)),
        ("update16", (0, -1, 0)),
        ("update32", (0, 0, 1 << 32)),
        ("update_range", (1 << 16, b"", b"")),
        ("crc32c", (b"", 1 << 32)),
    ],
)
def test_values_out_of_range(fastpath: ModuleType, name: str, args: tuple[object, ...]):
    """A value wider than its field is an error on both sides, never cut to fit."""
    for side in (fastpath, packet):
        with pytest.raises(OverflowError):
            getattr(side, name)(*args)


@pytest.mark.parametrize("data", ["text", 5, None, memoryview(b"abcdef")[::2]])
def test_what_is_no_buffer(fastpath: ModuleType, data: object):
    """No contiguous memory: TypeError (or BufferError), and nothing is read."""
    for name in OF_ONE_BUFFER:
        with pytest.raises((TypeError, BufferError)):
            getattr(fastpath, name)(data)


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview])
def test_kinds_of_buffers(fastpath: ModuleType, make: type):
    """Any contiguous buffer will do, and a bytearray can grow again afterwards."""
    data = make(b"123456789")
    assert fastpath.crc32c(data) == 0xE3069283
    if make is bytearray:
        data += b"0"


def test_debug_build_stops_at_the_end_of_a_buffer():
    """One byte too far ends a debug process with the reason; release does not look."""
    code = (
        "import sys; from tests.conftest import load_build;"
        "load_build('_fastpath', sys.argv[1])._read_past_the_end()"
    )
    for build, status in (("debug", -signal.SIGABRT), ("release", 0)):
        ended = subprocess.run(
            [sys.executable, "-c", code, build],
            cwd=BUILDS["release"].parent,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ended.returncode == status, ended.stderr
        assert ("read past the end of a cursor" in ended.stderr) == (build == "debug")
