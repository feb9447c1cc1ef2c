"""The table of contrasts: every metric for every pair of groups, with Holm's correction over the whole table."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from deltaw.comparison import statistics
from deltaw.comparison.runs import Array, Runs

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    *("metric", "group_a", "group_b", "n_layers", "n_seeds_a", "n_seeds_b", "median_a", "median_b"),
    *("median_ratio", "ratio_low", "ratio_high", "cliffs_delta", "p_value", "p_adjusted"),
    *("p_seeds", "interval_covers"),
)


def contrasts_frame(runs: Runs) -> pd.DataFrame:
    """One row per metric and pair of groups, groups in the order of the manifest.

    Each group is represented by its chosen setting (`Runs.chosen`). `p_adjusted` is Holm's correction of `p_value`
    over the table, and never below `p_seeds`: Wilcoxon's test takes the layers of these runs as the sample, and a
    seed that moves all of them together would look like a difference of methods.
    """
    import pandas as pd

    table = runs.table
    values = {g: table.values[table.rows(runs.representatives(g))] for g in runs.groups}
    values = {g: v for g, v in values.items() if len(v)}
    rows = []
    for a, b in itertools.combinations(values, 2):
        rows.extend(_pair(a, b, values[a], values[b], table.metrics, runs.seed))
    frame = pd.DataFrame(rows, columns=[c for c in COLUMNS if c != "p_adjusted"])
    frame = frame[frame["n_layers"] > 0].reset_index(drop=True)
    adjusted = statistics.holm(frame["p_value"].to_numpy(dtype=np.float64))
    frame["p_adjusted"] = np.fmax(adjusted, frame["p_seeds"].to_numpy(dtype=np.float64))
    return frame[list(COLUMNS)]


def _pair(a: str, b: str, x: Array, y: Array, metrics: list[str], seed: int) -> list[dict[str, object]]:
    """The contrasts of one pair; x and y are (runs, metrics, layers)."""
    both = np.isfinite(x).any(0) & np.isfinite(y).any(0)
    means = [statistics.seed_mean(v.reshape(len(v), -1)).reshape(v.shape[1:]) for v in (x, y)]
    difference = np.where(both, means[0] - means[1], np.nan)
    p = statistics.wilcoxon_many(difference)
    return [
        {"metric": metric, "group_a": a, "group_b": b}
        | vars(statistics.contrast(x[:, m], y[:, m], seed=seed, p_value=float(p[m])))
        for m, metric in enumerate(metrics)
    ]
