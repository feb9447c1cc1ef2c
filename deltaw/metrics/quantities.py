"""What a metric may ask for, besides the spectrum's shape and other metrics: named quantities, each with its shape.

Whoever measures fills in what is known of a matrix; a metric whose quantities are not known does not apply.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from deltaw.metrics.shrink_marks import ShrinkMarks
from deltaw.types import Matrix, Vector


@dataclass(frozen=True, kw_only=True)
class Quantities:
    """The named quantities of one m×n ΔW = W − W0, k = min(m, n); None where one is not known or does not apply.

    Attributes:
        rows: m; of a 1-D tensor its length.
        cols: n; of a 1-D tensor 1.
        entries: m·n.
        s: Singular values of ΔW, descending, (k,); or only the leading ones, where `energy` is given.
        energy: Σσ² of all k values, where `s` holds only the leading ones; else None.
        s_residual: Singular values of ΔW + c·W0, c the shrinkage, (k,).
        s_denoised: Singular values of ΔW with the rounding taken out, (k,).
        max_abs: max |Δ|.
        equal: How many entries have equal stored bits in W0 and W.
        delta_sq: ‖ΔW‖F².
        base_sq: ‖W0‖F².
        delta_base: ⟨ΔW, W0⟩.
        delta_row_sq: Σ_j Δ², (m,).
        delta_col_sq: Σ_i Δ², (n,), where it is needed: much of ΔW is rounding.
        base_row_sq: Σ_j W0², (m,).
        delta_base_row: Σ_j Δ·W0, (m,).
        noise_row: Σ_j v_ij, (m,): variances of the rounding that storing W left in its entries; zeros where W was never
            stored.
        noise_col: Σ_i v_ij, (n,).
        noise_inflation: By how much both sides' rounding exceeds that of W.
        noise_steps: The different rounding steps q of the entries, (h,).
        noise_counts: How many entries have each, (h,).
        base_noise: Σ (cast(W0) − W0)² where ΔW holds it.
        clipped: How many entries of a quantised W have an outermost code and lie further inward than its cell reaches.
        equal_null: How many entries storing such an update once would have left unmoved.
        shrink_marks: What shape the shrink of W0 has, where c is large enough to look at.
        row_marks: The same of the rows that moved straight towards zero, where they are many.
        adapter_scaling: s of ΔW = s·B·A.
        factor_a_sq: ‖A‖F² of the stored A.
        factor_b_sq: ‖sB‖F².
        epsilon: The cosine below which a direction is an intruder.
        max_cos_left: max_j |cos(u_i(W), u_j(W0))| of the top left singular vectors of W, (top k,).
        max_cos_right: The same of the right ones, (top k,).
        ft_s: Singular values of W, (k,).
        base_s: Singular values of W0, (k,).
        ft_top: The leading ones of W, (top k,).
        ft_top_left: Leading left singular vectors of W as columns, (m, top k).
        base_top_left: The same of W0, (m, top k).
        delta_left: Top-r left singular vectors of ΔW as columns, (m, r).
        delta_right: Top-r right ones, (n, r).
        base_left: Top-r left singular vectors of W0 as columns, (m, r).
        base_right: Top-r right ones, (n, r).
        signed_entries: How many entries are 0 in neither W0 nor W.
        flipped: How many of them changed their sign.
        base_projection: ‖UᵀW0V‖F, U and V the top-r singular vectors of ΔW.
        s_on_data: Singular values of ΔW·C^½, C = E[xxᵀ] of the inputs on the first data set, (k,); or only the leading
            ones, where `energy_on_data` is given.
        energy_on_data: Σσ² of all of them, where `s_on_data` holds only the leading ones; else None.
        delta_on_data_sq: ‖ΔW·C^½‖F², the mean of ‖ΔW·x‖².
        base_on_data_sq: ‖W0·C^½‖F².
        s_on_source, energy_on_source, delta_on_source_sq, base_on_source_sq: The same of the second data set.
    """

    rows: int | None = None
    cols: int | None = None
    entries: int | None = None
    s: Vector | None = None
    energy: float | None = None
    s_residual: Vector | None = None
    s_denoised: Vector | None = None
    max_abs: float | None = None
    equal: int | None = None
    delta_sq: float | None = None
    base_sq: float | None = None
    delta_base: float | None = None
    delta_row_sq: Vector | None = None
    delta_col_sq: Vector | None = None
    base_row_sq: Vector | None = None
    delta_base_row: Vector | None = None
    noise_row: Vector | None = None
    noise_col: Vector | None = None
    noise_inflation: float | None = None
    noise_steps: Vector | None = None
    noise_counts: Vector | None = None
    base_noise: float | None = None
    clipped: int | None = None
    equal_null: float | None = None
    shrink_marks: ShrinkMarks | None = None
    row_marks: ShrinkMarks | None = None
    adapter_scaling: float | None = None
    factor_a_sq: float | None = None
    factor_b_sq: float | None = None
    epsilon: float | None = None
    max_cos_left: Vector | None = None
    max_cos_right: Vector | None = None
    ft_s: Vector | None = None
    base_s: Vector | None = None
    ft_top: Vector | None = None
    ft_top_left: Matrix | None = None
    base_top_left: Matrix | None = None
    delta_left: Matrix | None = None
    delta_right: Matrix | None = None
    base_left: Matrix | None = None
    base_right: Matrix | None = None
    signed_entries: int | None = None
    flipped: int | None = None
    base_projection: float | None = None
    s_on_data: Vector | None = None
    energy_on_data: float | None = None
    delta_on_data_sq: float | None = None
    base_on_data_sq: float | None = None
    s_on_source: Vector | None = None
    energy_on_source: float | None = None
    delta_on_source_sq: float | None = None
    base_on_source_sq: float | None = None

    def known(self) -> Mapping[str, Any]:  # fields of every type, by name
        """The quantities that are known, by name; each of the type that its field has."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def __or__(self, other: Quantities) -> Quantities:
        """These, and what `other` knows, which wins."""
        return Quantities(**{**vars(self), **other.known()})

    def without_noise(self) -> Quantities:
        """These without the rounding: an unchanged matrix has nothing to tell from it."""
        return replace(self, **dict.fromkeys(OF_THE_NOISE))


OF_THE_NOISE = ("noise_row", "noise_col", "noise_inflation", "noise_steps", "noise_counts", "base_noise", "clipped")
NAMES = frozenset(f.name for f in fields(Quantities))
OF_THE_BASE = frozenset(
    (
        *("s_residual", "equal", "base_sq", "delta_base", "base_row_sq", "delta_base_row", "base_noise", "epsilon"),
        *("shrink_marks", "row_marks"),
        *("max_cos_left", "max_cos_right", "base_s", "base_top_left", "base_left", "base_right", "base_projection"),
        *("signed_entries", "flipped"),
        *("base_on_data_sq", "base_on_source_sq"),
    )
)
assert set(OF_THE_NOISE) | OF_THE_BASE <= NAMES
