"""The fingerprint of a group: what its update looks like, in one row, and how that differs from the reference."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from deltaw.comparison import statistics
from deltaw.comparison.manifest import AXES
from deltaw.comparison.roles import references
from deltaw.comparison.runs import Run, Runs
from deltaw.types import Interval

if TYPE_CHECKING:
    import pandas as pd

# Column, and what it tells. The order is the order of the table.
QUANTITIES: dict[str, str] = {
    "relative_change": "distance from the base",
    "rank_90": "rank",
    "rank_90_ratio": "rank against pure noise",
    "signal_rank": "directions above rounding",
    "energy_at_16": "what rank 16 keeps",
    "energy_at_64": "what rank 64 keeps",
    "energy_at_256": "what rank 256 keeps",
    "shrinkage": "pull towards zero",
    "effective_rank_residual": "rank without the shrinkage",
    "rank_90_residual": "rank_90 without the shrinkage",
    "magnitude_change": "change of row norms",
    "direction_change": "change of row directions",
    "factor_balance": "balance of the factors",
    "intruders": "new leading directions",
}
COMMON_SPREAD = 0.25  # a common c: the middle half of the layers within a quarter of the median
COMMON_Z = 3.0


def fingerprints_frame(runs: Runs) -> pd.DataFrame:
    """One row per group.

    Columns: `group`; `reference`, its group to compare with (in another domain that domain's plain full fine-tuning);
    `method`, `setting`, `n_seeds`, `n_layers`, `interval_covers`; for each quantity x the median over layers `x` with
    `x_low` and `x_high`, and against the reference `x_effect` (median ratio over shared layers), `x_effect_low`,
    `x_effect_high`; `common_shrinkage` (whether all matrices shrank by about the same c, as decoupled weight decay
    does) and `shrinkage_spread`; for `learning` and `retention` the mean over seeds, its bounds, and as effect the
    difference to the reference.
    """
    import pandas as pd

    against = references(runs)
    return pd.DataFrame([_row(runs, g, against[g]) for g in runs.groups])


def _row(runs: Runs, group: str, reference: str) -> dict[str, Any]:
    mine, theirs = runs.representatives(group), runs.representatives(reference)
    table = runs.table
    analysed = table.rows(mine)
    row: dict[str, Any] = {
        "group": group,
        "reference": reference,
        "method": mine[0].method,
        "setting": runs.chosen[group].describe(),
        "n_seeds": len(mine),
        "n_layers": int(np.isfinite(table.values[analysed]).any((0, 1)).sum()) if analysed else 0,
        "interval_covers": "",
    }
    for name in QUANTITIES:
        a, b = table.metric(name, mine), table.metric(name, theirs)
        interval, covers = statistics.median_interval(a, seed=runs.seed)
        row["interval_covers"] = row["interval_covers"] or covers
        row |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
        row |= {f"{name}_effect": math.nan, f"{name}_effect_low": math.nan, f"{name}_effect_high": math.nan}
        if group != reference and a.size and b.size:
            c = statistics.contrast(a, b, seed=runs.seed, p_value=math.nan)
            row[f"{name}_effect"] = c.median_ratio
            row[f"{name}_effect_low"], row[f"{name}_effect_high"] = c.ratio_low, c.ratio_high
    row |= _common_shrinkage(runs, mine)
    for axis in AXES:
        row |= _score(mine, None if group == reference else theirs, axis)
    return row


def _common_shrinkage(runs: Runs, mine: list[Run]) -> dict[str, Any]:
    """Decoupled decay shrinks every decayed matrix by the same c; learning does not."""
    c, z = runs.table.metric("shrinkage", mine), runs.table.metric("shrinkage_z", mine)
    if not c.size or not np.isfinite(c).any():
        return {"common_shrinkage": None, "shrinkage_spread": math.nan}
    mean = statistics.seed_mean(c)
    mean = mean[np.isfinite(mean)]
    median = float(np.median(mean))
    low, high = np.percentile(mean, [25, 75])
    spread = float(high - low) / abs(median) if median else math.inf
    clear = bool(z.size) and float(np.nanmedian(z)) > COMMON_Z
    return {"common_shrinkage": clear and median > 0 and spread < COMMON_SPREAD, "shrinkage_spread": spread}


def _score(mine: list[Run], theirs: list[Run] | None, axis: str) -> dict[str, float]:
    value = score_interval(mine, axis)
    effect = Interval(math.nan, math.nan, math.nan) if theirs is None else score_difference(mine, theirs, axis)
    row = {axis: value.value, f"{axis}_low": value.low, f"{axis}_high": value.high}
    return row | {f"{axis}_effect": effect.value, f"{axis}_effect_low": effect.low, f"{axis}_effect_high": effect.high}


def score_interval(runs: list[Run], axis: str) -> Interval:
    """The mean score of replicates with its interval over seeds (one run: from the evaluation's standard error)."""
    return statistics.mean_interval([r.score(axis) for r in runs], _error(runs, axis))


def score_difference(a: list[Run], b: list[Run], axis: str) -> Interval:
    """The difference of two settings' mean scores, a − b, with its interval."""
    errors = (_error(a, axis), _error(b, axis))
    return statistics.mean_difference([r.score(axis) for r in a], [r.score(axis) for r in b], errors)[0]


def _error(runs: list[Run], axis: str) -> float:
    """The evaluation's own standard error of the mean of these runs."""
    errors = [r.spec.scores[axis].error for r in runs if axis in r.spec.scores]
    return math.sqrt(sum(e * e for e in errors)) / len(errors) if errors else math.nan
