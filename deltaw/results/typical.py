"""The typical matrix of an analysis: the one that a sentence speaks of, with numbers that belong together.

Medians of ranks, of dimensions and of nulls come from different matrices where shapes differ: "4 of 31 directions, .71
of what noise takes" is true of none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from deltaw.results.rows import Rows, number, quote, text
from deltaw.results.verdict import BEYOND
from deltaw.types import Row, matrix_label

FEW = 8  # dimensions of a matrix from which its rank says something


@dataclass(frozen=True)
class Typical:
    """One matrix to speak of for all: that of the median rank_90_ratio. Its numbers belong together.

    Attributes:
        name: Its name, with the part in brackets if there is one.
        dimensions: k = min(m, n).
        rank_90, rank_90_low, rank_90_high: As it may be quoted, with its bounds.
        rank_90_null: Of noise of its shape.
        energy_at_16: As it may be quoted.
        rank: Its rank where that is known: directions above rounding, with no more than rounding below them.
    """

    name: str = ""
    dimensions: int = 0
    rank_90: float = math.nan
    rank_90_low: float = math.nan
    rank_90_high: float = math.nan
    rank_90_null: float = math.nan
    energy_at_16: float = math.nan
    rank: float = math.nan

    @property
    def ratio(self) -> float:
        """rank_90 over that of noise."""
        return self.rank_90 / self.rank_90_null


NO_MATRIX = Typical()


def typical(told: Rows) -> Typical:
    """The matrix of the median ratio, of those whose rank says something if there are any; the largest of equals."""

    def size(row: Row) -> float:
        return min(number(row, "rows"), number(row, "cols"))

    rows = told.where(lambda row: size(row) >= FEW) if any(size(row) >= FEW for row in told.rows) else told
    ratios = rows.numbers("rank_90_ratio")
    known = [(float(ratio), -size(row), i) for i, (ratio, row) in enumerate(zip(ratios, rows.rows, strict=True))]
    known = sorted(x for x in known if math.isfinite(x[0]))
    if not known:
        return NO_MATRIX
    ratio = known[(len(known) - 1) // 2][0]
    row = rows.rows[next(i for value, _, i in known if value == ratio)]
    rank, energy = quote(row, "rank_90"), quote(row, "energy_at_16")
    assert rank is not None
    return Typical(
        name=matrix_label(text(row, "name"), text(row, "part")),
        dimensions=int(size(row)),
        rank_90=rank.value,
        rank_90_low=rank.low,
        rank_90_high=rank.high,
        rank_90_null=number(row, "rank_90_null"),
        energy_at_16=math.nan if energy is None else energy.value,
        rank=_rank(row),
    )


def _rank(row: Row) -> float:
    """signal_rank where the energy below it is no more than rounding leaves; NaN where there may be more."""
    rest = (1 - number(row, "signal_energy")) * number(row, "fro_norm") ** 2
    known = rest <= BEYOND * number(row, "rounding_noise") ** 2 or number(row, "signal_energy") >= 1 - 1e-6
    return number(row, "signal_rank") if known else math.nan
