"""What four kinds of evaluation files hold, as metrics.

* lm-evaluation-harness (Gao et al., the 0.4 series): `results`: task → `{"name", "alias", "sample_len", "acc,none":
  .52, "acc_stderr,none": .01}`: a metric's name is followed by its filter; a standard error may be the text "N/A".
  Groups have their own entry in `groups` and mostly in `results`. `higher_is_better`: task → metric → true, false or
  null.
* inspect-ai (UK AI Security Institute), a log in JSON: `results.scores`: one entry for each scorer and reducer, and for
  each part of a scorer that gives several values.
* Every Eval Ever (EvalEval Coalition): `evaluation_results`: a list with a name, `score_details`, `metric_config`.
* The Hub's `.eval_results/*.yaml`: a list of `{dataset: {id, task_id}, value}`; the reference is `dataset:task_id`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from deltaw.comparison.evaluations.items import scorer_key
from deltaw.comparison.evaluations.metrics import Evaluation, TaskMetric
from deltaw.documents import Document, is_score
from deltaw.errors import ManifestError

NO_METRICS = frozenset({"name", "alias", "sample_len", "sample_count", "samples"})
STAMP = re.compile(r"\d{4}-\d\d-\d\dT[\d.:-]*\d")  # in the name of a results file
MEANS = ("accuracy", "mean")  # the metrics that inspect-ai's `stderr` is of


def is_harness(found: Document) -> bool:
    """Whether a document is a results file of lm-evaluation-harness."""
    results = found.values.get("results")
    return isinstance(results, dict) and all(isinstance(v, dict) for v in results.values())


def is_inspect(found: Document) -> bool:
    """Whether a document is a log of inspect-ai."""
    return isinstance(found.values.get("eval"), dict) and "status" in found.values


def is_finished(found: Document) -> bool:
    """Whether an evaluation by inspect-ai came to its end."""
    return found.values.get("status") == "success"


def is_every_eval(found: Document) -> bool:
    """Whether a document is a record of Every Eval Ever."""
    return isinstance(found.values.get("evaluation_results"), list)


def harness(found: Document, path: Path) -> Evaluation:
    """The metrics of a results file of lm-evaluation-harness.

    Raises:
        ManifestError: A value is of another type. So for all functions here.
    """
    stamp = STAMP.search(path.name)
    created = stamp.group() if stamp else _time(found.values.get("date"))
    model = found.text("model_name") or _model_args(found.inner("config").values.get("model_args"))
    metrics: list[TaskMetric] = []
    seen: set[str] = set()
    for table in ("results", "groups"):
        tasks = found.inner(table)
        for task in tasks:
            if task not in seen and isinstance(tasks.values[task], dict):
                samples = path.with_name(f"samples_{task}_{created}.jsonl") if stamp else None
                known = samples if samples is not None and samples.is_file() else None
                metrics += _of_task(tasks.inner(task), task, found, known)
        seen |= set(tasks)
    empty = tuple(sorted(seen - {m.task for m in metrics}))
    return Evaluation(str(path), tuple(metrics), model, created, empty)


def _of_task(values: Document, task: str, found: Document, samples: Path | None) -> Iterator[TaskMetric]:
    better = found.inner("higher_is_better").values.get(task)  # null where the harness does not know
    for key, value in values.values.items():
        name, _, chosen = key.partition(",")
        if key in NO_METRICS or name.endswith("_stderr"):
            continue
        error = values.values.get(f"{name}_stderr,{chosen}" if chosen else f"{name}_stderr")
        lower = isinstance(better, dict) and better.get(name) is False
        yield TaskMetric(task, name, chosen, value, float(error) if is_score(error) else math.nan, lower, samples)


def _model_args(value: object) -> str:
    if isinstance(value, dict):
        return next((str(value[k]) for k in ("peft", "delta", "pretrained", "model") if k in value), "")
    return value if isinstance(value, str) else ""


def inspect(found: Document, path: Path) -> Evaluation:
    """The metrics of a log of inspect-ai.

    Raises:
        ManifestError: The evaluation did not finish.
    """
    about = found.inner("eval")
    if not is_finished(found):
        raise ManifestError(
            f"{path}: this evaluation ended with {found.text('status')!r}; expected 'success': run it again"
        )
    task, model = about.text("task"), about.text("model")
    metrics: list[TaskMetric] = []
    for scorer in found.inner("results").inners("scores"):
        table = scorer.inner("metrics")
        for name in table:
            if not name.endswith("stderr"):
                error = table.inner("stderr").values.get("value") if name in MEANS else None
                known = float(error) if is_score(error) else math.nan
                value = table.inner(name).values.get("value")
                samples = path if name in MEANS and found.inners("reductions") else None
                metrics.append(TaskMetric(task, name, scorer_key(scorer), value, known, samples=samples))
    return Evaluation(str(path), tuple(metrics), model, about.text("created"))


def every_eval(found: Document, path: Path) -> Evaluation:
    """The metrics of a record of Every Eval Ever."""
    metrics = []
    for entry in found.inners("evaluation_results"):
        config, details = entry.inner("metric_config"), entry.inner("score_details")
        error = details.inner("uncertainty").inner("standard_error").values.get("value")
        name = config.text("metric_name") or config.text("metric_id") or "score"
        metrics.append(
            TaskMetric(
                entry.text("evaluation_name", None),
                name,
                entry.text("evaluation_result_id"),  # several scorers may give the same metric
                details.values.get("score"),
                float(error) if is_score(error) else math.nan,
                config.flag("lower_is_better"),
            )
        )
    model = found.inner("model_info")
    created = found.text("evaluation_timestamp") or found.text("retrieved_timestamp")
    return Evaluation(str(path), tuple(metrics), model.text("id") or model.text("name"), _time(created) or created)


def hub(entries: Sequence[Document], path: Path) -> Evaluation:
    """The metrics of a file in the Hub's `.eval_results`."""
    metrics, dates = [], []
    for entry in entries:
        dataset = entry.inner("dataset")
        name, task = dataset.text("id", None), dataset.text("task_id", None)
        # The tasks of one dataset lie in files of their own.
        metrics.append(TaskMetric(name, task, "", entry.values.get("value"), unit=f"{name}:{task}"))
        dates.append(str(entry.values.get("date") or ""))
    return Evaluation(str(path), tuple(metrics), "", max(dates, default=""))


def _time(value: object) -> str:
    """Seconds since 1970, as a number or as a text, in the form of the names of results files; else nothing."""
    try:
        seconds = float(value) if isinstance(value, (int, float, str)) else math.nan
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H-%M-%S.%f")
    except (ValueError, OverflowError, OSError):  # no number, or no time
        return ""
