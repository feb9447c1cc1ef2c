"""The sums over the entries of one ΔW and its base, and the quantities that metrics get of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from deltaw.metrics.quantities import Quantities
from deltaw.tensors.numbers import StoredNumbers
from deltaw.types import Vector


@dataclass(frozen=True)
class EntrySums:
    """The sums over the entries of one m×n ΔW and its base, in outputs × inputs orientation, in float64.

    Attributes:
        rows: m; for a 1-D tensor its length.
        cols: n; for a 1-D tensor 1.
        max_abs: Largest |Δ|.
        equal: How many entries have equal stored bits in W0 and W, after a common upcast.
        delta_row_sq: Σ_j Δ², (m,).
        base_row_sq: Σ_j W0², (m,); None without a base.
        delta_base_row: Σ_j Δ·W0, (m,); None without a base.
        noise_row: Σ_j v_ij, (m,): variances of the rounding in ΔW (`delta.rounding`); zeros where W was never stored.
        noise_col: Σ_i v_ij, (n,).
        within_ulp: Whether no entry moved by more than one ulp of either side together, as if W0 and W were two
            roundings of the same numbers.
        noise_steps, noise_counts: √(12·v_ij), and how many entries have each.
        equal_null: How many entries one rounding of such an update would leave as they were; NaN where unknown.
        was, now: The precision of the numbers of W0 and W; None where they were not read.
        base_noise: Σ (cast(W0) − W0)², the part of the noise that is the base's own rounding to the precision of W.
        clipped: How many entries of a quantised W were clipped; None where it is none.
    """

    rows: int
    cols: int
    max_abs: float
    equal: int
    delta_row_sq: Vector
    base_row_sq: Vector | None
    delta_base_row: Vector | None
    noise_row: Vector
    noise_col: Vector
    within_ulp: bool = False
    noise_steps: Vector = field(default_factory=lambda: np.zeros(0))
    noise_counts: Vector = field(default_factory=lambda: np.zeros(0))
    equal_null: float = math.nan
    was: StoredNumbers | None = None
    now: StoredNumbers | None = None
    base_noise: float = 0.0
    clipped: int | None = None

    @property
    def base_precision(self) -> str:
        """The precision of W0's numbers; empty where they were not read."""
        return self.was.name if self.was else ""

    @property
    def ft_precision(self) -> str:
        """The precision of W's numbers; empty where W was never stored."""
        return self.now.name if self.now else ""

    def totals(self) -> Quantities:
        """The quantities that a 1-D tensor has too: sums over all entries, how many, the largest, the equal ones."""
        return Quantities(
            entries=self.rows * self.cols,
            max_abs=self.max_abs,
            equal=self.equal,
            delta_sq=float(self.delta_row_sq.sum()),
            base_sq=None if self.base_row_sq is None else float(self.base_row_sq.sum()),
            delta_base=None if self.delta_base_row is None else float(self.delta_base_row.sum()),
        )

    def quantities(self) -> Quantities:
        """All that a matrix has: `totals`, the shape, and the sums by row and column."""
        return self.totals() | Quantities(
            rows=self.rows,
            cols=self.cols,
            delta_row_sq=self.delta_row_sq,
            base_row_sq=self.base_row_sq,
            delta_base_row=self.delta_base_row,
            noise_row=self.noise_row,
            noise_col=self.noise_col,
            noise_inflation=self._noise_inflation(),
            noise_steps=self.noise_steps,
            noise_counts=self.noise_counts,
            base_noise=self.base_noise,
            clipped=self.clipped,
            equal_null=self.equal_null if math.isfinite(self.equal_null) else None,
        )

    def _noise_inflation(self) -> float:
        """The variance of ΔW's noise in units of the predicted one, where all of ΔW may be rounding; 1 elsewhere.

        An update that adds to the weights moves the small ones by many ulps. Where none moved by more than one, both
        sides may be roundings of the same numbers (one truncated, drawn, or cast twice). Their variance is up to six
        times that of rounding W alone, which ΔW's energy tells, and an entry may miss by a whole ulp: 4 covers the
        one that stands alone. Over 2880 pairs of roundings, none then showed a direction above the edge.
        """
        noise = float(self.noise_row.sum())
        return max(4.0, 1.2 * float(self.delta_row_sq.sum()) / noise) if self.within_ulp and noise else 1.0
