"""The tables of an analysis as texts: by kind of module, adapter ranks, what was skipped, every row on paper."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from deltaw.reports import adapter_ranks, heatmaps
from deltaw.reports.layers import HELPERS, Layers
from deltaw.reports.page import TableColumn
from deltaw.reports.reasons import why
from deltaw.reports.text import EMPTY, missing, percent, short, visible, whole
from deltaw.results.columns import ON_PAPER, is_text, is_whole
from deltaw.results.verdict import OUTSIDE

if TYPE_CHECKING:
    import pandas as pd

    from deltaw.results.analysis import Analysis

LISTED = 6  # matrices of a kind and of unlike shapes (embeddings) that have a line each
PRINTED = 300  # rows of the table on paper; the files have all

Rows = list[dict[str, str]]


def by_kind(layers: Layers, metrics: Iterable[str]) -> tuple[list[TableColumn], Rows]:
    """Medians by module kind, each column as it may be quoted; embeddings of unlike shapes are listed instead."""
    metrics = [m for m in metrics if m in layers.frame]
    columns = [
        TableColumn("kind", "module kind", numeric=False),
        TableColumn("count", "changed"),
        *(TableColumn(m, heatmaps.metric_label(m), m) for m in metrics),
    ]
    rows = []
    for kind in layers.kinds:
        changed = layers.changed[layers.changed["kind"] == kind]
        total = int((layers.matrices["kind"] == kind).sum())
        shapes = set(zip(changed["rows"], changed["cols"], strict=True))
        alike = kind not in OUTSIDE or len(changed) > LISTED or len(shapes) == 1
        groups = (
            {kind: changed} if alike else {short(str(s), 60): rows for s, rows in changed.groupby("slot", sort=False)}
        )
        for name, members in groups.items():
            of = f" of {whole(total)}" if alike else ""
            row = {"kind": name, "count": f"{whole(len(members))}{of}"}
            for m in metrics:
                row[m] = heatmaps.shown(m, layers.said(m).reindex(members.index).median())
            rows.append(row)
    return columns, rows


def needs(layers: Layers) -> tuple[list[TableColumn], Rows]:
    """The rank that keeps a share of the energy above rounding, by module."""
    columns = [TableColumn("module", "module", numeric=False), TableColumn("count", "matrices"), TableColumn("k", "k")]
    columns += [TableColumn(str(q), f"{percent(q)}") for q in adapter_ranks.SHARES]
    columns += [TableColumn("break_even", "break-even")]
    rows = []
    for need in adapter_ranks.needs(layers):
        hidden = f" (+{need.hidden} hidden)" if need.hidden else ""
        row = {
            "module": short(need.module, 60),
            "count": f"{whole(need.count)}{hidden}",
            "k": whole(min(need.rows, need.cols)),
            "break_even": whole(need.rows * need.cols // max(need.rows + need.cols, 1)),
        }
        for q in adapter_ranks.SHARES:
            median, most = need.median[q], need.most[q]
            one = missing(median) or median == most
            row[str(q)] = whole(median) if one else f"{whole(median)} (≤ {whole(most)})"
        rows.append(row)
    return columns, rows


def patterns(layers: Layers) -> list[tuple[str, str, str, str]]:
    """PEFT's `rank_pattern` by the share of the energy that it keeps: label, identifier, pattern, size."""
    table = adapter_ranks.needs(layers)
    out = []
    for q in adapter_ranks.SHARES:
        pattern = adapter_ranks.rank_pattern(table, q)
        if pattern != "{}":
            share = percent(adapter_ranks.adapter_size(table, q), 2)
            out.append((f"{100 * q:.0f} %", f"pattern-{100 * q:.0f}", pattern, share))
    return out


def skipped(analysis: Analysis) -> tuple[list[TableColumn], Rows]:
    """The tensors without a row, and why."""
    columns = [
        TableColumn("name", "tensor", numeric=False),
        TableColumn("reason", "reason", numeric=False),
        TableColumn("detail", "detail", numeric=False),
    ]
    return columns, [{"name": visible(s.name), "reason": why(s), "detail": visible(s.detail)} for s in analysis.skipped]


def printed(layers: Layers) -> tuple[list[TableColumn], Rows, int]:
    """The table on paper: the columns that fit, the most changed rows where not all fit; how many are left out."""
    frame = layers.frame
    if len(frame) > PRINTED:
        frame = frame.loc[frame["relative_change"].fillna(0).nlargest(PRINTED).index].sort_index()
    columns = [
        TableColumn("name", "tensor", numeric=False),
        TableColumn("shape", "shape"),
        *(TableColumn(m, m, numeric=not is_text(m)) for m in ON_PAPER),
    ]
    rows = []
    for _, row in frame.iterrows():
        shape = f"{row['rows']} × {row['cols']}" if row["matrix"] else str(row["rows"])
        shown = {m: str(row[m]) if is_text(m) else heatmaps.shown(m, row[m]) for m in ON_PAPER}
        rows.append({"name": short(row["key"], 70), "shape": shape, **shown})
    return columns, rows, len(layers.frame) - len(rows)


def everything(frame: pd.DataFrame) -> Markup:
    """All columns of some rows, for browsers without JavaScript (inside `noscript`)."""
    columns = [str(c) for c in frame.columns if c not in HELPERS]
    head = "".join(f'<th scope="col">{escape(c)}</th>' for c in columns)
    texts = [[_cell(v, is_whole(c)) for v in frame[c].tolist()] for c in columns]
    body = "\n".join(
        f'<tr id="row-{i}">{"".join(cells)}</tr>'
        for i, cells in zip(frame.index, zip(*texts, strict=True), strict=True)
    )
    return Markup(f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>")


def _cell(value: Any, is_count: bool) -> str:
    if isinstance(value, str):
        return f"<td><bdi>{escape(visible(value))}</bdi></td>"
    if missing(value):
        return "<td></td>"
    return f"<td>{int(value) if is_count or isinstance(value, int) else f'{value:.6g}'}</td>"


def intruders(analysis: Analysis) -> tuple[list[TableColumn], Rows]:
    """Intruder dimensions over all matrices by k (rows) and ε (columns), with what random directions would give."""
    epsilons = sorted({count.epsilon for count in analysis.intruders})
    columns = [TableColumn("k", "top k", numeric=False), *(TableColumn(str(e), f"ε = {e:g}") for e in epsilons)]
    rows = []
    for k in sorted({count.k for count in analysis.intruders}):
        row = {"k": str(k)}
        for e in epsilons:
            cell = [count for count in analysis.intruders if (count.k, count.epsilon) == (k, e)]
            found, null = sum(count.intruders for count in cell), sum(count.intruders_null for count in cell)
            row[str(e)] = f"{whole(found)} ({whole(null)})" if cell else EMPTY
        rows.append(row)
    return columns, rows
