"""What a sample of a matrix shows of the shape of its shrink, and the marks that tell a decay from the others by it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from deltaw.types import Vector

SIZES_SIGMAS, SIZES_SLACK = 4.0, 0.25  # how far c of a quarter of the entries, by |W0|, may stand from c of all
BETWEEN = 0.5  # of c: its spread between rows, or columns
EQUAL = 0.2  # of their spread before: norms of rows or columns that were made equal
PROPORTIONAL = 0.2  # energy of the rest over that of the shrink from which its law is looked at


@dataclass(frozen=True)
class ShrinkMarks:
    """What a sample of the rows of a matrix shows of the shape of its shrink.

    Attributes:
        c: −⟨ΔW, W0⟩/‖W0‖² of the sample.
        bulk: c without the quarter of the directions that hold most of the rest; NaN where the rest outweighs c by far.
        sizes, sizes_sd: c of each quarter of the entries by |W0|, the small ones first, and its standard error, (4,).
        between_rows, between_cols: Spread of c between rows and between columns, its sampling noise taken out.
        norms: Relative spread of the norms of W's rows over that of W0's, or of the columns where that is smaller.
        rest: Energy of ΔW + c·W0 over that of c·W0, in each quarter, (4,).
        base: Mean W0² in each quarter, (4,).
        steps: Share of entries that moved by at most one ulp of W; NaN where W was never stored.
        same_precision: Whether the numbers of both sides have the same ulp.
        values: How many different values W has over how many W0 has, once it is rounded as W is.
    """

    c: float
    bulk: float
    sizes: Vector
    sizes_sd: Vector
    between_rows: float
    between_cols: float
    norms: float
    rest: Vector
    base: Vector
    steps: float = math.nan
    same_precision: bool = False
    values: float = math.nan

    @property
    def even(self) -> bool:
        """Whether small and large entries, all rows and all columns shrank by the same share."""
        allowed = np.maximum(SIZES_SIGMAS * self.sizes_sd, SIZES_SLACK * abs(self.c))
        by_size = bool(np.all(np.abs(self.sizes - self.c) <= allowed))
        return by_size and max(self.between_rows, self.between_cols) < BETWEEN * abs(self.c)

    @property
    def equal_norms(self) -> bool:
        """Whether rows, or columns, were given one norm."""
        return self.norms < EQUAL

    @property
    def proportional(self) -> bool:
        """Whether what is not shrink is as large as the entry, as a cut of digits leaves it; learning is not."""
        if not self.rest.mean() > PROPORTIONAL or not self.base[0] > 0 or not self.rest[-1] > 0:
            return False
        span = math.log(self.base[-1] / self.base[0])
        return span > math.log(4.0) and math.log(max(self.rest[0], 1e-300) / self.rest[-1]) < span / 2
