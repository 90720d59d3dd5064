"""``python -m kproxy.lab.uml COMMAND…``: run a command in user-mode Linux; its status is ours."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from kproxy.errors import KproxyError
from kproxy.lab.uml.boot import Boot, ended_by_signals
from kproxy.lab.uml.machine import MEMORY


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m kproxy.lab.uml", description=__doc__)
    parser.add_argument("--memory", default=MEMORY, help="of the machine (default: %(default)s)")
    parser.add_argument("--share", type=Path, help="a folder in which its writes reach the host")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    asked = parser.parse_args()
    if not asked.command:
        parser.error("no command")
    try:
        with ended_by_signals(), Boot(memory=asked.memory, shared=asked.share) as boot:
            return boot.run(asked.command)
    except KproxyError as error:
        print(f"kproxy: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_status
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
