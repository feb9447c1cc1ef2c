"""How rank, distance and scores move over training: one point per setting that says its tokens."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from deltaw.comparison import statistics
from deltaw.comparison.manifest import AXES
from deltaw.comparison.runs import Run, Runs

if TYPE_CHECKING:
    import pandas as pd

METRICS = (
    "relative_change",
    "rank_90",
    "rank_90_ratio",
    "effective_rank",
    "stable_rank",
    "signal_rank",
    "energy_at_16",
)
COLUMNS = ("group", "curve", "tokens", "metric", "value", "low", "high", "n_seeds")


def trajectories_frame(runs: Runs) -> pd.DataFrame:
    """Curves over tokens; empty where no group has runs at two or more numbers of tokens.

    Columns: `group`; `curve` (the hyperparameters that all its points share; a group may have several curves);
    `tokens`; `metric` (a column of layers, whose value is the median over layers, or `learning`, `retention`);
    `value` (mean over seeds), `low`, `high` (Student's 95 % over seeds; NaN with one seed), `n_seeds`.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for (group, curve), points in curves(runs).items():
        for tokens, replicates in points:
            for metric in (*METRICS, *AXES):
                values = [v for r in replicates if math.isfinite(v := value_of(runs, r, metric))]
                if values:
                    interval = statistics.mean_interval(values)
                    rows.append(
                        {"group": group, "curve": curve, "tokens": tokens, "metric": metric, "n_seeds": len(values)}
                        | interval._asdict()
                    )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def curves(runs: Runs) -> dict[tuple[str, str], list[tuple[int, list[Run]]]]:
    """(group, hyperparameters in words) → [(tokens, replicates)], ascending; only curves of two points or more."""
    found: dict[tuple[str, str], list[tuple[int, list[Run]]]] = {}
    for setting, replicates in runs.settings.items():
        if setting.tokens is not None:
            key = (setting.group, setting._replace(tokens=None).describe())
            found.setdefault(key, []).append((setting.tokens, replicates))
    return {k: sorted(points, key=lambda p: p[0]) for k, points in found.items() if len(points) > 1}


def value_of(runs: Runs, run: Run, metric: str) -> float:
    """A score, or the median over layers of a metric; NaN if the run has neither."""
    if metric in AXES:
        return run.score(metric)
    values = runs.table.metric(metric, [run])
    values = values[np.isfinite(values)]
    return float(np.median(values)) if values.size else math.nan
