"""The numbers that describe the whole model: what a summary holds. `deltaw.results.summarize` computes it.

A summary is computed once. The terminal, `analysis.json`, the reports and the notebook all read it, so that what one of
them may not say, none says. What cannot be said is NaN (or empty), never 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from deltaw.results.decay import Decay
from deltaw.results.on_data import OnDataSummary
from deltaw.results.quantised import QuantisedMatrices
from deltaw.results.rows import UNKNOWN, Spread
from deltaw.results.typical import NO_MATRIX, Typical
from deltaw.results.verdict import Verdict
from deltaw.types import Coverage, matrix_label


@dataclass(frozen=True)
class Moved:
    """How far one tensor moved from the base.

    Attributes:
        name, part: Of the tensor.
        relative_change: ‖ΔW‖/‖W0‖.
    """

    name: str
    part: str
    relative_change: float

    @property
    def key(self) -> str:
        """The name, with the part in brackets if there is one."""
        return matrix_label(self.name, self.part)


@dataclass(frozen=True)
class MovedModule:
    """How far the matrices of one module, the same place in every layer of a stack, moved together.

    Attributes:
        module: Its name; after its stack, where there are several (`encoder.block.*.…`).
        tensors: How many matrices.
        relative_change: ‖ΔW‖/‖W0‖ of them as one vector.
    """

    module: str
    tensors: int
    relative_change: float


@dataclass(frozen=True)
class Resolution:
    """How many changed matrices rounding leaves readable, and how many it does not."""

    resolved: int = 0
    noisy: int = 0
    below_precision: int = 0

    @property
    def known(self) -> int:
        """Changed matrices whose storage is known."""
        return self.resolved + self.noisy + self.below_precision


@dataclass(frozen=True)
class RoundingSummary:
    """How much of the changed matrices is rounding.

    Attributes:
        dtypes: Stored dtypes, the most frequent first.
        rounding: rounding_noise²/‖ΔW‖F², the share of the energy that rounding explains.
        beyond: Energy below the noise edge over rounding_noise².
        unchanged_fraction: Shares of entries with equal bits.
        signal_rank, signal_energy: Directions above the noise edge, and their share of the energy.
        signal_share: signal_rank/k.
        matrices_with_signal: How many have a direction above the noise edge.
    """

    dtypes: tuple[str, ...] = ()
    rounding: Spread = UNKNOWN
    beyond: Spread = UNKNOWN
    unchanged_fraction: Spread = UNKNOWN
    signal_rank: Spread = UNKNOWN
    signal_energy: Spread = UNKNOWN
    signal_share: Spread = UNKNOWN
    matrices_with_signal: int = 0


@dataclass(frozen=True)
class Ranks:
    """The ranks of the changed matrices, as they may be quoted (`deltaw.results.rows.quote`).

    Attributes:
        headline: Median effective rank above the rounding noise, over the matrices where something is.
        effective_rank, rank_90, rank_90_ratio: With the rounding taken out, where there is any.
        rank_90_low, rank_90_high: Medians of the bounds of rank_90; equal to its median where it is exact.
        rank_90_null: Of the matrices whose rank_90 is quoted.
        effective_rank_residual, rank_90_residual: The same of ΔW + c·W0.
        dimensions: k = min(m, n) of the matrices whose rank_90 is quoted.
        typical: The matrix that a sentence speaks of: medians of different matrices do not belong together.
    """

    headline: float = math.nan
    effective_rank: Spread = UNKNOWN
    rank_90: Spread = UNKNOWN
    rank_90_low: float = math.nan
    rank_90_high: float = math.nan
    rank_90_null: Spread = UNKNOWN
    rank_90_ratio: Spread = UNKNOWN
    effective_rank_residual: Spread = UNKNOWN
    rank_90_residual: Spread = UNKNOWN
    dimensions: Spread = UNKNOWN
    typical: Typical = NO_MATRIX


@dataclass(frozen=True)
class AgainstBase:
    """How the changed matrices lie to their base.

    Attributes:
        cosine: cos(W, W0) of whole matrices, (1 − shrinkage)/(1 + norm_growth).
        along_base: cos²(ΔW, W0), the share of the update's energy that only rescales W0.
        shrinkage: The factor c.
    """

    cosine: Spread = UNKNOWN
    along_base: Spread = UNKNOWN
    shrinkage: Spread = UNKNOWN


@dataclass(frozen=True)
class AdapterUse:
    """What was read from an adapter.

    Attributes:
        types: Adapter types of the changed matrices, the most frequent first.
        rank: Their ranks.
        factored: Changed matrices that were read from factors.
    """

    types: tuple[str, ...] = ()
    rank: Spread = UNKNOWN
    factored: int = 0


@dataclass(frozen=True)
class Kind:
    """The changed tensors of one kind: how many, and medians over them, as far as they may be quoted.

    Attributes:
        tensors, matrices, clear: How many changed, how many of them are matrices, and how many of those rounding
            leaves readable.
        relative_change: The median over the matrices; over the vectors where there is no matrix.
        signal_rank, rank_90, effective_rank: Medians over what may be quoted (`deltaw.results.rows.quote`); so are the
            other ranks and the energies.
        rank_90_low, rank_90_high: Medians of the bounds of rank_90; equal to it where it is exact.
        energy: `energy_at_r` by column.
    """

    tensors: int
    matrices: int
    clear: int
    relative_change: float
    signal_rank: float
    rank_90: float
    rank_90_low: float
    rank_90_high: float
    rank_90_null: float
    rank_90_ratio: float
    effective_rank: float
    effective_rank_denoised: float
    energy: Mapping[str, float]


@dataclass(frozen=True, repr=False)
class Summary:
    """What an analysis says of the whole model.

    Attributes:
        verdict: What kind of update it is, in one word.
        coverage: How much of the model was compared.
        tensors, matrices, vectors: Rows of the table.
        changed, changed_matrices, changed_vectors: Those with ΔW ≠ 0.
        parameters, parameters_changed: Entries of all rows, and of those that changed.
        unchanged_share: Share of all entries whose stored bits are equal.
        routes, methods: Counts of rows.
        skipped: Counts of tensors without a row, by reason. `failed`: those that could not be measured.
        one_sided: Tensors of one side only but for integer buffers; empty for an adapter, which leaves tensors alone.
        has_base: Whether W0 is known.
        delta_norm, base_norm, relative_change: Of the model as one vector.
        relative_change_all, relative_change_changed: `relative_change` over all rows, and over those that changed.
        change: `relative_change` over the changed matrices.
        most_changed, most_changed_matrices, most_changed_modules: The largest relative changes, the largest first.
        resolution: Changed matrices by their `resolution`.
        precision, rank, against_base, adapter: Of the changed matrices.
        energy: `energy_at_r` of the changed matrices, by column, as it may be quoted.
        kinds: By kind of module.
        intruders: Intruder dimensions over all matrices; NaN without `alignment`.
        decay: Whether one weight decay is visible.
        quantised: The quantised formats of both sides.
        on_data: What the updates do to the inputs of a data set, where they were measured on one.
    """

    verdict: Verdict = Verdict.EMPTY
    coverage: Coverage = field(default_factory=Coverage)
    tensors: int = 0
    matrices: int = 0
    vectors: int = 0
    changed: int = 0
    changed_matrices: int = 0
    changed_vectors: int = 0
    parameters: int = 0
    parameters_changed: int = 0
    unchanged_share: float = math.nan
    routes: Mapping[str, int] = field(default_factory=dict)
    methods: Mapping[str, int] = field(default_factory=dict)
    skipped: Mapping[str, int] = field(default_factory=dict)
    failed: int = 0
    one_sided: tuple[str, ...] = ()
    has_base: bool = True
    delta_norm: float = 0.0
    base_norm: float = 0.0
    relative_change: float = math.nan
    relative_change_all: Spread = UNKNOWN
    relative_change_changed: Spread = UNKNOWN
    change: Spread = UNKNOWN
    most_changed: tuple[Moved, ...] = ()
    most_changed_matrices: tuple[Moved, ...] = ()
    most_changed_modules: tuple[MovedModule, ...] = ()
    resolution: Resolution = Resolution()
    precision: RoundingSummary = RoundingSummary()
    rank: Ranks = Ranks()
    energy: Mapping[str, Spread] = field(default_factory=dict)
    against_base: AgainstBase = AgainstBase()
    adapter: AdapterUse = AdapterUse()
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    intruders: float = math.nan
    decay: Decay = field(default_factory=Decay)
    quantised: tuple[QuantisedMatrices, ...] = ()
    on_data: OnDataSummary = field(default_factory=OnDataSummary)

    def __repr__(self) -> str:
        """One line."""
        from deltaw.results.display import line

        return line(self)

    def _repr_html_(self) -> str:
        """What a notebook shows: the headline numbers."""
        from deltaw.results.display import html

        return html(self)

    @property
    def changed_kinds(self) -> tuple[str, ...]:
        """The kinds of the changed matrices."""
        return tuple(name for name, kind in self.kinds.items() if kind.matrices)

    @property
    def estimated(self) -> int:
        """Rows whose ranks are estimates."""
        return self.methods.get("estimate", 0)
