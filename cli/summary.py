"""The summary on the terminal: how much changed, where most, how low-rank, what was skipped, where the report is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from deltaw.cli.inspect import skipped_lines
from deltaw.cli.options import console

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from deltaw.results.analysis import Analysis
    from deltaw.results.summary import Summary

KEPT = (8, 16, 64, 256)
MOST = 3


def show(analysis: Analysis, out: Path, *, report: bool) -> None:
    """Print the report's own sentences, a table by kind of module, and the tensors that changed most."""
    from rich.markup import escape

    from deltaw.reports.findings import answer
    from deltaw.reports.text import unmarked

    screen = console()
    for finding in answer(analysis.summary):
        screen.print(f"• {escape(unmarked(finding.text))}")
    summary = analysis.summary
    if summary.changed_matrices:
        screen.print(_by_kind(summary))
        _most_changed(screen, summary)
    for line in skipped_lines([s.__dict__ for s in analysis.skipped]):
        screen.print(escape(line), soft_wrap=True)
    for note in analysis.notes:
        screen.print(escape(f"note: {note}"), soft_wrap=True)
    where = out / "report.html" if report else out / "layers.csv"
    screen.print(
        f"\n{len(analysis.rows):,} rows in {analysis.seconds:.1f} s on {analysis.device}: {escape(str(where))}",
        soft_wrap=True,
    )


def _by_kind(summary: Summary) -> Table:
    """Medians over the matrices of a kind; of ranks over those that stand clear of rounding, as in the report."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("kind\n(medians)")
    heads = ("matrices", "relative\nchange", "above\nrounding", "rank for\n90 %", "(pure\nnoise)", "effective\nrank")
    for head in heads:
        table.add_column(head, justify="right")
    kept = [r for r in KEPT if summary.energy[f"energy_at_{r}"].median < 0.9995] or [KEPT[0]]
    for r in kept:
        table.add_column(f"kept by\nrank {r}", justify="right")
    for name, kind in summary.kinds.items():
        if not kind.matrices:
            continue
        table.add_row(
            name,
            f"{kind.matrices:,}",
            _percent(kind.relative_change),
            _whole(kind.signal_rank),
            _whole(kind.rank_90),
            _whole(kind.rank_90_null),
            _whole(kind.effective_rank),
            *(_percent(kind.energy[f"energy_at_{r}"]) for r in kept),
        )
    return table


def _most_changed(screen: Console, summary: Summary) -> None:
    from rich.markup import escape

    top = summary.most_changed_matrices[:MOST]
    if top:
        named = ", ".join(f"{escape(moved.key)} {_percent(moved.relative_change)}" for moved in top)
        screen.print(f"changed most: {named}", soft_wrap=True)


def _percent(x: float) -> str:
    return "" if math.isnan(x) else f"{100 * x:.3g} %"


def _whole(x: float) -> str:
    return "" if math.isnan(x) else f"{x:,.0f}"
