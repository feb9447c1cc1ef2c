"""What kind of update this is, in one word: the first rule that holds decides."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from deltaw.results.rows import Rows, Spread, is_clear, quote
from deltaw.types import Row

UNRELATED_COSINE = 0.5  # below this the two sets of weights do not point the same way
DECAY_SHARE = 0.9  # of the update's energy lies along W0
DECAY_SPREAD = 0.2  # of the factor c, relative
LOW_RANK_SHARE = 1 / 8  # of the dimensions
BEYOND = 1.5  # energy below the noise edge, in units of the predicted rounding
CONCENTRATED = 0.25  # of the rank that noise of the same shape has
OUTSIDE = frozenset({"embedding", "head"})  # kinds outside of the layers


class Verdict(StrEnum):
    """What kind of update a model's is, in the order in which the rules are tried."""

    EMPTY = "empty"
    UNCHANGED = "unchanged"
    VECTORS_ONLY = "vectors_only"
    UNRELATED = "unrelated"
    ADAPTER = "adapter"
    EMBEDDINGS_ONLY = "embeddings_only"
    BELOW_PRECISION = "below_precision"
    DECAY_ONLY = "decay_only"
    LOW_RANK = "low_rank"
    CONCENTRATED = "concentrated"
    NOISY = "noisy"
    SPREAD = "spread"


RULES = {
    Verdict.EMPTY: "No tensor has a row.",
    Verdict.UNCHANGED: "Every row has ΔW = 0.",
    Verdict.VECTORS_ONLY: "Every matrix has ΔW = 0, some vectors (norms, biases) do not.",
    Verdict.UNRELATED: f"In the median changed matrix cos(W, W0) < {UNRELATED_COSINE} and relative_change > "
    f"{UNRELATED_COSINE}, more matrices changed than did not, and it is no adapter of embeddings or heads alone.",
    Verdict.ADAPTER: "More than half of the changed matrices were read from an adapter's factors.",
    Verdict.EMBEDDINGS_ONLY: "Every changed matrix is an embedding or a head, and the model has other matrices.",
    Verdict.BELOW_PRECISION: "At least half of the changed matrices are below_precision: rounding explains more than "
    "half their energy.",
    Verdict.DECAY_ONLY: f"One common shrink is visible, the median matrix has cos²(ΔW, W0) > {DECAY_SHARE}, and the "
    f"middle 80 % of the factors c lie within {100 * DECAY_SPREAD:.0f} % of their median.",
    Verdict.LOW_RANK: f"In the median matrix at most one in {round(1 / LOW_RANK_SHARE)} directions stands above the "
    f"noise edge, the energy below it is at most {BEYOND} times what rounding predicts, and those above it hold 90 % "
    "of the energy with the rounding taken out.",
    Verdict.CONCENTRATED: f"The median of rank_90 over that of noise of the same shape is at most {CONCENTRATED}.",
    Verdict.NOISY: f"Rounding leaves open on which side of {CONCENTRATED} the median of rank_90 over that of noise "
    "lies.",
    Verdict.SPREAD: "None of the other rules holds.",
}


@dataclass(frozen=True)
class VerdictEvidence:
    """What the rules look at.

    Attributes:
        tensors, changed: Rows, and those with ΔW ≠ 0.
        kinds: Module kinds of all matrices.
        unchanged: Matrices with ΔW = 0: a base and another model share none.
        matrices: The changed matrices.
        cosine: cos(W, W0) of each changed matrix.
        along_base: cos²(ΔW, W0).
        shrinkage: The factor c.
        shrinks: Whether one common shrink is visible, be it as a step of the stored precision.
        signal_share: signal_rank/k.
        beyond: Energy below the noise edge over rounding_noise².
    """

    tensors: int
    changed: int
    kinds: frozenset[str]
    unchanged: int
    matrices: Rows
    cosine: Spread
    along_base: Spread
    shrinkage: Spread
    shrinks: bool
    signal_share: Spread
    beyond: Spread


def verdict(e: VerdictEvidence) -> Verdict:
    """The first of `Verdict` whose rule holds; `RULES` states them in words."""
    if not e.tensors:
        return Verdict.EMPTY
    if not e.changed:
        return Verdict.UNCHANGED
    if not len(e.matrices):
        return Verdict.VECTORS_ONLY
    if _is_unrelated(e):
        return Verdict.UNRELATED
    if _more_than_half(e.matrices, "route", "factored"):
        return Verdict.ADAPTER
    if set(e.matrices.texts("kind")) <= OUTSIDE < e.kinds | OUTSIDE:
        return Verdict.EMBEDDINGS_ONLY
    below = e.matrices.texts("resolution").count("below_precision")
    if below >= len(e.matrices) / 2:
        return Verdict.BELOW_PRECISION
    if e.shrinks and e.along_base.median > DECAY_SHARE and _relative(e.shrinkage) <= DECAY_SPREAD:
        return Verdict.DECAY_ONLY
    if _is_low_rank(e):
        return Verdict.LOW_RANK
    return _concentration(e.matrices)


def _is_unrelated(e: VerdictEvidence) -> bool:
    """Whether it is no base and its fine-tune; a head that starts anew on a model that did not move is none of that."""
    outside = any(e.matrices.texts("adapter_type")) and set(e.matrices.texts("kind")) <= OUTSIDE
    if outside or e.unchanged >= len(e.matrices):
        return False
    return e.cosine.median < UNRELATED_COSINE and e.matrices.median("relative_change") > UNRELATED_COSINE


def _more_than_half(rows: Rows, column: str, word: str) -> bool:
    return rows.texts(column).count(word) > len(rows) / 2


def _is_low_rank(e: VerdictEvidence) -> bool:
    few = e.matrices.median("signal_rank") >= 1 and e.signal_share.median <= LOW_RANK_SHARE
    if e.matrices.median("rank_90") > e.matrices.median("signal_rank"):  # most of it lies below the edge, unseen
        return False
    if e.beyond.n:
        return few and e.beyond.median <= BEYOND
    return few and e.matrices.median("signal_energy") >= 1 - 1e-6


def _concentration(matrices: Rows) -> Verdict:
    """Whether 90 % of the energy lies in few directions; a matrix that rounding hides may lie on either side."""
    low, high = (np.array(bound, dtype=np.float64) for bound in zip(*map(_bounds, matrices.rows), strict=True))
    known = np.isfinite(low)
    if not known.any():
        return Verdict.SPREAD
    if np.median(high[known]) <= CONCENTRATED:
        return Verdict.CONCENTRATED
    return Verdict.SPREAD if np.median(low[known]) > CONCENTRATED else Verdict.NOISY


def _bounds(row: Row) -> tuple[float, float]:
    """Between what rank_90 over its null may lie; NaN where the matrix has neither."""
    if (ratio := quote(row, "rank_90_ratio")) is not None:
        return ratio.low, ratio.high
    return (math.nan, math.nan) if is_clear(row) else (0.0, math.inf)  # of what rounding hides nothing is known


def _relative(spread: Spread) -> float:
    """The width of the middle 80 % over the median."""
    return (spread.p90 - spread.p10) / abs(spread.median) if spread.median else math.inf
