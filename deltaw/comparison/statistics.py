"""Effects between two groups of runs: the median ratio (or difference) over layers, its interval, and its tests.

Runs of one group are replicates (seeds); each has one value per layer, and the layers are the same in all runs.
Two things vary: the seed, which moves all layers of a run together, and the layer. Layers of one run are
therefore not independent, and an interval that resamples layers alone is too narrow by any factor.

The interval is a hierarchical bootstrap, seeds then layers:

* Seeds. With two or three of them the usual resampling with replacement can only return values between those
  that were seen, and covers the truth in about two cases out of three. So each replicate draws the seeds' error
  from Student's t instead (a parametric bootstrap): its scale is the spread, from seed to seed, of the
  statistic itself (the median over layers), its degrees of freedom are Welch and Satterthwaite's.
* Layers are then resampled with replacement, the same ones in both groups (they are crossed with the seeds,
  Owen 2007). The median of n resampled values is an order statistic whose rank is drawn from its exact
  distribution, so that one sort serves all replicates.

With one seed in each group nothing is known about seeds: the interval covers layers only, and says so.

Metrics that are never negative are compared as ratios, on the log scale; those with a sign (a shrinkage, a cosine) as
differences: a ratio of numbers on both sides of zero means nothing.

References: Efron & Tibshirani 1993; Owen 2007, The pigeonhole bootstrap; Cliff 1993; Wilcoxon 1945; Welch 1947.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deltaw.comparison.ranking import cliffs_delta, wilcoxon
from deltaw.comparison.welch import ALPHA, Estimate, difference, difference_p, two_sided
from deltaw.types import Interval

Array = NDArray[np.float64]
Covers = Literal["", "layers", "seeds", "seeds and layers", "seeds of one group and layers"]

DRAWS = 4000
NAN = math.nan


@dataclass(frozen=True)
class Contrast:
    """One metric of one pair of groups; the fields are columns of `contrasts`.

    Attributes:
        n_layers: Layers with a value in every run of both groups.
        n_seeds_a, n_seeds_b: Runs averaged in each group.
        median_a, median_b: Medians over those layers, seeds averaged.
        median_ratio, ratio_low, ratio_high: Median over layers of a/b, with its 95 % interval; NaN for signed metrics.
        median_difference, difference_low, difference_high: The same of a − b; NaN for metrics without a sign.
        cliffs_delta: P(a > b) − P(a < b) over pairs of layers.
        p_value: Wilcoxon signed-rank over paired layers, seeds averaged: do the layers of *these* runs differ?
        p_seeds: Welch's t over seeds: would other seeds differ too? NaN with one seed in a group.
        interval_covers: What the interval accounts for.
    """

    n_layers: int
    n_seeds_a: int
    n_seeds_b: int
    median_a: float = NAN
    median_b: float = NAN
    median_ratio: float = NAN
    ratio_low: float = NAN
    ratio_high: float = NAN
    median_difference: float = NAN
    difference_low: float = NAN
    difference_high: float = NAN
    cliffs_delta: float = NAN
    p_value: float = NAN
    p_seeds: float = NAN
    interval_covers: Covers = ""

    @property
    def ratio(self) -> Interval:
        """The median ratio with its interval."""
        return Interval(self.median_ratio, self.ratio_low, self.ratio_high)

    @property
    def difference(self) -> Interval:
        """The median difference with its interval."""
        return Interval(self.median_difference, self.difference_low, self.difference_high)


class SeedSpread(NamedTuple):
    """The standard error that seeds give to a statistic, and its degrees of freedom; 0 and inf if unknown."""

    error: float
    df: float
    covers: Covers


def shared(a: Array, b: Array) -> tuple[Array, Array]:
    """The runs that have the metric, and the layers that all of those have: the same set for every run."""
    a, b = a[np.isfinite(a).any(1)], b[np.isfinite(b).any(1)]
    keep = np.isfinite(a).all(0) & np.isfinite(b).all(0)
    return a[:, keep], b[:, keep]


def contrast(
    a: Array,
    b: Array,
    *,
    signed: bool = False,
    seed: int = 0,
    draws: int = DRAWS,
    alpha: float = ALPHA,
    p_value: float | None = None,
    p_seeds: float | None = None,
) -> Contrast:
    """Compare one metric between two groups.

    Args:
        a: (seeds of A, layers), NaN where there is no value.
        b: (seeds of B, layers), the same layers in the same order.
        signed: The metric has a sign: differences instead of ratios.
        seed: Of the bootstrap; the same seed gives the same numbers.
        draws: Bootstrap replicates; 0 for no interval.
        alpha: The interval has level 1 − alpha.
        p_value, p_seeds: Where the caller has computed them for many metrics at once.

    Returns:
        The contrast; NaN for what cannot be computed.
    """
    a, b = shared(a, b)
    n = a.shape[1]
    if n == 0 or not len(a) or not len(b):
        return Contrast(0, len(a), len(b))
    mean_a, mean_b = a.mean(0), b.mean(0)
    log = not signed and float(min(a.min(), b.min())) >= 0
    value, covers = _effect(a, b, mean_a, mean_b, log, seed, draws, alpha)
    nothing = Interval(NAN, NAN, NAN)
    ratio, plain = (value, nothing) if log else (nothing, value)
    return Contrast(
        n_layers=n,
        n_seeds_a=len(a),
        n_seeds_b=len(b),
        median_a=_median(np.sort(mean_a)),
        median_b=_median(np.sort(mean_b)),
        median_ratio=ratio.value,
        ratio_low=ratio.low,
        ratio_high=ratio.high,
        median_difference=plain.value,
        difference_low=plain.low,
        difference_high=plain.high,
        cliffs_delta=cliffs_delta(mean_a, mean_b),
        p_value=wilcoxon(mean_a - mean_b) if p_value is None else p_value,
        p_seeds=two_sided(seed_difference(a, b, signed=signed)) if p_seeds is None else p_seeds,
        interval_covers=covers,
    )


def seed_difference(a: Array, b: Array, *, signed: bool = False) -> Estimate:
    """A − b of one value for each run: the median over layers of how far the run lies from the middle of both groups.

    Logarithms where all values are positive and the metric has no sign. Every layer counts in every run.

    Args:
        a: (seeds of A, layers), all finite.
        b: (seeds of B, layers), all finite.
        signed: The metric has a sign.
    """
    if not a.size or not b.size:
        return Estimate(NAN)
    if not signed and min(a.min(), b.min()) > 0:
        a, b = np.log(a), np.log(b)
    middle = (a.mean(0) + b.mean(0)) / 2
    return difference(np.median(a - middle, axis=1), np.median(b - middle, axis=1))


def seed_p_many(a: Array, b: Array, signed: Sequence[bool]) -> Array:
    """The two-sided p of `seed_difference` of every metric.

    Args:
        a: (seeds of A, metrics, layers), NaN where there is no value.
        b: (seeds of B, metrics, layers).
        signed: Whether each metric has a sign.
    """
    out = np.full(a.shape[1], NAN)
    patterns: dict[bytes, list[int]] = {}
    for m in range(a.shape[1]):
        mask = np.isfinite(a[:, m]).tobytes() + np.isfinite(b[:, m]).tobytes() + bytes([signed[m]])
        patterns.setdefault(mask, []).append(m)
    for metrics in patterns.values():
        x, y = shared(a[:, metrics[0]], b[:, metrics[0]])
        if not x.size or not y.size:
            continue
        runs = [np.isfinite(v[:, metrics[0]]).any(1) for v in (a, b)]
        keep = np.isfinite(a[runs[0], metrics[0]]).all(0) & np.isfinite(b[runs[1], metrics[0]]).all(0)
        x, y = (v[r][:, metrics][:, :, keep] for v, r in ((a, runs[0]), (b, runs[1])))
        log = np.minimum(x.min(axis=(0, 2)), y.min(axis=(0, 2))) > 0
        log &= not signed[metrics[0]]
        x, y = (_logs(v, log) for v in (x, y))
        middle = (x.mean(0) + y.mean(0)) / 2
        out[metrics] = difference_p(*(np.median(v - middle, axis=2).T for v in (x, y)))
    return out


def _logs(values: Array, log: Array) -> Array:
    """(runs, metrics, layers) with the logarithm of some metrics."""
    chosen = log[None, :, None]
    return np.asarray(np.where(chosen, np.log(np.where(chosen, values, 1.0)), values))


def median_interval(a: Array, *, seed: int = 0, draws: int = DRAWS) -> tuple[Interval, Covers]:
    """The median over layers of one group, seeds averaged, with the same hierarchical interval.

    Args:
        a: (seeds, layers), NaN where there is no value.
        seed: Of the bootstrap.
        draws: Bootstrap replicates.
    """
    a = a[:, np.isfinite(a).any(0)]
    a = a[np.isfinite(a).any(1)] if a.size else a
    if a.size == 0:
        return Interval(NAN, NAN, NAN), ""
    positive = bool(np.nanmin(a) > 0)  # then on the log scale, where an interval cannot cross zero
    scaled = np.log(a) if positive else a
    center = np.log(seed_mean(a)) if positive else seed_mean(a)
    spread = seed_spread([np.nanmedian(scaled, axis=1)])
    low, high = _bounds(center, spread, seed, draws, ALPHA)
    value = float(np.median(seed_mean(a)))
    if positive:
        low, high = math.exp(low), math.exp(high)
    return Interval(value, low, high), _and_layers(spread.covers)


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean over seeds with Student's 95 % interval; NaN bounds with one seed."""
    from scipy import stats

    x = np.asarray(values, dtype=np.float64)
    x = x[np.isfinite(x)]
    if len(x) == 0:
        return Interval(NAN, NAN, NAN)
    value, half = float(x.mean()), NAN
    if len(x) > 1:
        half = float(x.std(ddof=1)) / math.sqrt(len(x)) * float(stats.t.ppf(1 - ALPHA / 2, len(x) - 1))
    return Interval(value, value - half, value + half)


