"""The report of a comparison: its figures, tables, verdicts and sentences, in the order of a reader's questions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltaw.comparison.fronts import MEAN
from deltaw.errors import OptionError
from deltaw.metrics.registry import REGISTRY
from deltaw.reports import comparison_findings as findings
from deltaw.reports import figures, page, predictors, svg
from deltaw.reports.comparison_plots import ComparisonPlots
from deltaw.reports.comparison_points import decided_first
from deltaw.reports.exports import BIBTEX
from deltaw.reports.page import Picture, TableColumn
from deltaw.reports.text import (
    EMPTY,
    NARROW,
    aligned,
    missing,
    number,
    percent,
    plural,
    short,
    unmarked,
    visible,
    whole,
)
from deltaw.results.columns import FINGERPRINT, OF_TWO_GROUPS, is_share, is_signed
from deltaw.types import JsonValue

if TYPE_CHECKING:
    import pandas as pd

    from deltaw.comparison import Comparison

CONTENTS = (
    ("answer", "The answer"),
    ("equal", "At equal learning"),
    ("update", "How do the updates differ?"),
    ("rank", "How low-rank are they?"),
    ("claims", "What these runs say"),
    ("alike", "Are the updates alike?"),
    ("contrasts", "Every contrast"),
    ("runs", "Every run"),
    ("measured", "How was this measured?"),
)
PREDICTORS = ("predictors", "What tells forgetting?")  # where runs were measured on data
EMBEDDED = 20_000  # contrasts in the page; the file has all


def write_comparison(comparison: Comparison, path: Path) -> Path:
    """Write the report of a comparison: one HTML file that opens offline.

    Raises:
        ResultsError: The file cannot be written.
    """
    return page.write(Path(path), html(comparison))


def write_figures(comparison: Comparison, folder: Path) -> list[Path]:
    """Write the figures as SVG and PNG, for papers.

    Raises:
        ResultsError: A file cannot be written.
    """
    plots = ComparisonPlots(comparison)
    written: list[Path] = []
    for name in findings.READINGS:
        try:
            axes = getattr(plots, name)()
        except OptionError:  # the figure does not apply; the report says why in its place
            continue
        written += figures.save(figures.of(axes), folder, name)
    return written


def html(comparison: Comparison) -> str:
    """The report as a text."""
    context = {
        "title": visible(comparison.title or f"{plural(len(comparison.runs_.items), 'run')} of one base, compared"),
        "contents": contents(comparison),
        "comparison": comparison,
        "reference": visible(comparison.reference),
        "answer": findings.answer(comparison),
        "five": findings.five(comparison),
        "pictures": pictures(comparison),
        "fingerprints": fingerprints(comparison),
        "effects": _effects(comparison),
        "fronts": _fronts(comparison),
        "claims": _claims(comparison),
        "predicted": predictors.sentences(comparison.predictors()),
        "predictors": predictors.table(comparison.predictors()),
        "contrasts": _contrasts(comparison),
        "runs": _runs(comparison),
        "settings": [(visible(g), visible(s)) for g, s in findings.how_settings(comparison)],
        "warnings": [visible(w) for w in comparison.warnings],
        "similarity_note": visible(comparison.similarity_note),
        "n_contrasts": len(comparison.contrasts()),
        "chance": findings.CHANCE,
        "alone": findings.one_seed(comparison),
        "versions": {"deltaw": "", **comparison.origin.versions},
        "provenance": _provenance(comparison),
        "command": visible(comparison.origin.command),
        "bibtex": BIBTEX,
    }
    return page.render("comparison.html", context, _embedded(comparison), scripts=("shell.js", "comparison.js"))


def contents(comparison: Comparison) -> list[tuple[str, str]]:
    """The sections of this report: identifier and heading."""
    out = list(CONTENTS)
    if len(comparison.predictors()):
        out.insert(out.index(("alike", "Are the updates alike?")), PREDICTORS)
    return out


def _provenance(comparison: Comparison) -> list[tuple[str, str]]:
    """What made the numbers: versions, the base, and the seed of the bootstrap."""
    origin = comparison.origin
    made = [("Date", origin.date)] if origin.date else []
    return [
        ("Base", visible("; ".join(comparison.bases) or "not known: there are scores only")),
        ("Runs", f"{whole(len(comparison.runs_.items))}, listed above and in runs.csv"),
        ("Seed of the bootstrap", whole(comparison.runs_.seed)),
        *made,
        *((visible(name), visible(version)) for name, version in origin.versions.items()),
    ]


def pictures(comparison: Comparison) -> dict[str, Picture]:
    """Every figure of the report; those that do not apply say why."""
    plots = ComparisonPlots(comparison)
    read = findings.readings(comparison)
    out = {}
    for name, (title, how) in findings.READINGS.items():
        out[name] = _picture(name, title, how, read[name], getattr(plots, name))
    return out


def _picture(name: str, title: str, how: str, reading: str, draw: Callable[[], Any]) -> Picture:
    try:
        axes = draw()
    except OptionError as e:
        reason = str(e).removesuffix(".")
        return Picture(f"f-{name}", title, None, reason=reason[:1].lower() + reason[1:])
    drawn = svg.inline(figures.of(axes), name, title, page.plain_text(reading))
    return Picture(f"f-{name}", title, drawn, reading, how)


def _value(name: str, value: Any) -> str:
    return percent(value) if is_share(name) else number(value)


def _interval(name: str, row: Any) -> str:
    """`0.0310 (0.0278 – 0.0342)`."""
    value, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
    if missing(value) or missing(low):
        return _value(name, value)
    scale, unit = (100, f"{NARROW}%") if is_share(name) else (1, "")
    shown = aligned((scale * value, scale * low, scale * high))
    if len(set(shown)) == 1:
        return f"{_value(name, value)} (no spread)"
    return f"{shown[0]}{unit} ({shown[1]} – {shown[2]})"


def fingerprints(comparison: Comparison) -> tuple[list[TableColumn], list[dict[str, str]]]:
    """One row per group, the quantities that some group has."""
    frame = comparison.fingerprints()
    shown = [q for q in (*FINGERPRINT, "learning", "retention") if frame[q].notna().any()]
    columns = [TableColumn("group", "group", numeric=False), TableColumn("n_seeds", "seeds")]
    columns += [TableColumn(q, q, q if q in REGISTRY else "") for q in shown]
    columns.append(TableColumn("common", "common c", "shrinkage", numeric=False))
    rows = []
    for _, r in frame.iterrows():
        common = r["common_shrinkage"]
        row = {"group": short(r["group"], 48), "n_seeds": whole(r["n_seeds"])} | {q: _interval(q, r) for q in shown}
        rows.append(row | {"common": EMPTY if missing(common) else "yes" if common else "no"})
    return columns, rows


def _effects(comparison: Comparison) -> tuple[list[TableColumn], list[dict[str, str]]]:
    """The same against the reference: ratios of medians, differences of scores."""
    frame = comparison.fingerprints()
    frame = frame[frame["group"] != frame["reference"]]
    shown = [q for q in (*FINGERPRINT, "learning", "retention") if frame[f"{q}_effect"].notna().any()]
    columns = [TableColumn("group", "group", numeric=False)]
    if frame["reference"].nunique() > 1:
        columns.append(TableColumn("reference", "reference", numeric=False))
    columns += [TableColumn(q, q, q if q in REGISTRY else "") for q in shown]
    rows = []
    for _, r in frame.iterrows():
        row = {"group": short(r["group"], 48), "reference": short(r["reference"], 48)}
        for q in shown:
            value, low, high = (r[f"{q}_effect{e}"] for e in ("", "_low", "_high"))
            plain = q in {"learning", "retention"} or is_signed(q)  # a difference, not a ratio
            sign = "×\u202f" if not plain else "+" if value > 0 else ""
            told = [number(value)] if missing(low) else aligned((value, low, high))
            bounds = "" if missing(low) else f" ({told[1]} – {told[2]})"
            clear = r[f"{q}_p"] < findings.ALPHA and (low > (0 if plain else 1) or high < (0 if plain else 1))
            row[q] = EMPTY if missing(value) else f"{sign}{told[0]}{bounds}{' *' if clear else ''}"
        rows.append(row)
    return columns, rows


def _fronts(comparison: Comparison) -> tuple[list[TableColumn], list[dict[str, str]]]:
    """Each group against the reference: what it keeps at equal learning, what it learns at equal retention."""
    frame = findings.against_references(comparison)
    columns = [
        TableColumn("group", "group", numeric=False),
        *(TableColumn("learning", "kept more at equal learning"), TableColumn("learning_at", "at a learning of")),
        *(TableColumn("retention", "learned more at equal retention"), TableColumn("retention_at", "at a score of")),
    ]
    rows: dict[str, dict[str, str]] = {}
    for _, r in frame.iterrows():
        if r["level"] not in {"", MEAN}:
            continue
        empty = dict.fromkeys((c.key for c in columns), EMPTY)
        row = rows.setdefault(r["group"], empty | {"group": short(r["group"], 48)})
        value, low, high = aligned((r["difference"], r["low"], r["high"]), signed=True)
        bounds = "" if missing(r["low"]) else f" ({low} – {high})"
        known = not missing(r["difference"])
        row[r["matched"]] = f"{value}{bounds}" if known else "unknown: no overlap"
        row[f"{r['matched']}_at"] = number(r["at"])
    return columns, list(rows.values())


def _claims(comparison: Comparison) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The claims that these runs can be checked against, and the others; what is decided comes first."""
    rows = []
    for c in decided_first(comparison.checked):
        row = {
            k: visible(getattr(c, k))
            for k in ("text", "about", "verdict", "says", "rule", "source", "basis", "decides")
        }
        p = "" if missing(c.p_claim) else number(c.p_claim, 2)
        rows.append(row | {"p": p, "level": c.verdict.replace(" ", "-")})
    return [r for r in rows if r["basis"]], [r for r in rows if not r["basis"]]


