"""The numbers that describe the whole model, from the rows of its analysis.

A summary is computed once. The terminal, `analysis.json`, the reports and the notebook all read it, so that what one of
them may not say, none says. What cannot be said is NaN (or empty), never 0.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from deltaw.metrics.energy import RANKS
from deltaw.results.decay import Decay, summarize_decay
from deltaw.results.quantised import Quantised, quantised
from deltaw.results.rows import UNKNOWN, Rows, Spread, is_changed, is_clear, is_matrix, number, quote, text
from deltaw.results.typical import NO_MATRIX, Typical, typical
from deltaw.results.verdict import Evidence, Verdict, verdict
from deltaw.types import Coverage, Reason, Row, Skipped, matrix_label

TOP = 5  # how many of the most changed are named
ONE_SIDED = (Reason.ONLY_IN_BASE, Reason.ONLY_IN_FT)


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
class Precision:
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
            leaves readable. Ranks and energies are medians over what may be quoted (`deltaw.results.rows.quote`).
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
    precision: Precision = Precision()
    rank: Ranks = Ranks()
    energy: Mapping[str, Spread] = field(default_factory=dict)
    against_base: AgainstBase = AgainstBase()
    adapter: AdapterUse = AdapterUse()
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    intruders: float = math.nan
    decay: Decay = field(default_factory=Decay)
    quantised: tuple[Quantised, ...] = ()

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


def summarize(rows: Sequence[Row], skipped: Sequence[Skipped] = (), coverage: Coverage | None = None) -> Summary:
    """Describe a model's update in numbers.

    Args:
        rows: One mapping of column to value per analysed tensor.
        skipped: The tensors without a row.
        coverage: How much of the model was compared.
    """
    everything = Rows(tuple(rows))
    changed = everything.where(is_changed)
    matrices = everything.where(is_matrix)
    moved = changed.where(is_matrix)
    against, precision = _against_base(moved), _precision(moved)
    delta, base = _pooled(rows)
    reasons = Counter(s.because.value for s in skipped)
    adapter, decay = _adapter(moved), summarize_decay(rows)
    evidence = Evidence(
        tensors=len(rows),
        changed=len(changed),
        kinds=frozenset(matrices.texts("kind")),
        matrices=moved,
        cosine=against.cosine,
        along_base=against.along_base,
        shrinkage=against.shrinkage,
        shrinks=decay.visible or decay.evidence == "step",
        signal_share=precision.signal_share,
        beyond=precision.beyond,
    )
    return Summary(
        verdict=verdict(evidence),
        coverage=coverage or Coverage(),
        tensors=len(rows),
        matrices=len(matrices),
        vectors=len(rows) - len(matrices),
        changed=len(changed),
        changed_matrices=len(moved),
        changed_vectors=len(changed) - len(moved),
        parameters=int(_sum(everything.entries)),
        parameters_changed=int(_sum(changed.entries)),
        unchanged_share=_unchanged_share(everything),
        routes=_counts(everything, "route"),
        methods=_counts(everything, "method"),
        skipped=dict(reasons),
        failed=reasons["failed"],
        one_sided=() if adapter.types else tuple(s.name for s in skipped if _is_missing(s)),
        has_base=bool(np.isfinite(everything.numbers("base_fro_norm")).any()),
        delta_norm=delta,
        base_norm=base,
        relative_change=delta / base if base else math.nan,
        relative_change_all=everything.spread("relative_change"),
        relative_change_changed=changed.spread("relative_change"),
        change=moved.spread("relative_change"),
        most_changed=_most_changed(changed),
        most_changed_matrices=_most_changed(moved),
        most_changed_modules=_most_changed_modules(moved),
        resolution=_resolution(moved),
        precision=precision,
        rank=_ranks(moved),
        energy={(column := f"energy_at_{r}"): moved.spread(column) for r in RANKS},
        against_base=against,
        adapter=adapter,
        kinds=_kinds(changed),
        intruders=_total(moved, "intruders"),
        decay=decay,
        quantised=quantised(rows),
    )


def _is_missing(s: Skipped) -> bool:
    """Whether one side lacks a tensor that holds numbers of the model: integers are positions, masks and counters."""
    return s.because in ONE_SIDED and not s.detail.startswith(("int", "uint", "bool"))


def _counts(rows: Rows, column: str) -> dict[str, int]:
    return dict(Counter(word for word in rows.texts(column) if word))


def _most_frequent(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(word for word, _ in Counter(word for word in words if word).most_common())


def _sum(values: Iterable[float]) -> float:
    return math.fsum(v for v in values if math.isfinite(v))


def _total(rows: Rows, column: str) -> float:
    values = rows.numbers(column)
    return float(np.nansum(values)) if np.isfinite(values).any() else math.nan


def _unchanged_share(rows: Rows) -> float:
    share, entries = rows.numbers("unchanged_fraction"), rows.entries
    seen = _sum(entries[np.isfinite(share)])
    return _sum(share * entries) / seen if seen else math.nan


def _pooled(rows: Iterable[Row]) -> tuple[float, float]:
    """‖ΔW‖ and ‖W0‖ of several tensors as one vector; the base is NaN where a tensor lacks it."""
    delta, base = 0.0, 0.0
    for row in rows:
        if math.isfinite(size := number(row, "fro_norm")):
            delta = math.hypot(delta, size)
            base = math.hypot(base, number(row, "base_fro_norm"))
    return delta, base


def _most_changed(changed: Rows) -> tuple[Moved, ...]:
    found = [Moved(text(row, "name"), text(row, "part"), number(row, "relative_change")) for row in changed.rows]
    known = [moved for moved in found if math.isfinite(moved.relative_change)]
    return tuple(sorted(known, key=lambda moved: moved.relative_change, reverse=True)[:TOP])


def _grouped(rows: Rows, key: Callable[[Row], str]) -> dict[str, Rows]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows.rows:
        groups[key(row)].append(row)
    return {name: Rows(tuple(members)) for name, members in groups.items()}


def _most_changed_modules(matrices: Rows) -> tuple[MovedModule, ...]:
    """The modules, those of several stacks apart, whose pooled relative change is largest."""
    inside = matrices.where(lambda row: math.isfinite(number(row, "layer")))
    several = len(set(inside.texts("stack"))) > 1

    def where(row: Row) -> str:
        stacked = several and math.isfinite(number(row, "layer"))
        return f"{text(row, 'stack')}.*.{text(row, 'module')}" if stacked else text(row, "module")

    found = []
    for module, group in _grouped(matrices, where).items():
        delta, base = _pooled(group.rows)
        if module and base > 0:
            found.append(MovedModule(module, len(group), delta / base))
    return tuple(sorted(found, key=lambda moved: moved.relative_change, reverse=True)[:TOP])


def _resolution(matrices: Rows) -> Resolution:
    found = Counter(matrices.texts("resolution"))
    return Resolution(found["resolved"], found["noisy"], found["below_precision"])


def _precision(matrices: Rows) -> Precision:
    energy, noise = matrices.numbers("fro_norm") ** 2, matrices.numbers("rounding_noise") ** 2
    stored = np.where(noise > 0, noise, math.nan)
    signal = matrices.numbers("signal_rank")
    return Precision(
        dtypes=_most_frequent(matrices.texts("ft_dtype")),
        rounding=Spread.of(noise / energy),
        beyond=Spread.of((1 - matrices.numbers("signal_energy")) * energy / stored),
        unchanged_fraction=matrices.spread("unchanged_fraction"),
        signal_rank=Spread.of(signal),
        signal_energy=matrices.spread("signal_energy"),
        signal_share=Spread.of(signal / matrices.dimensions),
        matrices_with_signal=int((signal > 0).sum()),
    )


def _ranks(matrices: Rows) -> Ranks:
    above = matrices.where(lambda row: number(row, "signal_rank") > 0)
    told = matrices.where(lambda row: quote(row, "rank_90") is not None)
    low, high = _bounds(matrices, "rank_90")
    return Ranks(
        headline=above.median("effective_rank_denoised"),
        effective_rank=matrices.spread("effective_rank"),
        rank_90=matrices.spread("rank_90"),
        rank_90_low=low,
        rank_90_high=high,
        rank_90_null=told.spread("rank_90_null"),
        rank_90_ratio=matrices.spread("rank_90_ratio"),
        effective_rank_residual=matrices.spread("effective_rank_residual"),
        rank_90_residual=matrices.spread("rank_90_residual"),
        dimensions=Spread.of(told.dimensions),
        typical=typical(told),
    )


def _bounds(rows: Rows, column: str) -> tuple[float, float]:
    """Medians of the bounds of a column as it may be quoted."""
    known = [found for found in rows.quotes(column) if found is not None]
    return Spread.of(q.low for q in known).median, Spread.of(q.high for q in known).median


def _against_base(matrices: Rows) -> AgainstBase:
    shrinkage = matrices.numbers("shrinkage")
    return AgainstBase(
        cosine=Spread.of((1 - shrinkage) / (1 + matrices.numbers("norm_growth"))),
        along_base=Spread.of(matrices.numbers("cosine_to_base") ** 2),
        shrinkage=Spread.of(shrinkage),
    )


def _adapter(matrices: Rows) -> AdapterUse:
    return AdapterUse(
        types=_most_frequent(matrices.texts("adapter_type")),
        rank=matrices.spread("adapter_rank"),
        factored=matrices.texts("route").count("factored"),
    )


def _kinds(changed: Rows) -> dict[str, Kind]:
    return {kind: _kind(group) for kind, group in _grouped(changed, lambda row: text(row, "kind") or "other").items()}


def _kind(group: Rows) -> Kind:
    matrices = group.where(is_matrix)
    low, high = _bounds(group, "rank_90")
    return Kind(
        tensors=len(group),
        matrices=len(matrices),
        clear=len(matrices.where(is_clear)),
        relative_change=group.median("relative_change"),
        signal_rank=group.median("signal_rank"),
        rank_90=group.median("rank_90"),
        rank_90_low=low,
        rank_90_high=high,
        rank_90_null=group.median("rank_90_null"),
        rank_90_ratio=group.median("rank_90_ratio"),
        effective_rank=group.median("effective_rank"),
        effective_rank_denoised=group.median("effective_rank_denoised"),
        energy={(column := f"energy_at_{r}"): group.median(column) for r in RANKS},
    )
