"""Scores of a run, from lm-evaluation-harness's results files (Gao et al.; the layout of its 0.4 series).

Such a file has `results`: task → `{"alias": …, "acc,none": .52, "acc_stderr,none": .01}`: each metric's name is
followed by the filter that produced it, and a standard error may be the text "N/A". Groups of tasks have their
own entry, in `groups` and mostly in `results` too. `higher_is_better`: task → metric → bool.

A reference is `task:metric` or `task:metric,filter`; several are averaged. A metric of which lower is better (a
perplexity) counts with the opposite sign, because scores here are higher for better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deltaw.documents import Document, is_number, read_object
from deltaw.errors import ManifestError, near

LISTED = 8  # names in a message, where none is near


@dataclass(frozen=True)
class Score:
    """A number where higher is better, with its standard error if the evaluation gave one."""

    value: float
    error: float = math.nan
    source: str = "manifest"


def read_lm_eval(path: Path) -> Document:
    """Open a results file (or a directory that holds exactly one).

    Args:
        path: `results.json`, `results_<time>.json`, or the `--output_path` they were written to.

    Raises:
        ManifestError: It is missing, not JSON, or has no `results`.
    """
    path = _results_file(path)
    try:
        document = read_object(path, error=ManifestError)
    except ManifestError as e:
        raise ManifestError(f"{e}: lm-evaluation-harness's results file (results_*.json, not samples_*.jsonl)") from e
    if not isinstance(document.values.get("results"), dict):
        raise ManifestError(
            f'{path}: no "results" object there; expected lm-evaluation-harness\'s results file (results_*.json, '
            "not samples_*.jsonl)"
        )
    return document


def _results_file(path: Path) -> Path:
    if not path.is_dir():
        if not path.exists():
            raise ManifestError(f"{path}: no such file; give lm-evaluation-harness's results file")
        return path
    found = sorted(path.rglob("results*.json"))
    if len(found) != 1:
        names = ", ".join(str(f.relative_to(path)) for f in found[:4]) or "none"
        raise ManifestError(f"{path}: {len(found)} results*.json in this directory ({names}); name one file")
    return found[0]


def lm_eval_score(document: Document, references: Sequence[str], source: str) -> Score:
    """The mean of several tasks' metrics, with the standard error of that mean.

    Args:
        document: What `read_lm_eval` returned.
        references: `task:metric` or `task:metric,filter`.
        source: The file, for messages.

    Raises:
        ManifestError: A task or metric is not there (the message lists the near ones), is ambiguous, or is no
            finite number.
    """
    found = [_metric(document, reference, source) for reference in references]
    errors = [error for _, error in found]
    n = len(found)
    return Score(sum(v for v, _ in found) / n, math.sqrt(sum(e * e for e in errors)) / n, source)


def _metric(document: Document, reference: str, source: str) -> tuple[float, float]:
    task, colon, metric = reference.partition(":")
    if not colon or not task or not metric:
        raise ManifestError(f'{source}: {reference!r} is no score; expected "task:metric", like "hellaswag:acc_norm"')
    values = _task(document, task, source)
    key = _key(values, task, metric, source)
    value = values.values[key]
    if not is_number(value):
        raise ManifestError(f"{source}: {task}:{key} is {value!r}; expected a finite number")
    name, _, chosen = key.partition(",")
    error = values.values.get(f"{name}_stderr,{chosen}" if chosen else f"{name}_stderr")
    better = document.inner("higher_is_better").values.get(task)  # null where the harness does not know
    sign = -1.0 if isinstance(better, dict) and better.get(name) is False else 1.0
    return sign * value, float(error) if is_number(error) else math.nan  # "N/A" where there is none


def _task(document: Document, task: str, source: str) -> Document:
    tables = [document.inner(name) for name in ("results", "groups")]
    for table in tables:
        if isinstance(table.values.get(task), dict):
            return table.inner(task)
    known = sorted({name for table in tables for name in table})
    raise ManifestError(f"{source}: no task {task!r} there.{near(task, known, listed=LISTED)}")


def _key(values: Document, task: str, metric: str, source: str) -> str:
    """The stored key of a metric: as it is, or with the filter that its name lacks.

    Raises:
        ManifestError: There is none, or several filters and none of them is `none`.
    """
    if metric in values.values and metric != "alias":
        return metric
    keys = [k for k in values if "," in k and k.partition(",")[0] == metric]
    if len(keys) == 1:
        return keys[0]
    if f"{metric},none" in keys:
        return f"{metric},none"
    if keys:
        raise ManifestError(
            f"{source}: {task}:{metric} is there with several filters ({', '.join(sorted(keys))}); name one of them, "
            f'like "{task}:{sorted(keys)[0]}"'
        )
    known = sorted({k.partition(",")[0] for k in values if k != "alias" and "_stderr" not in k})
    raise ManifestError(f"{source}: task {task!r} has no metric {metric!r}.{near(metric, known, listed=LISTED)}")
