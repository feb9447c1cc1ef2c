"""Early warnings by rule: what a training does to its weights that its loss does not show.

| rule | it holds where |
|---|---|
| `below_precision` | of more than half of the changed matrices, most of ΔW is rounding of the storage |
| `rank_collapse` | the median effective rank is below half of the largest one recorded before |
| `leaves_bulk` | a matrix has σ1(ΔW) > (m·n)^¼·‖W0‖F/√(m·n) |
| `decay_exceeds_learning` | in the median matrix more than half of ‖ΔW‖² is −c·W0 with c > 0 |

The third is where a rank-one perturbation of a matrix of independent entries of that size first shows above its bulk
(Benaych-Georges & Nadakuditi 2012): from there on, it is a direction of W that the base did not have.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deltaw.monitoring.scalars import ALL, is_moved
from deltaw.results.analysis import Analysis
from deltaw.results.rows import Spread, number
from deltaw.types import Row

HALF = 0.5


@dataclass(frozen=True)
class Alert:
    """A rule that began to hold.

    Attributes:
        step: When.
        rule: Its name.
        text: What was found, in a sentence.
        value, limit: The number, and the one that it passed.
    """

    step: int
    rule: str
    text: str
    value: float
    limit: float


def alerts(step: int, analysis: Analysis, found: Mapping[str, float], highest_rank: float) -> list[Alert]:
    """Every rule that holds at a step.

    Args:
        step: The step.
        analysis: What was measured there.
        found: Its scalars.
        highest_rank: The largest median effective rank of the records before; NaN before the second.
    """
    moved = [r for r in analysis.rows if is_moved(r)]
    rules = (
        _below_precision(found),
        _rank_collapse(found, highest_rank),
        _leaves_bulk(moved),
        _decay(moved),
    )
    return [Alert(step, *rule) for rule in rules if rule is not None]


Held = tuple[str, str, float, float] | None


def _below_precision(found: Mapping[str, float]) -> Held:
    share = found.get(f"deltaw/{ALL}/below_precision", 0.0)
    if share <= HALF:
        return None
    text = (
        f"in {100 * share:.0f} % of the changed matrices most of the update is rounding: train longer, with a larger "
        "learning rate, or keep the weights in float32"
    )
    return "below_precision", text, share, HALF


def _rank_collapse(found: Mapping[str, float], highest: float) -> Held:
    rank = found.get(f"deltaw/{ALL}/effective_rank", math.nan)
    if not rank < HALF * highest:
        return None
    text = f"the median effective rank of the update fell to {rank:.3g}, from {highest:.3g} before"
    return "rank_collapse", text, rank, HALF * highest


def _leaves_bulk(rows: Sequence[Row]) -> Held:
    ratios = {str(r["name"]): number(r, "spectral_norm") / edge for r in rows if (edge := _edge(r)) > 0}
    beyond = {name: ratio for name, ratio in ratios.items() if ratio > 1}
    if not beyond:
        return None
    name = max(beyond, key=lambda n: beyond[n])
    count = f"{len(beyond)} of {len(ratios)} matrices have" if len(beyond) > 1 else "one matrix has"
    text = f"{count} a direction beyond the bulk of the base, most of all {name} ({beyond[name]:.2g} × the edge)"
    return "leaves_bulk", text, beyond[name], 1.0


def _edge(row: Row) -> float:
    m, n = number(row, "rows"), number(row, "cols")
    return float((m * n) ** -0.25 * number(row, "base_fro_norm"))


def _decay(rows: Sequence[Row]) -> Held:
    shares = [_along_base(r) for r in rows]
    share = Spread.of(shares).median
    if not share > HALF:
        return None
    text = (
        f"in the median matrix {100 * share:.0f} % of the update's energy only shrinks W0: weight decay does more than "
        "learning"
    )
    return "decay_exceeds_learning", text, share, HALF


def _along_base(row: Row) -> float:
    """The share of ‖ΔW‖² that is −c·W0; 0 where W0 grows."""
    c, base, delta = (number(row, k) for k in ("shrinkage", "base_fro_norm", "fro_norm"))
    return (c * base / delta) ** 2 if c > 0 else 0.0 * c
