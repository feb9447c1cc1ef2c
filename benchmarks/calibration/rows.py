"""One line of a table of calibration, and the intervals of what was counted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Line(Protocol):
    """What every table of calibration consists of, from whatever module."""

    @property
    def name(self) -> str:
        """What was tried."""

    @property
    def nominal(self) -> str:
        """What was promised, in words or as a bound; `published` where nothing was."""

    @property
    def measured(self) -> float:
        """What was found."""

    @property
    def n(self) -> int:
        """How many trials it rests on."""


class Row(NamedTuple):
    """A line of a table."""

    name: str
    nominal: str
    measured: float
    n: int


def rate(name: str, nominal: str, found: int, n: int) -> Row:
    """How often something happened."""
    return Row(name, nominal, found / n if n else math.nan, n)


def markdown(rows: Sequence[Line]) -> str:
    """The rows as a Markdown table."""
    lines = ["| case | nominal | measured | trials |", "|---|---|---:|---:|"]
    return "\n".join([*lines, *(f"| {r.name} | {r.nominal} | {r.measured:.3g} | {r.n:,} |" for r in rows)])
