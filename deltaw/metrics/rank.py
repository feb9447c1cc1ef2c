"""How many directions ΔW uses: nine answers to one question, each by its own definition.

`rank_q` counts directions until a share q of the energy is reached; the entropies of Roy & Vetterli and the
participation ratio weigh all of them; `numerical_rank` counts what is not zero to float32.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from deltaw.errors import OptionError
from deltaw.metrics.registry import metric
from deltaw.metrics.spectrum import descending, is_zero, normalised, truncated
from deltaw.types import Vector

EPS = float(np.finfo(np.float64).eps)
EPS32 = float(np.finfo(np.float32).eps)


@metric(
    section="rank", formula="‖ΔW‖F² / σ1²", unit="dimensions", source="Rudelson & Vershynin 2007", hidden_by_noise=True
)
def stable_rank(s: Vector, energy: float | None = None) -> float:
    """Energy in units of the largest direction's: 1 for a rank-one ΔW, k for k equal σ; never above the rank."""
    s = descending(s)
    if is_zero(s):
        return 0.0
    p = s / s[0]
    return float(p @ p) if energy is None else float(energy / s[0] / s[0])


@metric(
    section="rank",
    formula="exp(−Σ p ln p), p = σ/Σσ",
    unit="dimensions",
    source="Roy & Vetterli 2007",
    hidden_by_noise=True,
    denoised="effective_rank_denoised",
    of_sigma=True,
)
def effective_rank(s: Vector, energy: float | None = None) -> float:
    """How many directions the update spreads over: 1 for a rank-one ΔW, k for k equal σ; 0 for ΔW = 0."""
    s = descending(s)
    return math.nan if truncated(s, energy) else _exp_entropy(normalised(s))


@metric(
    section="rank",
    formula="exp(−Σ p ln p), p = σ²/Σσ²",
    unit="dimensions",
    source="Roy & Vetterli 2007, with energies",
    hidden_by_noise=True,
)
def effective_rank_energy(s: Vector, energy: float | None = None) -> float:
    """The effective rank with each direction weighed by its energy σ² instead of σ: small directions count for less."""
    s = descending(s)
    return math.nan if truncated(s, energy) else _exp_entropy(normalised(s) ** 2)


@metric(
    section="rank", formula="(Σσ²)² / Σσ⁴", unit="dimensions", source="participation ratio of σ²", hidden_by_noise=True
)
def participation_ratio(s: Vector, energy: float | None = None) -> float:
    """How many directions share the energy, by its second moment; between the stable rank and the energy entropy."""
    s = descending(s)
    if truncated(s, energy):
        return math.nan
    e = normalised(s) ** 2
    return float(e.sum() ** 2 / (e @ e)) if e.any() else 0.0


@metric(
    section="rank",
    formula="min r: Σ_{i≤r} σ² ≥ .50·Σσ²",
    unit="count",
    source="Biderman et al. 2024, with q = .5",
    hidden_by_noise=True,
)
def rank_50(s: Vector, energy: float | None = None) -> float:
    """How many directions hold half of the update's energy."""
    return rank_at(s, 0.5, energy)


@metric(
    section="rank",
    formula="min r: Σ_{i≤r} σ² ≥ .90·Σσ²",
    unit="count",
    source="Biderman et al. 2024",
    hidden_by_noise=True,
    denoised="rank_90_denoised",
)
def rank_90(s: Vector, energy: float | None = None) -> float:
    """How many directions hold 90 % of the update's energy. Read it against `rank_90_null`."""
    return rank_at(s, 0.9, energy)


@metric(
    section="rank",
    formula="min r: Σ_{i≤r} σ² ≥ .95·Σσ²",
    unit="count",
    source="Biderman et al. 2024, with q = .95",
    hidden_by_noise=True,
)
def rank_95(s: Vector, energy: float | None = None) -> float:
    """How many directions hold 95 % of the update's energy."""
    return rank_at(s, 0.95, energy)


@metric(
    section="rank",
    formula="min r: Σ_{i≤r} σ² ≥ .99·Σσ²",
    unit="count",
    source="Biderman et al. 2024, with q = .99",
    hidden_by_noise=True,
)
def rank_99(s: Vector, energy: float | None = None) -> float:
    """How many directions hold 99 % of the update's energy."""
    return rank_at(s, 0.99, energy)


@metric(
    section="rank",
    formula="#{σ > max(m,n)·eps·σ1}, eps of float32",
    unit="count",
    source="LAPACK's convention",
    hidden_by_noise=True,
    denoised="signal_rank",
    of_sigma=True,
)
def numerical_rank(s: Vector, rows: int, cols: int) -> int:
    """How many singular values differ from zero to float32 accuracy."""
    s = descending(s)
    # strict: with ≥ the zero matrix would have full rank
    return int(np.count_nonzero(s > max(rows, cols) * EPS32 * s[0])) if s.size else 0


def rank_at(s: ArrayLike, q: float, energy: float | None = None) -> float:
    """The smallest r whose leading r singular values hold a share q of the energy.

    Args:
        s: Singular values, (k,); or the leading ones, with `energy`.
        q: The share, in (0, 1].
        energy: Σσ² of all values where `s` holds only the leading ones; else None.

    Returns:
        r, a whole number; 0 for ΔW = 0; NaN where the leading values do not reach the share.

    Raises:
        OptionError: q is not in (0, 1], or `s` is no spectrum.
    """
    if not 0 < q <= 1:
        raise OptionError(f"q is {q}; expected a share of the energy in (0, 1]")
    s = descending(s)
    if is_zero(s):
        return 0
    kept = np.cumsum((s / s[0]) ** 2)
    total = float(energy / s[0] / s[0]) if energy is not None and truncated(s, energy) else float(kept[-1])
    # Exactly at the threshold counts. The running sum is off by up to k·eps, and σ from a solver by a few
    # eps·σ1, so that "exactly" means within this; a spectrum without a tie is never that close.
    reached = kept >= q * total * (1 - 16 * s.size * EPS)
    return int(np.argmax(reached)) + 1 if reached[-1] else math.nan


def _exp_entropy(weights: Vector) -> float:
    if not weights.any():
        return 0.0
    p = weights / weights.sum()
    p = p[p > 0]  # 0·ln 0 = 0: zeros carry no entropy; dropped last, since the smallest may underflow to one
    return float(np.exp(-(p * np.log(p)).sum()))
