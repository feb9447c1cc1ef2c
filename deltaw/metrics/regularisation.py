"""What weight decay, low rank and dropout leave in the weights.

Decoupled weight decay pulls every decayed entry towards zero by the same share, so that ΔW = −c·W0 + rest with one
c in all decayed tensors; what else gives a c > 0 is told apart in `deltaw.metrics.uniformity`. Its full-rank −c·W0
hides the rank of the rest, which is why the ranks of ΔW + c·W0 stand beside those of ΔW.

Sources: Loshchilov & Hutter 2019 (decoupled decay); Liu et al. 2024 (DoRA: magnitude and direction).
"""

from __future__ import annotations

import math

import numpy as np

from deltaw.metrics.rank import effective_rank, rank_90
from deltaw.metrics.registry import metric
from deltaw.types import Vector

# The residual's columns and the plain ones that they equal where no decay is taken out.
RESIDUAL = {"effective_rank_residual": "effective_rank", "rank_90_residual": "rank_90"}
RESIDUAL_COSINE = 0.02  # below it ΔW + c·W0 has the energy of ΔW to within 4e-4, and a second SVD tells nothing
DECAYED_COSINE = -0.9  # a row that moved this straight towards zero was moved by decay alone


@metric(section="regularisation", formula="c = −⟨ΔW, W0⟩ / ‖W0‖F²", source="Loshchilov & Hutter 2019", signed=True)
def shrinkage(delta_base: float, base_sq: float) -> float:
    """The share of W0 that the update takes away. Weight decay gives one c; `shrinkage_kind` tells it apart."""
    return 0.0 - delta_base / base_sq if base_sq else math.nan  # 0.0 − x: an unchanged tensor shows 0, not −0


@metric(section="regularisation", formula="c / (relative_change / √(m·n))", unit="standard deviations", signed=True)
def shrinkage_z(shrinkage: float, relative_change: float, entries: float) -> float:
    """Shrinkage against its spread if the update had a random direction: beyond 3 it is no accident."""
    return shrinkage * math.sqrt(entries) / relative_change if relative_change else math.nan


@metric(section="regularisation", formula="⟨ΔW, W0⟩ / (‖ΔW‖F·‖W0‖F)", signed=True)
def cosine_to_base(delta_row_sq: Vector, base_row_sq: Vector, delta_base_row: Vector) -> float:
    """Cosine between the update and the base: −1 for pure decay, 0 for a direction that ignores the base."""
    norms = math.sqrt(float(np.sum(delta_row_sq))) * math.sqrt(float(np.sum(base_row_sq)))
    return max(-1.0, min(1.0, float(np.sum(delta_base_row)) / norms)) if norms else math.nan


@metric(section="regularisation", formula="‖W‖F / ‖W0‖F − 1", signed=True)
def norm_growth(delta_row_sq: Vector, base_row_sq: Vector, delta_base_row: Vector) -> float:
    """Relative growth of the weight norm; negative where decay won over learning."""
    base, gain = float(np.sum(base_row_sq)), float(np.sum(2 * delta_base_row + delta_row_sq))
    # ‖W‖ − ‖W0‖ = (‖W‖² − ‖W0‖²)/(‖W‖ + ‖W0‖): subtracting two nearly equal norms would lose the digits
    return gain / (math.sqrt(base) * (math.sqrt(max(0.0, base + gain)) + math.sqrt(base))) if base else math.nan


@metric(
    section="regularisation",
    formula="exp(−Σ p ln p), p = σ/Σσ of ΔW + c·W0",
    unit="dimensions",
    source="Roy & Vetterli 2007",
    hidden_by_noise=True,
    of_sigma=True,
)
def effective_rank_residual(s_residual: Vector) -> float:
    """Effective rank of the update without its decay; equal to the plain one where |cosine_to_base| ≤ .02."""
    return effective_rank(s_residual)


@metric(
    section="regularisation",
    formula="min r: Σ_{i≤r} σ² ≥ .90·Σσ², σ of ΔW + c·W0",
    unit="count",
    source="Biderman et al. 2024",
    hidden_by_noise=True,
)
def rank_90_residual(s_residual: Vector) -> float:
    """rank_90 of the update without its decay; equal to the plain one where |cosine_to_base| ≤ .02."""
    return rank_90(s_residual)


