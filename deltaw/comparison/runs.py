"""The runs of a comparison in memory, their settings, and the one array that all statistics read.

A *setting* is a group at one number of tokens with one choice of hyperparameters: its runs differ by the seed only
and are replicates. A group with several settings is a front; where one of them has to stand for the group it is
the last in tokens, and among those the one that learned best (the paper's rule: each method at its best learning
rate).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deltaw.comparison.manifest import AXES, RunSpec
from deltaw.comparison.mean_spectra import MeanSpectrum
from deltaw.metrics.deconvolution import NEGLIGIBLE
from deltaw.metrics.registry import REGISTRY
from deltaw.results.columns import OF_A_RUN
from deltaw.results.rows import CLEAR, quoted
from deltaw.types import Cell, JsonValue, OptionValue

if TYPE_CHECKING:
    import pandas as pd

    from deltaw.results.sources import Source

Array = NDArray[np.float64]


class Setting(NamedTuple):
    """What replicates share."""

    group: str
    tokens: int | None
    hyperparameters: tuple[tuple[str, OptionValue], ...]

    def words(self) -> str:
        """`20,000,000 tokens, learning_rate = 0.001`; empty if nothing is known."""
        parts = [f"{self.tokens:,} tokens"] if self.tokens is not None else []
        return ", ".join(parts + [f"{k} = {v}" for k, v in self.hyperparameters])


@dataclass(frozen=True)
class Analysed:
    """What the analysis of a run was of: its two sides and its options; nothing of what is not known.

    Attributes:
        compared: The share of the base that was compared; NaN where it is not known. A warning says it, where it is
            small, so that it is not saved with a comparison.
    """

    base: Source | None = None
    ft: Source | None = None
    options: Mapping[str, OptionValue] = field(default_factory=dict)
    compared: float = math.nan

    def to_dict(self) -> dict[str, JsonValue]:
        """As JSON values; a side that is not known is an empty object."""
        sides = {"base": self.base, "ft": self.ft}
        return {**{k: {} if side is None else side.to_dict() for k, side in sides.items()}, "options": self.options}


@dataclass(frozen=True)
class Run:
    """One run: what the manifest says of it, and the table of its layers if its weights were analysed.

    Attributes:
        spec: Name, group, seed, scores, …
        method: The spec's, or inferred from the adapter or the names.
        layers: The columns of `layers`; its index is `key`, name and part as all runs share them (`naming.aligned`).
            None if there are scores only.
        analysed: What its layers were measured from.
        curves: The mean spectrum of each kind of module.
        copy_of: The replicate that has the same numbers in every layer; it is counted once.
    """

    spec: RunSpec
    method: str = ""
    layers: pd.DataFrame | None = None
    analysed: Analysed = Analysed()
    curves: Mapping[str, MeanSpectrum] = field(default_factory=dict)
    copy_of: str = ""

    @property
    def setting(self) -> Setting:
        """What its replicates share with it."""
        s = self.spec
        shown = {k: v for k, v in s.hyperparameters.items() if k != "seed"}
        return Setting(s.group, s.tokens, tuple(sorted(shown.items(), key=lambda kv: kv[0])))

    def score(self, axis: str) -> float:
        """A score, NaN if it was not measured."""
        found = self.spec.scores.get(axis)
        return math.nan if found is None else found.value

    def hyper(self, *names: str) -> OptionValue | None:
        """The first of these hyperparameters that is given, else None."""
        return next((self.spec.hyperparameters[n] for n in names if n in self.spec.hyperparameters), None)


@dataclass(frozen=True)
class Runs:
    """All runs of a comparison.

    Attributes:
        items: In the order of the manifest.
        reference: The group that the others are compared with.
        seed: Of the bootstrap.
    """

    items: Sequence[Run]
    reference: str
    seed: int = 0

    @cached_property
    def groups(self) -> list[str]:
        """Names, in the order of the manifest."""
        return list(dict.fromkeys(r.spec.group for r in self.items))

    @cached_property
    def settings(self) -> dict[Setting, list[Run]]:
        """Replicates by setting; a copy of another run is none."""
        out: dict[Setting, list[Run]] = {}
        for run in self.items:
            if not run.copy_of:
                out.setdefault(run.setting, []).append(run)
        return out

    @cached_property
    def settings_of(self) -> dict[str, list[tuple[Setting, list[Run]]]]:
        """The settings of each group with their replicates."""
        out: dict[str, list[tuple[Setting, list[Run]]]] = {g: [] for g in self.groups}
        for setting, replicates in self.settings.items():
            out[setting.group].append((setting, replicates))
        return out

    @cached_property
    def chosen(self) -> dict[str, Setting]:
        """The setting that stands for each group."""
        return {g: _choose(self.settings_of[g]) for g in self.groups}

    def representatives(self, group: str) -> list[Run]:
        """The replicates that stand for a group."""
        return self.settings[self.chosen[group]]

    @cached_property
    def table(self) -> MetricArray:
        """The metrics of every analysed run."""
        return build_table([r for r in self.items if r.layers is not None])


def _choose(candidates: list[tuple[Setting, list[Run]]]) -> Setting:
    """The last in tokens; there, what learned best; there, what has most seeds, then the first.

    Weights come before scores: a setting without an analysis stands for a group only if no other has one.
    """

    def rank(item: tuple[Setting, list[Run]]) -> tuple[bool, float, float, int]:
        setting, runs = item
        tokens = -math.inf if setting.tokens is None else float(setting.tokens)
        return any(r.layers is not None for r in runs), tokens, learned(runs), len(runs)

    return max(candidates, key=rank)[0]


def learned(replicates: Sequence[Run]) -> float:
    """The mean score on what was to be learned; −∞ where there is none."""
    scores = [v for r in replicates if math.isfinite(v := r.score("learning"))]
    return sum(scores) / len(scores) if scores else -math.inf


@dataclass(frozen=True)
class MetricArray:
    """Every metric of every layer of every run, in one array.

    Attributes:
        runs: Names.
        metrics: Columns.
        keys: Layers: the union over runs, in order of appearance.
        values: (runs, metrics, layers), NaN where there is no value.
        kind, module, block: Of each layer.
        moved: (runs, layers), whether it is a matrix that the run changed.
    """

    runs: list[str]
    metrics: list[str]
    keys: list[str]
    values: Array
    kind: list[str]
    module: list[str]
    block: Array
    moved: NDArray[np.bool_]

    def rows(self, runs: Iterable[Run]) -> list[int]:
        """The indices of those runs that are in the table."""
        at = {name: i for i, name in enumerate(self.runs)}
        return [at[r.spec.name] for r in runs if r.spec.name in at]

    def metric(self, name: str, runs: Iterable[Run]) -> Array:
        """(runs, layers) of one metric; (runs, 0) if no run has it."""
        rows = self.rows(runs)
        if name not in self.metrics:
            return np.full((len(rows), 0), math.nan)
        return self.values[rows, self.metrics.index(name)]

    def of_moved(self, name: str, runs: Iterable[Run]) -> Array:
        """The same of the matrices that each run changed: what `analyze` says of a run is about these."""
        values, moved = self.metric(name, runs), self.moved[self.rows(runs)]
        return np.where(moved, values, math.nan) if values.shape[1] else values


def build_table(runs: Sequence[Run]) -> MetricArray:
    """Stack the layers of all runs; only numeric metrics of the registry that some run has.

    Ranks and energies are what may be quoted of each matrix (`results.rows.quote`): without its rounding where that
    enters them, and nothing where the matrix is mostly rounding.
    """
    frames = [r.layers for r in runs if r.layers is not None]
    numeric = [m.name for m in REGISTRY.values() if m.unit != "word" and not m.fixed]
    metrics = [m for m in numeric if any(m in f.columns for f in frames)]
    keys: dict[str, tuple[str, str, float]] = {}
    for f in frames:
        for key, kind, module, block in zip(f.index, f["kind"], f["module"], f["layer"], strict=True):
            keys.setdefault(str(key), (str(kind), str(module), float(block)))
    values = np.full((len(frames), len(metrics), len(keys)), math.nan)
    moved = np.zeros((len(frames), len(keys)), dtype=bool)
    at = {key: i for i, key in enumerate(keys)}
    for i, f in enumerate(frames):
        columns = [at[str(k)] for k in f.index]
        known = [m for m in metrics if m in f.columns]
        block = f[known].to_numpy(dtype=np.float64).T.copy()
        _quote(f, known, block)
        values[np.ix_([i], [metrics.index(m) for m in known], columns)] = block
        moved[i, columns] = _moved(f)
    kind, module, blocks = (list(c) for c in zip(*keys.values(), strict=True)) if keys else ([], [], [])
    block = np.array(blocks, dtype=float)
    return MetricArray([r.spec.name for r in runs], metrics, list(keys), values, kind, module, block, moved)


def _moved(frame: pd.DataFrame) -> NDArray[np.bool_]:
    """Which rows are matrices that changed; columns that a table of layers lacks rule nothing out."""
    out = np.ones(len(frame), dtype=bool)
    rules = {"route": ("vector", "unchanged"), "ndim": (1,), "relative_change": (0.0,), "fro_norm": (0.0,)}
    for column, excluded in rules.items():
        if column in frame.columns:
            out &= ~frame[column].isin(excluded).to_numpy()
    return out


def _quote(layers: pd.DataFrame, metrics: Sequence[str], block: Array) -> None:
    """Put what may be quoted into (metrics, layers), where rounding is more than negligible."""
    hidden = [m for m in metrics if REGISTRY[m].hidden_by_noise]
    words = layers["resolution"].fillna("") if "resolution" in layers.columns else None
    unclear = np.zeros(len(layers), dtype=bool) if words is None else ~words.isin(CLEAR).to_numpy()
    if {"rounding_noise", "fro_norm"} <= set(layers.columns):
        noise, size = (layers[c].to_numpy(dtype=np.float64) for c in ("rounding_noise", "fro_norm"))
        unclear |= noise**2 > NEGLIGIBLE * size**2
    for position in np.flatnonzero(unclear) if hidden else ():
        row = {str(column): value for column, value in layers.iloc[position].items()}
        for m in hidden:
            block[metrics.index(m), position] = quoted(row, m)


def runs_frame(runs: Runs) -> pd.DataFrame:
    """One row per run: what it is, its scores, and the medians of its layers.

    Columns: `run`, `group`, `method`, `seed`, `tokens`, `represents` (it stands for its group in the contrasts),
    the scores with `_stderr` where known, `n_layers`, medians of the main metrics, `on_front` (no other setting both
    learns and retains more), hyperparameters as `hp_…`.
    """
    import pandas as pd

    names = list(dict.fromkeys([*AXES, *(n for r in runs.items for n in r.spec.scores)]))
    hyper = list(dict.fromkeys(k for r in runs.items for k in r.spec.hyperparameters))
    chosen = {r.spec.name for g in runs.groups for r in runs.representatives(g)}
    best = on_front(runs)
    rows = []
    for r in runs.items:
        s = r.spec
        row: dict[str, Cell | OptionValue] = {"run": s.name, "group": s.group, "method": r.method}
        row |= {"seed": s.seed, "tokens": s.tokens}
        row["represents"] = s.name in chosen
        for n in names:
            row[n] = r.score(n)
            row[f"{n}_stderr"] = s.scores[n].error if n in s.scores else math.nan
        row["on_front"] = best.get(r.setting)
        row["n_layers"] = 0 if r.layers is None else len(r.layers)
        row |= _medians(runs.table, r)
        row |= {f"hp_{k}": s.hyperparameters.get(k) for k in hyper}
        rows.append(row)
    frame = pd.DataFrame(rows)
    for c in ("seed", "tokens"):
        frame[c] = frame[c].astype("Int64")
    known = [f"{n}_stderr" for n in names if frame[f"{n}_stderr"].notna().any()]
    return frame.drop(columns=[f"{n}_stderr" for n in names if f"{n}_stderr" not in known])


def _medians(table: MetricArray, run: Run) -> dict[str, float]:
    out = {}
    for m in OF_A_RUN:
        values = table.of_moved(m, [run])
        values = values[np.isfinite(values)]
        out[m] = float(np.median(values)) if values.size else math.nan
    return out


def mean_scores(runs: Sequence[Run]) -> tuple[float, float]:
    """(learning, retention) of one setting: means over its seeds."""
    out = []
    for axis in AXES:
        values = [v for r in runs if math.isfinite(v := r.score(axis))]
        out.append(sum(values) / len(values) if values else math.nan)
    return out[0], out[1]


def on_front(runs: Runs) -> dict[Setting, bool]:
    """Whether no other setting of any group is at least as good on both axes and better on one.

    Settings without both scores are left out. Domains are kept apart, see `arena`.
    """
    points = {s: p for s, rs in runs.settings.items() if all(map(math.isfinite, p := mean_scores(rs)))}
    out = {}
    for s, (x, y) in points.items():
        rivals = [p for t, p in points.items() if arena(t) == arena(s)]
        out[s] = not any(u >= x and v >= y and (u > x or v > y) for u, v in rivals)
    return out


def arena(setting: Setting) -> tuple[str, str]:
    """(domain, training) of a setting: scores are compared only where both are equal.

    From the hyperparameters `domain` (code, maths, …) and `training` (cpt, ift, …); empty where they are not given.
    """
    known = dict(setting.hyperparameters)
    return str(known.get("domain", "")).strip().lower(), str(known.get("training", "")).strip().lower()
