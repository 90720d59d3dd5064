"""A relay in a process of its own: its descriptors can be limited, and its memory weighed.

Run as a program it serves one service at one port, and answers lines on standard input::

    → endpoints [["127.0.0.1", 8080]]     ← {}
    → totals                              ← {"flows": 0, …, "connections": 0, …}
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.relay.peers import HOST, Place, listening

ROOT = Path(__file__).resolve().parents[2]


class Apart:
    """The other end of the pipe."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid
        self.place: Place = (HOST, self._answer()["port"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the relay's process has ended"
        found: dict[str, Any] = json.loads(line)
        return found

    def _ask(self, word: str, *values: object) -> dict[str, Any]:
        assert self._process.stdin is not None
        print(word, *map(json.dumps, values), file=self._process.stdin, flush=True)
        return self._answer()

    def publish(self, *places: Place) -> None:
        self._ask("endpoints", places)

    def totals(self) -> dict[str, int]:
        """Those of the relay and of its service."""
        return self._ask("totals")

    def memory(self) -> int:
        """Bytes of it that are in use, without what it shares with others."""
        rows = Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines()
        kept = {word: int(rest.split()[0]) for row in rows[1:] for word, rest in [row.split(":")]}
        return 1024 * (kept["Private_Dirty"] + kept["Private_Clean"])

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))


@contextmanager
def apart(library: str, endpoints: Sequence[Place], *, limit: int = 0) -> Iterator[Apart]:
    """``library`` is the compiled module; ``limit`` is the number of descriptors, 0: as here."""
    argv = [sys.executable, "-m", "tests.relay.apart", library, str(limit)]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        try:
            made = Apart(process)
            made.publish(*endpoints)
            yield made
        finally:
            process.kill()


def say(answer: dict[str, int]) -> None:
    sys.stdout.write(f"{json.dumps(answer)}\n")
    sys.stdout.flush()


def main() -> None:
    """Until standard input ends."""
    from importlib.util import module_from_spec, spec_from_file_location

    library, limit = sys.argv[1], int(sys.argv[2])
    spec = spec_from_file_location("kproxy._relay", library)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    relay = module.Relay()
    relay.start()
    service = relay.add_service()
    front = listening()
    port = front.getsockname()[1]
    relay.open(service, module.CLUSTER, (front.detach(),))
    if limit:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    say({"port": port})
    for line in sys.stdin:
        word, _, value = line.partition(" ")
        answer: dict[str, int] = {}
        if word.strip() == "totals":
            answer = {**relay.totals(), **relay.service_counters(service)}
        else:
            places = [(host, number) for host, number in json.loads(value)]
            relay.set_endpoints(service, places, range(len(places)), ())
        say(answer)


if __name__ == "__main__":
    main()
