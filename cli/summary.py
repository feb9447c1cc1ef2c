"""The summary on the terminal: how much changed, where most, how low-rank, what was skipped, where the report is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltaw.cli.inspect import skipped_lines
from deltaw.cli.options import console

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console
    from rich.table import Table

    from deltaw.results.analysis import Analysis

KEPT = (8, 16, 64, 256)
MOST = 3


def show(analysis: Analysis, out: Path, *, report: bool) -> None:
    """Print the report's own sentences, a table by kind of module, and the tensors that changed most."""
    from rich.markup import escape

    from deltaw.reports.facts import gather
    from deltaw.reports.findings import answer
    from deltaw.reports.layers import Layers
    from deltaw.reports.text import unmarked

    screen = console()
    frame = analysis.to_pandas()
    for finding in answer(gather(Layers(analysis))):
        screen.print(f"• {escape(unmarked(finding.text))}")
    matrices = frame[frame["rank_90"].notna() & (frame["route"] != "unchanged")]
    if len(matrices):
        screen.print(_by_kind(matrices))
        _most_changed(screen, matrices)
    for line in skipped_lines([s.__dict__ for s in analysis.skipped]):
        screen.print(escape(line), soft_wrap=True)
    for note in analysis.notes:
        screen.print(escape(f"note: {note}"), soft_wrap=True)
    where = out / "report.html" if report else out / "layers.csv"
    screen.print(
        f"\n{len(frame):,} rows in {analysis.seconds:.1f} s on {analysis.device}: {escape(str(where))}", soft_wrap=True
    )


def _by_kind(matrices: pd.DataFrame) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("kind\n(medians)")
    for head in (
        "matrices",
        "relative\nchange",
        "above\nrounding",
        "rank for\n90 %",
        "(pure\nnoise)",
        "effective\nrank",
    ):
        table.add_column(head, justify="right")
    kept = [r for r in KEPT if matrices[f"energy_at_{r}"].median() < 0.9995] or [KEPT[0]]
    for r in kept:
        table.add_column(f"kept by\nrank {r}", justify="right")
    for kind, rows in matrices.groupby("kind", sort=False):
        middle = rows.select_dtypes("number").median()
        table.add_row(
            str(kind),
            f"{len(rows):,}",
            _percent(middle["relative_change"]),
            _whole(middle["signal_rank"]),
            _whole(middle["rank_90"]),
            _whole(middle["rank_90_null"]),
            _whole(middle["effective_rank"]),
            *(_percent(middle[f"energy_at_{r}"]) for r in kept),
        )
    return table


def _most_changed(screen: Console, matrices: pd.DataFrame) -> None:
    from rich.markup import escape

    by = "relative_change" if matrices["relative_change"].notna().any() else "fro_norm"
    top = matrices.sort_values(by, ascending=False).head(MOST)
    show_value = _percent if by == "relative_change" else (lambda x: f"{x:.3g}")
    screen.print(
        "changed most: " + ", ".join(f"{escape(_key(r))} {show_value(r[by])}" for _, r in top.iterrows()),
        soft_wrap=True,
    )


def _key(row: Any) -> str:
    return f"{row['name']}[{row['part']}]" if row["part"] else str(row["name"])


def _percent(x: float) -> str:
    return "" if math.isnan(x) else f"{100 * x:.3g} %"


def _whole(x: float) -> str:
    return "" if math.isnan(x) else f"{x:,.0f}"
