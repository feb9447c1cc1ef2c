"""The spectrum of an update below its rounding: what the singular values were before storing spread them.

White noise of variance v drives λ = σ² apart: dλ_i/dv = max(m, n) + Σ_{j≠i} (λ_i + λ_j)/(λ_i − λ_j), as in Dyson's
Brownian motion. Followed backwards from the spectrum that was seen, over all of v, it returns to the update's; the pole
is softened to Δ/(Δ² + 16v√(λ_iλ_j)), since two values that noise has mixed cannot be told apart. Rounding is no white
noise for an update below the ulp: it loses entries (`metrics.quantiser`), so λ is divided by κ², and Σλ is set to the
energy that such a quantiser would have had to see.

A first estimate f0 of the share of the energy that r directions hold is biased where much is rounding. Stored again, it
gives f1 from the same procedure, and what the procedure did to f0 corrects it: 2·f0 − f1 (iterated bootstrap). A band
around both curves is the interval of every share, and where it crosses .9 that of the rank. It is wide enough to cover
the truth in nine of ten updates with power-law spectra (`benchmarks.calibration`).

Sources: Dyson 1962; Bru 1989 (Wishart processes); Bussgang 1952; Efron & Tibshirani 1993, §10.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from deltaw.metrics.precision import NOISY
from deltaw.metrics.quantiser import RoundedGaussian, gaussian_rounding
from deltaw.metrics.quantities import Quantities
from deltaw.metrics.rank import rank_at
from deltaw.types import Interval, Vector

NEGLIGIBLE = 1e-5  # share of the energy: rounding below it changes no sum over σ by more than its last printed digit
ENOUGH = 0.03  # share of the energy up to which f0 is as good as its correction
UNCORRECTED, UNCORRECTABLE = 0.25, 0.35  # of the share that is rounding: what f0 may miss up to there, and beyond
BAND_SLACK = 0.002  # of a share of the energy, where it was
ABOVE = 0.004  # the noise that is left in the tail takes this of the head
BEYOND = 2.0  # how far beyond the correction the truth may lie, in units of it; where the energy crosses .9 it does so
BEYOND_RANK, WITHIN_RANK = 2.7, 0.2  # more often, and is never as far back as f0
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
    """

    rows: int
    cols: int
    energy: float
    steps: Vector
    counts: Vector

    @classmethod
    def of(cls, row: Vector, col: Vector, steps: Vector, counts: Vector, size: float) -> Rounded:
        """The noise of the sums over the entries.

        Args:
            row, col: Its variances, summed by row (m,) and by column (n,).
            steps, counts: See `Rounded`.
            size: ‖ΔW‖F².
        """
        energy = min(float(row.sum()), size)
        return cls(int(np.count_nonzero(row)), int(np.count_nonzero(col)), energy, steps, counts)


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
    seen = gaussian_rounding(noise.steps, noise.counts, size)
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
        known: `s`, complete; `noise_row`, `noise_col`, `noise_steps`, `noise_counts`, where W was stored.

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
    return denoise(s, Rounded.of(row, col, known.noise_steps, known.noise_counts, size), size)


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
        wide, slack = np.abs(better - f0), BAND_SLACK * (1 + 10 * found.share)
        middle = np.maximum.accumulate(better)
        least, most = np.minimum(f0, better), np.maximum(f0, better)
        low, high = least - BEYOND * wide - slack, most + slack + ABOVE
        late, early = least - BEYOND_RANK * wide - slack, most - WITHIN_RANK * wide + slack
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
