"""The report of a survey: what stands out, a map, where one lies among all, every adapter, how it was measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deltaw.errors import OptionError
from deltaw.reports import figures, page, svg
from deltaw.reports import survey_findings as findings
from deltaw.reports.exports import BIBTEX
from deltaw.reports.page import Picture, TableColumn
from deltaw.reports.sides import name_at
from deltaw.reports.survey_plots import DRAWN, SurveyPlots
from deltaw.reports.text import EMPTY, duration, missing, number, percent, plural, short, visible, whole
from deltaw.types import JsonValue

if TYPE_CHECKING:
    import pandas as pd

    from deltaw.surveys import Survey

CONTENTS = (
    ("answer", "The answer"),
    ("look", "Look at these first"),
    ("map", "A map"),
    ("groups", "Who belongs together?"),
    ("among", "Where does one lie?"),
    ("merge", "Would a merge interfere?"),
    ("adapters", "Every adapter"),
    ("measured", "How was this measured?"),
)
LISTED = 60  # flagged adapters and clusters that are written out; the table has all
PRINTED = 300  # rows of the table on paper
NEIGHBOURS = 8  # of each adapter in the page
CURVES = 300_000  # singular values that the page holds at most
SHARES = ("relative_change", "energy_at_1")
NUMBERS = ("rank", "matrices", "fro_norm", "relative_change", "effective_rank", "energy_at_1", "factor_balance",
           "nearest_cosine", "parameters")  # fmt: skip
SHOWN = ("name", "cluster", "nearest", "nearest_cosine", "relative_change", "fro_norm", "rank", "matrices",
         "effective_rank", "energy_at_1", "factor_balance", "method", "flags", "why", "parameters", "base_name",
         "source")  # fmt: skip
READINGS = {
    "map": (
        "Adapters by their cosines",
        "Classical scaling of the matrix of cosines: two that are alike lie together. A map of two axes shows the "
        "largest groups; what lies in the middle differs on other axes.",
    ),
    "similarity": (
        "The cosine of every pair",
        "Adapters in the order of their clusters, which lines part. A block is a group; a dark cell off the diagonal "
        "is a copy.",
    ),
    "histograms": (
        "How the adapters are distributed",
        "How many adapters have which value. The marked adapter is a line, with the share of the others below it.",
    ),
}


def write_survey(survey: Survey, path: Path, mark: str = "") -> Path:
    """Write the report of a survey: one HTML file that opens offline.

    Raises:
        ResultsError: The file cannot be written.
    """
    return page.write(Path(path), html(survey, mark))


def write_figures(survey: Survey, folder: Path) -> list[Path]:
    """Write the figures as SVG, PDF and PNG, for papers.

    Raises:
        ResultsError: A file cannot be written.
    """
    plots = SurveyPlots(survey)
    written: list[Path] = []
    for name in READINGS:
        try:
            axes = getattr(plots, name)()
        except OptionError:  # the figure does not apply; the report says why in its place
            continue
        written += figures.save(figures.of(axes), folder, name)
    return written


def html(survey: Survey, mark: str = "") -> str:
    """The report as a text."""
    frame = survey.adapters()
    context = {
        "title": visible(_title(survey)),
        "contents": [c for c in CONTENTS if c[0] != "merge" or survey.merge is not None],
        "base": visible(_base(survey)),
        "answer": findings.answer(survey),
        "merge_answer": findings.merge_sentences(survey.merge),
        "five": findings.five(survey),
        "map_sentence": findings.map_sentence(survey),
        "flagged": flagged(frame),
        "rules": [(word, visible(rule)) for word, rule in survey.about.rules.items()],
        "pictures": pictures(survey, mark),
        "groups": _groups(survey, frame),
        "merge": _merge(survey),
        "adapters": _adapters(frame),
        "left_out": max(0, len(frame) - PRINTED),
        "mark": visible(mark),
        "about": survey.about,
        "notes": [visible(n) for n in survey.about.notes],
        "provenance": _provenance(survey),
        "versions": {"deltaw": "", **survey.about.versions},
        "command": visible(survey.about.command),
        "bibtex": BIBTEX,
    }
    scripts = ("shell.js", "survey_map.js", "survey.js")
    return page.render("survey.html", context, embedded(survey, frame, mark), scripts=scripts)


def _title(survey: Survey) -> str:
    of = f" of {short(name_at(survey.about.base), 60)}" if survey.about.base else ", without their base"
    return plural(len(survey.adapters()), "adapter") + of


def _base(survey: Survey) -> str:
    return survey.about.base or "no base"


def _provenance(survey: Survey) -> list[tuple[str, str]]:
    about = survey.about
    made = [("Date", about.date)] if about.date else []
    return [
        ("Base", visible(_base(survey))),
        ("Took", duration(about.seconds)),
        *made,
        *((visible(name), visible(version)) for name, version in about.versions.items()),
    ]


def pictures(survey: Survey, mark: str = "") -> dict[str, Picture]:
    """The figures for paper and for browsers without JavaScript; those that do not apply say why."""
    plots = SurveyPlots(survey, mark)
    said = {"map": findings.map_sentence(survey)}
    return {name: _picture(name, getattr(plots, name), said.get(name, "")) for name in READINGS}


def _picture(name: str, draw: Callable[[], Any], reading: str) -> Picture:
    title, how = READINGS[name]
    try:
        axes = draw()
    except OptionError as e:
        reason = str(e).removesuffix(".")
        return Picture(f"f-{name}", title, None, reason=reason)
    return Picture(
        f"f-{name}", title, svg.inline(figures.of(axes), name, title, how), reading, how, narrow=name == "similarity"
    )


def flagged(frame: pd.DataFrame) -> tuple[list[TableColumn], list[dict[str, str]], int]:
    """What a rule points at: copies first, then the others in their order."""
    some = frame[frame["flags"] != ""]
    first = ~some["flags"].str.contains("duplicate")
    some = some.assign(_first=first).sort_values("_first", kind="stable")
    columns = [TableColumn("name", "adapter", numeric=False), TableColumn("why", "flag, and why", numeric=False)]
    rows = [{"name": short(r["name"], 60), "why": short(r["why"], 300)} for _, r in some.head(LISTED).iterrows()]
    return columns, rows, max(0, len(some) - LISTED)


def _groups(survey: Survey, frame: pd.DataFrame) -> tuple[list[TableColumn], list[dict[str, str]], int]:
    """The clusters of two or more: their size, how close they are, what their members are like."""
    sizes = findings.sizes_of_clusters(frame)
    shown = sizes[sizes > 1]
    pairs = survey.pairs()
    of = dict(zip(frame["name"], frame["cluster"], strict=True))
    within = pairs[pairs["a"].map(of) == pairs["b"].map(of)]
    cosines = within.groupby(within["a"].map(of))["cosine"].median()
    columns = [
        *(
            TableColumn("cluster", "cluster", numeric=False),
            TableColumn("size", "adapters"),
            TableColumn("cosine", "median cosine"),
        ),
        *(TableColumn("change", "median relative change", "relative_change"), TableColumn("rank", "median rank")),
        *(TableColumn("method", "method", numeric=False), TableColumn("names", "for example", numeric=False)),
    ]
    rows = []
    for cluster, size in shown.head(LISTED).items():
        members = frame[frame["cluster"] == cluster]
        methods = members["method"].value_counts()
        rows.append(
            {
                "cluster": whole(cluster),
                "size": whole(size),
                "cosine": number(cosines.get(cluster, math.nan), 2),
                "change": percent(float(members["relative_change"].median())),
                "rank": whole(members["rank"].median()),
                "method": ", ".join(map(str, methods.index[:3])),
                "names": ", ".join(short(str(n), 32) for n in members["name"].head(3)),
            }
        )
    return columns, rows, max(0, len(shown) - LISTED)


def _merge(survey: Survey) -> dict[str, tuple[list[TableColumn], list[dict[str, str]]]] | None:
    """How the adapters of a proposed merge lie to each other, and what is left of each."""
    if survey.merge is None:
        return None
    lies = [TableColumn("kind", "matrices of", numeric=False), TableColumn("matrices", "matrices")]
    lies += [TableColumn("energy", "energy ratio"), TableColumn("signs", "signs disagree")]
    of_kind = [
        {
            "kind": "all kinds" if i.kind == "all" else i.kind,
            "matrices": whole(i.matrices),
            "energy": number(i.energy_ratio),
            "signs": percent(i.sign_disagreement, 2),
        }
        for i in survey.merge.interference
    ]
    kept = [TableColumn("name", "adapter", numeric=False)]
    for method, title in (("sum", "sum"), ("ties", "TIES")):
        kept += [
            TableColumn(f"{method}-survives", f"{title}: energy that survives"),
            TableColumn(f"{method}-gain", f"{title}: gain"),
        ]
    rows: dict[str, dict[str, str]] = {}
    for k in survey.merge.kept:
        if k.kind == "all":
            row = rows.setdefault(k.name, {"name": short(k.name, 60)})
            row |= {f"{k.method}-survives": percent(k.survives, 2), f"{k.method}-gain": number(k.gain, 2)}
    return {"interference": (lies, of_kind), "kept": (kept, list(rows.values()))}


def _adapters(frame: pd.DataFrame) -> tuple[list[TableColumn], list[dict[str, str]]]:
    """The table on paper and without JavaScript."""
    shown = ("name", "cluster", "nearest", "nearest_cosine", "relative_change", "rank", "effective_rank", "flags")
    columns = [TableColumn(c, c, numeric=c not in {"name", "nearest", "flags"}) for c in shown]
    frame = frame.assign(cluster=findings.clustered(frame))
    rows = [{c: _cell(c, r[c]) for c in shown} for _, r in frame.head(PRINTED).iterrows()]
    return columns, rows


def _cell(column: str, value: Any) -> str:
    if isinstance(value, str):
        return short(value, 60) if value else EMPTY
    if missing(value):
        return EMPTY
    if column in {"cluster", "rank", "matrices", "parameters"}:
        return whole(value)
    return percent(value) if column in SHARES else number(value)


def embedded(survey: Survey, frame: pd.DataFrame, mark: str) -> dict[str, JsonValue]:
    """What the scripts need: every adapter, its nearest, its spectra by block; floats to few digits."""
    place = {name: i for i, name in enumerate(frame["name"])}
    frame = frame.assign(cluster=findings.clustered(frame))
    rows: list[JsonValue] = [[_compact(v) for v in row] for row in frame[list(SHOWN)].itertuples(index=False)]
    at: list[JsonValue] = [
        None if missing(row[0]) else [_compact(float(v), 4) for v in row]
        for row in frame[[f"map_{i + 1}" for i in range(4)]].itertuples(index=False)
    ]
    near = survey.neighbours()
    near = near[near.groupby("name").cumcount() < NEIGHBOURS]
    nearest: list[list[JsonValue]] = [[] for _ in place]
    for name, other, cosine, low, high in near.itertuples(index=False):
        width = (high - low) / 2
        nearest[place[name]].append([place[other], _compact(cosine, 4), _compact(width, 2)])
    return {
        "columns": list(SHOWN),
        "numeric": [c for c in SHOWN if c in NUMBERS or c == "cluster"],
        "rows": rows,
        "at": at,
        "nearest": nearest,
        "spectra": _spectra(survey, place),
        "drawn": {c: {"label": label, "log": log} for c, (label, log) in DRAWN.items()},
        "shares": list(SHARES),
        "rules": dict(survey.about.rules),
        "mark": place.get(mark, -1) if mark else -1,
        "cut": _compact(survey.about.cut, 4),
        "axes": [_compact(share, 4) for share in survey.about.axes],
    }


def _spectra(survey: Survey, place: dict[str, int]) -> dict[str, JsonValue]:
    """Of each adapter ‖ΔW‖ and leading σ by block and kind: as many σ as the page can hold."""
    frame = survey.spectra()
    frame = frame[frame["name"].isin(place)]
    many = max(1, min(8, CURVES // max(len(frame), 1)))
    sigma = [f"sigma_{i + 1}" for i in range(many)]
    kinds = sorted(set(frame["kind"]))
    of: dict[str, list[JsonValue]] = {}
    for row in frame[["name", "layer", "kind", "fro_norm", "base_fro_norm", *sigma]].itertuples(index=False):
        name, layer, kind, norm, base, *values = row
        known = [_compact(float(v), 3) for v in values if v > 0]
        of.setdefault(str(place[name]), []).append(
            [_compact(float(layer)), kinds.index(kind), _compact(float(norm), 3), _compact(float(base), 3), known]
        )
    return {"kinds": kinds, "of": of}


def _compact(value: Any, digits: int = 5) -> Any:
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if not math.isfinite(value):
        return None
    return int(value) if float(value).is_integer() and abs(value) < 1e15 else float(f"{value:.{digits}g}")