def _contrasts(comparison: Comparison) -> tuple[list[TableColumn], list[dict[str, str]]]:
    """The main metrics against the reference: for paper, and where there is no JavaScript."""
    frame = comparison.contrasts()
    mine = frame["group_a"].eq(comparison.reference) | frame["group_b"].eq(comparison.reference)
    frame = largest_first(frame[mine & frame["metric"].isin(OF_TWO_GROUPS)])
    columns = [
        *(TableColumn(k, t, numeric=False) for k, t in (("metric", "metric"), ("a", "group a"), ("b", "group b"))),
        *(TableColumn(k, t) for k, t in (("effect", "median ratio a/b, or difference (95 %)"), ("delta", "Cliff's δ"))),
        *(TableColumn(k, t) for k, t in (("seeds", "p over seeds"), ("p", "adjusted p"))),
        TableColumn("covers", "interval covers", numeric=False),
    ]
    rows = []
    for _, r in frame.iterrows():
        kind = "difference" if missing(r["median_ratio"]) else "ratio"
        low, high = r[f"{kind}_low"], r[f"{kind}_high"]
        effect = r[f"median_{kind}"]
        value, low_, high_ = aligned((effect, low, high)) if not missing(low) else (number(effect), "", "")
        bounds = f" ({low_} – {high_})" if low_ else ""
        rows.append(
            {
                **{"metric": r["metric"], "a": short(r["group_a"], 40), "b": short(r["group_b"], 40)},
                **{"effect": f"{value}{bounds}", "delta": number(r["cliffs_delta"], 2)},
                **{"seeds": number(r["p_seeds"], 2), "p": number(r["p_adjusted"], 2), "covers": r["interval_covers"]},
            }
        )
    return columns, rows


