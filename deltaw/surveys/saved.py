"""The files of a survey: written whole, and read back as they were."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deltaw.documents import Document, read_object, read_table
from deltaw.errors import ResultsError
from deltaw.files import near_path, replacing
from deltaw.results import about as texts_of
from deltaw.results.plain import plain
from deltaw.surveys.merging import Interference, Merge, MergeShare
from deltaw.surveys.tables import ADAPTERS, FILES, TEXTS, WHOLE, SurveyRecord, Tables
from deltaw.types import JsonValue

if TYPE_CHECKING:
    import pandas as pd

    from deltaw.surveys.result import Survey

ABOUT = "survey.json"
TRUTHS = frozenset({"exact"})


def values(about: SurveyRecord) -> dict[str, JsonValue]:
    """What is known of a survey, as JSON values."""
    found = plain(asdict(about))
    assert isinstance(found, dict)
    return found


def records(frame: pd.DataFrame) -> list[dict[str, JsonValue]]:
    """Rows as JSON values: NaN is null, whole numbers integers."""
    out: list[dict[str, JsonValue]] = []
    for row in frame.to_dict("records"):
        clean: dict[str, JsonValue] = {}
        for name, value in row.items():
            found = plain(value)
            clean[str(name)] = int(found) if str(name) in WHOLE and isinstance(found, float) else found
        out.append(clean)
    return out


def refuse_others(out: Path, base: str | None) -> None:
    """End where a directory holds something else than a survey of this base.

    Raises:
        ResultsError: It does.
    """
    if out.exists() and not out.is_dir():
        raise ResultsError(f"{out}: is a file; expected a directory for the survey, choose another --out")
    for name, what in (("analysis.json", "an analysis"), ("comparison.json", "a comparison")):
        if (out / name).exists():
            raise ResultsError(f"{out}: holds {what}; choose another --out, or --force to overwrite it")
    if not (out / ABOUT).exists():
        if (out / "adapters.csv").exists():
            raise ResultsError(
                f"{out}: holds a table of adapters that is not deltaw's; choose another --out, or --force"
            )
        return
    try:
        found: str | None = read_object(out / ABOUT, error=ResultsError).text("base")
    except ResultsError:  # cut off, or not ours
        found = None
    if found != (base or ""):
        raise ResultsError(
            f"{out}: holds the survey of another base ({found or 'unknown'}); choose another --out, or --force to "
            "overwrite it"
        )


def write(survey: Survey, out: Path, *, force: bool) -> None:
    """Write the tables of a survey, each to a temporary name that is then renamed.

    Raises:
        ResultsError: The directory holds something else, or cannot be written.
    """
    if not force:
        refuse_others(out, survey.about.base)
    merge = None if survey.merge is None else survey.merge.to_dict()
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, file in FILES.items():
            _write_csv(getattr(survey.tables, name), out / f"{file}.csv")
        with replacing(out / ABOUT) as temporary:
            text = json.dumps(values(survey.about) | {"merge_check": plain(merge)}, indent=1)
            temporary.write_text(text + "\n", encoding="utf-8")
    except OSError as e:
        raise ResultsError(f"{out}: the survey cannot be written ({e.strerror or e}); choose another --out") from e


def _write_csv(frame: pd.DataFrame, path: Path) -> None:
    whole = {c: "Int64" for c in frame.columns if c in WHOLE}
    with replacing(path) as temporary:
        frame.astype(whole).to_csv(temporary, index=False)


def read(folder: Path) -> tuple[Tables, SurveyRecord, Merge | None]:
    """What a survey left in its directory.

    Raises:
        ResultsError: There is none, or it cannot be read.
    """
    if not (folder / ABOUT).is_file():
        what = f"no {ABOUT} there" if folder.exists() else "no such directory"
        hint = "" if folder.exists() else near_path(folder)
        raise ResultsError(
            f"{folder}: {what}; expected a directory that survey wrote (--out){'.' if hint else ''}{hint}"
        )
    known = read_object(folder / ABOUT, error=ResultsError)
    try:
        tables = Tables(**{name: _table(folder / f"{file}.csv") for name, file in FILES.items()})
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as e:  # of pandas, or a cell of another type
        why = " ".join(str(e).split()) or type(e).__name__
        raise ResultsError(f"{folder}: a table cannot be read ({why}); run survey again") from e
    missing = [c for c in ADAPTERS if c not in tables.adapters]
    if missing:
        raise ResultsError(f"{folder}: adapters.csv has no column {missing[0]!r}; run survey again")
    return tables, _about(known), _merge(known.inner("merge_check"))


def _table(path: Path) -> pd.DataFrame:
    frame = read_table(path)
    for name in frame.columns:
        if name in TRUTHS:
            frame[name] = frame[name] == "True"
        elif name not in TEXTS:
            frame[name] = np.array([float(v) if v else math.nan for v in frame[name]], dtype=np.float64)
    return frame


def _about(stored: Document) -> SurveyRecord:
    return SurveyRecord(
        base=stored.text("base"),
        command=stored.text("command"),
        date=stored.text("date"),
        seconds=stored.number("seconds", 0),
        versions=texts_of.texts(stored.inner("versions")),
        notes=stored.texts("notes"),
        compared=stored.text("compared"),
        cut=stored.number("cut"),
        cut_null=stored.number("cut_null"),
        cut_rule=stored.text("cut_rule"),
        axes=stored.scores("axes"),
        rules=texts_of.texts(stored.inner("rules")),
    )


def _merge(stored: Document) -> Merge | None:
    if not stored:
        return None
    lies = [
        Interference(d.text("kind"), d.whole("matrices"), _number(d, "energy_ratio"), _number(d, "sign_disagreement"))
        for d in stored.inners("interference")
    ]
    kept = [
        MergeShare(d.text("name"), d.text("method"), d.text("kind"), _number(d, "survives"), _number(d, "gain"))
        for d in stored.inners("kept")
    ]
    return Merge(stored.texts("names"), tuple(lies), tuple(kept))


def _number(stored: Document, key: str) -> float:
    return stored.number(key) if key in stored else math.nan
