"""An analysis to put into a paper, an issue or a model card: Markdown, LaTeX, a card, and how to cite it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deltaw.documents import shown
from deltaw.reports import tables
from deltaw.reports.findings import answer, word
from deltaw.reports.layers import Layers
from deltaw.reports.offer import offer
from deltaw.reports.page import TableColumn
from deltaw.reports.sides import name_of, names_of
from deltaw.reports.text import CODE, STRONG, missing, visible
from deltaw.results.columns import BY_KIND
from deltaw.types import Cell

if TYPE_CHECKING:
    from deltaw.results.analysis import Analysis
    from deltaw.results.sources import Source

BIBTEX = """@software{deltaw,
  title = {deltaw: what fine-tuning did to the weights},
  author = {{The deltaw developers}},
  license = {Apache-2.0}
}"""
FIGURE = "figures/relative_change.png"  # of a card: beside it, as it lies beside the analysis
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
LATEX = {
    **{c: rf"\{c}" for c in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"σ": r"$\sigma$", "Δ": r"$\Delta$", "‖": r"$\|$", "−": "--", "–": "--", "·": r"$\cdot$", "≤": r"$\le$"},
    **{"→": r"$\to$", "\u202f": r"\,", "\u00a0": "~", ">": r"$>$", "<": r"$<$", "…": r"\dots{}"},
    **{s: f"$^{{{d}}}$" for d, s in zip("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹", strict=True)},
}
MARKDOWN = re.compile(r"([\\`*_{}\[\]<>()#+!|])")


def markdown(analysis: Analysis) -> str:
    """The sentences and the table by kind of module, for an issue or a README."""
    layers = Layers(analysis)
    title = f"{markdown_text(_names(analysis))}: {word(analysis.summary.verdict)}"
    return "\n\n".join([f"## {title}", *_sentences(layers), *_markdown_table(layers), _footer(analysis)]) + "\n"


def latex(analysis: Analysis) -> str:
    """The table by kind of module, for a paper: needs the package booktabs."""
    columns, rows = tables.by_kind(Layers(analysis), BY_KIND)
    caption = f"{_names(analysis)}: {word(analysis.summary.verdict)}. Medians over the matrices that changed."
    return latex_table(columns, rows, caption, "tab:deltaw")


def latex_table(columns: Sequence[TableColumn], rows: Sequence[Mapping[str, str]], caption: str, label: str) -> str:
    """A table as LaTeX; the first column is text."""
    head = " & ".join(_tex(c.title) for c in columns)
    body = [" & ".join(_tex(row[c.key]) for c in columns) + r" \\" for row in rows]
    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{_tex(caption)}}}",
            rf"  \label{{{label}}}",
            rf"  \begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}",
            r"    \toprule",
            rf"    {head} \\",
            r"    \midrule",
            *(f"    {line}" for line in body),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def card(analysis: Analysis) -> str:
    """A model card: front matter that the Hub reads, the sentences, the table, a figure and the scores.

    The figure is `FIGURE`, which `analyze` writes. The scores are those of `.eval_results`, where
    a directory that was compared has them.

    Raises:
        ManifestError: A file of scores cannot be read.
    """
    layers = Layers(analysis)
    body = [*_sentences(layers), *_markdown_table(layers)]
    if layers.changed["relative_change"].notna().any():
        body.append(f"![Relative change by layer and module]({FIGURE})")
    front = "\n".join(["---", *_front_matter(analysis), "---"])
    heading = f"# {markdown_text(name_of(analysis.ft))}\n\n## What fine-tuning changed"
    return "\n\n".join([front, heading, *body, _footer(analysis), *_scores(analysis)]) + "\n"


def _scores(analysis: Analysis) -> list[str]:
    """What `.eval_results` say of the fine-tuned model, and of the base beside it; empty where nothing does."""
    base, ft = (_scores_of(side) for side in (analysis.base, analysis.ft))
    if not ft:
        return []
    shared = {"base": "base"} if base.keys() & ft.keys() else {}
    columns = [TableColumn("name", "benchmark", numeric=False)]
    columns += [TableColumn(key, title) for key, title in {**shared, "ft": "fine-tuned"}.items()]
    rows = [{"name": visible(name), "base": base.get(name, ""), "ft": value} for name, value in ft.items()]
    return ["## Evaluation", *markdown_table(columns, rows)]


def _scores_of(side: Source | None) -> dict[str, str]:
    """Benchmark → score, as written in the directory of a side."""
    from deltaw.comparison.evaluations import read_evaluation

    folder = Path(side.path) / ".eval_results" if side is not None and side.path else None
    if folder is None or not folder.is_dir():
        return {}
    return {f"{m.task}: {m.name}": visible(shown(m.value)) for m in read_evaluation(folder).metrics}


def hashes(analysis: Analysis) -> list[tuple[str, str]]:
    """The content hashes of both sides, as far as they are known."""
    found: list[tuple[str, str]] = []
    for name, side in (("base", analysis.base), ("fine-tuned", analysis.ft)):
        if side is not None and side.hash:
            found.append((name, side.hash))
        if side is not None and side.revision:
            found.append((f"{name}, revision", side.revision))
    return found


def _front_matter(analysis: Analysis) -> list[str]:
    """YAML: the base where it is a Hub id, how the model relates to it, and the numbers of the summary."""
    summary = analysis.summary
    base = ((analysis.base.path if analysis.base else "") or analysis.ft.base_name or "").partition("@")[0]
    relation = "adapter" if summary.adapter.factored or summary.adapter.types else "finetune"
    lines = []
    if HUB_ID.fullmatch(base):
        lines += [f"base_model: {json.dumps(base)}", f"base_model_relation: {relation}"]
    numbers: Mapping[str, Cell] = {
        "verdict": summary.verdict.value,
        "relative_change": summary.change.median,
        "rank_90": summary.rank.rank_90.median,
        "rank_90_null": summary.rank.rank_90_null.median,
        "energy_at_16": summary.energy["energy_at_16"].median if "energy_at_16" in summary.energy else None,
        "matrices_changed": summary.changed_matrices,
        "matrices": summary.matrices,
        "compared": summary.coverage.share,
    }
    known = {k: v for k, v in numbers.items() if not missing(v)}
    lines += ["tags:", "- deltaw", "deltaw:"]
    return [
        *lines,
        *(f"  {k}: {json.dumps(float(f'{v:.6g}') if isinstance(v, float) else v)}" for k, v in known.items()),
    ]


def _names(analysis: Analysis) -> str:
    base, ft = names_of(analysis.base, analysis.ft)
    return f"{base} → {ft}" if analysis.base else ft


def _sentences(layers: Layers) -> list[str]:
    return [markdown_text(f.text) for f in answer(layers.analysis.summary, offer(layers))]


def _markdown_table(layers: Layers) -> list[str]:
    return markdown_table(*tables.by_kind(layers, BY_KIND))


def markdown_table(columns: Sequence[TableColumn], rows: Sequence[Mapping[str, str]]) -> list[str]:
    """A table as Markdown; empty where it has no row."""
    if not rows:
        return []
    lines = [[markdown_text(c.title) for c in columns], ["---:" if c.numeric else "---" for c in columns]]
    lines += [[markdown_text(row[c.key]) for c in columns] for row in rows]
    return ["\n".join(f"| {' | '.join(line)} |" for line in lines)]


def _footer(analysis: Analysis) -> str:
    version = analysis.versions.get("deltaw", "")
    command = f": `{visible(analysis.command)}`" if analysis.command and "`" not in analysis.command else ""
    return f"Measured with deltaw {version}{f', {analysis.date[:10]}' if analysis.date else ''}{command}".rstrip()


def markdown_text(sentence: str) -> str:
    """A sentence as Markdown: names as code, key numbers bold, and nothing else that Markdown would read."""
    out = []
    for piece in re.split(f"({CODE[0]}[^{CODE[1]}]*{CODE[1]})", sentence):
        if piece.startswith(CODE[0]):
            out.append(f"`{piece[1:-1].replace('`', chr(39))}`")
        else:
            out.append(MARKDOWN.sub(r"\\\1", piece).replace(STRONG[0], "**").replace(STRONG[1], "**"))
    return "".join(out)


def _tex(text: str) -> str:
    return "".join(LATEX.get(c, c) for c in visible(text))