def _runs(comparison: Comparison) -> tuple[list[TableColumn], list[dict[str, str]]]:
    frame = comparison.runs()
    names = [c for c in frame.columns if frame[c].notna().any()]
    text = {"run", "group", "method", "represents", "on_front"}
    columns = [
        TableColumn(
            c, c.removeprefix("hp_"), c if c in REGISTRY else "", numeric=c not in text and not _is_text(frame[c])
        )
        for c in names
    ]
    rows = []
    for _, r in frame.iterrows():
        rows.append({c: _plain(c, r[c]) for c in names})
    return columns, rows


def _is_text(column: Any) -> bool:
    return any(isinstance(v, str) for v in column)


def _plain(name: str, value: Any) -> str:
    import pandas as pd

    if value is pd.NA or missing(value):
        return EMPTY
    if isinstance(value, str):
        return short(value, 60)
    if value is True or value is False or name in {"represents", "on_front"}:
        return "yes" if value else "no"
    if isinstance(value, (tuple, list)):
        return short(", ".join(map(str, value)), 60)
    return whole(value) if name in {"tokens", "seed", "n_layers"} else _value(name, value)


def _embedded(comparison: Comparison) -> dict[str, JsonValue]:
    """The contrasts (the largest effects first) and the runs for the live tables, floats to six digits."""
    from deltaw.comparison.tables import json_records

    frame = largest_first(comparison.contrasts())
    columns = list(frame.columns)
    records = json_records(frame.head(EMBEDDED))
    runs = comparison.runs()
    known = [c for c in runs.columns if runs[c].notna().any()]
    return {
        "columns": columns,
        "rows": [[_compact(v) for v in r.values()] for r in records],
        "runs": {
            "columns": known,
            "numeric": [c for c in known if not _is_text(runs[c]) and runs[c].dtype != bool],
            "rows": [[_told(c, r[c]) for c in known] for r in json_records(runs)],
        },
        "shares": [c for c in (*known, *frame["metric"].unique()) if is_share(str(c))],
    }


def _told(name: str, value: Any) -> Any:
    """A cell of the live table of runs: truths as words, lists as texts."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _compact(", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value)


def largest_first(frame: pd.DataFrame) -> pd.DataFrame:
    """Contrasts by the size of their effect: |ln ratio|; where there is no ratio, the difference by the larger median.

    Differences whose interval holds 0 come last: beside medians near 0 they would look large.
    """
    import numpy as np

    ratio, difference = (frame[c].to_numpy(dtype=np.float64) for c in ("median_ratio", "median_difference"))
    level = np.fmax(frame["median_a"].abs().to_numpy(), frame["median_b"].abs().to_numpy())
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.abs(np.log(ratio))
        low, high = (frame[f"difference_{end}"].to_numpy(dtype=np.float64) for end in ("low", "high"))
        size = np.where(np.isfinite(logs), logs, np.where(low * high > 0, np.abs(difference) / level, 0.0))
    order = np.argsort(-np.nan_to_num(size, nan=-1.0), kind="stable")
    return frame.iloc[order]


def _compact(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return visible(value) if isinstance(value, str) else value


__all__ = ["CONTENTS", "html", "pictures", "unmarked", "write_comparison", "write_figures"]