def seed_mean(a: Array) -> Array:
    """(seeds, layers) → (layers,): the mean over the seeds that have a value."""
    known = np.isfinite(a)
    count = known.sum(0)
    total = np.where(known, a, 0.0).sum(0)
    return np.asarray(np.divide(total, count, out=np.full(a.shape[1], NAN), where=count > 0))


def seed_spread(groups: Sequence[Array]) -> SeedSpread:
    """Welch–Satterthwaite's standard error of a sum or difference of group means.

    A group of one seed takes the variance of the other; where no group has two seeds nothing is known.

    Args:
        groups: One or two vectors, one value of the statistic per seed.
    """
    known = [(_variance(g), len(g)) for g in groups if len(g) > 1]
    if not known or not all(math.isfinite(v) for v, _ in known):
        return SeedSpread(0.0, math.inf, "")
    parts = []  # (variance of the mean, degrees of freedom)
    for g in groups:
        variance, n = (_variance(g), len(g)) if len(g) > 1 else known[0]
        parts.append((variance / len(g), n - 1))
    total = sum(v for v, _ in parts)
    # A borrowed variance is the same estimate twice: its freedom is counted once.
    borrowed = len(known) < len(groups)
    df = float(parts[0][1] if len(parts) == 1 else min(d for _, d in parts))
    if total > 0 and len(parts) > 1 and not borrowed:
        df = total**2 / sum(v**2 / d for v, d in parts)
    return SeedSpread(math.sqrt(total), df, "seeds of one group and layers" if borrowed else "seeds")


