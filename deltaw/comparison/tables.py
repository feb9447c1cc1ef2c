"""The tables of a comparison as frames, CSV files and JSON records."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deltaw.comparison.runs import Runs
from deltaw.documents import read_object
from deltaw.errors import ResultsError
from deltaw.files import replacing
from deltaw.results.columns import columns, is_whole
from deltaw.results.plain import plain
from deltaw.types import JsonValue

if TYPE_CHECKING:
    import pandas as pd

NAMES = ("runs", "layers", "contrasts", "fingerprints", "fronts", "trajectories", "similarity", "claims", "predictors")
ABOUT = "comparison.json"
WHOLE = frozenset({"n_layers", "n_seeds", "n_seeds_a", "n_seeds_b", "n_matrices", "seed", "tokens", "points", "n_runs"})


@dataclass(frozen=True)
class Origin:
    """How a comparison was made: the command that repeats it if one can, when (UTC, ISO 8601), by what versions."""

    command: str = ""
    date: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ComparisonRecord:
    """What is written beside the tables: which runs they are of, where they come from, what a reader should know.

    Attributes:
        base: What the runs were measured against: path or id, revision, content hash.
    """

    title: str
    reference: str
    groups: Sequence[str]
    runs: Sequence[str]
    seed: int
    warnings: Sequence[str]
    similarity_note: str
    base: Sequence[str]
    origin: Origin


def layers_frame(runs: Runs) -> pd.DataFrame:
    """`run`, `group`, then the columns of `layers`; one row per layer of each analysed run."""
    import pandas as pd

    frames = []
    for r in runs.items:
        if r.layers is not None:
            frame = r.layers.reset_index(drop=True)
            frame.insert(0, "group", r.spec.group)
            frame.insert(0, "run", r.spec.name)
            frames.append(frame)
    if not frames:
        return pd.DataFrame(columns=["run", "group", *columns()])
    return pd.concat(frames, ignore_index=True)


def json_records(frame: pd.DataFrame) -> list[dict[str, JsonValue]]:
    """Rows as JSON values: NaN and NA are null, whole numbers integers."""
    import pandas as pd

    out = []
    for row in frame.to_dict("records"):
        clean: dict[str, JsonValue] = {}
        for k, v in row.items():
            value = None if v is pd.NA else plain(v)
            clean[str(k)] = int(value) if isinstance(value, float) and k in WHOLE else value
        out.append(clean)
    return out


def write_tables(
    tables: Mapping[str, pd.DataFrame],
    about: ComparisonRecord,
    out: Path,
    *,
    force: bool,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Write every table as CSV, each to a temporary name that is then renamed.

    Args:
        tables: By name, which is the file's.
        about: Written beside them.
        out: A directory, created.
        force: Overwrite other results.
        texts: Further files, by name.

    Raises:
        ResultsError: The directory holds other results (without `force`), or cannot be written.
    """
    try:
        if not force:
            refuse_others(out, about.runs)
        out.mkdir(parents=True, exist_ok=True)
        for name in texts or {}:  # written last: without them the directory is not whole
            (out / name).unlink(missing_ok=True)
        # First of all, so that a run that is killed here finds its directory again.
        with replacing(out / ABOUT) as temporary:
            temporary.write_text(json.dumps(asdict(about), indent=1) + "\n", encoding="utf-8")
        for name, frame in tables.items():
            _write_csv(frame, out / f"{name}.csv")
        for name, text in (texts or {}).items():
            with replacing(out / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
    except OSError as e:
        raise ResultsError(f"{out}: the comparison cannot be written ({e.strerror or e}); choose another --out") from e


def refuse_others(out: Path, runs: Sequence[str] | None) -> None:
    """End where a directory holds an analysis, or the comparison of other runs.

    Args:
        out: The directory.
        runs: The names of the runs; None if they are not known yet.

    Raises:
        ResultsError: It does.
    """
    if out.exists() and not out.is_dir():
        raise ResultsError(f"{out}: is a file; expected a directory for the comparison, choose another --out")
    if (out / "analysis.json").exists():
        raise ResultsError(
            f"{out}: holds the results of an analysis; choose another --out, or --force to overwrite them"
        )
    if not (out / ABOUT).exists():
        if (out / "layers.csv").exists() or (out / "runs.csv").exists():
            raise ResultsError(f"{out}: holds tables that are not deltaw's; choose another --out, or --force")
        return
    try:
        found = read_object(out / ABOUT, error=ResultsError).texts("runs")
    except ResultsError:  # cut off, or not ours
        found = ()
    if not found or (runs is not None and not set(found) & set(runs)):
        raise ResultsError(
            f"{out}: holds the comparison of other runs; choose another --out, or --force to overwrite it"
        )


def _write_csv(frame: pd.DataFrame, path: Path) -> None:
    whole = {c: "Int64" for c in frame.columns if c in WHOLE or is_whole(str(c))}
    # A mean or median of counts is no whole number: only columns that are whole are written so.
    whole = {c: t for c, t in whole.items() if _is_whole(frame[c])}
    with replacing(path) as temporary:
        frame.astype(whole).to_csv(temporary, index=False)


def _is_whole(column: Any) -> bool:
    try:
        values = column.to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError):
        return False
    values = values[np.isfinite(values)]
    return bool((values == np.round(values)).all()) and not np.isinf(column.astype(float)).any()
