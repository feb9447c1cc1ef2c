"""Fronts, not endpoints: retention at matched learning, and learning at matched retention.

A method that only trained less also forgot less. So the points of a group (its numbers of tokens, its learning
rates) are joined to a front: those that no other point of the group beats on both axes, in order, with straight
lines between neighbours (half-way in training is about half-way on both axes; a convex hull would promise models
that nobody trained). Two groups are compared where their fronts overlap, and nowhere else.

Intervals come from the seeds: how far each seed's scores lie from the means at the corners of the front moves its
height there, to first order, and Welch's t compares the two groups. Without seeds there is a difference and no
interval.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from deltaw.comparison import statistics
from deltaw.comparison.manifest import AXES
from deltaw.comparison.runs import Array, Run, Runs, arena, mean_scores
from deltaw.types import Interval

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    *("group_a", "group_b", "matched", "compared", "level", "at", "value_a", "value_b"),
    *("difference", "low", "high", "n_seeds_a", "n_seeds_b", "note"),
)
LEVELS = {"low": 0.0, "middle": 0.5, "high": 1.0}
MEAN = "mean over the overlap"


class Front(NamedTuple):
    """A group's best points: `x` ascending (learning), `y` descending (retention: what was kept).

    `seeds` has the (learning, retention) of each seed at each point, if they are known.
    """

    x: Array
    y: Array
    seeds: Sequence[Mapping[int, tuple[float, float]]] = ()

    def axis(self, matched: str) -> tuple[Array, Array]:
        """(matched, compared) coordinates, ascending in the matched one."""
        return (self.x, self.y) if matched == AXES[0] else (self.y[::-1], self.x[::-1])


def best_of(points: Sequence[tuple[float, float]]) -> list[int]:
    """The indices of the points that no other one beats, in ascending order of the first coordinate.

    Args:
        points: (learning, retention), higher is better on both; those with a NaN are left out, and of equal ones
            the first is kept.
    """
    known = [i for i, (x, y) in enumerate(points) if math.isfinite(x) and math.isfinite(y)]
    best: list[int] = []
    for i in sorted(
        known, key=lambda i: (-points[i][0], -points[i][1])
    ):  # from the right: each must rise above all before
        if not best or points[i][1] > points[best[-1]][1]:
            best.append(i)
    return best[::-1]


def front(points: Sequence[tuple[float, float]], seeds: Sequence[Mapping[int, tuple[float, float]]] = ()) -> Front:
    """The front of some points; see `best_of`."""
    best = best_of(points)
    x, y = (np.array([points[i][axis] for i in best], dtype=np.float64) for axis in (0, 1))
    return Front(x, y, [seeds[i] for i in best] if seeds else ())


def fronts_frame(runs: Runs) -> pd.DataFrame:
    """Differences between fronts, for every pair of groups whose scores may be compared.

    One row per pair, direction (`matched` is the axis held equal, `compared` the other one) and `level`: the
    low end, the middle and the high end of the overlap, and the mean over it. `difference` is a − b, positive if a
    is better; `low`, `high` its 95 % interval over seeds. Where the fronts do not overlap there is one row with
    a `note` and no numbers.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    scored = [g for g in runs.groups if len(group_front(runs, g).x)]
    for a, b in itertools.combinations(scored, 2):
        if arena(runs.chosen[a]) == arena(runs.chosen[b]):
            for matched in AXES:
                rows.extend(_pair(runs, a, b, matched))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def group_front(runs: Runs, group: str) -> Front:
    """The front of a group: of its settings, seeds averaged."""
    home = arena(runs.chosen[group])
    settings = [rs for s, rs in runs.settings.items() if s.group == group and arena(s) == home]
    return front([mean_scores(rs) for rs in settings], [_by_seed(rs) for rs in settings])


def _by_seed(replicates: Sequence[Run]) -> dict[int, tuple[float, float]]:
    """Scores by seed, by position where the runs do not say theirs."""
    scores = [(r.score(AXES[0]), r.score(AXES[1])) for r in replicates]
    labels = [i if r.spec.seed is None else r.spec.seed for i, r in enumerate(replicates)]
    return {k: v for k, v in zip(labels, scores, strict=True) if all(map(math.isfinite, v))}


