"""Where a run's result goes, and that it gets there: after each group of measures and at the end,
whatever has become of the folder, the terminal or the run meanwhile."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from kproxy.bench import store
from kproxy.bench.results import Results
from kproxy.errors import KernelError, UsageError
from kproxy.lab.undisturbed import undisturbed


class Keeper:
    """``wanted`` is the user's folder, None for one of its own in the working directory; ``names``
    are those of files that will be written beside the result; ``say`` tells the user a sentence.

    ``folder`` is where the result is, None before the first :meth:`keep`.
    """

    def __init__(
        self, wanted: Path | None, names: Iterable[str], say: Callable[[str], None]
    ) -> None:
        self._wanted = wanted
        self._names = tuple(names)
        self._tell = say
        self.folder: Path | None = None

    def keep(self, results: Results) -> Path:
        """Write ``results`` in place of what was kept before; the folder. Where it cannot be
        written any more, another is made among the temporary files. KernelError: nor there."""
        with undisturbed():
            if self.folder is None:
                self.folder = self._chosen(results)
            try:
                store.write(results, self.folder)
            except KernelError as failed:
                self.folder = Path(tempfile.mkdtemp(prefix="kproxy-bench-"))
                store.write(results, self.folder)
                self._say(f"{failed}; the result is in {self.folder}")
            return self.folder

    def _chosen(self, results: Results) -> Path:
        """Where the user wants it, or beside it when somebody else has written there meanwhile."""
        if self._wanted is None:
            return store.fresh(results.date)
        try:
            store.free(self._wanted, self._names)
        except UsageError as taken:
            folder = store.beside(self._wanted.absolute())
            self._say(f"{taken.where} {taken.what} by now: writing to {folder}")
            return folder
        return self._wanted

    def _say(self, sentence: str) -> None:
        # Nobody may be there to read it: the result is more than the sentence.
        with suppress(OSError):
            self._tell(sentence)
