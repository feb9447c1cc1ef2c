"""From a file or a directory to the evaluation of one model: which format it is, and which of several is newest."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

from deltaw.comparison.evaluations import formats
from deltaw.comparison.evaluations.metrics import Evaluation, TaskMetric
from deltaw.documents import Document, parse_yaml_list, read_object, read_text
from deltaw.errors import ManifestError

EXPECTED = (
    "lm-evaluation-harness's results file (results_*.json, not samples_*.jsonl), an inspect-ai log in JSON, an Every "
    "Eval Ever record, or the Hub's .eval_results/*.yaml"
)
HEAD = 4096  # characters by which a file among others is told to be an evaluation
MARKS = ('"results"', '"eval"', '"evaluation_id"', '"evaluation_results"')
LARGEST_YAML = 1 << 20  # bytes
KINDS: tuple[tuple[Callable[[Document], bool], Callable[[Document, Path], Evaluation]], ...] = (
    (formats.is_every_eval, formats.every_eval),
    (formats.is_inspect, formats.inspect),
    (formats.is_harness, formats.harness),
)


def read_evaluation(path: Path) -> Evaluation:
    """What one model scored, from a file or from a directory of them.

    In a directory each task counts as its newest file has it: tasks may be evaluated one by one, and again.

    Args:
        path: A file of any of the formats, or a directory that holds some, at any depth: the harness's `--output_path`,
            inspect's `logs`, a model's repository with `.eval_results`.

    Raises:
        ManifestError: It is missing, none of the formats, of several models, or what is newest cannot be told.
    """
    if path.is_dir():
        return _newest(path, [read_file(file) for file in evaluation_files(path)])
    if not path.exists():
        raise ManifestError(f"{path}: no such file; give {EXPECTED}")
    return read_file(path)


def read_file(path: Path) -> Evaluation:
    """What one file holds.

    Raises:
        ManifestError: It is none of the formats.
    """
    if path.suffix in {".yaml", ".yml"}:
        text = read_text(path, error=ManifestError, largest=LARGEST_YAML)
        return formats.hub(parse_yaml_list(text, str(path), error=ManifestError), path)
    if path.suffix == ".eval":
        raise ManifestError(
            f"{path}: a log in inspect-ai's binary form; write those of its directory as JSON: "
            f"inspect log convert {(folder := shlex.quote(str(path.parent)))} --to json --output-dir {folder}"
        )
    try:
        found = read_object(path, error=ManifestError)
    except ManifestError as e:
        raise ManifestError(f"{e}: {EXPECTED}") from e
    for applies, read in KINDS:
        if applies(found):
            return read(found, path)
    raise ManifestError(f'{path}: no "results" object there; expected {EXPECTED}')


def evaluation_files(folder: Path) -> list[Path]:
    """The files in a directory, at any depth, that look like evaluations."""
    return sorted(path for path in _candidates(folder) if _looks(path))


def _candidates(folder: Path) -> Iterator[Path]:
    yield from folder.rglob("*.json")
    yield from (p for p in folder.rglob("*.eval") if not p.with_suffix(".json").exists())  # it was converted
    yield from (p for p in folder.rglob("*.y*ml") if p.parent.name == ".eval_results")


def _looks(path: Path) -> bool:
    if path.suffix != ".json" or path.name.startswith("results"):
        return path.is_file()
    try:
        with path.open(encoding="utf-8") as file:
            head = file.read(HEAD)
    except (OSError, UnicodeDecodeError):  # no text: none of ours, and what else lies there is not asked for
        return False
    if not any(mark in head for mark in MARKS):
        return False
    try:
        found = read_object(path, error=ManifestError)
    except ManifestError:
        return False
    if formats.is_inspect(found) and not formats.is_finished(found):
        return False  # what was interrupted was run again, or is missed by name
    return any(applies(found) for applies, _ in KINDS)


def _newest(folder: Path, found: list[Evaluation]) -> Evaluation:
    if not found:
        raise ManifestError(f"{folder}: 0 finished evaluations in this directory; expected {EXPECTED}")
    models = sorted({e.model for e in found if e.model})
    if len(models) > 1:
        names = ", ".join(models[:4]) + (", …" if len(models) > 4 else "")
        raise ManifestError(f"{folder}: evaluations of {len(models)} models ({names}); name the directory of one")
    metrics: dict[str, tuple[Evaluation, list[TaskMetric]]] = {}
    for evaluation in sorted(found, key=lambda e: e.created):
        units: dict[str, list[TaskMetric]] = {}
        for metric in evaluation.metrics:
            units.setdefault(metric.unit or metric.task, []).append(metric)
        for unit, of_unit in units.items():
            known = metrics.get(unit)
            if known is not None and known[0].created == evaluation.created and not _same(known[1], of_unit):
                files = " and ".join(str(Path(e.source).relative_to(folder)) for e in (known[0], evaluation))
                raise ManifestError(f"{folder}: {unit!r} is in {files}, and neither says when; name one file")
            metrics[unit] = (evaluation, of_unit)
    merged = tuple(m for _, of_unit in metrics.values() for m in of_unit)
    empty = sorted({task for e in found for task in e.empty} - {m.task for m in merged})
    return Evaluation(str(folder), merged, models[0] if models else "", max(e.created for e in found), tuple(empty))


def _same(a: list[TaskMetric], b: list[TaskMetric]) -> bool:
    return json.dumps([(m.key, m.value) for m in a], default=str) == json.dumps(
        [(m.key, m.value) for m in b], default=str
    )
