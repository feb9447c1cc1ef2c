"""What rounding makes of an update: a quantiser with a Gaussian input.

Rounding is not an additive error. With steps q and entries of standard deviation t, all that is below q/2 is lost and
the rest moves by whole steps: the stored energy is E[Q²] = 2q²·Σ_j (2j+1)·Φ(−(j+½)q/t), the part of the input that
survives has the gain κ = 2(q/t)·Σ_j φ((j+½)q/t), and Φ(q/2t) − Φ(−q/2t) of the entries do not move at all. For q ≪ t
these are t² + q²/12, 1 and 0. Solved for t, they tell the size of the update from what was stored of it.

Sources: Bussgang 1952; Widrow & Kollár 2008, chapter 11.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from deltaw.types import Vector

FINE, COARSE = 0.2, 64.0  # q/t: below, the sums are their limits to 1e-200; above, nothing moves
POINTS = 2048  # of the table between them, equidistant in log(q/t)
SIZES = 512  # of the table of a line's energy by its size
TERMS = 48  # of the sums: (j + ½)·FINE reaches beyond 9 standard deviations
ROOT_2PI = math.sqrt(2 * math.pi)
TRIES, NEAR = 60, 1e-12  # of the search for log t: at most, and how near its ends come


class RoundedGaussian(NamedTuple):
    """A Gaussian update that was rounded.

    Attributes:
        scale: t, the standard deviation of its entries before.
        gain: κ, averaged over the entries.
        variance: E[Q²] − κ²t², the variance of an entry that is not the update's.
        unchanged: The share of entries that did not move.
    """

    scale: float
    gain: float
    variance: float
    unchanged: float


def gaussian_rounding(steps: Vector, counts: Vector, energy: float) -> RoundedGaussian:
    """The Gaussian update whose rounding has a given energy.

    Args:
        steps: The different q of the entries, (h,), positive.
        counts: How many entries have each, (h,).
        energy: Σ Q² over all of them.

    Returns:
        All zero, but for `unchanged` = 1, where the energy is.
    """
    entries = float(counts.sum())
    if not (energy > 0 and entries > 0):
        return RoundedGaussian(0.0, 0.0, 0.0, 1.0)
    added = float(counts @ steps**2) / 12  # where every step is fine
    if energy > added and steps.max() < FINE * (scale := math.sqrt((energy - added) / entries)):
        return RoundedGaussian(scale, 1.0, added / entries, float(counts @ steps) / (entries * scale * ROOT_2PI))
    low, high = math.log(float(steps.min()) / COARSE), math.log(float(steps.max()) + math.sqrt(energy / entries)) + 1
    logs, weights = np.log(steps), counts * steps**2
    scale = math.exp(_root(lambda t: float(weights @ _kept(logs - t)) / energy, low, high))
    kept, gains, unchanged = moments(steps / scale)
    gain = float(counts @ gains) / entries
    variance = max(0.0, float(weights @ kept) / entries - (gain * scale) ** 2)
    return RoundedGaussian(scale, gain, variance, float(counts @ unchanged) / entries)


def uneven_rounding(steps: Vector, counts: Vector, energies: Vector, fineness: Vector) -> RoundedGaussian:
    """The rounding of an update whose lines, its rows or its columns, are Gaussian and each of its own size.

    One size for all of them would hold that a line which moved little had been of the size of the others, and kept as
    much of itself: where lines differ, it finds too little energy, and the large ones' directions too early.

    Args:
        steps, counts: The quantiser's steps and how many entries have each, in all lines together, (h,).
        energies: The mean of Q² over the entries of each line, (l,).
        fineness: The root mean square of each line's steps, over that of all, (l,), positive.

    Returns:
        Of all entries together; `gain` is what survives of the update's energy, as a root.
    """
    shares = counts / counts.sum()
    typical = math.sqrt(float(shares @ steps**2))
    wanted = energies / fineness**2
    if not wanted.any():
        return RoundedGaussian(0.0, 0.0, 0.0, 1.0)
    low, high = math.log(typical / COARSE), math.log(max(typical, math.sqrt(float(wanted.max())))) + 1
    scales = np.linspace(low, high, SIZES)  # log t
    kept, gains, unchanged = moments(steps * np.exp(-scales)[:, None])
    energy = kept @ (shares * steps**2)
    there = energy > 0
    with np.errstate(divide="ignore"):
        at = np.interp(np.log(wanted), np.log(energy[there]), scales[there], left=-math.inf)
    sizes, gain = np.exp(at) * fineness, np.interp(at, scales, gains @ shares, left=0.0)
    size, survives = float(np.mean(sizes**2)), float(np.mean((gain * sizes) ** 2))
    still = np.interp(at, scales, unchanged @ shares, left=1.0)
    variance = max(0.0, float(energies.mean()) - survives)
    return RoundedGaussian(math.sqrt(size), math.sqrt(survives / size), variance, float(still.mean()))


def inside_cells(still: Vector) -> Vector:
    """E[(x − Q)²]/(q²/12) of a Gaussian, by the share of its entries that is rounded to zero.

    It is 1 as long as several cells are filled. Where one large number has set the step for all, most of the others lie
    near the middle of zero's cell. Numbers with heavier tails lie nearer still: for them this is too large.

    Source: Widrow & Kollár 2008, chapter 5: 1 + 12·Σ_k (−1)^k/(πk)²·exp(−2(πkt/q)²).

    Args:
        still: P(|x| < q/2).
    """
    shares, values = _inside()
    return np.interp(still, shares, values)


@lru_cache(maxsize=1)
def _inside() -> tuple[Vector, Vector]:
    sizes = np.geomspace(2.0, 0.08, POINTS)  # t/q: at the last, one entry in 10⁹ leaves the cell
    k = np.arange(1, TERMS)[:, None]
    waves = (-1.0) ** k / (math.pi * k) ** 2 * np.exp(-2 * (math.pi * k * sizes) ** 2)
    shares = np.array([math.erf(1 / (2 * math.sqrt(2) * size)) for size in sizes])
    return shares, np.maximum(0.0, 1 + 12 * waves.sum(axis=0))


def _root(share: Callable[[float], float], low: float, high: float) -> float:
    """Where a rising function is 1: by the chord of its logarithm, which is nearly straight, or else by halves.

    Illinois: an end that stays for a second time counts half its height, so that both ends close in.
    """
    left, right, side = -math.inf, math.inf, 0
    for _ in range(TRIES):
        known = math.isfinite(left) and math.isfinite(right)
        at = (low * right - high * left) / (right - left) if known else (low + high) / 2
        value = share(at)
        height = math.log(value) if value > 0 else -math.inf
        if abs(height) < NEAR or high - low < NEAR:
            return at
        if height < 0:
            low, left, right = at, height, right / 2 if side < 0 else right
        else:
            high, right, left = at, height, left / 2 if side > 0 else left
        side = -1 if height < 0 else 1
    return (low + high) / 2


def moments(ratio: Vector) -> tuple[Vector, Vector, Vector]:
    """E[Q²]/q², κ and the share of entries that do not move, for every q/t.

    Args:
        ratio: q/t, positive.
    """
    logs, _, gains, unchanged = _table()
    at, fine = np.log(ratio), ratio < FINE
    gain = np.where(fine, 1.0, np.interp(at, logs, gains, right=0.0))
    still = np.where(fine, ratio / ROOT_2PI, np.interp(at, logs, unchanged, right=1.0))
    return _kept(at), gain, still


def _kept(log_ratio: Vector) -> Vector:
    """E[Q²]/q² for every log(q/t)."""
    logs, energies, _, _ = _table()
    fine = np.exp(-2 * np.minimum(log_ratio, 0.0)) + 1 / 12
    kept: Vector = np.where(log_ratio < logs[0], fine, np.interp(log_ratio, logs, energies, right=0.0))
    return kept


@lru_cache(maxsize=1)
def _table() -> tuple[Vector, Vector, Vector, Vector]:
    logs = np.linspace(math.log(FINE), math.log(COARSE), POINTS)
    q = np.exp(logs)
    odd = np.arange(TERMS)[:, None] + 0.5
    at = odd * q / math.sqrt(2)
    tails = np.fromiter(map(math.erfc, at.ravel().tolist()), np.float64, at.size).reshape(at.shape) / 2
    energies = 2 * (2 * odd * tails).sum(0)
    gains = 2 * q * (np.exp(-((odd * q) ** 2) / 2)).sum(0) / ROOT_2PI
    return logs, energies, gains, 1 - 2 * tails[0]
