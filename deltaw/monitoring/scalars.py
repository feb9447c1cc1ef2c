"""An analysis as the few numbers that a log can hold: medians over the changed matrices, of all and of each kind."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from deltaw.results.analysis import Analysis
from deltaw.results.rows import Spread, number, quoted
from deltaw.types import Row

METRICS = ("relative_change", "effective_rank", "rank_90_ratio")  # of every kind
OF_ALL = (*METRICS, "shrinkage")
MOST_KINDS = 5  # 5 of all + 5 × 3 of kinds: 20 scalars
ALL = "all"


def scalars(analysis: Analysis) -> dict[str, float]:
    """`deltaw/<kind>/<metric>` → a number, at most 20; what cannot be said is left out.

    Each is the median over the changed matrices of the kind, as the metric may be quoted of them: ranks of matrices
    that are mostly rounding are not. `deltaw/all/below_precision` is the share of changed matrices that are.
    """
    moved = [r for r in analysis.rows if is_moved(r)]
    kinds = [k for k, _ in Counter(str(r["kind"]) for r in moved).most_common(MOST_KINDS)]
    found = {f"{ALL}/{m}": _median(moved, m) for m in OF_ALL}
    known = [r for r in moved if r.get("resolution")]
    if known:
        found[f"{ALL}/below_precision"] = sum(r["resolution"] == "below_precision" for r in known) / len(known)
    for kind in sorted(kinds):
        found |= {f"{kind}/{m}": _median([r for r in moved if r["kind"] == kind], m) for m in METRICS}
    return {f"deltaw/{key}": value for key, value in found.items() if math.isfinite(value)}


def is_moved(row: Row) -> bool:
    """Whether a row is a matrix that changed."""
    return row["route"] not in {"vector", "unchanged"} and number(row, "fro_norm") > 0


def _median(rows: Sequence[Row], metric: str) -> float:
    return Spread.of(quoted(r, metric) for r in rows).median
