"""The rows of an analysis, read one cell at a time: a row maps a column to its value, and may lack it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from deltaw.metrics import REGISTRY, RESIDUAL, RESIDUAL_COSINE, Metric
from deltaw.metrics.deconvolution import NEGLIGIBLE
from deltaw.results.columns import is_hidden_by_noise
from deltaw.types import Row, Vector

CLEAR = ("", "resolved")  # resolutions in which rounding changes no sum of squares


def number(row: Row, column: str) -> float:
    """The value of a column as a number; NaN where there is none."""
    value = row.get(column)
    return float(value) if isinstance(value, (int, float, np.number)) else math.nan


def text(row: Row, column: str) -> str:
    """The value of a column as a text; empty where there is none."""
    value = row.get(column)
    return value if isinstance(value, str) else ""


def is_matrix(row: Row) -> bool:
    """Whether a row has ranks: all but norms, biases and what has no entries."""
    return text(row, "route") != "vector" and number(row, "ndim") != 1


def is_changed(row: Row) -> bool:
    """Whether ΔW ≠ 0."""
    return text(row, "route") != "unchanged" and number(row, "fro_norm") > 0


def is_clear(row: Row) -> bool:
    """Whether rounding leaves a row readable: it explains no more than 1 % of the energy."""
    return text(row, "resolution") in CLEAR


class Quoted(NamedTuple):
    """A number as it may be said of a matrix.

    Attributes:
        value: The number.
        low, high: Its 95 % interval; the number itself where it is exact.
        column: The column that it was read from: the one asked for, or the one with the rounding taken out.
    """

    value: float
    low: float
    high: float
    column: str


def quote(row: Row, column: str) -> Quoted | None:
    """What may be said of a matrix in a column: the one rule for terminal, reports, tables, contrasts and figures.

    Where rounding is above a hundred-thousandth of ΔW's energy, the column with the rounding taken out speaks, with its
    interval. What has no such column is said where it adds up squares and the matrix is
    `resolved`; sums of σ are not. Of a matrix `below_precision` no rank is said at all.

    Args:
        row: A row of an analysis.
        column: Any column; those that rounding does not enter are quoted as they are.

    Returns:
        None where nothing may be said, or nothing is known.
    """
    if not is_hidden_by_noise(column):
        return _read(row, column)
    if column == "rank_90_ratio":
        return _over_null(row)
    if text(row, "resolution") == "below_precision":
        return None
    if is_clear(row) and not rounding_share(row) > NEGLIGIBLE:
        return _read(row, column)
    metric = REGISTRY[column]
    if plain := RESIDUAL.get(column):  # where no decay was taken out, they are the same
        return quote(row, plain) if abs(number(row, "cosine_to_base")) <= RESIDUAL_COSINE else _plain(row, metric)
    found = _read(row, metric.denoised) if metric.denoised else None
    return found or _plain(row, metric)


def rounding_share(row: Row) -> float:
    """The share of ΔW's energy that rounding explains, at most 1; 0 where W was never stored or nothing changed."""
    noise, size = number(row, "rounding_noise"), number(row, "fro_norm")
    return min(1.0, (noise / size) ** 2) if noise > 0 and size > 0 else 0.0


def _plain(row: Row, metric: Metric) -> Quoted | None:
    return None if metric.of_sigma or not is_clear(row) else _read(row, metric.name)


def _read(row: Row, column: str) -> Quoted | None:
    value = number(row, column)
    if math.isnan(value):
        return None
    low, high = number(row, f"{column}_low"), number(row, f"{column}_high")
    return Quoted(value, value if math.isnan(low) else low, value if math.isnan(high) else high, column)


def _over_null(row: Row) -> Quoted | None:
    rank, null = quote(row, "rank_90"), number(row, "rank_90_null")
    if rank is None or rank.column == "rank_90":
        return None if rank is None else _read(row, "rank_90_ratio")
    return Quoted(rank.value / null, rank.low / null, rank.high / null, rank.column) if null > 0 else None


def quoted(row: Row, column: str) -> float:
    """The value of a column as it may be quoted; NaN where nothing may be said."""
    found = quote(row, column)
    return math.nan if found is None else found.value


@dataclass(frozen=True)
class Spread:
    """How many values are known, their median, the extremes and the middle 80 %; NaN where there is none."""

    n: int = 0
    median: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p10: float = math.nan
    p90: float = math.nan

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """The spread of those values that are finite."""
        given = np.fromiter(values, dtype=np.float64)
        known = given[np.isfinite(given)]
        if not known.size:
            return cls()
        p10, median, p90 = (float(q) for q in np.quantile(known, [0.1, 0.5, 0.9]))
        return cls(known.size, median, float(known.min()), float(known.max()), p10, p90)


UNKNOWN = Spread()


@dataclass(frozen=True)
class Rows:
    """Some rows of an analysis, by column."""

    rows: tuple[Row, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def numbers(self, column: str) -> Vector:
        """A column, (rows,); NaN where a row lacks it, or where rounding hides it."""
        return np.array([quoted(row, column) for row in self.rows], dtype=np.float64)

    def quotes(self, column: str) -> list[Quoted | None]:
        """A column as it may be quoted, with its intervals, row by row."""
        return [quote(row, column) for row in self.rows]

    def texts(self, column: str) -> list[str]:
        """A column of texts; empty where a row lacks it."""
        return [text(row, column) for row in self.rows]

    def spread(self, column: str) -> Spread:
        """The spread of a column, over the rows in which it may be quoted."""
        return Spread.of(self.numbers(column))

    def median(self, column: str) -> float:
        """The median of a column, over the rows in which it may be quoted."""
        return self.spread(column).median

    def where(self, keep: Callable[[Row], bool]) -> Rows:
        """Those rows for which `keep` holds."""
        return Rows(tuple(row for row in self.rows if keep(row)))

    @cached_property
    def entries(self) -> Vector:
        """How many entries each tensor has, (rows,)."""
        return self.numbers("rows") * self.numbers("cols")

    @cached_property
    def dimensions(self) -> Vector:
        """min(m, n) of each, (rows,)."""
        return np.minimum(self.numbers("rows"), self.numbers("cols"))
