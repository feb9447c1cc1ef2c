"""The table of contrasts: every metric for every pair of groups, with Holm's correction over the whole table."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from deltaw.comparison import statistics
from deltaw.comparison.endpoints import endpoints, has_layers
from deltaw.comparison.ranking import wilcoxon_many
from deltaw.comparison.runs import Array, Runs
from deltaw.comparison.statistics import Contrast
from deltaw.comparison.welch import holm
from deltaw.results.columns import is_signed

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Row:
    """What a contrast is of: a metric, two groups, and what each was trained on."""

    metric: str
    group_a: str
    group_b: str
    tokens_a: int | None
    tokens_b: int | None


COLUMNS = (
    *("metric", "group_a", "group_b", "n_layers", "n_seeds_a", "n_seeds_b", "median_a", "median_b"),
    *("median_ratio", "median_difference", "ratio_low", "ratio_high", "difference_low", "difference_high"),
    *("cliffs_delta", "p_value", "p_seeds", "p_adjusted", "tokens_a", "tokens_b", "interval_covers"),
)


def contrasts_frame(runs: Runs, draws: int = statistics.DRAWS) -> pd.DataFrame:
    """One row per metric and pair of groups, groups in the order of the manifest.

    Two groups are compared at the largest number of tokens that both have (`tokens_a`, `tokens_b`; where none is
    common, each at its last). `p_adjusted` is Holm's correction over the table of the larger of `p_value` and
    `p_seeds`: Wilcoxon's test takes the layers of these runs as the sample, and a seed that moves all of them together
    would look like a difference of methods. It is empty where a group has one seed, which says nothing about others.

    Args:
        runs: The runs.
        draws: Bootstrap replicates of each interval; 0 for no intervals.
    """
    import pandas as pd

    found = [row for a, b in itertools.combinations(runs.groups, 2) for row in _pair(runs, a, b, draws)]
    frame = pd.DataFrame(
        [asdict(row) | asdict(c) for row, c in found], columns=[c for c in COLUMNS if c != "p_adjusted"]
    )
    frame = frame.astype({"tokens_a": "Int64", "tokens_b": "Int64"})
    p_value, p_seeds = (frame[c].to_numpy(dtype=np.float64) for c in ("p_value", "p_seeds"))
    frame["p_adjusted"] = holm(np.maximum(p_value, p_seeds))  # NaN where either is
    return frame


class Tests(NamedTuple):
    """(metrics,) p values of one pair of groups: over the layers of these runs, and over seeds; NaN without them."""

    p_value: Array
    p_seeds: Array


def _pair(runs: Runs, a: str, b: str, draws: int) -> Iterator[tuple[Row, Contrast]]:
    """The contrasts of one pair of groups; those without a common layer are left out."""
    ends = endpoints(runs, a, b, has_layers, anywhere=True)
    if ends is None:
        return
    table = runs.table
    x, y = (table.values[table.rows(group)] for group in (ends.a, ends.b))
    p = tests_of(x, y, table.metrics)
    for m, metric in enumerate(table.metrics):
        known = {"p_value": float(p.p_value[m]), "p_seeds": float(p.p_seeds[m])}
        c = statistics.contrast(x[:, m], y[:, m], signed=is_signed(metric), seed=runs.seed, draws=draws, **known)
        if c.n_layers:
            yield Row(metric, a, b, ends.tokens_a, ends.tokens_b), c


def tests_of(x: Array, y: Array, metrics: Sequence[str]) -> Tests:
    """The tests of every metric of one pair of groups.

    Args:
        x: (runs of A, metrics, layers), NaN where there is no value.
        y: (runs of B, metrics, layers).
        metrics: Their names.
    """
    differences = np.full(x.shape[1:], np.nan)
    for m in range(len(metrics)):
        a, b = (v[np.isfinite(v[:, m]).any(1), m] for v in (x, y))
        if len(a) and len(b):
            differences[m] = a.mean(0) - b.mean(0)  # NaN where some run has no value
    seeds = statistics.seed_p_many(x, y, [is_signed(m) for m in metrics])
    return Tests(wilcoxon_many(differences), seeds)
