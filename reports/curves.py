"""Spectra as curves: few enough points to draw, and what the same curve looks like for pure noise."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deltaw.types import Spectrum, Vector

POINTS = 160  # per curve: more than a chart has room for


class SampledSpectrum(NamedTuple):
    """A spectrum at some of its indices.

    Attributes:
        at: i = 1 … k, ascending, log-spaced.
        sigma: σ_i.
        energy: Σ_{j≤i} σ_j² / Σσ².
    """

    at: NDArray[np.int64]
    sigma: Vector
    energy: Vector


@lru_cache(maxsize=1024)
def log_spaced(k: int, points: int = POINTS) -> NDArray[np.int64]:
    """Up to `points` distinct whole numbers from 1 to k: all if they are few, else denser at the low end."""
    if k <= points:
        return np.arange(1, k + 1)
    return np.unique(np.round(np.geomspace(1, k, points)).astype(np.int64))


def curve(spectrum: Spectrum, points: int = POINTS) -> SampledSpectrum:
    """A spectrum for display. Only known values are in it; the energy refers to all of Σσ²."""
    s = np.asarray(spectrum.values, dtype=np.float64)
    index = log_spaced(len(s), points)
    squares = _squares(s)
    total = _total(spectrum)
    running = np.cumsum(squares)[index - 1] / total if total > 0 else np.zeros(len(index))
    return SampledSpectrum(index, s[index - 1], np.minimum(running, 1.0))


@lru_cache(maxsize=256)
def noise_curve(rows: int, cols: int, points: int = POINTS) -> SampledSpectrum:
    """The spectrum to expect of an m×n matrix of iid Gaussian entries with Σσ² = 1, by the Marchenko–Pastur law.

    With λ = 1 + β + 2√β·cos θ the mass above θ is ∫(2/π)·sin²θ/λ dθ and the energy above it (θ − sin θ cos θ)/π;
    they are read at the masses (i − ½)/k and i/k.
    """
    k = min(rows, cols)
    if k < 1:
        return SampledSpectrum(np.zeros(0, np.int64), np.zeros(0), np.zeros(0))
    beta = k / max(rows, cols)
    theta = np.linspace(0, math.pi, 4097)
    lam = 1 + beta + 2 * math.sqrt(beta) * np.cos(theta)
    middle = (theta[1:] + theta[:-1]) / 2
    density = 2 / math.pi * np.sin(middle) ** 2 / (1 + beta + 2 * math.sqrt(beta) * np.cos(middle))
    mass = np.concatenate([[0.0], np.cumsum(density) * (theta[1] - theta[0])])
    mass /= mass[-1]
    energy = (theta - np.sin(theta) * np.cos(theta)) / math.pi
    index = log_spaced(k, points)
    sigma = np.sqrt(np.maximum(np.interp((index - 0.5) / k, mass, lam), 0) / k)
    return SampledSpectrum(index, sigma, np.interp(index / k, mass, energy))


def rank_above_noise(spectrum: Spectrum, signal_rank: float, q: float) -> float:
    """The rank that keeps a share q of the energy above rounding: the least r with Σ_{i≤r} σ² ≥ q·Σ_{i≤signal_rank} σ².

    Args:
        spectrum: Its leading values must reach to `signal_rank`.
        signal_rank: The column of that name; NaN if it is not known, then all energy counts.
        q: The share, in (0, 1).

    Returns:
        The rank; 0 where nothing is above the noise, NaN where the values that are known do not reach that far.
    """
    s = np.asarray(spectrum.values, dtype=np.float64)
    if not len(s) or s[0] <= 0:
        return 0.0
    squares = _squares(s)
    if math.isnan(signal_rank):
        target = q * _total(spectrum)
    elif signal_rank <= len(s):
        target = q * float(squares[: int(signal_rank)].sum())
    else:
        return math.nan
    if target <= 0:
        return 0.0
    running = np.cumsum(squares)
    # The same sums in another order differ by rounding: at the threshold exactly, the smaller rank counts.
    found = int(np.searchsorted(running, target * (1 - 1e-12)))
    return float(found + 1) if found < len(s) else math.nan


def _squares(s: Vector) -> Vector:
    """σ² in units of σ1², which neither overflows nor underflows."""
    top = float(s[0]) if len(s) and s[0] > 0 else 1.0
    squares: Vector = (s / top) ** 2
    return squares


def _total(spectrum: Spectrum) -> float:
    s = np.asarray(spectrum.values, dtype=np.float64)
    if spectrum.energy is not None and not spectrum.complete and len(s) and s[0] > 0:
        return max(float(spectrum.energy) / float(s[0]) / float(s[0]), float(_squares(s).sum()))
    return float(_squares(s).sum())
