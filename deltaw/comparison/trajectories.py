"""How rank, distance and scores move over training: one point per setting that says its tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from deltaw.comparison import statistics
from deltaw.comparison.manifest import AXES
from deltaw.comparison.runs import Run, Runs
from deltaw.results.columns import OVER_TOKENS

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("group", "curve", "tokens", "metric", "value", "low", "high", "n_seeds")


class Trajectory(NamedTuple):
    """The points of one group that differ by tokens only.

    Attributes:
        group: The group.
        setting: The hyperparameters that all points share, in words.
        points: (tokens, replicates), ascending; two or more.
    """

    group: str
    setting: str
    points: list[tuple[int, list[Run]]]


def trajectories_frame(runs: Runs) -> pd.DataFrame:
    """Curves over tokens; empty where no group has runs at two or more numbers of tokens.

    Columns: `group`; `curve` (the hyperparameters that all its points share; a group may have several curves);
    `tokens`; `metric` (a column of layers, whose value is the median over the layers that have one at every point of
    the curve, or `learning`, `retention`); `value` (mean over seeds), `low`, `high` (Student's 95 % over seeds; NaN
    with one seed), `n_seeds`.
    """
    import pandas as pd

    rows = [row for curve in curves(runs) for metric in (*OVER_TOKENS, *AXES) for row in _points(runs, curve, metric)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _points(
    runs: Runs, curve: Trajectory, metric: str
) -> Iterator[tuple[str, str, int, str, float, float, float, int]]:
    every = [r for _, replicates in curve.points for r in replicates]
    value_of = _score(metric) if metric in AXES else _median(runs, every, metric)
    for tokens, replicates in curve.points:
        values = [v for r in replicates if math.isfinite(v := value_of(r))]
        if values:
            interval = statistics.mean_interval(values)
            yield curve.group, curve.setting, tokens, metric, *interval, len(values)


def curves(runs: Runs) -> list[Trajectory]:
    """Every group's curves of two points or more, one for each choice of hyperparameters."""
    found: dict[tuple[str, str], list[tuple[int, list[Run]]]] = {}
    for setting, replicates in runs.settings.items():
        if setting.tokens is not None:
            key = (setting.group, setting._replace(tokens=None).words())
            found.setdefault(key, []).append((setting.tokens, replicates))
    return [Trajectory(*key, sorted(points, key=lambda p: p[0])) for key, points in found.items() if len(points) > 1]


def _score(axis: str) -> Callable[[Run], float]:
    return lambda run: run.score(axis)


def _median(runs: Runs, every: Sequence[Run], metric: str) -> Callable[[Run], float]:
    """The median over layers of a run, over those that have a value in every analysed run of the curve."""
    analysed = [r for r in every if r.layers is not None]
    values = runs.table.metric(metric, analysed)
    known = np.isfinite(values).all(0) if values.size else np.zeros(0, dtype=bool)
    medians = np.median(values[:, known], axis=1) if known.any() else np.full(len(analysed), math.nan)
    by_name = {r.spec.name: float(m) for r, m in zip(analysed, medians, strict=True)}
    return lambda run: by_name.get(run.spec.name, math.nan)