def _variance(x: Array) -> float:
    """Unbiased; 0 for equal values even if they are infinite (all ratios are zero), NaN for other infinite ones."""
    if (x == x[0]).all():
        return 0.0
    deviations = x - x.mean() if np.isfinite(x).all() else np.full(len(x), NAN)
    return float(deviations @ deviations) / (len(x) - 1)


def _effect(
    a: Array, b: Array, mean_a: Array, mean_b: Array, log: bool, seed: int, draws: int, alpha: float
) -> tuple[Interval, Covers]:
    """The median ratio (or difference) with its interval, and what the interval covers."""
    center = _apart(mean_a, mean_b, log)
    defined = ~np.isnan(center)  # 0/0 is no ratio: such a layer says nothing about one
    center = center[defined]
    if len(center) == 0:
        return Interval(NAN, NAN, NAN), ""
    value, low, high = _median(np.sort(center)), NAN, NAN
    covers: Covers = ""
    if draws:
        by_a = _nanmedians(_apart(a, mean_b, log)[:, defined])
        by_b = _nanmedians(_apart(mean_a, b, log)[:, defined])
        spread = seed_spread([by_a, by_b])
        low, high = _bounds(center, spread, seed, draws, alpha)
        covers = _and_layers(spread.covers)
    return Interval(*(_exp(x) for x in (value, low, high))) if log else Interval(value, low, high), covers


