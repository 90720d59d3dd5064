"""What a run of ``kproxy bench`` says while it measures, on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from kproxy.bench.words import duration

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from kproxy.bench.conductor import Step
    from kproxy.bench.profiles import Kernel

Told = Callable[["Kernel", "Step"], None]


@contextmanager
def progress() -> Iterator[Told]:
    """On a terminal a bar with the remaining time, in a pipe a line for each group."""
    if not sys.stderr.isatty():
        yield _line
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}", table_column=None),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield _Bar(bar, bar.add_task("…", total=1.0, left="")).told


def _line(kernel: Kernel, step: Step) -> None:
    """Said when a group ends, and whatever should be known at once."""
    place = f"{step.group} (user-mode Linux)" if kernel == "uml" else step.group
    if step.kind == "note":
        click.echo(f"kproxy: {step.note}", err=True)
    elif step.kind == "ended":
        rounds = f"{step.rounds} round{'' if step.rounds == 1 else 's'}"
        done = f"{step.number + 1} of {step.groups}"
        click.echo(
            f"{place}: {rounds} in {duration(step.took)}; {done} groups, "
            f"{duration(step.left)} left",
            err=True,
        )


class _Bar:
    """One line that is written again and again."""

    def __init__(self, bar: Progress, task: TaskID) -> None:
        self._bar = bar
        self._task = task

    def told(self, kernel: Kernel, step: Step) -> None:
        if step.kind == "note":
            self._bar.console.print(f"kproxy: {step.note}", markup=False, highlight=False)
            return
        place = f"{step.group} (user-mode Linux)" if kernel == "uml" else step.group
        round_ = f"round {step.rounds + 1}" if step.kind != "ended" else "done"
        self._bar.update(
            self._task,
            description=f"{place}, {round_}: {step.subject}".ljust(44),
            completed=step.elapsed,
            total=step.elapsed + step.left or 1.0,
            left=f"about {duration(step.left)} left",
        )
