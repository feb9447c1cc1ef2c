"""The rows of an analysis, read one cell at a time: a row maps a column to its value, and may lack it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from deltaw.results.columns import is_hidden_by_noise
from deltaw.types import Row, Vector

CLEAR = ("", "resolved")  # resolutions that permit a claim on rank


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
    """Whether a row stands clear of rounding, so that its ranks may be quoted."""
    return text(row, "resolution") in CLEAR


def quoted(row: Row, column: str) -> float:
    """The value of a column as it may be quoted: NaN where the rounding of the storage hides it."""
    return math.nan if is_hidden_by_noise(column) and not is_clear(row) else number(row, column)


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
