"""What an evaluation measured: a list of metrics by task, and the score that the mean of some of them is.

A reference is `task:metric` or `task:metric,filter`; several are averaged. A metric of which lower is better (a
perplexity) counts with the opposite sign, because scores here are higher for better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deltaw.comparison.evaluations.items import Items, read_items
from deltaw.documents import is_score, shown
from deltaw.errors import ManifestError, near

LISTED = 8  # names in a message, where none is near


@dataclass(frozen=True)
class TaskMetric:
    """One number of an evaluation.

    Attributes:
        task: What was evaluated: a task, a group of tasks, a benchmark.
        name: The metric's: `acc_norm`, `accuracy`.
        filter: What tells it from others of this name: lm-evaluation-harness's filter, inspect-ai's scorer, an
            Every Eval Ever result's id.
        value: As the file has it; whether it is a finite number is asked when it is used.
        error: Its standard error; NaN where the evaluation gave none.
        lower_is_better: Whether it counts with the opposite sign.
        samples: The file with what each test item scored, if there is one.
        unit: What is evaluated at once, so that a newer file replaces it: the task unless this says more.
    """

    task: str
    name: str
    filter: str
    value: object
    error: float = math.nan
    lower_is_better: bool = False
    samples: Path | None = None
    unit: str = ""

    @property
    def key(self) -> str:
        """`acc,none`; without a filter the name alone."""
        return f"{self.name},{self.filter}" if self.filter else self.name


@dataclass(frozen=True)
class Evaluation:
    """What one model scored.

    Attributes:
        source: The file or directory it was read from, for messages.
        metrics: In the order of the file.
        model: Whose scores they are, as far as the file says.
        created: When, so that texts sort like times; empty if it is not known.
        empty: Tasks without a number, such as groups that are not averaged.
    """

    source: str
    metrics: tuple[TaskMetric, ...]
    model: str = ""
    created: str = ""
    empty: tuple[str, ...] = ()


@dataclass(frozen=True)
class Score:
    """A number where higher is better, with its standard error if the evaluation gave one.

    Attributes:
        value, error: The mean of the metrics, and its standard error over the test items.
        source: Where it is from.
        items: What each test item scored, one entry for each metric; empty unless that is known of all of them.
    """

    value: float
    error: float = math.nan
    source: str = "manifest"
    items: tuple[Items, ...] = ()


def mean_score(evaluation: Evaluation, references: Sequence[str], source: str) -> Score:
    """The mean of several tasks' metrics, with the standard error of that mean.

    Args:
        evaluation: What `read_evaluation` returned.
        references: `task:metric` or `task:metric,filter`.
        source: The file as the user wrote it, for messages.

    Raises:
        ManifestError: A task or metric is not there (the message lists the near ones), is ambiguous, or is no
            finite number.
    """
    found = [_find(evaluation, reference, source) for reference in references]
    values = [_value(metric, source) for metric in found]
    n = len(found)
    items = [_items(metric, value) for metric, value in zip(found, values, strict=True)]
    known = tuple(i for i in items if i is not None)
    error = math.sqrt(sum(m.error**2 for m in found)) / n
    return Score(sum(values) / n, error, source, known if len(known) == n else ())


def _value(metric: TaskMetric, source: str) -> float:
    if not is_score(metric.value):
        raise ManifestError(
            f"{source}: {metric.task}:{metric.key} is {shown(metric.value)}; expected a finite number (to 1e60): "
            "evaluate again, or leave this metric out"
        )
    return -metric.value if metric.lower_is_better else float(metric.value)


def _items(metric: TaskMetric, value: float) -> Items | None:
    if metric.samples is None:
        return None
    return read_items(metric.samples, f"{metric.task}:{metric.key}", metric.lower_is_better, value)


def _find(evaluation: Evaluation, reference: str, source: str) -> TaskMetric:
    task, colon, name = reference.partition(":")
    if not colon or not task or not name:
        raise ManifestError(
            f'{source}: {reference!r} is not a score; expected "task:metric", like "hellaswag:acc_norm"'
        )
    tasks = list(dict.fromkeys(m.task for m in evaluation.metrics))
    of_task = [m for m in evaluation.metrics if m.task == task]
    if task in evaluation.empty:
        raise ManifestError(f"{source}: task {task!r} has no number there; name the tasks of this group instead")
    if not of_task:
        raise ManifestError(f"{source}: no task {task!r} there.{near(task, sorted(tasks), listed=LISTED)}")
    exact = [m for m in of_task if m.key == name]
    named = exact or [m for m in of_task if m.name == name]
    if len(named) == 1:
        return named[0]
    plain = [m for m in named if m.filter == "none"]
    if len(plain) == 1:
        return plain[0]
    if named:
        keys = sorted({m.key for m in named})
        if len(keys) == 1:
            raise ManifestError(f"{source}: {task}:{name} is there {len(named)} times; keep one in the file")
        raise ManifestError(
            f"{source}: {task}:{name} is there with several filters ({', '.join(keys)}); name one of them, "
            f'like "{task}:{keys[0]}"'
        )
    known = sorted({m.key if "," in name else m.name for m in of_task})
    raise ManifestError(f"{source}: task {task!r} has no metric {name!r}.{near(name, known, listed=LISTED)}")
