"""Is a shrink of W0 uniform, as decoupled weight decay leaves it, or a by-product of something else?

⟨ΔW, W0⟩ < 0 alone is no mark of decay. A turn at constant norm gives c = δ²/2 (δ the relative change), pruning c = δ²,
rounding to the centroids of a grid .5 to 1.4 δ²; truncation, soft thresholds and clipping give much more. A decay
takes the same share of small and of large entries, of every row and of every column, and leaves as many different
values as there were. What tells the others apart is read from a sample of the rows, and only where c is large enough.
"""

from __future__ import annotations

import math

from deltaw.metrics.registry import metric
from deltaw.metrics.shrink_marks import ShrinkMarks

TURN = 2.0  # of δ²: what a turn, pruning or a grid makes of c is below it
ALONG = 0.9  # of the update's energy: a move this straight towards zero is no turn, however large it is
LARGEST = 0.8  # of W0: what is all but gone was pruned, what was flipped has c = 2
SIGMAS = 5.0  # of the spread that chance would give c
UNCHANGED = 0.5  # share of equal entries that a uniform shrink does not leave
STEPS, RANGE_STEPS = 0.99, 0.95  # share of entries that moved by at most one ulp
VALUES = 0.6  # of W0's: different values that W may have fewer of
WITNESSES = 5  # rows that moved straight towards zero …
WITNESS_SHARE = 0.1  # … of all rows …
WITNESS_LENGTH = 8  # … if they are that long: the cosine of two numbers is always ±1


def is_shrink(shrinkage: float, relative_change: float, entries: float) -> bool:
    """Whether c is more than chance, and more than a turn at constant norm, pruning or a grid makes of it.

    Args:
        shrinkage: c.
        relative_change: δ.
        entries: m·n.
    """
    c, energy = shrinkage, relative_change**2
    clear = 0 < c < LARGEST and c * math.sqrt(entries) > SIGMAS * relative_change
    return clear and (c > TURN * energy or c * c > ALONG * energy)


def are_witnesses(decay_rows_fraction: float, rows: float, cols: float) -> bool:
    """Whether enough rows moved straight towards zero for them to tell a decay by themselves."""
    return decay_rows_fraction >= max(WITNESS_SHARE, WITNESSES / rows) and cols >= WITNESS_LENGTH if rows else False


def kind(marks: ShrinkMarks) -> str:
    """What a shrink is that is large enough: see `shrinkage_kind`; empty where nothing but a change of sign is."""
    if not 0 < marks.c < LARGEST:
        return ""
    if math.isfinite(marks.values) and marks.values < VALUES:
        return "grid"
    if not marks.even:
        return "uneven"
    if marks.equal_norms:
        return "norms"
    if marks.steps > RANGE_STEPS and marks.same_precision:
        return "step"
    return "grid" if marks.steps > STEPS or marks.proportional else "uniform"


@metric(section="regularisation", formula="rule in deltaw.metrics.uniformity", unit="word")
def shrinkage_kind(
    shrinkage: float,
    relative_change: float,
    rows: int,
    cols: int,
    unchanged_fraction: float,
    shrink_marks: ShrinkMarks | None = None,
) -> str:
    """What the shrink is: `uniform`, as decay leaves it, one `step`, or `turn`, `sparse`, `uneven`, `norms`, `grid`.

    `step`: by one ulp everywhere; `turn`: c is no more than a turn at constant norm, pruning or a grid makes; `sparse`:
    half of the entries did not move; `uneven`: small and large entries, or rows, differ; `norms`: all rows were given
    one norm; `grid`: W has fewer different values, or moved within an ulp. Empty where c is not above chance, or where
    ΔW is a product of thin factors.
    """
    if not is_shrink(shrinkage, relative_change, rows * cols):
        return "turn" if shrinkage * math.sqrt(rows * cols) > SIGMAS * relative_change else ""
    if unchanged_fraction >= UNCHANGED:
        return "sparse"
    return "" if shrink_marks is None else kind(shrink_marks)


@metric(section="regularisation", formula="c beside the quarter of directions that hold most of ΔW + c·W0", signed=True)
def shrinkage_bulk(shrink_marks: ShrinkMarks) -> float:
    """The shrink of what training left alone: a gradient gives back what decay takes where it matters, and hides it.

    Only where a shrink is large enough to be looked at, and the rest of the update does not outweigh it by far.
    """
    return shrink_marks.bulk


@metric(section="regularisation", formula="the same rule, for the decayed rows alone", unit="word")
def decay_rows_kind(decay_rows_fraction: float, row_marks: ShrinkMarks | None = None) -> str:
    """The same of the rows that moved straight towards zero; empty where they are few or short."""
    return kind(row_marks) if row_marks is not None and decay_rows_fraction > 0 else ""