def _pair(runs: Runs, a: str, b: str, matched: str) -> list[dict[str, Any]]:
    compared = AXES[1 - AXES.index(matched)]
    row = {"group_a": a, "group_b": b, "matched": matched, "compared": compared}
    fa, fb = group_front(runs, a), group_front(runs, b)
    overlap = common_range(fa, fb, matched)
    if overlap is None:
        spans = " and ".join(f"[{f.axis(matched)[0][0]:.4g}, {f.axis(matched)[0][-1]:.4g}]" for f in (fa, fb))
        note = f"unknown: the ranges of {matched} do not overlap ({spans})"
        return [row | {"level": "", "n_seeds_a": 0, "n_seeds_b": 0, "note": note}]
    rows = []
    for level, (low, high) in ranges(overlap).items():
        va, vb = (mean_height(f, matched, low, high) for f in (fa, fb))
        xs, ys = (seed_heights(f, matched, low, high) for f in (fa, fb))
        assert va is not None
        assert vb is not None
        difference = _difference(va - vb, xs, ys)
        rows.append(
            row
            | {"level": level, "at": (low + high) / 2, "value_a": va, "value_b": vb, "difference": difference.value}
            | {"low": difference.low, "high": difference.high, "n_seeds_a": len(xs), "n_seeds_b": len(ys)}
            | {"note": "" if math.isfinite(difference.low) else "no interval: fewer than two seeds in each group"}
        )
        if overlap[0] == overlap[1]:
            break  # a single common point: its ends and its mean are the same
    return rows


def _difference(value: float, a: list[float], b: list[float]) -> Interval:
    """The difference of the fronts, with the half-width that the seeds' fronts give."""
    spread = statistics.mean_difference(a, b)[0]
    half = (spread.high - spread.low) / 2
    return Interval(value, value - half, value + half)


def common_range(a: Front, b: Front, matched: str) -> tuple[float, float] | None:
    """The interval of the matched axis that both fronts reach, or None."""
    if not len(a.x) or not len(b.x):
        return None
    low = max(a.axis(matched)[0][0], b.axis(matched)[0][0])
    high = min(a.axis(matched)[0][-1], b.axis(matched)[0][-1])
    return (float(low), float(high)) if low <= high else None


def ranges(overlap: tuple[float, float]) -> dict[str, tuple[float, float]]:
    """What two fronts are compared over: all of their overlap, and its ends and middle, by level."""
    low, high = overlap
    # Never outside the overlap, as low + (high − low) may be by rounding.
    points = {name: (1 - share) * low + share * high for name, share in LEVELS.items()}
    return {MEAN: overlap} | {name: (at, at) for name, at in points.items()}


def mean_height(f: Front, matched: str, low: float, high: float) -> float | None:
    """The mean of the compared axis over [low, high] of the matched one; None where the front does not reach.

    The front is piecewise linear, so its integral is the trapezoid's over its corners.
    """
    if not len(f.x):
        return None
    x, y = f.axis(matched)
    if low < x[0] or high > x[-1]:
        return None
    if low == high:
        return float(np.interp(low, x, y))
    corners = np.concatenate([[low], x[(x > low) & (x < high)], [high]])
    heights = np.interp(corners, x, y)
    return float(((heights[1:] + heights[:-1]) / 2 * np.diff(corners)).sum() / (high - low))


def seed_heights(f: Front, matched: str, low: float, high: float) -> list[float]:
    """How far each seed lies from the front's mean height over [low, high], to first order.

    A corner that moves by (dx, dy) moves the height beside it by its weight × (dy − slope·dx). Only seeds that have
    every corner that matters count.
    """
    x, y = f.axis(matched)
    corners = list(f.seeds) if matched == AXES[0] else list(f.seeds)[::-1]
    order = slice(None) if matched == AXES[0] else slice(None, None, -1)
    vertical, sideways = _weights(x, y, low, high)
    used = [i for i in range(len(corners)) if vertical[i] > 0]
    labels = [s for s in (corners[used[0]] if used else {}) if all(s in corners[i] for i in used)]
    out = []
    for s in labels:
        moved = np.array([corners[i][s][order] for i in used]) - np.column_stack([x[used], y[used]])
        out.append(float(vertical[used] @ moved[:, 1] - sideways[used] @ moved[:, 0]))
    return out


def _weights(x: Array, y: Array, low: float, high: float, points: int = 65) -> tuple[Array, Array]:
    """Each corner's weight in the mean height over [low, high], and the same times the slope there."""
    if len(x) == 1:
        return np.ones(1), np.zeros(1)
    at = np.linspace(low, high, points)
    left = np.clip(np.searchsorted(x, at, side="right") - 1, 0, len(x) - 2)
    share = np.clip((at - x[left]) / (x[left + 1] - x[left]), 0.0, 1.0)
    slope = (y[left + 1] - y[left]) / (x[left + 1] - x[left])
    vertical, sideways = np.zeros(len(x)), np.zeros(len(x))
    for corner, weight in ((left, 1 - share), (left + 1, share)):
        np.add.at(vertical, corner, weight / points)
        np.add.at(sideways, corner, weight * slope / points)
    return vertical, sideways
