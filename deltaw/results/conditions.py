"""What a pipeline must not let through: `--fail-if "relative_change.max > 0.5"`.

A condition is `COLUMN.{max,min,mean,median} OP NUMBER` over the rows that have a value, `resolution.WORD OP NUMBER`,
which counts rows, or `compared OP NUMBER`, the coverage. Names are checked before anything is measured.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deltaw.errors import OptionError, near
from deltaw.results.columns import columns, is_text
from deltaw.types import matrix_label

if TYPE_CHECKING:
    from deltaw.results.analysis import Analysis

RESOLUTIONS = ("resolved", "noisy", "below_precision")
AGGREGATES: dict[str, Callable[[NDArray[np.float64]], float]] = {
    "max": lambda v: float(v.max()),
    "min": lambda v: float(v.min()),
    "mean": lambda v: float(v.mean()),
    "median": lambda v: float(np.median(v)),
}
OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}
FORM = re.compile(r"\s*(?P<name>\w+)(?:\.(?P<how>\w+))?\s*(?P<op><=|>=|==|!=|<|>)\s*(?P<limit>\S+)\s*")
EXPECTED = "COLUMN.max, .min, .mean or .median, resolution.WORD or compared; then < <= > >= == or !=; then a number"


@dataclass(frozen=True)
class Outcome:
    """A condition, what it looked at, and whether it holds.

    Attributes:
        condition: The condition.
        value: The number that was compared; NaN where no row has one, and then nothing holds.
        name: The tensor that the number comes from, for `max` and `min`; else empty.
        holds: Whether the condition holds.
    """

    condition: Condition
    value: float
    name: str
    holds: bool


@dataclass(frozen=True)
class Condition:
    """A condition, parsed.

    Attributes:
        text: As it was written.
        column: A column of `layers`; `resolution` or `compared`.
        how: An aggregate, or a word of `resolution`; empty for `compared`.
        op: One of `OPERATORS`.
        limit: The number on the right.
    """

    text: str
    column: str
    how: str
    op: str
    limit: float

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read a condition.

        Raises:
            OptionError: It is malformed, or names what there is not.
        """
        found = FORM.fullmatch(text)
        limit = _number(found["limit"]) if found else math.nan
        if found is None or not math.isfinite(limit):
            raise OptionError(f"condition {text!r} cannot be read; expected {EXPECTED}")
        column, how = found["name"], found["how"] or ""
        _check(text, column, how)
        return cls(text.strip(), column, how, found["op"], limit)

    def check(self, analysis: Analysis) -> Outcome:
        """Whether it holds of an analysis. What no row has holds of nothing, `!=` included."""
        value, name = self._value(analysis)
        return Outcome(self, value, name, not math.isnan(value) and OPERATORS[self.op](value, self.limit))

    def _value(self, analysis: Analysis) -> tuple[float, str]:
        if self.column == "compared":
            return float(analysis.summary.coverage.share), ""
        frame = analysis.to_pandas()
        if self.column == "resolution":
            return float((frame["resolution"] == self.how).sum()), ""
        if self.column not in frame:
            return math.nan, ""
        known = frame[frame[self.column].notna()]
        if not len(known):
            return math.nan, ""
        values = known[self.column].to_numpy(dtype=np.float64)
        value = AGGREGATES[self.how](values)
        if self.how not in {"max", "min"}:
            return value, ""
        row = known.iloc[int(np.flatnonzero(values == value)[0])]
        return value, matrix_label(str(row["name"]), str(row["part"] or ""))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _check(text: str, column: str, how: str) -> None:
    """Refuse what there is not.

    Raises:
        OptionError: A name is unknown, or does not go with the other.
    """
    if column == "compared":
        if how:
            raise OptionError(f"condition {text!r}: `compared` is one number; expected `compared < 0.99` or the like")
        return
    if column == "resolution":
        if how not in RESOLUTIONS:
            raise OptionError(f"condition {text!r}: expected resolution.{', resolution.'.join(RESOLUTIONS)}")
        return
    known = [name for name in columns() if not is_text(name)]
    if column not in known and re.sub(r"_(low|high)$", "", column) not in known:
        if is_text(column):
            raise OptionError(f"condition {text!r}: {column} is a text; expected a column of numbers")
        raise OptionError(f"condition {text!r}: there is no column {column!r}.{near(column, known)}")
    if how not in AGGREGATES:
        found = f".{how}" if how else "nothing behind the column"
        raise OptionError(f"condition {text!r}: {found}; expected {column}.max, .min, .mean or .median")
