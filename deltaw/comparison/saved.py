"""A saved comparison, read back: what its runs were, their layers and mean spectra, and how alike they are.

Every other table follows from these and is computed anew: a report of saved results says what the first one did.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deltaw.comparison.evaluations import Items, Score
from deltaw.comparison.loading import analysed, indexed
from deltaw.comparison.manifest import RunSpec
from deltaw.comparison.mean_spectra import MeanSpectrum
from deltaw.comparison.naming import aligned
from deltaw.comparison.runs import Run
from deltaw.comparison.tables import ABOUT, ComparisonRecord, Origin
from deltaw.documents import Document, read_object, read_table
from deltaw.errors import ResultsError
from deltaw.files import near_path
from deltaw.results import about
from deltaw.results.plain import plain
from deltaw.results.tables import typed

if TYPE_CHECKING:
    import pandas as pd

RUNS = "runs.json"
SPECTRA = ("run", "kind", "matrices", "i", "sigma", "energy")
NAMES = frozenset({"run_a", "run_b", "group_a", "group_b", "kind"})  # texts in the table of similarities


def spectra_frame(runs: Sequence[Run]) -> pd.DataFrame:
    """The mean spectra of all runs, long: `run`, `kind`, `matrices` averaged, `i`, `sigma` (of ‖ΔW‖F = 1), `energy`."""
    import pandas as pd

    rows = [
        (run.spec.name, kind, curve.matrices, i, sigma, energy)
        for run in runs
        for kind, curve in run.curves.items()
        for i, sigma, energy in zip(curve.indices, curve.sigma, curve.energy, strict=True)
    ]
    return pd.DataFrame(rows, columns=list(SPECTRA))


def runs_text(runs: Sequence[Run]) -> str:
    """`runs.json`: of each run what the manifest says, and where its numbers come from."""
    entries = [
        {**vars(run.spec), "method": run.method, "analysed": run.layers is not None, "about": run.analysed.to_dict()}
        for run in runs
    ]
    return json.dumps({"runs": plain(entries)}, indent=1) + "\n"


def read(folder: Path) -> tuple[ComparisonRecord, list[Run], pd.DataFrame]:
    """What a comparison left in its directory: what is known of it, its runs, and the table of similarities.

    Raises:
        ResultsError: There is none, or it cannot be read.
    """
    if not (folder / ABOUT).is_file():
        what = f"no {ABOUT} there" if folder.exists() else "no such directory"
        hint = "" if folder.exists() else near_path(folder)
        raise ResultsError(
            f"{folder}: {what}; expected a directory that compare wrote (--out){'.' if hint else ''}{hint}"
        )
    if not (folder / RUNS).is_file():
        raise ResultsError(
            f"{folder}: no {RUNS} there: an older deltaw wrote it, or it was interrupted; run compare again"
        )
    known = _about(read_object(folder / ABOUT, error=ResultsError))
    entries = read_object(folder / RUNS, error=ResultsError).inners("runs")
    if not entries:
        raise ResultsError(f"{folder / RUNS}: 0 runs; expected at least one: run compare again")
    try:
        layers, spectra = read_table(folder / "layers.csv"), read_table(folder / "spectra.csv")
        runs = [_run(entry, layers, spectra) for entry in entries]
        return known, aligned(runs), _similarity(read_table(folder / "similarity.csv"))
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as e:  # of pandas, or a cell of another type
        why = " ".join(str(e).split()) or type(e).__name__
        raise ResultsError(f"{folder}: a table cannot be read ({why}); run compare again") from e


def _about(stored: Document) -> ComparisonRecord:
    origin = stored.inner("origin")
    return ComparisonRecord(
        title=stored.text("title"),
        reference=stored.text("reference", None),
        groups=stored.texts("groups"),
        runs=stored.texts("runs"),
        seed=stored.whole("seed"),
        warnings=stored.texts("warnings"),
        similarity_note=stored.text("similarity_note"),
        base=stored.texts("base"),
        origin=Origin(origin.text("command"), origin.text("date"), about.texts(origin.inner("versions"))),
    )


def _run(entry: Document, layers: pd.DataFrame, spectra: pd.DataFrame) -> Run:
    name = entry.text("name", None)
    scores = entry.inner("scores")
    spec = RunSpec(
        name=name,
        group=entry.text("group", None),
        method=entry.text("method"),
        seed=entry.whole("seed") if "seed" in entry else None,
        tokens=entry.whole("tokens") if "tokens" in entry else None,
        hyperparameters=about.options(entry.inner("hyperparameters")),
        scores={axis: _score(scores.inner(axis)) for axis in scores},
        checkpoint=entry.text("checkpoint") or None,
        results=Path(entry.text("results")) if "results" in entry else None,
        where=entry.text("where"),
    )
    frame = None
    if entry.flag("analysed"):
        mine = layers[layers["run"] == name].drop(columns=["run", "group"]).reset_index(drop=True)
        frame = indexed(typed(mine), entry.where)
    curves = {str(kind): _curve(part) for kind, part in spectra[spectra["run"] == name].groupby("kind", sort=False)}
    return Run(spec, spec.method, frame, analysed(entry.inner("about")), curves)


def _score(found: Document) -> Score:
    items = tuple(
        Items(i.text("metric", None), i.text("digest", None), i.scores("values")) for i in found.inners("items")
    )
    error = found.score("error") if "error" in found else math.nan
    return Score(found.score("value"), error, found.text("source"), items)


def _curve(part: pd.DataFrame) -> MeanSpectrum:
    sigma, energy = (np.array([float(v) if v else np.nan for v in part[c]]) for c in ("sigma", "energy"))
    return MeanSpectrum(np.array(part["i"], dtype=np.int64), sigma, energy, int(part["matrices"].iloc[0]))


def _similarity(frame: pd.DataFrame) -> pd.DataFrame:
    for name in frame.columns:
        if name == "n_matrices":
            frame[name] = frame[name].astype(np.int64)
        elif name not in NAMES:
            frame[name] = [float(v) if v else np.nan for v in frame[name]]
    return frame
