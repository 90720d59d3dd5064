"""This process as the kernel sees it: who is ended first when memory runs out, and its limits."""

from __future__ import annotations

import resource
from pathlib import Path

from kproxy.errors import KernelError

_OOM_SCORE_ADJ = Path("/proc/self/oom_score_adj")


def set_oom_score_adj(value: int) -> None:
    """Set it, from -1000 (never end this process) to 1000. KernelError when it may not be."""
    try:
        if int(_OOM_SCORE_ADJ.read_text()) != value:
            _OOM_SCORE_ADJ.write_text(str(value))
    except OSError as error:
        raise KernelError(
            f"cannot set the OOM score to {value}: {error.strerror}",
            hint="lowering it needs CAP_SYS_RESOURCE; --oom-score-adj 0 leaves it alone",
        ) from error


def raise_open_files() -> None:
    """As many open files as the administrator allows: the usual limit is for programs that use
    select(2), which cannot know more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
