"""Scores of a run, from lm-evaluation-harness's results files (Gao et al.; the layout of its 0.4 series).

Such a file has `results`: task → `{"alias": …, "acc,none": .52, "acc_stderr,none": .01}`: each metric's name is
followed by the filter that produced it, and a standard error may be the text "N/A". Groups of tasks have their
own entry, in `groups` and mostly in `results` too. `higher_is_better`: task → metric → bool.

A reference is `task:metric` or `task:metric,filter`; several are averaged. A metric of which lower is better (a
perplexity) counts with the opposite sign, because scores here are higher for better.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltaw.documents import read_object
from deltaw.errors import ManifestError


@dataclass(frozen=True)
class Score:
    """A number where higher is better, with its standard error if the evaluation gave one."""

    value: float
    error: float = math.nan
    source: str = "manifest"


def read_lm_eval(path: Path) -> Mapping[str, Any]:
    """Open a results file (or a directory that holds exactly one).

    Args:
        path: `results.json`, `results_<time>.json`, or the `--output_path` they were written to.

    Raises:
        ManifestError: It is missing, not JSON, or has no `results`.
    """
    path = _results_file(path)
    try:
        document = read_object(path, error=ManifestError).values
    except ManifestError as e:
        raise ManifestError(f"{e}: lm-evaluation-harness's results file (results_*.json, not samples_*.jsonl)") from e
    if not isinstance(document.get("results"), dict):
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


def lm_eval_score(document: Mapping[str, Any], references: Sequence[str], source: str) -> Score:
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


def _metric(document: Mapping[str, Any], reference: str, source: str) -> tuple[float, float]:
    task, colon, metric = reference.partition(":")
    if not colon or not task or not metric:
        raise ManifestError(f'{source}: {reference!r} is no score; expected "task:metric", like "hellaswag:acc_norm"')
    values = _task(document, task, source)
    key = _key(values, task, metric, source)
    value = values[key]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ManifestError(f"{source}: {task}:{key} is {value!r}; expected a finite number")
    name, _, chosen = key.partition(",")
    error = values.get(f"{name}_stderr,{chosen}" if chosen else f"{name}_stderr")
    if isinstance(error, bool) or not isinstance(error, (int, float)):  # "N/A" where there is none
        error = math.nan
    better = document.get("higher_is_better")
    better = better.get(task) if isinstance(better, dict) else None
    sign = -1.0 if isinstance(better, dict) and better.get(name) is False else 1.0
    return sign * value, float(error)


def _task(document: Mapping[str, Any], task: str, source: str) -> Mapping[str, Any]:
    groups = document.get("groups")
    for table in (document["results"], groups if isinstance(groups, dict) else {}):
        if isinstance(table.get(task), dict):
            return dict(table[task])
    known = sorted({*document["results"], *(groups if isinstance(groups, dict) else ())})
    raise ManifestError(f"{source}: no task {task!r} there.{near(task, known)}")


def _key(values: Mapping[str, Any], task: str, metric: str, source: str) -> str:
    """The stored key of a metric: as it is, or with the filter that its name lacks.

    Raises:
        ManifestError: There is none, or several filters and none of them is `none`.
    """
    if metric in values and metric != "alias":
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
    raise ManifestError(f"{source}: task {task!r} has no metric {metric!r}.{near(metric, known)}")


def near(name: str, known: Sequence[str], shown: int = 8) -> str:
    """A hint that ends a message: the near names, or what there is."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f" Did you mean {' or '.join(repr(c) for c in close)}?"
    listed = ", ".join(known[:shown]) + (", …" if len(known) > shown else "")
    return f" There are: {listed}." if known else " There are none."
