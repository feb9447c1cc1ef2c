"""Progress on stderr, the same for every command: a bar with rate and remaining time on a terminal, else lines."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from deltaw.cli.printable import printable, say

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

    from deltaw.measurement.loop import Progress
    from deltaw.study.runner import Stage

LINE_EVERY_SECONDS = 15.0


class Reporter:
    """Shows how far a command is; this one shows nothing."""

    def __call__(self, progress: Progress) -> None:
        """What `deltaw.analyze` calls after each matrix; work is weighed by its expected cost."""
        count = f"{progress.done:,}/{progress.total:,} matrices"
        self.move("measuring", progress.work_done, progress.work_total, count)

    def extracted(self, progress: Progress) -> None:
        """What `deltaw.extract` and `deltaw.edit` call after each matrix."""
        count = f"{progress.done:,}/{progress.total:,} matrices"
        self.move("solving", progress.work_done, progress.work_total, count)

    def verified(self, done: int, total: int, name: str) -> None:
        """What `deltaw.verify` calls before each tensor."""
        self.move("verifying", done, total, f"{done:,}/{total:,} tensors")

    def collected(self, done: int, total: int) -> None:
        """What `deltaw activations` calls after each batch."""
        self.move("collecting", done, total, f"{done:,}/{total:,} batches")

    def surveyed(self, stage: str, done: int, total: int) -> None:
        """What `deltaw.survey` calls after each adapter, or after each few matrices of all."""
        self.move(stage, done, total, f"{done:,}/{total:,}")

    def studied(self, progress: Stage) -> None:
        """What a study calls after each step of a stage."""
        self.move(progress.stage, progress.done, progress.total, f"{progress.done:,}/{progress.total:,}")

    def move(self, stage: str, done: float, total: float, count: str) -> None:
        """Show how far a stage is.

        Args:
            stage: What is being done; its first word names the stage.
            done, total: Of its work, in any unit.
            count: The same in words.
        """

    def say(self, what: str) -> None:
        """Name what is being done besides."""


class Lines(Reporter):
    """A line now and then, and one for each further stage: for logs."""

    def __init__(self) -> None:
        self.last = self.started = time.monotonic()
        self.stage = ""

    def move(self, stage: str, done: float, total: float, count: str) -> None:
        """One line, if the last one is some time ago or the stage is another."""
        now, word = time.monotonic(), stage.split(" ")[0]
        another = word != self.stage and self.stage != ""
        if word != self.stage:
            self.stage, self.started = word, now
        if not another and now - self.last < LINE_EVERY_SECONDS:
            return
        self.last = now
        spent = now - self.started
        left = (
            f", {spent:.0f} s, about {spent * (total - done) / done:.0f} s left" if spent and 0 < done < total else ""
        )
        self.say(f"{stage}, {count}{left}")

    def say(self, what: str) -> None:
        """One line."""
        if what:
            say(f"deltaw: {what}", err=True)


class Bar(Reporter):
    """A rich progress bar."""

    def __init__(self, bar: RichProgress) -> None:
        self.bar = bar
        self.stage = ""
        self.task = bar.add_task("reading", total=None, count="")

    def move(self, stage: str, done: float, total: float, count: str) -> None:
        """Move the bar; a further stage begins anew."""
        if (word := stage.split(" ")[0]) != self.stage:
            self.stage = word
            self.bar.reset(self.task, total=total)
        self.bar.update(self.task, completed=done, total=total, count=count, description=printable(stage))

    def say(self, what: str) -> None:
        """Name what is going on."""
        self.bar.update(self.task, description=printable(what))


class Printable(logging.Formatter):
    """A log record of which nothing steers the terminal: rich takes its text as it is."""

    def format(self, record: logging.LogRecord) -> str:
        """As the library's, of printable text."""
        return printable(super().format(record))


@contextmanager
def reporting(*, quiet: bool) -> Iterator[Reporter]:
    """The reporter that fits stderr; it disappears when the block ends."""
    if quiet:
        yield Reporter()
    elif not sys.stderr.isatty():
        yield Lines()
    else:
        from rich.logging import RichHandler
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        from deltaw.cli.screen import Screen

        console = Screen(stderr=True)
        logged = RichHandler(console=console, show_path=False)
        logged.setFormatter(Printable("%(message)s"))
        logging.basicConfig(handlers=[logged], force=True)
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            yield Bar(bar)
