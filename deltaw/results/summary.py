"""The numbers that describe the whole model, from the rows of its analysis.

`analysis.json`, the terminal and the report all read them from here. Each part is one small function of the rows;
what cannot be said is NaN (or an empty list), never 0. The part about weight decay is in `deltaw.results.decay`.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from deltaw.results.decay import number, summarize_decay
from deltaw.types import Skipped

Row = Mapping[str, Any]
TOP = 5  # how many of the most changed are named


def summarize(rows: Sequence[Row], skipped: Sequence[Skipped] = ()) -> dict[str, Any]:
    """Describe a model's update in numbers.

    Args:
        rows: One mapping of column to value per analysed matrix.
        skipped: The tensors without a row.

    Returns:
        Plain numbers, texts, lists and mappings of them:
        `tensors`, `matrices`, `parameters`, `parameters_changed`, `unchanged_share`; `routes`, `methods`,
        `skipped`, `resolution`: counts by kind; `failed`; `delta_norm`, `base_norm`, `relative_change`: of the model
        as one vector; `relative_change_all`, `relative_change_changed`: `n`, `median`, `low`, `high` over all rows
        and over those that changed; `most_changed`, `most_changed_modules`; `rank`, `energy`, `kinds`; `decay`.
    """
    changed = [row for row in rows if number(row, "fro_norm") > 0]
    matrices = [row for row in changed if row.get("route") != "vector" and math.isfinite(number(row, "spectral_norm"))]
    return {
        **_counts(rows, changed, skipped),
        **_norms(rows),
        "relative_change_all": spread(rows, "relative_change"),
        "relative_change_changed": spread(changed, "relative_change"),
        "most_changed": _most_changed(changed),
        "most_changed_modules": _most_changed_modules(changed),
        "matrices": len(matrices),
        "resolution": _count(matrices, "resolution"),
        "rank": _ranks(matrices),
        "energy": _energies(matrices),
        "kinds": _kinds(changed),
        "decay": summarize_decay(rows),
    }


def spread(rows: Iterable[Row], column: str) -> dict[str, float]:
    """How many rows have a column, and its median, smallest and largest value over them."""
    values = _values(rows, column)
    if not values.size:
        return {"n": 0, "median": math.nan, "low": math.nan, "high": math.nan}
    return {
        "n": int(values.size),
        "median": float(np.median(values)),
        "low": float(values.min()),
        "high": float(values.max()),
    }


def _values(rows: Iterable[Row], column: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    values = np.array([number(row, column) for row in rows], dtype=np.float64)
    return values[np.isfinite(values)]


def _median(rows: Iterable[Row], column: str) -> float:
    return spread(rows, column)["median"]


def _count(rows: Iterable[Row], column: str) -> dict[str, int]:
    return dict(Counter(str(row[column]) for row in rows if row.get(column) and row[column] == row[column]))


def _entries(row: Row) -> float:
    return number(row, "rows") * number(row, "cols")


def _sum(values: Iterable[float]) -> float:
    return math.fsum(v for v in values if math.isfinite(v))


def _counts(rows: Sequence[Row], changed: Sequence[Row], skipped: Sequence[Skipped]) -> dict[str, Any]:
    equal = _sum(number(row, "unchanged_fraction") * _entries(row) for row in rows)
    seen = _sum(_entries(row) for row in rows if math.isfinite(number(row, "unchanged_fraction")))
    return {
        "tensors": len(rows),
        "changed": len(changed),
        "parameters": int(_sum(map(_entries, rows))),
        "parameters_changed": int(_sum(map(_entries, changed))),
        "unchanged_share": equal / seen if seen else math.nan,
        "routes": _count(rows, "route"),
        "methods": _count(rows, "method"),
        # a reason may name its object: `tied_to NAME`, `failed: …`
        "skipped": dict(Counter(s.reason.split(":")[0].split(" ")[0] for s in skipped)),
        "failed": sum(s.reason.startswith("failed") for s in skipped),
    }


def _pooled(rows: Iterable[Row]) -> tuple[float, float]:
    """‖ΔW‖ and ‖W0‖ of several tensors as one vector; the base is NaN where a tensor lacks it."""
    delta, base = 0.0, 0.0
    for row in rows:
        if math.isfinite(size := number(row, "fro_norm")):
            delta = math.hypot(delta, size)
            base = math.hypot(base, number(row, "base_fro_norm"))
    return delta, base


def _norms(rows: Iterable[Row]) -> dict[str, float]:
    delta, base = _pooled(rows)
    return {"delta_norm": delta, "base_norm": base, "relative_change": delta / base if base else math.nan}


def _by_size(item: Mapping[str, Any]) -> float:
    size: float = item["relative_change"]
    return size


def _most_changed(changed: Iterable[Row]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {
            "name": str(row.get("name", "")),
            "part": str(row.get("part") or ""),
            "relative_change": number(row, "relative_change"),
        }
        for row in changed
    ]
    return sorted((f for f in found if math.isfinite(f["relative_change"])), key=_by_size, reverse=True)[:TOP]


def _grouped(rows: Iterable[Row], key: Callable[[Row], str]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return groups


def _most_changed_modules(changed: Iterable[Row]) -> list[dict[str, Any]]:
    """The modules (the same place in every block, matrices only) whose pooled relative change is largest."""
    matrices = [row for row in changed if number(row, "ndim") > 1 and row.get("module")]
    found = []
    for module, group in _grouped(matrices, lambda row: str(row["module"])).items():
        delta, base = _pooled(group)
        if base > 0:
            found.append({"module": module, "tensors": len(group), "relative_change": delta / base})
    return sorted(found, key=_by_size, reverse=True)[:TOP]


def _ranks(matrices: Sequence[Row]) -> dict[str, Any]:
    """The headline rank and what stands beside it: medians over the matrices that changed.

    `headline` is the effective rank above the rounding noise, over the matrices where something is; `naive` is the
    plain effective rank over all of them, rounding included. `keep_90` is the adapter rank that keeps 90 % of ΔW.
    """
    above = [row for row in matrices if number(row, "signal_rank") > 0]
    return {
        "headline": _median(above, "effective_rank_denoised"),
        "naive": _median(matrices, "effective_rank"),
        "signal_rank": spread(matrices, "signal_rank"),
        "matrices_with_signal": len(above),
        "keep_90": spread(matrices, "rank_90"),
        "rank_90_null": _median(matrices, "rank_90_null"),
        "rank_90_ratio": _median(matrices, "rank_90_ratio"),
        "effective_rank_residual": _median(matrices, "effective_rank_residual"),
        "rank_90_residual": _median(matrices, "rank_90_residual"),
    }


def _energies(matrices: Sequence[Row]) -> dict[str, dict[str, float]]:
    return {f"at_{r}": spread(matrices, f"energy_at_{r}") for r in (16, 64)}


def _kinds(changed: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """The same in short for each kind of tensor."""
    return {
        kind: {
            "tensors": len(group),
            "relative_change": _median(group, "relative_change"),
            "rank_90": _median(group, "rank_90"),
            "rank_90_ratio": _median(group, "rank_90_ratio"),
            "effective_rank_denoised": _median(group, "effective_rank_denoised"),
        }
        for kind, group in _grouped(changed, lambda row: str(row.get("kind") or "other")).items()
    }