def _apart(a: Array, b: Array, log: bool) -> Array:
    """log(a/b), or a − b; 0/0 is NaN, x/0 is infinite."""
    if not log:
        return np.asarray(a - b)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.log(a) - np.log(b))


def _bounds(center: Array, spread: SeedSpread, seed: int, draws: int, alpha: float) -> tuple[float, float]:
    """The central 1 − alpha of (median of resampled layers) + (error of the seeds)."""
    ordered = np.sort(center)
    n = len(ordered)
    lower, upper = _middle_ranks(n, seed, draws)
    with np.errstate(invalid="ignore"):
        sample = (ordered[lower] + ordered[upper]) / 2
        if spread.error > 0:
            sample = sample + spread.error * np.random.default_rng([seed, 1]).standard_t(spread.df, draws)
    if np.isnan(sample).any():  # −∞ and +∞ in the middle of one replicate
        return NAN, NAN
    cut = round(alpha / 2 * draws)
    ends = (cut, draws - 1 - cut)
    sample = np.partition(sample, ends)
    return float(sample[ends[0]]), float(sample[ends[1]])


@lru_cache(maxsize=256)
def _middle_ranks(n: int, seed: int, draws: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the middle of n values drawn with replacement from n sorted ones falls: two indices per replicate.

    The k-th smallest of n uniform numbers is Beta(k, n − k + 1); the next one is the smallest of the n − k that
    remain above it. Scaled to n they are the ranks that resampling would give: no resampling is needed.
    """
    rng = np.random.default_rng([seed, 0, n])
    k = (n + 1) // 2
    u = rng.beta(k, n - k + 1, draws)
    v = u if n % 2 else u + (1 - u) * rng.beta(1, n - k, draws)
    lower, upper = (np.minimum((x * n).astype(np.int64), n - 1) for x in (u, v))
    return lower, upper


def _median(ordered: Array) -> float:
    n = len(ordered)
    with np.errstate(invalid="ignore"):
        return float((ordered[(n - 1) // 2] + ordered[n // 2]) / 2)


def _nanmedians(a: Array) -> Array:
    """Row medians without NaN; a row of NaN (a seed whose layers are all 0/0) is dropped."""
    rows = [row[~np.isnan(row)] for row in a]
    return np.array([_median(np.sort(row)) for row in rows if len(row)], dtype=np.float64)


def _exp(x: float) -> float:
    return math.inf if x > 709.0 else math.exp(x)


def _and_layers(covers: Covers) -> Covers:
    return {"": "layers", "seeds": "seeds and layers"}.get(covers, covers)  # type: ignore[return-value]
