"""How far a curve may lie from the straight lines between its points: what a front does not know of itself.

Between two corners a trade-off curve is taken to be monotone, so that it lies between the heights of both. Where a
front has four points or more and no large gap, it is moreover taken to bend no more there than its points show
anywhere: by at most the largest second difference, as an error of interpolation, κ(x − x_i)(x_{i+1} − x)/2.

Simulated: one curve sampled at (2, 6), (3, 6), (6, 2), four fast against four slow and other numbers of points, six
shapes of curve; see `benchmarks.calibration.fronts`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ENOUGH = 4  # points whose second differences say how much a curve bends
GAP = 2.0  # a segment of more than so many median ones is a gap


class Sag(NamedTuple):
    """How far the true mean height may lie below and above that of the straight lines."""

    down: float
    up: float


def sag(x: Array, y: Array, low: float, high: float) -> Sag:
    """The sag of the chords of a front over [low, high], each segment weighted by its share of that range.

    Args:
        x: The corners, ascending.
        y: Their heights, monotone.
        low, high: Within the corners; equal for a single place.
    """
    down = up = 0.0
    if len(x) < 2 or (low == high and low in x):  # a corner is known
        return Sag(down, up)
    lengths = np.diff(x)
    bends = _bends(x, y) if len(x) >= ENOUGH else None
    for i in range(len(x) - 1):
        a, b = max(low, x[i]), min(high, x[i + 1])
        share = (b - a) / (high - low) if high > low else 1.0
        if b < a or share == 0:
            continue
        chord = y[i] + (y[i + 1] - y[i]) * ((a + b) / 2 - x[i]) / lengths[i]
        d, u = float(chord - min(y[i], y[i + 1])), float(max(y[i], y[i + 1]) - chord)
        if bends is not None and lengths[i] <= GAP * np.median(lengths):
            q = _quadratic(x[i], x[i + 1], a, b)
            d, u = min(d, max(0.0, bends.max()) * q), min(u, max(0.0, -bends.min()) * q)
        down, up = down + share * d, up + share * u
    return Sag(down, up)


def _bends(x: Array, y: Array) -> Array:
    """All second divided differences, times two: the second derivative that three neighbours show."""
    slopes = np.diff(y) / np.diff(x)
    return np.asarray(2 * np.diff(slopes) / (x[2:] - x[:-2]))


def _quadratic(left: float, right: float, a: float, b: float) -> float:
    """The mean of (x − left)(right − x)/2 over [a, b]: of a chord's error where the second derivative is 1."""
    if a == b:
        return (a - left) * (right - a) / 2

    def integral(t: float) -> float:
        t -= left  # near zero, so that nothing large is subtracted
        return (right - left) * t * t / 4 - t**3 / 6

    return (integral(b) - integral(a)) / (b - a)
