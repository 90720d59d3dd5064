"""``python -m bench.compare A [B]``: what ``make bench`` found on two commits, side by side.

A and B are anything that git takes for a commit, or folders of ``build/bench`` by name (a tree that
had changes has no other); B is the tree as it is now unless it is said. `kproxy bench compare` does
the comparing.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bench import stored
from kproxy.bench import report
from kproxy.bench.helper import ROOT
from kproxy.errors import KproxyError, UsageError


def located(word: str, folder: Path, root: Path = ROOT) -> Path:
    """The results that are kept of a commit. UsageError: none are."""
    for name in (word, _of_commit(word, root)):
        found = folder / name / stored.RESULTS
        if name and found.is_file():
            return found
    kept = sorted(path.parent.name for path in folder.glob(f"*/{stored.RESULTS}"))
    raise UsageError(
        f"nothing is kept of {word}",
        hint=f"there is {', '.join(kept) or 'nothing yet'}; `make bench` there measures it",
    )


def _of_commit(word: str, root: Path) -> str:
    """Name of a commit's folder; "" when git knows none by that word."""
    argv = ["git", "rev-parse", "--verify", "--quiet", "--end-of-options", f"{word}^{{commit}}"]
    try:
        said = subprocess.run(argv, cwd=root, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return stored.Tree(said.stdout.strip()).name if said.returncode == 0 else ""


def main(words: list[str], folder: Path = report.FOLDER) -> int:
    """The status of `kproxy bench compare`, 2 for a wrong word."""
    if not 1 <= len(words) <= 2:
        print(__doc__.splitlines()[0], file=sys.stderr)  # noqa: T201
        return UsageError.exit_status
    try:
        one, other = words if len(words) > 1 else (*words, stored.tree().name)
        files = [located(word, folder) for word in (one, other)]
    except KproxyError as wrong:
        print(f"kproxy: {wrong}", file=sys.stderr)  # noqa: T201
        return wrong.exit_status
    argv = [sys.executable, "-m", "kproxy", "bench", "compare", *map(str, files)]
    return subprocess.run(argv, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
