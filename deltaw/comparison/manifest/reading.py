"""The manifest of a comparison: a TOML file that lists runs of one base, read strictly.

Everything that is wrong is found before any work starts and reported together, one line each: the file, the line,
the run, what was found, what was expected and what to do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deltaw.comparison.evaluations import Score, mean_score, read_evaluation
from deltaw.comparison.manifest.toml_table import LONGEST_PATH, Fields, Problems
from deltaw.documents import Document, parse_toml, read_text
from deltaw.errors import ManifestError
from deltaw.types import OptionValue

LARGEST = 16 << 20  # bytes of a manifest
TOP_KEYS = ("title", "base", "reference", "runs")
RUN_KEYS = (
    *("name", "group", "method", "seed", "tokens"),
    *("checkpoint", "results", "hyperparameters", "scores", "lm_eval"),
)
AXES = ("learning", "retention")
OLD_NAMES = {"forgetting": "retention"}  # what an axis was called in 0.1; its values were retention then, too
LM_EVAL_KEYS = ("file", *AXES, *OLD_NAMES)


@dataclass(frozen=True)
class RunSpec:
    """One run as the manifest describes it.

    Attributes:
        name: Unique.
        group: Runs of one group with equal hyperparameters and tokens are replicates.
        method: `full`, `lora`, `mora`, …; empty if not given.
        seed: Of the training, if given.
        tokens: Trained on, if given: several points make a trajectory.
        hyperparameters: Free keys.
        scores: By name; higher is better; `learning` and `retention` are the axes.
        checkpoint: A path or a Hub id, if there are weights to analyse.
        results: A directory that `analyze` wrote, if they were analysed before.
        where: `file:line`, for messages.
    """

    name: str
    group: str
    method: str = ""
    seed: int | None = None
    tokens: int | None = None
    hyperparameters: Mapping[str, OptionValue] = field(default_factory=dict)
    scores: Mapping[str, Score] = field(default_factory=dict)
    checkpoint: str | None = None
    results: Path | None = None
    where: str = ""


@dataclass(frozen=True)
class Manifest:
    """A checked manifest: what to compare, and what a reader should be warned of."""

    runs: Sequence[RunSpec]
    title: str = ""
    base: str | None = None
    reference: str | None = None
    warnings: Sequence[str] = ()


def read_manifest(path: str | Path) -> Manifest:
    """Read and check a manifest.

    Args:
        path: A TOML file; the paths in it are relative to it.

    Raises:
        ManifestError: It cannot be used; the message has one line per problem.
    """
    path = Path(path)
    text = read_text(path, error=ManifestError, largest=LARGEST)
    problems = Problems(path, parse_toml(text, str(path), error=ManifestError))
    manifest = _manifest(problems)
    problems.stop()
    return manifest


def _manifest(problems: Problems) -> Manifest:
    document = problems.toml.table
    top = Fields(document, (), problems, "the manifest")
    top.only(TOP_KEYS)
    title, base, reference = top.text("title") or "", top.text("base", longest=LONGEST_PATH), top.text("reference")
    try:
        tables = document.inners("runs")
    except ManifestError:
        problems.add(("runs",), 'runs must be tables: write "[[runs]]" above each run')
        return Manifest(())
    if not tables:
        problems.add((), 'no runs; add a "[[runs]]" table with a name for each')
    base = problems.resolve(("base",), "base", base) if base else None
    runs = [_run(Fields(t, ("runs", i), problems, f"run {i + 1}")) for i, t in enumerate(tables)]
    _check_names(runs, problems)
    _check_sources(runs, base, problems)
    groups = list(dict.fromkeys(r.group for r in runs))
    if reference is not None and reference not in groups:
        problems.unknown(("reference",), f"reference {reference!r} is not the group of any run", reference, groups)
    return Manifest(runs, title, base, reference, [*lone_groups(runs), *_old_names(tables)])


def _old_names(tables: Sequence[Document]) -> list[str]:
    """A warning where an axis has its old name: the word says the opposite of what the number must be."""
    written = [t.values.get(k) for t in tables for k in ("scores", "lm_eval")]
    used = [old for old in OLD_NAMES if any(isinstance(t, Mapping) and old in t for t in written)]
    return [
        f"The scores called {old!r} were read as {OLD_NAMES[old]!r}: higher means that more was kept." for old in used
    ]


def lone_groups(runs: Sequence[RunSpec]) -> list[str]:
    """A warning for groups of one run: their intervals cannot cover seeds."""
    counts: dict[str, int] = {}
    for r in runs:
        counts[r.group] = counts.get(r.group, 0) + 1
    lone = [g for g, n in counts.items() if n == 1]
    if not lone:
        return []
    names = ", ".join(repr(g) for g in lone[:6]) + (", …" if len(lone) > 6 else "")
    what = "One group has" if len(lone) == 1 else f"{len(lone)} groups have"
    return [f"{what} a single run ({names}): intervals cover layers only there, not what another seed would give."]


def _run(f: Fields) -> RunSpec:
    named = f.text("name", required=True)
    if named is not None:
        f.what = f"run {named!r}"  # else it keeps its number
    name = named or f.what
    f.only(RUN_KEYS)
    checkpoint, results = f.text("checkpoint", longest=LONGEST_PATH), f.text("results", longest=LONGEST_PATH)
    if checkpoint is not None and results is not None:
        f.problem("results", "both checkpoint and results are given; keep one (results are of an earlier analyze)")
    tokens = f.whole("tokens")
    if tokens is not None and tokens < 0:
        f.problem("tokens", f"tokens is {tokens}; expected 0 or more")
    spec = RunSpec(
        name=name,
        group=f.text("group") or name,
        method=(f.text("method") or "").strip().lower(),
        seed=f.whole("seed"),
        tokens=tokens,
        hyperparameters=f.free("hyperparameters"),
        scores=_scores(f),
        checkpoint=f.problems.resolve((*f.path, "checkpoint"), f"{f.what}: checkpoint", checkpoint)
        if checkpoint
        else None,
        results=_results(f, results) if results else None,
        where=f.problems.toml.where(f.path),
    )
    given = set(f.table)
    if not given & {"checkpoint", "results", "scores", "lm_eval"} and given <= set(RUN_KEYS):
        f.problem("name", "nothing to compare: give a checkpoint, results or scores")
    return spec


def _results(f: Fields, value: str) -> Path | None:
    found = f.problems.resolve((*f.path, "results"), f"{f.what}: results", value, hub=False)
    if found is None:
        return None
    if not (Path(found) / "analysis.json").is_file():
        f.problem("results", f"{value!r} has no analysis.json; expected a directory that analyze wrote (--out)")
        return None
    return Path(found)


def _scores(f: Fields) -> dict[str, Score]:
    """Scores given as numbers, and those read from what an evaluation harness left."""
    given = f.numbers("scores", (*AXES, *OLD_NAMES))
    for old, new in OLD_NAMES.items():
        if old in given and new in given:
            f.problems.add((*f.path, "scores", old), f"{f.what}: scores has {new} and its old name {old}; keep {new}")
    scores = {OLD_NAMES.get(name, name): Score(value) for name, value in given.items()}
    table = f.table.values.get("lm_eval")
    if table is None:
        return scores
    if not isinstance(table, Mapping):
        f.problem("lm_eval", 'lm_eval must be a table: write "[runs.lm_eval]"')
        return scores
    g = Fields(f.table.inner("lm_eval"), (*f.path, "lm_eval"), f.problems, f.what)
    g.only(LM_EVAL_KEYS)
    references = {axis: g.texts(axis) for axis in AXES}
    for old, new in OLD_NAMES.items():
        if old in table and new in table:
            g.problem(old, f"lm_eval has {new} and its old name {old}; keep {new}")
        references[new] = references[new] or g.texts(old)
    file = g.text("file", required=True, longest=LONGEST_PATH)
    found = f.problems.resolve((*g.path, "file"), f"{f.what}: lm_eval.file", file, hub=False) if file else None
    if not any(references.values()):
        f.problem("lm_eval", 'lm_eval names no scores; add learning = ["task:metric"] or retention = [...]')
    for axis in AXES:
        if references[axis] and axis in scores:
            g.problem(axis, f"{axis} is given in scores and in lm_eval; keep one")
        elif references[axis] and found is not None:
            try:
                scores[axis] = mean_score(read_evaluation(Path(found)), references[axis], str(file))
            except ManifestError as e:
                g.problem(axis, str(e))
    return scores


def _check_names(runs: Sequence[RunSpec], problems: Problems) -> None:
    seen: dict[str, int] = {}
    for i, run in enumerate(runs):
        if run.name in seen:
            first = problems.toml.line(("runs", seen[run.name], "name"))
            problems.add(("runs", i, "name"), f"run {run.name!r} is there already (line {first}); names are unique")
        seen.setdefault(run.name, i)


def _check_sources(runs: Sequence[RunSpec], base: str | None, problems: Problems) -> None:
    """A base where one is needed; no run that is the base, and no two replicates that are the same weights."""
    needing = [r for r in runs if r.checkpoint is not None]
    if needing and base is None and not any(p.startswith("base") for p in problems.about):
        problems.add((), f'no base, but run {needing[0].name!r} has a checkpoint; add base = "PATH or Hub id"')
    seen: dict[tuple[str, str], str] = {}
    for i, run in enumerate(runs):
        source = run.checkpoint or (str(run.results) if run.results else None)
        if source is None:
            continue
        key = "checkpoint" if run.checkpoint else "results"
        if source == base:
            problems.add(("runs", i, key), f"run {run.name!r}: its {key} is the base itself; give the fine-tuned one")
        twin = seen.setdefault((run.group, source), run.name)
        if twin != run.name:
            problems.add(
                ("runs", i, key),
                f"run {run.name!r}: the same {key} as run {twin!r} of the same group; a copy is no replicate",
            )
