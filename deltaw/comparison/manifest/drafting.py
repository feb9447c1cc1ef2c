"""A manifest to start from: the runs that were found, as TOML; a comment stands where something was not found."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from deltaw.checkpoints.hub import looks_like_id
from deltaw.comparison.manifest.finding import CHECKPOINT, FoundRun, find_runs
from deltaw.comparison.manifest.seeds import SEED
from deltaw.errors import ManifestError
from deltaw.files import replacing

MOST_METRICS = 12  # that are named in a comment
NOT_FOUND = "not found"
CHOOSE = "Choose the scores"
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")  # what ends a line, and what no comment may hold


@dataclass(frozen=True)
class Draft:
    """A manifest that was written.

    Attributes:
        path: The file.
        runs: How many it lists.
        missing: What was not found, one line each.
    """

    path: Path
    runs: int
    missing: tuple[str, ...]


def draft(roots: Sequence[str | Path], out: str | Path = "runs.toml") -> Draft:
    """Write a manifest of the runs below some directories.

    Args:
        roots: Directories.
        out: The manifest; the paths in it are relative to it. Never overwritten.

    Raises:
        ManifestError: It exists, there are no runs, or a file of a run cannot be read.
        OSError: It cannot be written.
    """
    out = Path(out)
    if out.exists():
        raise ManifestError(f"{out}: exists already, and is not overwritten; choose another --out, or move it away")
    found = find_runs([Path(r) for r in roots])
    if not found:
        where = ", ".join(map(str, roots))
        raise ManifestError(
            f"{where}: no runs there; expected directories with adapter_config.json, a model, or results of analyze"
        )
    runs = _named(_told_apart(found))
    base = _base(runs)
    runs = [r for r in runs if not base or r.folder.resolve() != Path(base).resolve()]  # it lies in a study's tree
    text = "\n".join([*_head(base, runs, out), *(line for r in runs for line in ("", *_lines(r, base, out)))]) + "\n"
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    missing = tuple(
        line.lstrip("# ")
        for line in text.splitlines()
        if line.startswith("#") and (NOT_FOUND in line or CHOOSE in line)
    )
    return Draft(out, sum(line == "[[runs]]" for line in text.splitlines()), missing)


def _named(runs: Sequence[FoundRun]) -> list[FoundRun]:
    """Unique names: below two directories of one layout the whole path tells them apart."""
    counts = Counter(r.name for r in runs)
    return [replace(r, name=r.folder.as_posix()) if counts[r.name] > 1 else r for r in runs]


def _told_apart(runs: Sequence[FoundRun]) -> list[FoundRun]:
    """Points of one run whose tokens are not known get their step as a hyperparameter: they are no replicates."""
    points = Counter(_of(r) for r in runs)
    return [
        replace(r, hyperparameters={**r.hyperparameters, "step": r.step})
        if r.tokens is None and r.step is not None and points[_of(r)] > 1
        else r
        for r in runs
    ]


def _of(run: FoundRun) -> Path:
    return run.folder.parent if CHECKPOINT.match(run.folder.name) else run.folder


def _base(runs: Sequence[FoundRun]) -> str:
    """The base that most runs name; empty if none does."""
    counts = Counter(r.base for r in runs if r.base)
    return counts.most_common(1)[0][0] if counts else ""


def _head(base: str, runs: Sequence[FoundRun], out: Path) -> Iterator[str]:
    yield "# Written by deltaw compare --init. Runs of a group with equal hyperparameters are replicates: check them."
    if Path(base).exists() and base:
        yield f"base = {_toml(_relative(Path(base), out))}"
    elif base and looks_like_id(base):
        yield f"base = {_toml(base)}"
    elif base:
        yield f"# base = {_toml(base)}  # {NOT_FOUND} here; write where it lies"
    else:
        yield f'# base = "PATH or Hub id"  # {NOT_FOUND}: no run names it'


def _lines(run: FoundRun, base: str, out: Path) -> Iterator[str]:
    if run.base and run.base != base:
        yield _comment(f"Left out: {run.name} is of another base, {run.base!r}; a comparison has one.")
        return
    yield "[[runs]]"
    yield f"name = {_toml(run.name)}"
    yield f"{'results' if run.analysed else 'checkpoint'} = {_toml(_relative(run.folder, out))}"
    stem, seed = _seed(run)
    yield f"group = {_toml(run.group or stem)}"
    if run.method:
        yield f"method = {_toml(run.method)}"
    yield f"seed = {seed}" if seed is not None else f"# seed = 0  # {NOT_FOUND}"
    if run.tokens is not None:
        yield f"tokens = {run.tokens}"
    else:
        yield f"# tokens = 0  # {NOT_FOUND}: the Trainer counts them with include_num_input_tokens_seen"
    if run.unread:
        yield _comment(f"settings: {NOT_FOUND}: {run.unread}")
    if run.hyperparameters:
        yield "[runs.hyperparameters]"
        yield from (f"{_key(name)} = {_toml(value)}" for name, value in run.hyperparameters.items())
    yield from _scores(run, out)


def _seed(run: FoundRun) -> tuple[str, int | None]:
    """The name without its seed, and the seed."""
    whole = run.folder.parent.name if CHECKPOINT.match(run.folder.name) else run.name
    named = SEED.match(whole)
    if named is None:
        return whole, run.seed
    return named["stem"], run.seed if run.seed is not None else int(named["seed"])


def _scores(run: FoundRun, out: Path) -> Iterator[str]:
    """Scores that are known; else the metrics to choose from: which axis each is on, only the user knows."""
    if run.scores:
        yield "[runs.scores]"
        yield from (f"{_key(name)} = {_toml(value)}" for name, value in run.scores.items())
        return
    if not run.evaluations:
        yield f"# scores: {NOT_FOUND}; write [runs.scores] with learning and retention, or [runs.lm_eval]"
        return
    metrics = list(dict.fromkeys(f"{m.task}:{m.key}" for e in run.evaluations for m in e.metrics))
    shown = ", ".join(metrics[:MOST_METRICS]) + (
        f", and {len(metrics) - MOST_METRICS} more" if metrics[MOST_METRICS:] else ""
    )
    files = [Path(e.source) for e in run.evaluations]
    place = files[0] if len(files) == 1 else Path(os.path.commonpath([f.parent for f in files]))
    yield _comment(f"{CHOOSE} from {shown}")
    yield "# [runs.lm_eval]"
    yield f"# file = {_toml(_relative(place, out))}"
    yield "# learning = []   # what was to be learned"
    yield "# retention = []  # what the base knew"


def _comment(text: str) -> str:
    """A line of its own, whatever the names in it are."""
    return f"# {CONTROL.sub(' ', text)}"


def _relative(path: Path, out: Path) -> str:
    return Path(os.path.relpath(path.resolve(), out.parent.resolve())).as_posix()


def _key(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() and name.isascii() else _toml(name)


def _toml(value: object) -> str:
    """A number, truth value, text or list as TOML: JSON writes the same, but for one control character."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
