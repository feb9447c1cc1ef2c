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

SIMULATED = 64  # k up to which rank_90_null is simulated
DRAWS = 1000
SHIFT, SPREAD = 0.16, 0.39  # of the point where the energy reaches .9, in units of √β
NODES = 4096  # of the midpoint rule in θ, for the moments; the integrands are smooth, errors are below 1e-7


@metric(
    section="rank",
    formula="E[rank_90] of an m×n iid Gaussian matrix: k·F(.9) as a count, F(q) the mass of the Marchenko–Pastur law "
    "that holds a share q of its energy; simulated for k ≤ 64",
    unit="dimensions",
    source="Marchenko & Pastur 1967; Dumitriu & Edelman 2002",
    fixed=True,
)
def rank_90_null(rows: int, cols: int) -> float:
    """The rank_90 to expect of an m×n matrix of iid Gaussian noise: the rank that means nothing was learnt."""
    return expected_rank(rows, cols, 0.9)


@metric(section="rank", formula="rank_90 / rank_90_null", hidden_by_noise=True)
def rank_90_ratio(rank_90: float, rank_90_null: float) -> float:
    """rank_90 against that of noise of the same shape: 1 is full-rank noise, small is genuinely low-rank."""
    return rank_90 / rank_90_null


def expected_rank(rows: int, cols: int, q: float) -> float:
    """The mean of rank_q, a count, over iid Gaussian matrices.

    The energy reaches the share q at a point between two counts that varies by .39·√β about the law's, less .16·√β
    (β = k/max(m, n); measured for k from 72 to 192), and the count is the next whole number. Of small matrices the
    count is simulated: its mean is then known to .016, and the cost does not depend on the larger dimension.

    Args:
        rows: Number of rows.
        cols: Number of columns; the order of the two does not matter.
        q: The share of the energy, in (0, 1).

    Raises:
        OptionError: A dimension is not positive or q is not in (0, 1).
    """
    law = marchenko_pastur_rank(rows, cols, q)
    k, n = min(rows, cols), max(rows, cols)
    if k <= SIMULATED:
        return _simulated(k, n, q)
    root = math.sqrt(k / n)
    middle, spread = law - SHIFT * root, SPREAD * root
    first = max(0, math.floor(middle - 8 * spread))
    beyond = (
        math.erfc((j - middle) / (spread * math.sqrt(2))) / 2 for j in range(first, math.ceil(middle + 8 * spread))
    )
    return min(float(k), first + sum(beyond))


@lru_cache(maxsize=4096)
def _simulated(k: int, n: int, q: float) -> float:
    """The mean of rank_q over drawn spectra of k×n Gaussian matrices, k ≤ n.

    Householder reflections make of such a matrix a lower bidiagonal one of independent entries, χ_{n−i} on the diagonal
    and χ_{k−1−i} below it, i = 0 … k − 1: k² numbers however large n is. The seed is fixed.

    Source: Dumitriu & Edelman 2002, theorem 3.1.
    """
    g, i = np.random.default_rng(0), np.arange(k)
    diagonal = g.chisquare(n - i, size=(DRAWS, k))
    below = g.chisquare(k - 1 - i[:-1], size=(DRAWS, k - 1)) if k > 1 else np.zeros((DRAWS, 0))
    gram = np.zeros((DRAWS, k, k))
    gram[:, i, i] = diagonal
    gram[:, i[:-1], i[:-1]] += below
    gram[:, i[1:], i[:-1]] = np.sqrt(diagonal[:, 1:] * below)  # the lower triangle of BᵀB
    kept = np.cumsum(np.linalg.eigvalsh(gram)[:, ::-1], axis=1)
    return float(np.mean((kept < q * kept[:, -1:] * (1 - 1e-12)).sum(axis=1) + 1))


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