@metric(section="regularisation", formula="mean_i |‖w_i‖ − ‖w0_i‖|", unit="weight", source="Liu et al. 2024 (DoRA)")
def magnitude_change(delta_row_sq: Vector, base_row_sq: Vector, delta_base_row: Vector) -> float:
    """Mean change of an output row's norm: the magnitude half of DoRA's view."""
    change, _, _ = _rows(delta_row_sq, base_row_sq, delta_base_row)
    return float(np.mean(np.abs(change))) if change.size else math.nan


@metric(section="regularisation", formula="mean_i (1 − cos(w_i, w0_i))", source="Liu et al. 2024 (DoRA)")
def direction_change(delta_row_sq: Vector, base_row_sq: Vector, delta_base_row: Vector) -> float:
    """Mean turn of an output row: the direction half of DoRA's view. Rows that are zero on a side have no direction."""
    change, old, new = _rows(delta_row_sq, base_row_sq, delta_base_row)
    has = (old > 0) & (new > 0)
    # ‖w − w0‖² = (‖w‖ − ‖w0‖)² + 2‖w‖‖w0‖(1 − cos): 1 − cos without subtracting from 1
    turn = np.maximum(0.0, delta_row_sq[has] - change[has] ** 2) / (2 * old[has] * new[has])
    return float(np.mean(turn)) if turn.size else math.nan


@metric(section="regularisation", formula="#{i: Δ_i ≠ 0, cos(Δ_i, w0_i) < −.9} / m", unit="share")
def decay_rows_fraction(delta_row_sq: Vector, base_row_sq: Vector, delta_base_row: Vector) -> float:
    """Share of rows that moved straight towards zero. In an embedding: the tokens that training never saw."""
    decayed = decayed_rows(delta_row_sq, base_row_sq, delta_base_row)
    return float(np.mean(decayed)) if decayed.size else math.nan


@metric(section="regularisation", formula="median of −⟨Δ_i, w0_i⟩/‖w0_i‖² over the decayed rows", signed=True)
def decay_estimate(delta_row_sq: Vector, base_row_sq: Vector, delta_base_row: Vector) -> float:
    """The decay alone, read from the rows that show nothing else: 1 − Π(1 − lr·λ) under AdamW. Empty without any."""
    decayed = decayed_rows(delta_row_sq, base_row_sq, delta_base_row)
    return float(np.median(-delta_base_row[decayed] / base_row_sq[decayed])) if decayed.any() else math.nan


@metric(section="regularisation", formula="half the distance of the quartiles of the same")
def decay_rows_spread(delta_row_sq: Vector, base_row_sq: Vector, delta_base_row: Vector) -> float:
    """How far the decayed rows differ: next to nothing where decay alone moved them. Empty without any."""
    decayed = decayed_rows(delta_row_sq, base_row_sq, delta_base_row)
    if not decayed.any():
        return math.nan
    low, high = np.quantile(-delta_base_row[decayed] / base_row_sq[decayed], [0.25, 0.75])
    return float(high - low) / 2


def residual_shrinkage(delta_base: float, delta_sq: float, base_sq: float) -> float | None:
    """The c of ΔW + c·W0 where a second SVD is worth it, |cosine_to_base| > .02; None where it would tell nothing.

    Args:
        delta_base: ⟨ΔW, W0⟩.
        delta_sq: ‖ΔW‖F².
        base_sq: ‖W0‖F².
    """
    norms = math.sqrt(delta_sq) * math.sqrt(base_sq)
    return -delta_base / base_sq if norms and abs(delta_base) > RESIDUAL_COSINE * norms else None


def _rows(delta_row_sq: Vector, base_row_sq: Vector, delta_base_row: Vector) -> tuple[Vector, Vector, Vector]:
    """‖w‖ − ‖w0‖, ‖w0‖ and ‖w‖ of every row, without subtracting two nearly equal norms."""
    gain = 2 * delta_base_row + delta_row_sq
    old = np.sqrt(base_row_sq)
    new = np.sqrt(np.maximum(0.0, base_row_sq + gain))
    total = old + new
    change = np.divide(gain, total, out=np.zeros_like(total), where=total > 0)
    return change, old, new


def decayed_rows(
    delta_row_sq: Vector, base_row_sq: Vector, delta_base_row: Vector
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which rows, (m,), moved straight towards zero: cos(Δrow, row) < −.9, compared without a division by zero."""
    moved: np.ndarray[tuple[int], np.dtype[np.bool_]] = delta_base_row < DECAYED_COSINE * np.sqrt(
        delta_row_sq
    ) * np.sqrt(base_row_sq)
    return moved
