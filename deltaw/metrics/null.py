"""The Marchenko–Pastur law: the spectrum of pure noise, against which every rank is read.

For X of m×n iid entries of variance 1/n, β = m/n ≤ 1, the eigenvalues λ of XXᵀ follow the density
√((λ₊−λ)(λ−λ₋)) / (2πβλ) on [λ₋, λ₊] = (1∓√β)². With λ = 1 + β + 2√β·cos θ it becomes (2/π)·sin²θ/λ dθ on
[0, π], and the energy density λ·(2/π)·sin²θ/λ does not depend on β at all: the share of energy above θ is
(θ − sin θ cos θ)/π for every shape. So the rank that holds a share q is the mass above the one θ_q.

Source: Marchenko & Pastur 1967; Bai & Silverstein 2010, chapter 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from deltaw.errors import OptionError
from deltaw.metrics.registry import metric

NODES = 4096  # of the midpoint rule in θ, for the moments; the integrands are smooth, errors are below 1e-7


@metric(
    section="rank",
    formula="k·F(q), F: mass of the Marchenko–Pastur law that holds 90 % of its energy",
    unit="dimensions",
    source="Marchenko & Pastur 1967",
)
def rank_90_null(rows: int, cols: int) -> float:
    """The rank_90 to expect of an m×n matrix of iid Gaussian noise: the rank that means nothing was learnt."""
    return marchenko_pastur_rank(rows, cols, 0.9)


@metric(section="rank", formula="rank_90 / rank_90_null", hidden_by_noise=True)
def rank_90_ratio(rank_90: float, rank_90_null: float) -> float:
    """rank_90 against that of noise of the same shape: 1 is full-rank noise, small is genuinely low-rank."""
    return rank_90 / rank_90_null


def marchenko_pastur_rank(rows: int, cols: int, q: float) -> float:
    """The rank that holds a share q of the energy of an m×n iid Gaussian matrix, by the Marchenko–Pastur law.

    Args:
        rows: Number of rows.
        cols: Number of columns; the order of the two does not matter.
        q: The share of the energy, in (0, 1).

    Returns:
        The rank, not rounded; at least 1, since one direction is the least that a matrix can have.

    Raises:
        OptionError: A dimension is not positive or q is not in (0, 1).
    """
    if min(rows, cols) < 1:
        raise OptionError(f"the shape is {rows}×{cols}; expected positive dimensions")
    k = min(rows, cols)
    return max(1.0, k * _mass_above(_energy_angle(q), k / max(rows, cols)))


def marchenko_pastur_median(beta: float) -> float:
    """The median eigenvalue μ_β of the Marchenko–Pastur law, by bisection on its distribution function.

    Args:
        beta: Shape ratio k/max(m, n), in (0, 1].

    Raises:
        OptionError: beta is not in (0, 1].
    """
    beta = _ratio(beta)
    angle = _bisect(lambda theta: _mass_above(theta, beta) - 0.5)
    return 1 + beta + 2 * math.sqrt(beta) * math.cos(angle)


def marchenko_pastur_moments(beta: float) -> dict[str, float]:
    """Large-size limits of the ranks of an iid Gaussian matrix, as fractions of k = min(m, n).

    Args:
        beta: Shape ratio k/max(m, n), in (0, 1].

    Returns:
        `effective_rank`, `effective_rank_energy`, `participation_ratio`, `stable_rank` (each over k), and
        `mean_sigma` in units of √max(m, n).

    Raises:
        OptionError: beta is not in (0, 1].
    """
    beta = _ratio(beta)
    theta = (np.arange(NODES) + 0.5) * (math.pi / NODES)
    lam = 1 + beta + 2 * math.sqrt(beta) * np.cos(theta)
    weight = 2 / NODES * np.sin(theta) ** 2  # (2/π) sin²θ dθ; divided by λ below: E f = Σ weight·f(λ)/λ
    sigma = np.sqrt(lam)
    mean_sigma = float((weight / sigma).sum())
    entropy = float((weight / sigma * np.log(sigma)).sum()) / mean_sigma  # E[σ ln σ]/E[σ]
    energy_entropy = float((weight * np.log(lam)).sum())  # E[λ ln λ], E[λ] = 1
    return {
        "effective_rank": mean_sigma * math.exp(-entropy),
        "effective_rank_energy": math.exp(-energy_entropy),
        "participation_ratio": 1 / (1 + beta),
        "stable_rank": 1 / (1 + math.sqrt(beta)) ** 2,
        "mean_sigma": mean_sigma,
    }


def _ratio(beta: float) -> float:
    """A shape ratio, checked.

    Raises:
        OptionError: beta is not in (0, 1].
    """
    if not 0 < beta <= 1:
        raise OptionError(f"the shape ratio is {beta}; expected min(m, n)/max(m, n), in (0, 1]")
    return float(beta)


@lru_cache(maxsize=64)
def _energy_angle(q: float) -> float:
    """θ_q with (θ − sin θ cos θ)/π = q: the same for every shape.

    Raises:
        OptionError: q is not in (0, 1).
    """
    if not 0 < q < 1:
        raise OptionError(f"q is {q}; expected a share of the energy in (0, 1)")
    return _bisect(lambda theta: (theta - math.sin(theta) * math.cos(theta)) / math.pi - q)


@lru_cache(maxsize=4096)
def _mass_above(theta: float, beta: float) -> float:
    """Share of the eigenvalues above 1 + β + 2√β·cos θ: ∫₀^θ (2/π) sin²t / (1 + β + 2√β·cos t) dt, in closed form."""
    a, b = 1 + beta, 2 * math.sqrt(beta)
    half = math.atan2((1 - math.sqrt(beta)) * math.sin(theta / 2), (1 + math.sqrt(beta)) * math.cos(theta / 2))
    return 2 / math.pi * (a * theta / b**2 - math.sin(theta) / b - 2 * (1 - beta) / b**2 * half)


def _bisect(rising: Callable[[float], float]) -> float:
    """The root in [0, π] of an increasing function, to the last bit."""
    low, high = 0.0, math.pi
    for _ in range(64):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return (low + high) / 2
