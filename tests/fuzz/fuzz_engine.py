"""A coverage-guided fuzzer of the packet engine, under an address sanitizer.

An input is a short talk: packets with pauses between them. One that takes an edge of the engine's
code as none did before is kept and changed further, and the slow twin must say the same of it.
Packets lie in memory that ends where they may end, so that one byte too far stops the process.

    python -m tests.fuzz.fuzz_engine --seconds 600 [--seed N] [--log FILE]

starts itself anew with the sanitizer's library. The last inputs are in the log when it is stopped:
``--replay FILE`` runs them again.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import random
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import IO

from kproxy.backends.fastpath import tables
from kproxy.core.twin.engine import Twin
from kproxy.core.twin.values import Code, EngineSettings
from tests.conftest import ROOT
from tests.fastpath.pair import NODE4, NODE6
from tests.fastpath.samples import SAMPLES
from tests.fastpath.world import services

#: (pause in ticks of 10 ms, capacity beyond the packet, has a header, packet with its header)
Line = tuple[int, int, bool, bytes]
Talk = tuple[Line, ...]

_LINE = struct.Struct("<IHBH")
#: An engine lives for so many talks: state that an earlier one left is part of what is tried.
TALKS = 200
#: Bytes that mean something to a parser.
SPECIAL = (0, 1, 4, 5, 6, 17, 43, 44, 58, 60, 64, 127, 132, 224, 255)
EXTRA = (0, 1, 8, 27, 28, 47, 48, 200)
HEADER = bytes((1, 0, 0, 0, 0, 0, 20, 0, 16, 0))

#: linux/personality.h; what asks for the one that is there.
_ADDR_NO_RANDOMIZE, _ASK = 0x0040000, 0xFFFFFFFF

SETTINGS = EngineSettings(
    flow_key=bytes(range(16)), seed=bytes(range(16)), max_flows=64, max_affinities=4,
    max_fragments=4, syn_copies=4, drain_seconds=5,
)  # fmt: skip


class Runner:
    """One engine at a time, with the twin beside it where that is asked for."""

    def __init__(self, fastpath: ModuleType) -> None:
        self.fastpath = fastpath
        self.batch = fastpath.Batch(1, 66_000, True)
        self.plain = fastpath.Batch(8, 66_000)
        self.fresh()

    def fresh(self) -> None:
        self.engine = tables.make_engine(SETTINGS, self.fastpath.Engine)
        self.now = 1_000_000_000
        for node in (NODE4, NODE6):
            tables.set_node(self.engine, node)
        tables.commit(self.engine, services(), (), self.now)

    def run(self, talk: Talk) -> list[tuple[int, int, bytes, bytes]]:
        """What became of each packet; AssertionError for what can never be right."""
        found = []
        for pause, extra, has_header, whole in talk:
            self.now += pause * 10_000_000
            header, packet = (whole[:10], whole[10:]) if has_header else (None, whole)
            room = len(packet) + extra
            self.batch.put(0, packet, header, room)
            self.engine.process(self.batch, 1, self.now)
            outcome = self.batch.get(0)
            assert outcome[0] in set(Code)
            assert len(outcome[2]) <= room
            if outcome[0] in (Code.PASS, Code.DROP):
                assert outcome[2:] == (packet, header or b""), "not ours, and not as it came"
            found.append(outcome)
            self.engine.due(self.plain, 8, self.now)
        return found

    def agree(self, talk: Talk) -> None:
        """A fresh engine and the twin say the same of a talk."""
        self.fresh()
        twin, now = Twin(SETTINGS), self.now
        for node in (NODE4, NODE6):
            twin.set_node(node)
        twin.commit(services(), set(), now)
        for (pause, extra, has_header, whole), got in zip(talk, self.run(talk)):
            now += pause * 10_000_000
            header, packet = (whole[:10], whole[10:]) if has_header else (b"", whole)
            wanted = twin.process(packet, now, header=header, capacity=len(packet) + extra)
            assert got[:2] == (wanted.code, wanted.reason), (talk, wanted)
            if wanted.code is not Code.STOLEN:
                assert got[2:] == (wanted.packet, wanted.header), (talk, wanted)
            twin.due(now, 8)


class Fuzzer:
    def __init__(self, runner: Runner, seed: int, log: IO[bytes]) -> None:
        self.runner, self.random, self.log = runner, random.Random(seed), log
        self.corpus: list[Talk] = []
        self.talks = 0

    def begin(self) -> None:
        """Every sample, alone and after every first packet of a flow."""
        for packet in SAMPLES.values():
            self.consider(((0, 200, False, packet),))
            self.consider(((0, 200, True, HEADER + packet), (1, 0, False, packet)))

    def step(self) -> None:
        talk = self.random.choice(self.corpus)
        for _ in range(self.random.choice((1, 1, 2, 4))):
            talk = self.change(talk)
        self.consider(talk)

    def consider(self, talk: Talk) -> None:
        if self.talks % TALKS == 0:
            self.runner.fresh()
            self.log.seek(0)
            self.log.truncate()
        self.talks += 1
        # Written before it is run, by the system at once: what stops us is the last one in it.
        os.write(self.log.fileno(), packed(talk))
        outcomes = self.runner.run(talk)
        if not self.runner.fastpath._fuzz_news():
            return
        self.corpus.append(talk)
        self.corpus += self.answers(talk, outcomes)
        self.runner.agree(talk)

    def answers(self, talk: Talk, outcomes: Sequence[tuple[int, int, bytes, bytes]]) -> list[Talk]:
        """What went out, coming back: without it no guess would ever hit a masqueraded flow."""
        found = []
        for code, _, packet, _ in outcomes:
            if code == Code.FORWARD and len(packet) < 400:
                found.append((*talk, (1, 200, False, turned(packet))))
                found.append((*talk, (1, 200, False, about(packet))))
        return found[:4]

    def change(self, talk: Talk) -> Talk:
        pick = self.random
        at = pick.randrange(len(talk))
        pause, extra, has_header, whole = talk[at]
        kind = pick.randrange(8)
        made = bytearray(whole)
        if kind == 0 and made:
            made[pick.randrange(len(made))] ^= 1 << pick.randrange(8)
        elif kind == 1 and made:
            made[pick.randrange(len(made))] = pick.choice(SPECIAL)
        elif kind == 2 and made:
            made[pick.randrange(len(made))] = pick.randrange(256)
        elif kind == 3:
            made = made[: pick.randrange(len(made) + 1)]
        elif kind == 4:
            place = pick.randrange(len(made) + 1)
            made[place:place] = pick.randbytes(pick.choice((1, 4, 8, 40)))
        elif kind == 5:
            pause, extra = pick.choice((0, 1, 25, 50, 1000, 9000)), pick.choice(EXTRA)
        elif kind == 6:
            other = pick.choice(self.corpus)
            return (talk[: at + 1] + other)[:8]
        elif kind == 7:
            return (*talk[:at], *talk[at + 1 :]) if len(talk) > 1 else talk * 2
        if has_header and len(made) < 10:
            has_header = False
        return (*talk[:at], (pause, extra, has_header, bytes(made[:2000])), *talk[at + 1 :])


def turned(packet: bytes) -> bytes:
    """A packet on its way back (its checksums stay right), if it has a common shape."""
    made = bytearray(packet)
    first, size, at = (12, 4, 20) if packet[0] >> 4 == 4 else (8, 16, 40)
    made[first : first + 2 * size] = packet[first + size : first + 2 * size] + packet[first:][:size]
    made[at : at + 4] = packet[at + 2 : at + 4] + packet[at : at + 2]
    return bytes(made)


def about(packet: bytes) -> bytes:
    """An ICMP error to the packet's source about it."""
    if packet[0] >> 4 == 4:
        head = bytearray(packet[:20])
        head[0], head[9] = 0x45, 1
        head[12:20] = packet[16:20] + packet[12:16]
        head[2:4] = (28 + len(packet)).to_bytes(2)
        return bytes(head) + bytes((3, 3)) + bytes(6) + packet
    head = bytearray(packet[:40])
    head[6] = 58
    head[8:40] = packet[24:40] + packet[8:24]
    head[4:6] = (8 + len(packet)).to_bytes(2)
    return bytes(head) + bytes((1, 4)) + bytes(6) + packet


