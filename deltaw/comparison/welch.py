"""A number with the error that seeds give it: Welch and Satterthwaite for one number, Holm for several.

Every verdict rests on values of whole runs (a score, a median over layers): runs differ by their seed and are
independent, layers of one run are not. An `Estimate` is a linear combination of the means of groups of runs; each
group has its own variance, which is never pooled: where spreads differ, a pooled variance exceeds its level.

Scores often lie on a grid (17 of 50 right), and replicates then tie. Ties say that the spread is below the grid and
not that it is zero, so that a variance is never taken to be below that of rounding to the grid, step²/12.

References: Welch 1947; Satterthwaite 1946; Holm 1979.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deltaw.types import Interval

Array = NDArray[np.float64]

ALPHA = 0.05
NAN = math.nan
SAME = 1e-9  # of the largest value: two scores that differ by less are one


@dataclass(frozen=True)
class Estimate:
    """A number and what is known of its error.

    Attributes:
        value: The number.
        error: Its standard error over seeds; NaN where a group has a single seed.
        df: Welch and Satterthwaite's degrees of freedom.
        down, up: How far the truth may lie below and above the number whatever the seeds say.
        trials: How many times as many settings the one side had to choose its best from: p is multiplied by it.
    """

    value: float
    error: float = NAN
    df: float = NAN
    down: float = 0.0
    up: float = 0.0
    trials: int = 1

    @property
    def known(self) -> bool:
        """Whether the seeds say anything about the error."""
        return math.isfinite(self.value) and math.isfinite(self.error)

    def above(self) -> float:
        """One-sided p of "it is not above 0"; 1 where nothing is known."""
        return self._tail(self.value - self.down)

    def below(self) -> float:
        """One-sided p of "it is not below 0"; 1 where nothing is known."""
        return self._tail(-(self.value + self.up))

    def _tail(self, distance: float) -> float:
        from scipy.special import stdtr

        if not self.known:
            return 1.0
        if self.error == 0:
            return 0.0 if distance > 0 else 1.0
        return min(1.0, self.trials * float(stdtr(self.df, -distance / self.error)))

    def interval(self, alpha: float = ALPHA) -> Interval:
        """The two-sided interval of level 1 − alpha; NaN bounds where nothing is known."""
        from scipy.special import stdtrit

        if not self.known:
            return Interval(self.value, NAN, NAN)
        # No spread at all is no evidence that infinitely many degrees of freedom could add to.
        half = 0.0 if self.error == 0 else self.error * -float(stdtrit(self.df, alpha / 2 / self.trials))
        return Interval(self.value, self.value - self.down - half, self.value + self.up + half)

    def negated(self) -> Estimate:
        """−x."""
        return replace(self, value=-self.value, down=self.up, up=self.down)


class GroupShare(NamedTuple):
    """One group's share of a linear combination: its coefficient, and one value for each run."""

    coefficient: float
    values: Sequence[float] | Array


def combination(parts: Iterable[GroupShare], constant: float = 0.0, trials: int = 1) -> Estimate:
    """Σ coefficient · mean(values) + constant, with Welch and Satterthwaite's error.

    Args:
        parts: One for each group; values that are NaN are left out.
        constant: Known without error.
        trials: See `Estimate`.

    Returns:
        NaN where a group has no value; no error where a group has one value only.
    """
    groups = [(p.coefficient, x[np.isfinite(x)]) for p in parts for x in [np.asarray(p.values, dtype=np.float64)]]
    if not groups or any(len(x) == 0 for _, x in groups):
        return Estimate(NAN)
    value = sum(c * float(x.mean()) for c, x in groups) + constant
    if any(len(x) < 2 for _, x in groups):
        return Estimate(value, trials=trials)
    # A single group is compared with the number that it would equal if the combination were 0.
    alone = [-constant / groups[0][0]] if len(groups) == 1 and groups[0][0] else []
    least = grid(np.concatenate([*(x for _, x in groups), alone])) ** 2 / 12
    shares = [(c * c * max(float(x.var(ddof=1)), least) / len(x), len(x) - 1) for c, x in groups]
    total = sum(v for v, _ in shares)
    df = total**2 / sum(v * v / d for v, d in shares) if total > 0 else math.inf
    return Estimate(value, math.sqrt(total), df, trials=trials)


def difference(a: Sequence[float] | Array, b: Sequence[float] | Array, trials: int = 1) -> Estimate:
    """mean(a) − mean(b), each one value for each run."""
    return combination([GroupShare(1.0, a), GroupShare(-1.0, b)], trials=trials)


def grid(values: Array) -> float:
    """The smallest distance of two different values: the step of the grid on which they may lie; 0 if all are one."""
    steps = np.diff(np.sort(values))
    steps = steps[steps > SAME * float(np.abs(values).max())] if len(values) else steps
    return float(steps.min()) if len(steps) else 0.0


def two_sided(x: Estimate) -> float:
    """The two-sided p of "it is 0"; NaN where nothing is known."""
    return min(1.0, 2 * min(x.above(), x.below())) if x.known else NAN


def difference_p(a: Array, b: Array) -> Array:
    """`two_sided(difference(x, y))` of every row at once.

    Args:
        a: (rows, runs of A), all finite.
        b: (rows, runs of B), all finite.
    """
    from scipy.special import stdtr

    na, nb = a.shape[1], b.shape[1]
    if na < 2 or nb < 2:
        return np.full(len(a), NAN)
    both = np.sort(np.concatenate([a, b], axis=1), axis=1)
    steps = np.diff(both, axis=1)
    steps = np.where(steps > SAME * np.abs(both).max(axis=1, keepdims=True), steps, math.inf).min(axis=1)
    least = np.where(np.isfinite(steps), steps, 0.0) ** 2 / 12
    va, vb = np.maximum(a.var(axis=1, ddof=1), least) / na, np.maximum(b.var(axis=1, ddof=1), least) / nb
    with np.errstate(invalid="ignore", divide="ignore"):
        df = (va + vb) ** 2 / (va**2 / (na - 1) + vb**2 / (nb - 1))
        t = np.abs(a.mean(axis=1) - b.mean(axis=1)) / np.sqrt(va + vb)
        return np.asarray(np.where(va + vb > 0, 2 * stdtr(df, -t), 1.0))


def holm(p: Array) -> Array:
    """Holm's step-down adjustment: reject below .05 and the chance of any false rejection is at most 5 %.

    Args:
        p: Unadjusted p values; NaN are not tests and stay NaN.
    """
    return holm_steps(p)[0]


def holm_steps(p: Array, alpha: float = ALPHA) -> tuple[Array, Array]:
    """Holm's adjusted p, and the level at which each test's interval leaves out 0 just where that p is below alpha.

    The i-th smallest of n p values is tested at alpha/(n − i + 1), and testing ends at the first that fails; those
    after it have its level.

    Returns:
        (adjusted p, level); NaN and alpha where p is NaN.
    """
    p = np.asarray(p, dtype=np.float64)
    adjusted, level = np.full(len(p), NAN), np.full(len(p), alpha)
    tested = np.flatnonzero(np.isfinite(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(factors * p[order]))
    passed = int((adjusted[order] < alpha).sum())
    reached = np.minimum(np.arange(len(order)), passed)
    level[order] = alpha / factors[reached] if len(order) else alpha
    return adjusted, level
