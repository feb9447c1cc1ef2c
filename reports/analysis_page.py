"""The report of one analysis: its figures, tables and sentences, in the order of a reader's questions."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from deltaw.errors import OptionError
from deltaw.reports import adapter_ranks, figures, findings, heatmaps, page, readings, remarks, svg
from deltaw.reports.embedded import embedded, sections
from deltaw.reports.layers import HELPERS, Layers
from deltaw.reports.page import Column, Picture
from deltaw.reports.plots import AnalysisPlots
from deltaw.reports.text import EMPTY, missing, number, percent, short, visible, whole
from deltaw.results.analysis import is_whole
from deltaw.results.rows import is_hidden_by_noise
from deltaw.results.summary import Summary
from deltaw.results.verdict import RULES

if TYPE_CHECKING:
    from deltaw.results.analysis import Analysis

CONTENTS = (
    ("answer", "The answer"),
    ("changed", "What changed?"),
    ("real", "How much of it is real?"),
    ("rank", "How low-rank is it?"),
    ("adapter", "What does that mean for an adapter?"),
    ("wrong", "What looks wrong?"),
    ("layers", "Every matrix"),
    ("measured", "How was this measured?"),
)
GENERIC = re.compile(r"(model|pytorch_model|adapter_model|weights)\b.*\.\w+$")  # file names that say nothing
SUMMARY = (
    *("relative_change", "unchanged_fraction", "rank_90", "rank_90_null", "rank_90_ratio", "effective_rank"),
    *("signal_rank", "energy_at_16"),
)
ALIGNMENT = (
    *("intruders", "intruders_null", "amplification", "base_overlap_left", "base_overlap_left_null"),
    *("base_overlap_right", "base_overlap_right_null", "spectral_shift", "rotation"),
)
ALIGNED = ("aligned", "Does it keep the base's own directions?")  # with --alignment, before the table
PRINTED = 300  # rows of the table on paper; the files have all


def write_analysis(analysis: Analysis, path: Path) -> Path:
    """Write the report of an analysis: one HTML file that opens offline.

    Raises:
        ResultsError: The file cannot be written.
    """
    return page.write(Path(path), html(analysis))


def html(analysis: Analysis) -> str:
    """The report as a text."""
    plots = AnalysisPlots(analysis)
    layers = plots.layers
    summary = analysis.summary
    base, tuned = _origin(analysis.base, "no base"), _origin(analysis.ft, "in memory")
    context = {
        "title": f"{visible(tuned['name'])}: what fine-tuning changed",
        "contents": contents(analysis),
        "analysis": analysis,
        "base": base,
        "ft": tuned,
        "summary": summary,
        "answer": findings.answer(summary),
        "five": findings.five(summary),
        "sweep": _sweep(analysis),
        "aligned": analysis.options.get("alignment", False),
        "concerns": remarks.concerns(summary),
        "decay": remarks.decay(summary.decay) if summary.has_base and summary.changed else None,
        "rules": RULES,
        "pictures": pictures(plots, layers, summary),
        "kinds": _by_kind(layers, SUMMARY),
        "alignments": _by_kind(layers, ALIGNMENT),
        "needs": _needs(layers),
        "patterns": _patterns(layers),
        "skipped": _skipped(analysis),
        "printed": _printed(layers),
        "everything": _everything(layers),
        "options": _options(analysis),
        "versions": dict(analysis.versions),
        "notes": [visible(n) for n in analysis.notes],
    }
    return page.render("analysis.html", context, embedded(layers), scripts=("shell.js", "report.js"))


def contents(analysis: Analysis) -> list[tuple[str, str]]:
    """The sections of this report: identifier and heading."""
    out = list(CONTENTS)
    if analysis.options.get("alignment"):
        out.insert(6, ALIGNED)
    return out


def _origin(about: Mapping[str, Any], unnamed: str) -> dict[str, Any]:
    path = str(about.get("path", "") or "")
    parts = path.rstrip("/").split("/")
    if len(parts) > 1 and GENERIC.match(parts[-1]):
        parts = parts[:-1]
    return {**about, "path": path, "name": visible("/".join(parts[-2:])) or unnamed}


def pictures(plots: AnalysisPlots, layers: Layers, summary: Summary) -> dict[str, Picture]:
    """Every figure of the report, by its identifier; those that do not apply say why."""
    out = {}
    for identifier, metric, vectors in readings.HEATMAPS:
        if identifier == "hero" and not layers.changed["relative_change"].notna().any():
            metric = "fro_norm"  # without a base there is no relative change; the size itself is known
        out[identifier] = _heatmap(layers, identifier, metric, vectors)
    draws: dict[str, Callable[[], Any]] = {
        "change": plots.change,
        "precision": plots.precision,
        "shrinkage": plots.shrinkage,
        "spectra": plots.spectra,
        "energy": plots.energy,
        "kept": lambda: plots.kept(columns=2),
        "ranks": plots.ranks,
    }
    for identifier, draw in draws.items():
        out[identifier] = _picture(identifier, draw, layers, summary)
    return out


def _picture(identifier: str, draw: Callable[[], Any], layers: Layers, summary: Summary) -> Picture:
    title, how = readings.TITLES[identifier]
    try:
        axes = draw()
    except OptionError as e:
        return Picture(f"f-{identifier}", title, None, reason=str(e))
    reading = readings.reading(identifier, layers, summary)
    figure = figures.of(axes)
    return Picture(
        f"f-{identifier}", title, svg.inline(figure, identifier, title, page.plain_text(reading)), reading, how
    )


def _heatmap(layers: Layers, identifier: str, metric: str, vectors: bool) -> Picture:
    title, how = readings.TITLES[identifier]
    prepared = heatmaps.prepare(layers, metric, vectors)
    if prepared is None:
        what = "norm or bias" if vectors else "matrix"
        changed = (layers.vectors if vectors else layers.matrices)["changed"].any()
        reason = f"no changed {what} has a {metric}" if changed else f"no {what} changed"
        return Picture(f"f-{identifier}", title, None, reason=reason)
    reading = readings.extremes(layers, metric, vectors)
    figure = figures.of(heatmaps.draw(prepared))
    cells = _cells(layers, prepared)
    drawn = svg.inline(figure, identifier, title, page.plain_text(reading), cells.get)
    return Picture(f"f-{identifier}", title, drawn, reading, how, live=True)


def _cells(layers: Layers, heatmap: heatmaps.Heatmap) -> dict[int, dict[str, str]]:
    """The link around each cell, by its number in reading order: to the matrix at the median of the cell."""
    frame = layers.frame
    width = heatmap.grid.values.shape[1]
    out = {}
    for (row, column), members in heatmap.grid.members.items():
        value = heatmap.grid.values[row, column]
        known = frame.loc[members, heatmap.metric]
        chosen = members[0] if missing(value) else int((known - value).abs().idxmin())
        state = "hidden by rounding" if heatmap.hidden[row, column] else "unchanged"
        shown = state if missing(value) else f"{heatmap.metric} {heatmaps.shown(heatmap.metric, value)}"
        more = f" (median of {len(members)})" if len(members) > 1 else ""
        text = f"{short(str(frame.at[chosen, 'key']), 80)}: {shown}{more}"
        out[row * width + column] = {
            **{"href": f"#row-{chosen}", "data-m": str(chosen), "data-r": str(row), "data-c": str(column)},
            **{"data-n": str(len(members)), "aria-label": text, "title": text},
        }
    return out


def _by_kind(layers: Layers, metrics: tuple[str, ...]) -> tuple[list[Column], list[dict[str, str]]]:
    """Medians by module kind; of what rounding can hide, over the resolved matrices only."""
    columns = [
        Column("kind", "module kind", numeric=False),
        Column("count", "changed"),
        *(Column(m, heatmaps.metric_label(m), m) for m in metrics),
    ]
    rows = []
    for kind in layers.kinds:
        changed = layers.changed[layers.changed["kind"] == kind]
        clear = layers.clear[layers.clear["kind"] == kind]
        total = int((layers.matrices["kind"] == kind).sum())
        row = {"kind": kind, "count": f"{whole(len(changed))} of {whole(total)}"}
        for m in metrics:
            source = clear if is_hidden_by_noise(m) else changed
            row[m] = heatmaps.shown(m, source[m].median())
        rows.append(row)
    return columns, rows


def _needs(layers: Layers) -> tuple[list[Column], list[dict[str, str]]]:
    columns = [Column("module", "module", numeric=False), Column("count", "matrices"), Column("k", "k")]
    columns += [Column(str(q), f"{percent(q)}") for q in adapter_ranks.SHARES]
    columns += [Column("break_even", "break-even")]
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
            row[str(q)] = whole(median) if median == most else f"{whole(median)} (≤ {whole(most)})"
        rows.append(row)
    return columns, rows


def _patterns(layers: Layers) -> list[tuple[str, str, str, str]]:
    table = adapter_ranks.needs(layers)
    out = []
    for q in adapter_ranks.SHARES:
        pattern = adapter_ranks.rank_pattern(table, q)
        if pattern != "{}":
            share = percent(adapter_ranks.adapter_size(table, q), 2)
            out.append((f"{100 * q:.0f} %", f"pattern-{100 * q:.0f}", pattern, share))
    return out


def _skipped(analysis: Analysis) -> tuple[list[Column], list[dict[str, str]]]:
    columns = [
        Column("name", "tensor", numeric=False),
        Column("reason", "reason", numeric=False),
        Column("detail", "detail", numeric=False),
    ]
    return columns, [
        {"name": visible(s.name), "reason": visible(s.reason), "detail": visible(s.detail)} for s in analysis.skipped
    ]


def _printed(layers: Layers) -> tuple[list[Column], list[dict[str, str]], int]:
    """The table on paper: the columns that fit, the most changed rows first where not all fit."""
    metrics = ("relative_change", "rank_90", "rank_90_null", "signal_rank", "energy_at_16", "resolution")
    frame = layers.frame
    if len(frame) > PRINTED:
        frame = frame.loc[frame["relative_change"].fillna(0).nlargest(PRINTED).index].sort_index()
    columns = [
        Column("name", "tensor", numeric=False),
        Column("shape", "shape"),
        *(Column(m, m, numeric=m != "resolution") for m in metrics),
    ]
    rows = []
    for _, row in frame.iterrows():
        shape = f"{row['rows']} × {row['cols']}" if row["matrix"] else str(row["rows"])
        shown = {m: str(row[m]) if m == "resolution" else heatmaps.shown(m, row[m]) for m in metrics}
        rows.append({"name": short(row["key"], 70), "shape": shape, **shown})
    return columns, rows, len(layers.frame) - len(rows)


def _everything(layers: Layers) -> Markup:
    """All columns of all rows, for browsers without JavaScript (inside `noscript`)."""
    frame = layers.frame
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


def _sweep(analysis: Analysis) -> tuple[list[Column], list[dict[str, str]]]:
    """Intruder dimensions over all matrices by k (rows) and ε (columns), with what random directions would give."""
    records = analysis.extra.get("intruder_sweep", ())
    epsilons = sorted({float(r["epsilon"]) for r in records})
    columns = [Column("k", "top k", numeric=False), *(Column(str(e), f"ε = {e:g}") for e in epsilons)]
    rows = []
    for k in sorted({int(r["k"]) for r in records}):
        row = {"k": str(k)}
        for e in epsilons:
            cell = [r for r in records if int(r["k"]) == k and float(r["epsilon"]) == e]
            found, null = (sum(float(r[name]) for r in cell) for name in ("intruders", "intruders_null"))
            row[str(e)] = f"{whole(found)} ({whole(null)})" if cell else EMPTY
        rows.append(row)
    return columns, rows


def _options(analysis: Analysis) -> list[tuple[str, str]]:
    out = []
    for key, value in analysis.options.items():
        if isinstance(value, (list, tuple)):
            value = ", ".join(str(v) for v in value) or EMPTY
        out.append(
            (visible(key), EMPTY if value is None else number(value) if isinstance(value, float) else visible(value))
        )
    return out


__all__ = ["CONTENTS", "html", "pictures", "sections", "write_analysis"]
