"""Draw a result again from its figures: ``python -m kproxy.bench.html FOLDER``.

For results that were brought from elsewhere, or drawn by an older version.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from pathlib import Path

from kproxy.bench import html, pictures, store
from kproxy.errors import KproxyError


def main() -> int:
    """Exit status."""
    parser = ArgumentParser(prog="python -m kproxy.bench.html")
    parser.add_argument("folder", type=Path, help="where results.json is")
    folder = parser.parse_args().folder
    try:
        results = store.read(folder)
        pictures.write(results, folder)
        html.write(results, folder)
    except KproxyError as failed:
        sys.stderr.write(f"kproxy: {failed}\n")
        return failed.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
