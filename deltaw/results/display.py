"""A summary on a terminal and in a notebook: one line, or a small table. The sentences are the reports' to say."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deltaw.results.summary import Summary


def line(s: Summary) -> str:
    """`<deltaw.Summary: spread, 101 of 103 tensors changed, median relative change 1.32 %>`."""
    median = "" if math.isnan(s.change.median) else f", median relative change {_percent(s.change.median)}"
    return f"<deltaw.Summary: {s.verdict.value}, {s.changed:,} of {s.tensors:,} tensors changed{median}>"


def html(s: Summary) -> str:
    """The headline numbers as a table that needs no style sheet."""
    rows = [
        ("verdict", s.verdict.value.replace("_", " ")),
        ("compared", _percent(s.coverage.share)),
        ("matrices changed", f"{s.changed_matrices:,} of {s.matrices:,}"),
        ("relative change", _percent(s.change.median)),
        ("rank for 90 % of the energy", _number(s.rank.rank_90.median)),
        ("of noise", _number(s.rank.rank_90_null.median)),
        ("kept by rank 16", _percent(s.energy["energy_at_16"].median if "energy_at_16" in s.energy else math.nan)),
    ]
    cells = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows if value)
    return f"<table><tbody>{cells}</tbody></table>"


def _percent(x: float) -> str:
    return "" if math.isnan(x) else f"{100 * x:.3g} %"


def _number(x: float) -> str:
    return "" if math.isnan(x) else f"{x:,.4g}"
