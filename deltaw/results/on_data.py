"""What the updates of a model do to the inputs of a data set, as its summary says it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from deltaw.results.rows import UNKNOWN, Rows, Spread, number, text
from deltaw.types import Row, matrix_label

QUIET, LOUD = 0.5, 2.0  # relative_change_on_data over relative_change: a matrix that the data hardly meets, or mostly
NAMED = 3


@dataclass(frozen=True)
class Met:
    """One matrix whose update the data meets less, or more, than its size lets expect.

    Attributes:
        key: The matrix, with its part in brackets.
        relative_change: ‖ΔW‖F/‖W0‖F.
        on_data: ‖ΔW·C^½‖F/‖W0·C^½‖F on the first data set.
    """

    key: str
    relative_change: float
    on_data: float


@dataclass(frozen=True)
class OnDataSummary:
    """What the updates of the changed matrices do to the inputs of one data set, or of two.

    Attributes:
        matrices: How many changed matrices have inputs in the first data set.
        relative_change: Of them, ‖ΔW‖F/‖W0‖F.
        on_data, on_source: ‖ΔW·C^½‖F/‖W0·C^½‖F on the first and on the second data set.
        rank_90, rank_90_on_data: Of those whose rounding leaves them readable.
        selectivity: on_data over on_source.
        most_selective, least_selective: The matrices of the largest and of the smallest selectivity; empty without a
            second data set.
        quiet, loud: How many matrices the data meets at most half as much, and at least twice as much, as their sizes
            let expect.
        quietest, loudest: Some of them, the furthest first.
    """

    matrices: int = 0
    relative_change: Spread = UNKNOWN
    on_data: Spread = UNKNOWN
    on_source: Spread = UNKNOWN
    rank_90: Spread = UNKNOWN
    rank_90_on_data: Spread = UNKNOWN
    selectivity: Spread = UNKNOWN
    most_selective: str = ""
    least_selective: str = ""
    quiet: int = 0
    loud: int = 0
    quietest: tuple[Met, ...] = ()
    loudest: tuple[Met, ...] = ()


def summarize_on_data(changed: Rows) -> OnDataSummary:
    """The summary of the changed matrices, as far as their inputs are known.

    Args:
        changed: The rows of the changed matrices.
    """
    known = changed.where(lambda row: not math.isnan(number(row, "relative_change_on_data")))
    if not len(known):
        return OnDataSummary()
    by_share = sorted(known.rows, key=_share)
    quiet = [row for row in by_share if _share(row) <= QUIET]
    loud = [row for row in reversed(by_share) if _share(row) >= LOUD]
    ranked = known.where(lambda row: not math.isnan(number(row, "rank_90_on_data")))
    aimed = sorted(
        (row for row in known.rows if not math.isnan(number(row, "selectivity"))),
        key=lambda row: number(row, "selectivity"),
    )
    return OnDataSummary(
        matrices=len(known),
        relative_change=known.spread("relative_change"),
        on_data=known.spread("relative_change_on_data"),
        on_source=known.spread("relative_change_on_source"),
        rank_90=ranked.spread("rank_90"),
        rank_90_on_data=ranked.spread("rank_90_on_data"),
        selectivity=known.spread("selectivity"),
        most_selective=_key(aimed[-1]) if aimed else "",
        least_selective=_key(aimed[0]) if aimed else "",
        quiet=len(quiet),
        loud=len(loud),
        quietest=tuple(map(_met, quiet[:NAMED])),
        loudest=tuple(map(_met, loud[:NAMED])),
    )


def _share(row: Row) -> float:
    plain = number(row, "relative_change")
    return number(row, "relative_change_on_data") / plain if plain > 0 else 1.0


def _met(row: Row) -> Met:
    return Met(_key(row), number(row, "relative_change"), number(row, "relative_change_on_data"))


def _key(row: Row) -> str:
    return matrix_label(text(row, "name"), text(row, "part"))
