"""The sentences on data: what the update does to the inputs of one data set, or of two."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deltaw.reports.findings import Finding
from deltaw.reports.text import code, listed, number, percent, plural, strong
from deltaw.results.on_data import LOUD, QUIET, Met, OnDataSummary

if TYPE_CHECKING:
    from deltaw.results.analysis import Analysis

AIMED = 1.1  # selectivity, either way, from which a sentence says that an update is aimed
RULE = "Medians over the changed matrices whose inputs are in the files; relative_change and its columns on data."


def names(analysis: Analysis) -> tuple[str, ...]:
    """What the files of the data sets are called."""
    found = analysis.options.get("activations", ())
    return tuple(Path(str(f)).stem for f in found) if isinstance(found, (list, tuple)) else ()


def sentences(s: OnDataSummary, files: Sequence[str]) -> list[Finding]:
    """What the update does on data, in a few sentences; none where no inputs are known.

    Args:
        s: The summary.
        files: What the data sets are called, the first one first.
    """
    if not s.matrices:
        return []
    first = code(files[0]) if files else "the data"
    found = [
        Finding(
            f"On the inputs of {first} the update changes the outputs of the typical matrix by "
            f"{strong(percent(s.on_data.median))}; by size alone it would be {percent(s.relative_change.median)}.",
            RULE,
        )
    ]
    if s.selectivity.n:
        found.append(_aimed(s, first, code(files[1]) if len(files) > 1 else "the source"))
    if s.quiet:
        found.append(_unlike(s.quiet, s.quietest, f"quiet on {first}", f"relative_change_on_data ≤ {QUIET:g}"))
    if s.loud:
        found.append(_unlike(s.loud, s.loudest, f"loud on {first}", f"relative_change_on_data ≥ {LOUD:g}"))
    return found


def _aimed(s: OnDataSummary, first: str, second: str) -> Finding:
    rule = f"The median selectivity; aimed from {AIMED:g} on, or 1/{AIMED:g}."
    by = s.selectivity.median
    times = strong(f"{number(by, 3)} times")
    spread = ""
    if s.selectivity.n > 1 and s.most_selective != s.least_selective:
        low, high = number(s.selectivity.low, 3), number(s.selectivity.high, 3)
        spread = f" ({low} in {code(s.least_selective)} to {high} in {code(s.most_selective)})"
    if 1 / AIMED < by < AIMED:
        return Finding(
            f"It is aimed at neither: the typical matrix acts {times} as much on {first} as on {second}{spread}.", rule
        )
    aimed = first if by > 1 else second
    return Finding(
        f"It is aimed at {aimed}: the typical matrix acts {times} as much on {first} as on {second}{spread}.", rule
    )


def _unlike(count: int, some: Sequence[Met], what: str, rule: str) -> Finding:
    named = listed(f"{code(m.key)} ({percent(m.on_data)}, by size {percent(m.relative_change)})" for m in some)
    more = "; furthest " if count > len(some) else ": "
    return Finding(f"{plural(count, 'matrix is', 'matrices are')} {what}{more}{named}.", f"{rule} · relative_change.")