def packed(talk: Talk) -> bytes:
    parts = [len(talk).to_bytes(1)]
    parts += [
        _LINE.pack(pause, extra, head, len(whole)) + whole for pause, extra, head, whole in talk
    ]
    return b"".join(parts)


def unpacked(data: bytes) -> Iterator[Talk]:
    at = 0
    while at < len(data):
        talk = []
        count, at = data[at], at + 1
        for _ in range(count):
            pause, extra, head, length = _LINE.unpack_from(data, at)
            at += _LINE.size
            talk.append((pause, extra, bool(head), data[at : at + length]))
            at += length
        yield tuple(talk)


# --- the process -------------------------------------------------------------------------------


def load() -> ModuleType:
    """The fuzz build; RuntimeError without it."""
    import importlib.util
    import sysconfig

    name = f"_fastpath{sysconfig.get_config_var('EXT_SUFFIX')}"
    path = ROOT / "build" / "fuzz" / "kproxy" / name
    if not path.exists():
        raise RuntimeError(f"no {path}; run KPROXY_FUZZ=1 python setup.py build_ext")
    spec = importlib.util.spec_from_file_location("kproxy._fastpath", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sanitized(argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Python under the sanitizer, which has to be there before anything else."""
    library = subprocess.run(
        ["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    # Python keeps what it has to the end; an ordinary allocator lets the sanitizer see each object.
    env = {
        **os.environ,
        "LD_PRELOAD": library,
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0:exitcode=99",
        "PYTHONMALLOC": "malloc",
    }
    with _plain_addresses():
        return subprocess.run(
            [sys.executable, *argv], env=env, cwd=ROOT, capture_output=True, text=True, check=False
        )


@contextmanager
def _plain_addresses() -> Iterator[None]:
    """Programs that are started meanwhile lie where they always do. Where the kernel moves them far
    (vm.mmap_rnd_bits over 28), one in some finds the sanitizer's own memory taken and dies. A host
    may forbid this (-1): then they take their chance."""
    personality = ctypes.CDLL(None).personality
    before = personality(ctypes.c_ulong(_ASK))
    personality(ctypes.c_ulong(before | _ADDR_NO_RANDOMIZE))
    try:
        yield
    finally:
        personality(ctypes.c_ulong(before))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--log", type=Path, default=ROOT / "build" / "fuzz" / "last-talks")
    parser.add_argument("--replay", type=Path, default=None)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if not given.inside:
        ended = sanitized(["-m", "tests.fuzz.fuzz_engine", "--inside", *sys.argv[1:]])
        sys.stdout.write(ended.stdout)
        sys.stderr.write(ended.stderr)
        return ended.returncode
    runner = Runner(load())
    if given.replay is not None:
        for talk in unpacked(given.replay.read_bytes()):
            runner.run(talk)
        return 0
    seed = given.seed if given.seed is not None else random.randrange(1 << 32)
    with given.log.open("wb", buffering=0) as log:
        fuzzer = Fuzzer(runner, seed, log)
        fuzzer.begin()
        deadline = time.monotonic() + given.seconds
        while time.monotonic() < deadline:
            fuzzer.step()
    sys.stdout.write(f"seed {seed}: {fuzzer.talks} talks, {len(fuzzer.corpus)} kept\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
