"""The report of one analysis: its figures, tables and sentences, in the order of a reader's questions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltaw.errors import OptionError
from deltaw.reports import (
    exports,
    figures,
    findings,
    heatmaps,
    offer,
    on_data,
    page,
    quantised,
    readings,
    remarks,
    svg,
    tables,
    text,
)
from deltaw.reports.embedded import MOST, embedded, sections, shown
from deltaw.reports.layers import Layers
from deltaw.reports.page import Picture
from deltaw.reports.plots import AnalysisPlots
from deltaw.reports.sides import names_of
from deltaw.reports.text import EMPTY, count, missing, number, short, visible
from deltaw.results.columns import AS_HEATMAPS, BY_KIND, ON_DATA, with_nulls
from deltaw.results.summary import Summary
from deltaw.results.verdict import RULES, Verdict

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
NOTHING = {  # why nothing is said of an adapter
    Verdict.DECAY_ONLY: "a uniform shrink of the base holds nothing that an adapter could learn",
    Verdict.UNRELATED: "the difference of two unrelated models is not what an adapter would learn",
}
QUANTISED = ("quantised", "What does the quantised storage add?")  # where a side is quantised
ALIGNED = ("aligned", "Does it keep the base's own directions?")  # with --alignment, before the table

ON_DATA_SECTION = ("on-data", "What does it do to the data?")  # with --activations, before the table


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
    offered = offer.offer(layers)
    drawn = pictures(plots, layers, summary)
    rows = shown(layers, (at for picture in drawn.values() for at in picture.rows))
    base, tuned = names_of(analysis.base, analysis.ft)
    context = {
        "title": f"{base} → {tuned}: {findings.word(summary.verdict)}",
        "contents": contents(analysis),
        "analysis": analysis,
        "base": base if analysis.base is not None and analysis.base.path else "",
        "ft": tuned,
        "summary": summary,
        "answer": findings.answer(summary, offered),
        "verdict": findings.word(summary.verdict),
        "verdict_rule": RULES[summary.verdict],
        "offer": offered,
        "nothing": NOTHING.get(summary.verdict, ""),
        "extract": offer.extract_command(analysis),
        "about": about(analysis),
        "hashes": exports.hashes(analysis),
        "bibtex": exports.BIBTEX,
        "five": findings.five(summary),
        "intruders": tables.intruders(analysis),
        "aligned": analysis.options.get("alignment", False),
        "concerns": remarks.concerns(summary),
        "decay": remarks.decay(summary.decay) if _may_tell_decay(summary) else None,
        "rules": RULES,
        "pictures": drawn,
        "kinds": tables.by_kind(layers, BY_KIND),
        "on_data": on_data.sentences(summary.on_data, on_data.names(analysis)),
        "on_data_table": tables.by_kind(layers, [c for c in ON_DATA if layers.frame[c].notna().any()]),
        "alignments": tables.by_kind(layers, with_nulls("alignment")),
        "needs": tables.needs(layers),
        "quantised": quantised.findings(summary),
        "formats": quantised.table(summary),
        "patterns": tables.patterns(layers),
        "skipped": tables.skipped(analysis),
        "printed": tables.printed(layers),
        "everything": tables.everything(rows),
        "left_out": len(layers.frame) - len(rows),
        "options": _options(analysis),
        "versions": dict(analysis.versions),
        "notes": [visible(n) for n in analysis.notes],
    }
    return page.render("analysis.html", context, embedded(layers, rows), scripts=("shell.js", "report.js"))


def about(analysis: Analysis) -> list[str]:
    """Size and date, for the line under the names."""
    summary, size = analysis.summary, analysis.ft.nbytes
    out = [f"{count(summary.parameters)} parameters"] if summary.parameters else []
    out += [text.size(size)] if size else []
    out += ["fast mode, estimates"] if analysis.options.get("mode") == "fast" else []
    return [*out, f"measured {analysis.date[:10]}"] if analysis.date else out


def _may_tell_decay(s: Summary) -> bool:
    return bool(s.has_base and s.changed) and s.verdict != Verdict.UNRELATED


def contents(analysis: Analysis) -> list[tuple[str, str]]:
    """The sections of this report: identifier and heading."""
    out = list(CONTENTS)
    if analysis.summary.quantised:
        out.insert(3, QUANTISED)
    if analysis.options.get("alignment"):
        out.insert(len(out) - 2, ALIGNED)
    if analysis.summary.on_data.matrices:
        out.insert(len(out) - 2, ON_DATA_SECTION)
    return out


def pictures(plots: AnalysisPlots, layers: Layers, summary: Summary) -> dict[str, Picture]:
    """Every figure of the report, by its identifier; those that do not apply say why."""
    out = {}
    for identifier, metric, vectors in AS_HEATMAPS:
        if identifier == "hero" and not layers.changed["relative_change"].notna().any():
            metric = "fro_norm"  # without a base there is no relative change; the size itself is known
        out[identifier] = _heatmap(layers, identifier, metric, vectors)
    out["experts"] = _experts(layers)
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
        reason = f"no changed {what} has a value of {metric}" if changed else f"no {what} changed"
        return Picture(f"f-{identifier}", title, None, reason=reason)
    reading = readings.extremes(layers, metric, vectors)
    figure = figures.of(heatmaps.draw(prepared))
    cells = _cells(layers, prepared)
    drawn = svg.inline(figure, identifier, title, page.plain_text(reading), cells.get)
    return Picture(f"f-{identifier}", title, drawn, reading, how, rows=_members(cells))


def _experts(layers: Layers) -> Picture:
    title, how = readings.TITLES["experts"]
    prepared = heatmaps.prepare_experts(layers)
    if prepared is None:
        return Picture("f-experts", title, None, reason="no matrix belongs to one of several experts")
    reading = readings.of_experts(layers)
    figure = figures.of(heatmaps.draw(prepared))
    # Cells lead to rows of the page; where it holds a part of the rows, they lead nowhere.
    cells = _cells(layers, prepared) if len(layers.frame) <= MOST else None
    drawn = svg.inline(figure, "experts", title, page.plain_text(reading), cells.get if cells else None)
    return Picture("f-experts", title, drawn, reading, how, rows=_members(cells or {}))


def _members(cells: Mapping[int, Mapping[str, str]]) -> tuple[int, ...]:
    """The rows that the cells of a heatmap lead to."""
    return tuple(int(cell["data-m"]) for cell in cells.values())


def _cells(layers: Layers, heatmap: heatmaps.Heatmap) -> dict[int, dict[str, str]]:
    """The link around each cell, by its number in reading order: to the matrix at the median of the cell."""
    frame = layers.frame
    out = {}
    for at, (row, column) in heatmaps.drawn_cells(heatmap.grid).items():
        members = heatmap.grid.members.get((row, column))
        if not members:
            continue
        value = heatmap.grid.values[row, column]
        known = frame.loc[members, heatmap.metric]
        chosen = members[0] if missing(value) else int((known - value).abs().idxmin())
        state = heatmap.state(row, column)
        shown = state if missing(value) else f"{heatmap.metric} {heatmaps.shown(heatmap.metric, value)}"
        more = f" (median of {len(members)})" if len(members) > 1 else ""
        text = f"{short(str(frame.at[chosen, 'key']), 80)}: {shown}{more}"
        out[at] = {
            **{"href": f"#row-{chosen}", "data-m": str(chosen), "data-r": str(row), "data-c": str(column)},
            **{"data-n": str(len(members)), "aria-label": text, "title": text},
        }
    return out


def _options(analysis: Analysis) -> list[tuple[str, str]]:
    out = []
    for key, value in analysis.options.items():
        if isinstance(value, (list, tuple)):
            value = ", ".join(str(v) for v in value) or EMPTY
        out.append((visible(key), number(value) if isinstance(value, float) else visible(value)))
    return out


__all__ = ["CONTENTS", "html", "pictures", "sections", "write_analysis"]
