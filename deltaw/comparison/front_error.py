"""The error that seeds give to the difference of two fronts: the larger of two estimates.

A corner that moves by (dx, dy) moves the height beside it by its weight × (dy − slope·dx), to first order. So each
seed's deviation at a corner is one number, its residual. Two estimates of the error follow from the residuals:

* all of them pooled, as if seeds and corners were independent (many degrees of freedom, but blind to a seed that lies
  high along its whole curve);
* each seed's weighted sum over the corners, compared by Welch (sees such seeds, with few degrees of freedom).

Only seeds that have every corner that matters count in the second.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deltaw.comparison.welch import SAME, difference

Array = NDArray[np.float64]


class Corners(NamedTuple):
    """A front's corners, ascending in x, and at each the (x, y) of its seeds."""

    x: Array
    y: Array
    seeds: Sequence[Mapping[int, tuple[float, float]]]


class SeedError(NamedTuple):
    """A standard error with its degrees of freedom, NaN if a group has one seed; and the seeds it rests on."""

    error: float
    df: float
    seeds: tuple[int, int]


class _Residuals(NamedTuple):
    """What a front's seeds say: each seed's weighted sum, the pooled sum of squares, its freedom, Σ w²/n."""

    sums: list[float]
    squares: float
    df: int
    spread: float


def seed_error(a: Corners, b: Corners, low: float, high: float) -> SeedError:
    """The error of (mean height of a) − (mean height of b) over [low, high].

    Args:
        a, b: Two fronts that both reach from `low` to `high`.
        low, high: The range; equal for a single place.
    """
    ra, rb = _residuals(a, low, high), _residuals(b, low, high)
    seeds = (len(ra.sums), len(rb.sums))
    by_seed = difference(ra.sums, rb.sums)
    df = ra.df + rb.df
    pooled = math.sqrt((ra.squares + rb.squares) / df * (ra.spread + rb.spread)) if df else 0.0
    size = float(max(np.abs(a.y).max(), np.abs(b.y).max()))
    if not by_seed.known or max(pooled, by_seed.error) <= SAME * size:  # seeds that do not differ at all are copies
        return SeedError(math.nan, math.nan, seeds)
    if pooled > by_seed.error:
        return SeedError(pooled, float(df), seeds)
    return SeedError(by_seed.error, by_seed.df, seeds)


def _residuals(f: Corners, low: float, high: float) -> _Residuals:
    """How far the seeds of a front lie from its corners."""
    weights = corner_weights(f.x, low, high)
    slopes = np.gradient(f.y, f.x) if len(f.x) > 1 else np.zeros(1)
    deviations = [
        {s: (v[1] - f.y[i]) - slopes[i] * (v[0] - f.x[i]) for s, v in f.seeds[i].items()} if i < len(f.seeds) else {}
        for i in range(len(f.x))
    ]
    used = [i for i in range(len(f.x)) if weights[i] > 0]
    labels = [s for s in deviations[used[0]] if all(s in deviations[i] for i in used)]
    sums = [float(sum(weights[i] * deviations[i][s] for i in used)) for s in labels]
    known = [list(d.values()) for d in deviations if len(d) > 1]
    squares = sum(float(np.square(d).sum()) for d in known)
    spread = sum(weights[i] ** 2 / max(1, len(deviations[i])) for i in used)
    return _Residuals(sums, squares, sum(len(d) - 1 for d in known), float(spread))


def corner_weights(x: Array, low: float, high: float) -> Array:
    """Each corner's weight in the mean height over [low, high] of the straight lines between them; they add up to 1."""
    weights = np.zeros(len(x))
    if len(x) == 1:
        return np.ones(1)
    for i in range(len(x) - 1):
        a, b = max(low, x[i]), min(high, x[i + 1])
        share = (b - a) / (high - low) if high > low else 1.0
        if b < a or share == 0:
            continue
        middle = ((a + b) / 2 - x[i]) / (x[i + 1] - x[i])
        weights[i] += share * (1 - middle)
        weights[i + 1] += share * middle
        if high == low:
            break
    return weights
