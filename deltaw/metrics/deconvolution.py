"""The spectrum of an update below its rounding: what the singular values were before storing spread them.

White noise of variance v drives λ = σ² apart: dλ_i/dv = max(m, n) + Σ_{j≠i} (λ_i + λ_j)/(λ_i − λ_j), as in Dyson's
Brownian motion. Followed backwards from the spectrum that was seen, over all of v, it returns to the update's; the pole
is softened to Δ/(Δ² + 16v√(λ_iλ_j)), since two values that noise has mixed cannot be told apart. Rounding is no white
noise for an update below the ulp: it loses entries (`metrics.quantiser`), so λ is divided by κ², and Σλ is set to the
energy that such a quantiser would have had to see.

The sizes of the rows, or of the columns where those differ more, are told apart: a row that moved little lost nearly
all of itself, a large one nothing.

A first estimate f0 of the share of the energy that r directions hold is biased where much is rounding. Stored again, it
gives f1 from the same procedure, and what the procedure did to f0 corrects it: 2·f0 − f1 (iterated bootstrap). A band
around both curves is the interval of every share, and where it crosses .9 that of the rank. It is wide enough to cover
the truth in nine of ten updates with power-law spectra (`benchmarks.calibration`).

Sources: Dyson 1962; Bru 1989 (Wishart processes); Bussgang 1952; Efron & Tibshirani 1993, §10.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from deltaw.metrics.precision import NOISY
from deltaw.metrics.quantiser import RoundedGaussian, gaussian_rounding, uneven_rounding
from deltaw.metrics.quantities import Quantities
from deltaw.metrics.rank import rank_at
from deltaw.types import Interval, Vector

NEGLIGIBLE = 1e-5  # share of the energy: rounding below it changes no sum over σ by more than its last printed digit
ENOUGH = 0.03  # share of the energy up to which f0 is as good as its correction
UNCORRECTED, UNCORRECTABLE = 0.25, 0.38  # of the share that is rounding: what f0 may miss up to there, and beyond
# Where the truth may lie, by some 1,100 updates of five kinds: between f0 and its correction, and, in units of that, so
# far beyond the correction and behind f0. Where the energy crosses .9, what was lost is the tail, and the truth lies
# further beyond; the more so, the deeper the tail lies in the rounding.
BEYOND, BEHIND = 1.0, 0.1
LATER, EARLIER = 1.4, 0.5
DEEPER, SHALLOW = 20.0, 0.14
SLACK, GROWS = 0.003, 0.01  # of a share of the energy: always, and for all that is rounding
RANK_SLACK = 0.001
ABOVE = 0.07  # of what is rounding: where steps differ between rows, too much of the head is taken for it
LONG = 64  # entries of a line that tell its size
TINY = 1e-300
STEPS = 16  # of the way back; 40 differ by less than 1 %
LEADING, GROUPS = 64, 64  # values followed one by one, and groups of those behind them: their pull is a sum
RANK, ENERGY = "rank_90_denoised", "energy_at_16_denoised"
HEAD = 16


@dataclass(frozen=True)
class Rounded:
    """The rounding that is in a spectrum.

    Attributes:
        rows, cols: How many rows and columns were rounded.
        energy: Σ of the variances, at most ‖ΔW‖F².
        steps, counts: The quantiser's steps, and how many entries have each.
        lines: What is known of the rows, or of the columns where those differ more; None where nothing is.
    """

    rows: int
    cols: int
    energy: float
    steps: Vector
    counts: Vector
    lines: Lines | None = None

    @classmethod
    def of(
        cls, row: Vector, col: Vector, steps: Vector, counts: Vector, size: float, moved: Moved | None = None
    ) -> Rounded:
        """The noise of the sums over the entries.

        Args:
            row, col: Its variances, summed by row (m,) and by column (n,).
            steps, counts: See `Rounded`.
            size: ‖ΔW‖F².
            moved: The update by row and column, where it is known.
        """
        energy = min(float(row.sum()), size)
        rows, cols = int(np.count_nonzero(row)), int(np.count_nonzero(col))
        lines = None if moved is None else Lines.of(moved, row, col)
        return cls(rows, cols, energy, steps, counts, lines)

    def gaussian(self, size: float) -> RoundedGaussian:
        """The Gaussian update of which so much was stored, line by line where they are known."""
        if self.lines is None:
            return gaussian_rounding(self.steps, self.counts, size)
        return uneven_rounding(self.steps, self.counts, self.lines.energies, self.lines.fineness)


class Moved(NamedTuple):
    """What is stored of an update: Σ_j Δ² by row (m,), and Σ_i Δ² by column (n,)."""

    row: Vector
    col: Vector


class Lines(NamedTuple):
    """The rows that were rounded, or the columns.

    Attributes:
        energies: The mean of Δ² over the entries of each, (l,).
        fineness: The root mean square of each one's steps, over that of all, (l,).
    """

    energies: Vector
    fineness: Vector

    @classmethod
    def of(cls, moved: Moved, row: Vector, col: Vector) -> Lines | None:
        """Of the rows or the columns those whose energies differ more; None where the lines are too short to tell.

        Args:
            moved: The update.
            row, col: The variances of its rounding, as `Rounded.of`.
        """
        found = [(x[there := v > 0], v[there]) for x, v in zip(moved, (row, col), strict=True)]
        if min(len(v) for _, v in found) < LONG:
            return None
        x, v = max(found, key=lambda line: float(np.mean(line[0] ** 2)) / max(float(np.mean(line[0])) ** 2, TINY))
        entries = float(len(found[0][0]) * len(found[1][0]) / len(x))
        return cls(x / entries, np.sqrt(v / v.mean()))


@dataclass(frozen=True)
class Denoised:
    """A spectrum without its rounding.

    Attributes:
        values: Singular values, (k,), descending.
        share: Of the energy that was seen, what is rounding.
        flat: The largest rank_90 that what was seen permits: all that lies below the noise spread evenly.
    """

    values: Vector
    share: float
    flat: float


def denoise(s: Vector, noise: Rounded, size: float) -> Denoised | None:
    """The singular values of an update before it was rounded.

    Args:
        s: All singular values that were seen, (k,), descending.
        noise: The rounding in them.
        size: ‖ΔW‖F².

    Returns:
        None where most of it is rounding: then nothing can be said.
    """
    total = float(s @ s)
    if noise.energy > NOISY * size:
        return None
    if not (total > 0 and noise.counts.size and noise.energy > NEGLIGIBLE * size):
        return Denoised(s, 0.0, rank_at(s, 0.9))
    seen = noise.gaussian(size)
    entries, largest = float(noise.counts.sum()), max(noise.rows, noise.cols)
    before = seen.scale**2 * entries
    k = min(noise.rows, noise.cols, len(s))
    if not (before > 0 and seen.gain > 0 and k):
        return None
    squares = s[:k] ** 2
    found = back(squares, seen.variance, largest) / seen.gain**2
    found = np.maximum(found, 1e-9 * found.sum()) if found.any() else np.full(k, 1.0)
    values = np.zeros_like(s)
    values[:k] = np.sqrt(found * (before / found.sum()))
    share = min(1.0, seen.variance * entries / size)
    return Denoised(values, share, _flat(squares, seen, largest, before))


def without_rounding(known: Quantities) -> Denoised | None:
    """`denoise` of a spectrum and the sums over the entries.

    Args:
        known: `s`, complete; `noise_row`, `noise_col`, `noise_steps`, `noise_counts`, where W was stored;
            `delta_row_sq` and `delta_col_sq`, where lines of their own size are to be told apart.

    Returns:
        None where most of it is rounding, and where nothing is known of the rounding's steps.
    """
    s, row, col = known.s, known.noise_row, known.noise_col
    assert s is not None
    size = float(s @ s)
    if row is None or col is None or not row.any():
        return denoise(s, Rounded(0, 0, 0.0, np.zeros(0), np.zeros(0)), size)
    if known.noise_steps is None or known.noise_counts is None:
        return None
    moved = None
    if known.delta_row_sq is not None and known.delta_col_sq is not None:
        moved = Moved(known.delta_row_sq, known.delta_col_sq)
    return denoise(s, Rounded.of(row, col, known.noise_steps, known.noise_counts, size, moved), size)


def back(squares: Vector, variance: float, largest: int) -> Vector:
    """λ = σ² before noise of a variance was added, (k,), descending.

    Args:
        squares: λ with the noise, (k,), descending.
        variance: Of the noise, per entry.
        largest: max(m, n).
    """
    k = len(squares)
    starts = np.arange(min(k, LEADING))
    if k > LEADING:
        starts = np.unique(np.concatenate([starts, np.linspace(LEADING, k - 1, GROUPS).astype(np.intp)]))
    weights = np.diff(np.append(starts, k)).astype(np.float64)
    x = np.add.reduceat(squares, starts) / weights
    middle = starts + (weights - 1) / 2
    for _ in range(STEPS):
        apart, root = x[:, None] - x, np.sqrt(x)
        soft = apart**2 + 16 * variance * np.outer(root, root)
        pull = (x[:, None] + x) * np.divide(apart, soft, out=np.zeros_like(soft), where=soft > 0)
        x = np.sort(np.maximum(x - variance / STEPS * (largest + pull @ weights), 0.0))[::-1]
    out: Vector = np.interp(np.arange(k), middle, x)
    return out


def _flat(squares: Vector, seen: RoundedGaussian, largest: int, before: float) -> float:
    """`Denoised.flat`: the directions above the noise as they were before it, the rest of the energy on all others."""
    k, unit = len(squares), seen.variance * largest
    y, beta = squares / unit, k / largest
    twice = y[y > (1 + math.sqrt(beta)) ** 2] - beta - 1
    spikes = (twice + np.sqrt(np.maximum(twice**2 - 4 * beta, 0.0))) / 2 * unit / seen.gain**2
    held = min(float(spikes.sum()), before)
    others = k - len(spikes)
    sums = np.concatenate([np.cumsum(spikes), held + (before - held) / max(1, others) * np.arange(1, others + 1)])
    return float(min(k, int(np.searchsorted(sums, 0.9 * before * (1 - 1e-9))) + 1))


def interval(found: Denoised, again: Denoised | None = None) -> dict[str, Interval]:
    """rank_90 and energy_at_16 of the update with their 95 % intervals, by column.

    Args:
        found: f0.
        again: f1, from f0's spectrum stored again; None where that was not done.
    """
    f0 = _curve(found)
    if not found.share:
        rank, kept = _reached(f0), float(f0[min(HEAD, len(f0)) - 1])
        return {RANK: Interval(rank, rank, rank), ENERGY: Interval(kept, kept, kept)}
    if again is None:
        slack = found.share * (UNCORRECTED if found.share <= ENOUGH else UNCORRECTABLE)
        low, middle, high = f0 - slack, f0, f0 + slack
        late, early = low, high
    else:
        better = np.clip(2 * f0 - _curve(again), 0.0, 1.0)
        wide, lower = np.abs(better - f0), better < f0
        middle = np.maximum.accumulate(better)
        slack = SLACK + GROWS * found.share
        low = np.where(lower, better - BEYOND * wide, f0 - BEHIND * wide) - slack
        high = np.where(lower, f0 + ABOVE * found.share, better + BEYOND * wide) + slack
        slack += RANK_SLACK
        later = LATER * (1 + DEEPER * max(0.0, found.share - SHALLOW))
        late = np.where(lower, better - later * wide, f0) - slack
        early = np.where(lower, f0, better + EARLIER * wide) + slack
    rank = _reached(middle)
    first = min(_reached(np.maximum.accumulate(early)), rank)
    last = max(_reached(np.maximum.accumulate(late)), rank, found.flat if found.share > ENOUGH else 0.0)
    head = min(HEAD, len(f0)) - 1
    if head + 1 < HEAD:
        return {RANK: Interval(rank, first, last), ENERGY: Interval(1.0, 1.0, 1.0)}
    share = [float(np.clip(curve[head], 0.0, 1.0)) for curve in (middle, low, high)]
    return {RANK: Interval(rank, first, last), ENERGY: Interval(*share)}


def _curve(found: Denoised) -> Vector:
    """The share of the energy that the first r directions hold, (k,)."""
    sums = np.cumsum(found.values**2)
    out: Vector = sums / sums[-1]
    return out


def _reached(curve: Vector) -> float:
    """The first r at which a curve is at .9; k where it is nowhere."""
    there = curve >= 0.9 * (1 - 1e-9)
    return float(np.argmax(there) + 1) if there.any() else float(len(curve))
