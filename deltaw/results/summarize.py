"""The rows of an analysis → its summary."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from deltaw.metrics.energy import RANKS
from deltaw.results.decay import summarize_decay
from deltaw.results.on_data import summarize_on_data
from deltaw.results.quantised import quantised
from deltaw.results.rows import Rows, Spread, is_changed, is_clear, is_matrix, number, quote, text
from deltaw.results.summary import (
    AdapterUse,
    AgainstBase,
    Kind,
    Moved,
    MovedModule,
    Ranks,
    Resolution,
    RoundingSummary,
    Summary,
)
from deltaw.results.typical import typical
from deltaw.results.verdict import VerdictEvidence, verdict
from deltaw.types import Coverage, Reason, Row, Skipped

TOP = 5  # how many of the most changed are named
ONE_SIDED = (Reason.ONLY_IN_BASE, Reason.ONLY_IN_FT)


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
    evidence = VerdictEvidence(
        tensors=len(rows),
        changed=len(changed),
        kinds=frozenset(matrices.texts("kind")),
        unchanged=len(matrices) - len(moved),
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
        on_data=summarize_on_data(moved),
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


def _precision(matrices: Rows) -> RoundingSummary:
    energy, noise = matrices.numbers("fro_norm") ** 2, matrices.numbers("rounding_noise") ** 2
    stored = np.where(noise > 0, noise, math.nan)
    signal = matrices.numbers("signal_rank")
    return RoundingSummary(
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
        relative_change=(matrices if len(matrices) else group).median("relative_change"),
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
