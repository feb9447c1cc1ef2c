"""Which measure of an update tells what was forgotten: a sentence by rule, and the table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deltaw.comparison.predictors import ALL, CHANGED
from deltaw.reports.findings import Finding
from deltaw.reports.heatmaps import metric_label
from deltaw.reports.page import TableColumn
from deltaw.reports.text import EMPTY, code, missing, number, plural, strong, whole

if TYPE_CHECKING:
    import pandas as pd

PLAIN = "fro_norm"  # what the others are measured against, where they have no plain twin
RULE = (
    "Spearman's ρ over all points of all runs; the better one is decided where the 95 % interval of the difference, "
    "from drawing whole runs, leaves out 0."
)


def sentences(frame: pd.DataFrame) -> list[Finding]:
    """What goes best with what was forgotten, and how far the plain size of the update is behind it.

    Args:
        frame: `Comparison.predictors()`.
    """
    of_all = frame[(frame["runs"] == ALL) & (frame["outcome"] == "retention")]
    found = []
    several = len(of_all.groupby(["domain", "training"])) > 1
    for (*arena, matrices), rows in of_all.groupby(["domain", "training", "matrices"], sort=False):
        best: Any = rows.iloc[0]
        twin = str(best["predictor"]).removesuffix("_on_source").removesuffix("_on_data")
        twin = twin if twin != best["predictor"] else PLAIN
        plain = rows[rows["predictor"] == twin]
        where = " and ".join(str(t) for t in arena if t != "")
        where = f" ({where})" if where and several else ""
        over = f"over {plural(best['points'], 'point')} of {plural(best['n_runs'], 'run')}{where}"
        of = "all matrices that each run changed" if matrices == CHANGED else "the matrices that every run changed"
        text = f"What was forgotten goes best with {code(best['predictor'])} of {of}: {_rho(best)} {over}"
        if best["predictor"] != twin and len(plain):
            other: Any = plain.iloc[0]
            decided = not missing(other["behind_low"]) and other["behind_low"] > 0
            told = "is behind" if decided else "may be as good"
            text += f"; the size of the update alone, {code(twin)}, {told}: {_rho(other)}"
        found.append(Finding(f"{text}.", RULE))
    return found


def table(frame: pd.DataFrame) -> tuple[list[TableColumn], list[dict[str, str]]]:
    """A row per domain, set of runs and predictor: ρ with forgetting and with learning, and what learning leaves."""
    known = [c for c in ("domain", "training") if frame[c].nunique() > 1]
    columns = [TableColumn(c, c, numeric=False) for c in (*known, "runs", "matrices")]
    columns += [
        TableColumn("predictor", "measure", numeric=False),
        TableColumn("rho", "ρ with what was forgotten"),
        TableColumn("partial", "the same at equal learning"),
        TableColumn("behind", "behind the best"),
        TableColumn("learning", "ρ with what was learned"),
        TableColumn("points", "points (runs)"),
    ]
    keys = ["domain", "training", "runs", "matrices", "predictor"]
    learned = frame[frame["outcome"] == "learning"].set_index(keys)
    rows = []
    for _, row in frame[frame["outcome"] == "retention"].iterrows():
        key = tuple(row[k] for k in keys)
        name = str(row["predictor"])
        rows.append(
            {
                **{c: str(row[c]) for c in (*known, "runs", "matrices")},
                "predictor": metric_label(name),
                **{c: _interval(row, c) for c in ("rho", "partial", "behind")},
                "learning": _interval(learned.loc[key], "rho") if key in learned.index else EMPTY,
                "points": f"{whole(row['points'])} ({whole(row['n_runs'])})",
            }
        )
    return columns, rows


def _rho(row: Any) -> str:
    bounds = "" if missing(row["rho_low"]) else f" ({number(row['rho_low'], 2)} to {number(row['rho_high'], 2)})"
    return f"ρ = {strong(number(row['rho'], 2))}{bounds}"


def _interval(row: Any, name: str) -> str:
    value, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    if missing(value):
        return EMPTY
    shown = [f"{v:.2f}".replace("-", "\N{MINUS SIGN}") for v in (value, low, high)]
    if name == "behind" and value == 0:
        return "the best"
    return shown[0] if missing(low) else f"{shown[0]} ({shown[1]} to {shown[2]})"
