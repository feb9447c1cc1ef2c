"""Progress on stderr: a bar with rate and remaining time on a terminal, a line now and then otherwise."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from deltaw.measurement.run import Progress

LINE_EVERY_SECONDS = 15.0


class Reporter:
    """What `deltaw.analyze` calls after each matrix."""

    def __call__(self, progress: Progress) -> None:
        """Show how far the run is."""

    def say(self, what: str) -> None:
        """Show what is being done besides measuring."""


class Lines(Reporter):
    """A line now and then, for logs."""

    def __init__(self) -> None:
        self.started = self.last = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        """One line, if the last one is some time ago."""
        now = time.monotonic()
        if now - self.last < LINE_EVERY_SECONDS:
            return
        self.last = now
        spent = now - self.started
        left = spent * (progress.work_total - progress.work_done) / max(progress.work_done, 1)
        self.say(f"{progress.done}/{progress.total} matrices, {spent:.0f} s, about {left:.0f} s left")

    def say(self, what: str) -> None:
        """One line."""
        if what:
            click.echo(f"deltaw: {what}", err=True)


class Bar(Reporter):
    """A rich progress bar; work is weighed by its expected cost, so that remaining time means something."""

    def __init__(self, bar: Any) -> None:
        self.bar = bar
        self.task = bar.add_task("reading", total=None, count="")

    def __call__(self, progress: Progress) -> None:
        """Move the bar."""
        count = f"{progress.done}/{progress.total} matrices"
        self.bar.update(
            self.task, completed=progress.work_done, total=progress.work_total, count=count, description="measuring"
        )

    def say(self, what: str) -> None:
        """Name what is going on."""
        self.bar.update(self.task, description=what)


@contextmanager
def reporting(*, quiet: bool) -> Iterator[Reporter]:
    """The reporter that fits stderr; it disappears when the block ends."""
    if quiet:
        yield Reporter()
    elif not sys.stderr.isatty():
        yield Lines()
    else:
        from rich.console import Console
        from rich.logging import RichHandler
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        console = Console(stderr=True)
        logging.basicConfig(format="%(message)s", handlers=[RichHandler(console=console, show_path=False)], force=True)
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            yield Bar(bar)
