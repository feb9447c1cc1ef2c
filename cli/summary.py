"""The summary on the terminal: how much changed, where most, how low-rank, what was skipped, where the report is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deltaw.cli.inspect import coverage_line, skipped_lines
from deltaw.cli.screen import bullet, console, file_link
from deltaw.types import counted

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from deltaw.results.analysis import Analysis
    from deltaw.results.summary import Summary

KEPT = (16, 64, 256)
MOST = 3


def show(analysis: Analysis, out: Path, *, report: bool) -> None:
    """Print the report's own sentences, a table by kind of module, and the tensors that changed most."""
    from rich.markup import escape
    from rich.text import Text

    from deltaw.reports import on_data
    from deltaw.reports.findings import answer
    from deltaw.reports.layers import Layers
    from deltaw.reports.offer import offer

    screen = console()
    said = on_data.sentences(analysis.summary.on_data, on_data.names(analysis))
    for finding in [*answer(analysis.summary, offer(Layers(analysis))), *said]:
        bullet(screen, finding.text)
    summary = analysis.summary
    if summary.changed_matrices:
        screen.print(_by_kind(summary, screen.width))
        _most_changed(screen, summary)
    screen.print(coverage_line(summary.coverage))
    for line in skipped_lines(analysis.skipped):
        screen.print(escape(line), soft_wrap=True)
    for note in analysis.notes:
        screen.print(escape(f"note: {note}"), soft_wrap=True)
    where = out / "report.html" if report else out / "layers.csv"
    took = f"\n{counted(len(analysis.rows), 'row')} in {analysis.seconds:.1f} s on {analysis.device}: "
    screen.print(Text.assemble(took, file_link(where)), soft_wrap=True)


def _by_kind(summary: Summary, width: int) -> Table:
    """Medians over the matrices of a kind, in as many columns as fit; of ranks with the rounding taken out."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    heads, rows = cells(summary)
    kept = fitting(heads, rows, width)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for i in kept:
        table.add_column(heads[i], justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(row[i] for i in kept))
    return table


def cells(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """The headings and rows of the table by kind, the most telling columns first."""
    ranks = [r for r in KEPT if summary.energy[f"energy_at_{r}"].median < 0.9995] or [KEPT[0]]
    heads = ["kind\n(medians)", "matrices", "relative\nchange", "rank for\n90 %", "(pure\nnoise)"]
    heads += [*(f"kept by\nrank {r}" for r in ranks), "effective\nrank", "above\nrounding"]
    rows = []
    for name, kind in summary.kinds.items():
        if kind.matrices:
            rank = _ranged(kind.rank_90, kind.rank_90_low, kind.rank_90_high)
            numbers = [_percent(kind.relative_change), rank, _count(kind.rank_90_null)]
            numbers += [_percent(kind.energy[f"energy_at_{r}"]) for r in ranks]
            numbers += [_count(kind.effective_rank), _count(kind.signal_rank)]
            rows.append([name, f"{kind.matrices:,}", *numbers])
    return heads, rows


def fitting(heads: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[int]:
    """The columns that fit side by side: the last ones are left out first."""
    left, kept = width - 2, list[int]()  # the frame's own margins
    for i, head in enumerate(heads):
        left -= max(map(len, (*head.split("\n"), *(row[i] for row in rows)))) + 3 * bool(kept)
        if left < 0:
            break
        kept.append(i)
    return kept


def _most_changed(screen: Console, summary: Summary) -> None:
    from rich.markup import escape

    top = summary.most_changed_matrices[:MOST]
    if top:
        named = ", ".join(f"{escape(moved.key)} {_percent(moved.relative_change)}" for moved in top)
        screen.print(f"changed most: {named}", soft_wrap=True)


def _percent(x: float) -> str:
    from deltaw.reports.text import NARROW, percent

    return "" if math.isnan(x) else percent(x).replace(NARROW, " ")


def _ranged(x: float, low: float, high: float) -> str:
    """A count, with its interval where that leaves more than the next one open."""
    return f"{_count(x)} ({_count(low)}–{_count(high)})" if high - low > 1 else _count(x)


def _count(x: float) -> str:
    """A median of counts: that of an even number of them may be half of one."""
    from deltaw.reports.text import NARROW, number

    return "" if math.isnan(x) else number(x).replace(NARROW, " ")
