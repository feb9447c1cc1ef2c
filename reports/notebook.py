"""What a terminal and a notebook show of a result: one line, or a few sentences, a table and a heatmap.

The HTML stands in a page that is not ours: no script, no style sheet, no id that a second result would repeat, and
its own light background, because nobody says whether the page is dark.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from deltaw.reports.sides import names_of
from deltaw.reports.text import NARROW, percent, plural, short, unmarked, visible, whole
from deltaw.results.columns import BY_KIND

if TYPE_CHECKING:
    from deltaw.comparison import Comparison
    from deltaw.measurement.inspection import Inspection
    from deltaw.reports.page import TableColumn
    from deltaw.results.analysis import Analysis
    from deltaw.results.sources import Source
    from deltaw.surveys import Survey

LONGEST = 200  # characters of a repr
NAME = 40  # … of a name in it
ROWS = 12  # of a table in a notebook
FRAME = "font-family:system-ui,sans-serif;color:#1c2128;background:#fff;padding:.8em 1em;border:1px solid #d8dee4;"
FRAME += "border-radius:8px;max-width:62em"
PAD = "padding:.15em .9em .15em 0"
_numbers = count(1)


def line(kind: str, parts: Iterable[str]) -> str:
    """The repr of a result: one line, never longer than `LONGEST`."""
    text = f"<deltaw.{kind}: {', '.join(p for p in parts if p)}>"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 2]}…>"


def analysis_line(analysis: Analysis) -> str:
    """`<deltaw.Analysis: base → tuned, 101 of 103 tensors changed, median relative change 1.32 %>`."""
    summary = analysis.summary
    change = percent(summary.change.median)
    return line(
        "Analysis",
        (
            _sides(analysis.base, analysis.ft),
            f"{whole(summary.changed)} of {plural(summary.tensors, 'tensor')} changed",
            f"median relative change {change}" if change[0].isdigit() else "",
            plural(summary.failed, "tensor") + " failed" if summary.failed else "",
        ),
    ).replace(NARROW, " ")


def _sides(base: Source | None, ft: Source) -> str:
    """`base → tuned`."""
    names = names_of(base, ft)
    return " → ".join(short(name, NAME) for name in names[0 if base else 1 :])


def inspection_line(found: Inspection) -> str:
    """`<deltaw.Inspection: base → tuned, 101 to measure, 3 skipped>`."""
    return line(
        "Inspection",
        (
            _sides(found.base, found.ft),
            f"{whole(len(found.plan.pairs))} to measure",
            f"{whole(len(found.plan.skipped))} skipped",
        ),
    ).replace(NARROW, " ")


def comparison_line(comparison: Comparison) -> str:
    """`<deltaw.Comparison: Code, 8 runs in 3 groups, reference full>`."""
    groups = f"{plural(len(comparison.runs_.items), 'run')} in {plural(len(comparison.groups), 'group')}"
    title = short(comparison.title, NAME) if comparison.title else ""
    return line("Comparison", (title, groups, f"reference {short(comparison.reference, NAME)}")).replace(NARROW, " ")


def survey_line(survey: Survey) -> str:
    """`<deltaw.Survey: 312 adapters of base, 14 clusters, 12 flagged>`."""
    from deltaw.reports.survey_findings import sizes_of_clusters

    frame = survey.adapters()
    base = f" of {short(survey.about.base, NAME)}" if survey.about.base else ""
    groups = int((sizes_of_clusters(frame) > 1).sum())
    flagged = int((frame["flags"] != "").sum())
    parts = (f"{plural(len(frame), 'adapter')}{base}", plural(groups, "cluster"), f"{whole(flagged)} flagged")
    return line("Survey", parts).replace(NARROW, " ")


def analysis_html(analysis: Analysis) -> str:
    """The sentences, the medians by kind of module, and the heatmap."""
    from deltaw.reports import figures, heatmaps, page, svg, tables
    from deltaw.reports.findings import answer
    from deltaw.reports.layers import Layers
    from deltaw.reports.offer import offer

    layers = Layers(analysis)
    sentences = answer(analysis.summary, offer(layers))
    body = [Markup("<p>{}</p>").format(page.prose(f.text)) for f in sentences]
    columns, rows = tables.by_kind(layers, BY_KIND)
    if rows:
        body.append(table(columns, rows))
    metric = "relative_change" if layers.changed["relative_change"].notna().any() else "fro_norm"
    prepared = heatmaps.prepare(layers, metric)
    if prepared is not None:
        drawn = figures.of(heatmaps.draw(prepared))
        title = f"{heatmaps.metric_label(metric)} by layer and module"
        body.append(svg.inline(drawn, f"deltaw-{next(_numbers)}", title, unmarked(sentences[0].text)))
    return framed(_sides(analysis.base, analysis.ft), body)


def inspection_html(found: Inspection) -> str:
    """What would be compared, by module, and what would not."""
    from deltaw.reports.grouping import grouped
    from deltaw.reports.reasons import why

    rows = [(g.title, g.shape, g.dtypes, g.kind, g.route) for g in grouped(found.rows)]
    body = [simple_table(("tensors", "rows × cols", "stored as", "kind", "route"), rows)]
    if skipped := found.plan.skipped:
        body.append(Markup("<p>Skipped:</p>"))
        body.append(simple_table(("tensor", "reason"), [[visible(s.name), why(s)] for s in skipped]))
    return framed(inspection_line(found)[1:-1].removeprefix("deltaw.Inspection: "), body)


def comparison_html(comparison: Comparison) -> str:
    """The runs and what they say of the claims."""
    runs = comparison.runs()
    shown = [c for c in ("run", "group", "method", "seed", "learning", "retention") if c in runs.columns]
    claims = comparison.claims()
    told = claims[claims["basis"] != ""]
    body = [simple_table(shown, [[_text(v) for v in row] for row in runs[shown].itertuples(index=False)])]
    if len(told):
        columns = ["verdict", "text", "about"]
        body.append(simple_table(columns, [[_text(v) for v in row] for row in told[columns].itertuples(index=False)]))
    return framed(comparison_line(comparison)[1:-1].removeprefix("deltaw.Comparison: "), body)


def framed(title: str, body: Sequence[Markup]) -> str:
    """The pieces of a result in one box."""
    head = Markup('<p style="margin-top:0"><strong>deltaw</strong> {}</p>').format(visible(title))
    box = Markup('<div style="{}">{}{}</div>').format(FRAME, head, Markup("").join(body))
    return str(box)  # a plain text: joined to a text that is HTML already, markup would escape that


def table(columns: Sequence[TableColumn], rows: Sequence[Mapping[str, str]]) -> Markup:
    """A table of the report in a notebook."""
    return simple_table([c.title for c in columns], [[row[c.key] for c in columns] for row in rows])


def simple_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    """A table of texts; beyond `ROWS` rows it says how many there are."""
    head = Markup("").join(Markup('<th style="text-align:left;{}">{}</th>').format(PAD, h) for h in heads)
    lines = [Markup("<tr>{}</tr>").format(Markup("").join(_cell(c) for c in row)) for row in rows[:ROWS]]
    more = len(rows) - ROWS
    after = Markup("<p>… and {} more.</p>").format(whole(more)) if more > 0 else Markup("")
    start = Markup("<table><thead><tr>{}</tr></thead><tbody>").format(head)
    return start + Markup("").join(lines) + Markup("</tbody></table>") + after


def _cell(text: str) -> Markup:
    return Markup('<td style="text-align:left;{}">{}</td>').format(PAD, escape(text))


def _text(value: Any) -> str:
    import pandas as pd

    from deltaw.reports.text import number

    if isinstance(value, str):
        return visible(value)
    return "" if pd.isna(value) else number(value)
