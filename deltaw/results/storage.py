"""What the storage of the weights says of the training: a base that was cast, and weights kept coarse throughout.

One rounding at the end is what `rounding_noise` predicts. Weights that were kept in bfloat16 during training were
rounded at every step: most steps of a large weight are lost, so that far more entries stay where they were than one
rounding of such an update leaves. How much of ΔW is rounding then, no column can tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from deltaw.results.rows import Spread, is_changed, is_matrix, number, text
from deltaw.types import Row

MORE_EQUAL = 0.2  # share of all entries by which the unchanged ones exceed what one rounding leaves
MOVED_SHARE = 2 / 3  # … and the moved ones fall short of it
STORED_COARSE = frozenset({"bfloat16", "float16"})


def rounded_every_step(rows: Iterable[Row]) -> tuple[Spread, Spread] | None:
    """Whether the weights were kept in their stored precision during training.

    Args:
        rows: One mapping of column to value per analysed tensor.

    Returns:
        The unchanged fractions of the changed matrices, and those that one rounding would have left; None unless
        the typical matrix of a coarse format has far more.
    """
    stored = [row for row in rows if is_matrix(row) and is_changed(row) and text(row, "ft_precision") in STORED_COARSE]
    equal = np.array([number(row, "unchanged_fraction") for row in stored])
    once = np.array([number(row, "unchanged_fraction_null") for row in stored])
    known = np.isfinite(equal) & np.isfinite(once)
    if not known.any():
        return None
    equal, once = equal[known], once[known]
    more = (equal > once + MORE_EQUAL) & (1 - equal < MOVED_SHARE * (1 - once))
    return (Spread.of(equal), Spread.of(once)) if 2 * np.count_nonzero(more) > len(more) else None


def notes(rows: Sequence[Row]) -> list[str]:
    """What a reader should know about the storage, in words."""
    out = []
    cast = [row for row in rows if number(row, "base_rounding") > 0]
    if cast:
        formats = sorted({f"{text(row, 'base_precision')} to {text(row, 'ft_precision')}" for row in cast})
        out.append(
            f"{len(cast)} of {len(rows)} tensors hold the rounding of their base ({', '.join(formats)}): training "
            "started from the cast base, and that rounding is counted as rounding"
        )
    if found := rounded_every_step(rows):
        equal, once = found
        out.append(
            f"the weights were probably kept in their stored precision during training: {100 * equal.median:.0f} % of "
            f"the entries did not move, and storing once leaves {100 * once.median:.0f} %; rounding at every step is "
            "in ΔW, and rounding_noise counts one"
        )
    return out
