"""Which measure of an update tells what a run learned and what it forgot: rank correlations over the points of runs.

The measures are of the matrices that every run changed, so that a head that only some train is in none of them; sizes
are also taken over whatever each run changed, for a head may be where the forgetting is. The
points of one run (its tokens) are no independent evidence: an interval, 95 % of the draws, comes from drawing whole
runs.

Source: Spearman 1904; the partial correlation of ranks, Kendall 1942; drawing clusters, Davison & Hinkley 1997, §3.8.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deltaw.comparison.runs import Array, MetricArray, Run, Runs, arena
from deltaw.results.columns import OF_FORGETTING
from deltaw.types import Cell

if TYPE_CHECKING:
    import pandas as pd

DRAWS = 1000
LEAST_RUNS = 5  # whole runs, below which no interval is drawn
ALL = "all"
SHARED, CHANGED = "shared", "changed"  # matrices that every run changed; all that each one changed
OUTCOMES = {"retention": -1.0, "learning": 1.0}  # what is predicted: what was lost of one, what was gained of the other
COLUMNS = (
    *(
        "domain",
        "training",
        "runs",
        "matrices",
        "outcome",
        "predictor",
        "points",
        "n_runs",
        "rho",
        "rho_low",
        "rho_high",
    ),
    *("partial", "partial_low", "partial_high", "behind", "behind_low", "behind_high"),
)


def _pooled(values: Array) -> Array:
    out: Array = np.sqrt((values**2).sum(1))
    return out


@dataclass(frozen=True)
class Points:
    """The points of some runs that have weights and both scores.

    Attributes:
        measures: (points,) of each predictor that all of them have.
        learning, retention: (points,).
        run: Which run each point is of, (points,): one training, at several tokens.
    """

    measures: dict[str, Array]
    learning: Array
    retention: Array
    run: NDArray[np.int64]


def predictors_frame(runs: Runs) -> pd.DataFrame:
    """One row per domain and training, set of runs, set of matrices, outcome and predictor.

    Columns: `rho`, Spearman's ρ of the predictor with what was lost of retention, or with learning; `partial`, the same
    of what learning (or retention) does not explain; `behind`, how much smaller it is than that of the best predictor;
    each with its interval. Empty unless runs were measured on data, with at least three points that have both scores.
    """
    import pandas as pd

    rows: list[dict[str, Cell]] = []
    on_data = (runs.table.metric(name, runs.items) for name in ("fro_norm_on_data", "fro_norm_on_source"))
    if not any(np.isfinite(values).any() for values in on_data):
        return pd.DataFrame(rows, columns=list(COLUMNS))
    for domain, training in dict.fromkeys(arena(r.setting) for r in runs.items):
        members = [r for r in runs.items if arena(r.setting) == (domain, training) and not r.copy_of]
        for name, some in _sets(members):
            for matrices in (SHARED, CHANGED):
                points = _points(runs.table, some, matrices)
                if points is None:
                    continue
                of = {"domain": domain, "training": training, "runs": name, "matrices": matrices}
                for outcome in OUTCOMES:
                    rows += [{**of, "outcome": outcome, **row} for row in _correlations(points, outcome, runs.seed)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _sets(runs: Sequence[Run]) -> Iterator[tuple[str, list[Run]]]:
    """All runs, then those of each method, where there are several."""
    yield ALL, list(runs)
    methods = list(dict.fromkeys(r.method for r in runs if r.layers is not None))
    if len(methods) > 1:
        for method in methods:
            yield method, [r for r in runs if r.method == method]


def _points(table: MetricArray, runs: Sequence[Run], matrices: str) -> Points | None:
    """What is known of the points of some runs; None where there are fewer than three, or nothing new of `CHANGED`."""
    known = [
        r
        for r in runs
        if r.layers is not None and math.isfinite(r.score("retention")) and math.isfinite(r.score("learning"))
    ]
    if len(known) < 3:
        return None
    moved = table.moved[table.rows(known)]
    shared = moved.all(axis=0)
    if matrices == CHANGED and (shared == moved.any(axis=0)).all():
        return None
    measures = {}
    for name, added in OF_FORGETTING.items():
        if matrices == CHANGED and not added:
            continue  # a median over other matrices is another number
        values = table.metric(name, known)
        if not values.shape[1]:
            continue
        if matrices == CHANGED:
            values = np.where(moved, np.nan_to_num(values), 0.0)[:, moved.any(axis=0)]
        else:
            values = values[:, shared]
            values = values[:, np.isfinite(values).all(axis=0)]  # matrices of which every point has it
        if values.shape[1]:
            measures[name] = _pooled(values) if added else np.median(values, axis=1)
    trainings: dict[tuple[object, ...], int] = {}
    run = [trainings.setdefault(_training(r), len(trainings)) for r in known]
    learning, retention = (np.array([r.score(axis) for r in known]) for axis in ("learning", "retention"))
    return Points(measures, learning, retention, np.array(run, dtype=np.int64))


def _training(run: Run) -> tuple[object, ...]:
    """What tells one training from another: all but how far it went."""
    setting = run.setting
    return setting.group, setting.hyperparameters, run.spec.seed


def _correlations(points: Points, outcome: str, seed: int) -> Iterator[dict[str, Cell]]:
    """The row of each predictor, the best first."""
    names = [name for name, values in points.measures.items() if np.ptp(values) > 0]
    if not names:
        return
    values = np.array([points.measures[name] for name in names])
    predicted, held = (
        (points.retention, points.learning) if outcome == "retention" else (points.learning, points.retention)
    )
    predicted = OUTCOMES[outcome] * predicted
    whole = _rank_correlations(values, predicted, held, np.ones((1, len(predicted))))
    rho, partial = whole[0, 0], whole[1, 0]
    if not np.isfinite(rho).any():
        return
    best = int(np.nanargmax(rho))
    drawn = _rank_correlations(values, predicted, held, _draws(points.run, seed))
    for i in np.argsort(-np.nan_to_num(rho, nan=-2.0), kind="stable"):
        row: dict[str, Cell] = {"predictor": names[i], "points": len(predicted), "n_runs": int(points.run.max()) + 1}
        for column, value, draws in (
            ("rho", rho[i], drawn[0, :, i]),
            ("partial", partial[i], drawn[1, :, i]),
            ("behind", rho[best] - rho[i], drawn[0, :, best] - drawn[0, :, i]),
        ):
            low, high = _interval(draws)
            row |= {column: float(value), f"{column}_low": low, f"{column}_high": high}
        yield row


def _draws(run: NDArray[np.int64], seed: int) -> Array:
    """How often each point is drawn, (draws, points): whole runs with replacement; no draws of few runs."""
    n = int(run.max()) + 1
    if n < LEAST_RUNS:
        return np.zeros((0, len(run)))
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=DRAWS)
    out: Array = counts[:, run].astype(np.float64)
    return out


def _rank_correlations(values: Array, predicted: Array, held: Array, weights: Array) -> Array:
    """Spearman's ρ, and the partial one, of points that are there as often as their weights say.

    Args:
        values: (predictors, points).
        predicted: What they are correlated with, (points,).
        held: What the partial one takes out, (points,).
        weights: (draws, points).

    Returns:
        (2, draws, predictors); NaN where something does not vary.
    """
    x = np.array([_ranks(v, weights) for v in values])
    y, z = _ranks(predicted, weights), _ranks(held, weights)
    xy, xz = ((weights * x * other).sum(-1).T for other in (y, z))
    yz = (weights * y * z).sum(-1)[:, None]
    rest = (1 - xz**2) * (1 - yz**2)
    partial = np.full_like(xy, math.nan)
    np.divide(xy - xz * yz, np.sqrt(np.maximum(rest, 0)), out=partial, where=rest > 1e-12)
    return np.stack([xy, partial])


def _ranks(values: Array, weights: Array) -> Array:
    """Ranks of (points,) as (draws, points), equal ones at their mean; of weighted mean 0 and norm 1."""
    levels, at = np.unique(values, return_inverse=True)
    totals = weights @ np.eye(len(levels))[at]
    ranks = (np.cumsum(totals, axis=1) - totals / 2)[:, at]
    ranks -= (weights * ranks).sum(1, keepdims=True) / weights.sum(1, keepdims=True)
    norms = np.sqrt((weights * ranks**2).sum(1, keepdims=True))
    out: Array = np.full_like(ranks, math.nan)
    np.divide(ranks, norms, out=out, where=norms > 1e-9)
    return out


def _interval(draws: Array) -> tuple[float, float]:
    known = draws[np.isfinite(draws)]
    if not known.size:
        return math.nan, math.nan
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)
