"""`layers.*`: the rows of an analysis as a frame, and the frame as a file in each of its formats."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deltaw.documents import parse_json, read_table, read_text, shown
from deltaw.errors import ResultsError
from deltaw.results.columns import columns, is_text, is_whole, with_bounds
from deltaw.results.plain import plain
from deltaw.types import JsonValue, Row

if TYPE_CHECKING:
    import pandas as pd

FORMATS = ("csv", "parquet", "json")


def to_frame(rows: Sequence[Row]) -> pd.DataFrame:
    """Rows as a frame with the columns of the contract; what does not apply is NaN (or an empty text)."""
    import pandas as pd

    known = columns()
    names = with_bounds(list(known), sorted({name for row in rows for name in row} - set(known)))
    data: dict[str, pd.api.extensions.ExtensionArray | np.ndarray[tuple[int], np.dtype[np.generic]]] = {}
    for name in names:
        values = [row.get(name) for row in rows]
        if is_text(name):
            data[name] = pd.array(["" if v is None else str(v) for v in values], dtype="str")
        elif name in known and known[name].always:
            data[name] = np.array([int(v or 0) for v in values], dtype=np.int64)
        else:
            data[name] = np.array([math.nan if v is None else float(v) for v in values], dtype=np.float64)
    return pd.DataFrame(data, columns=names)


def records(frame: pd.DataFrame) -> list[dict[str, JsonValue]]:
    """The rows of a frame as JSON records: NaN as null, whole-numbered columns as integers."""
    rows = [{str(k): plain(v) for k, v in row.items()} for row in frame.to_dict("records")]
    for row in rows:
        for name, value in row.items():
            if isinstance(value, float) and is_whole(name):
                row[name] = int(value)
    return rows


def write_table(frame: pd.DataFrame, path: Path, form: str) -> None:
    """Write a frame of layers in one of `FORMATS`."""
    if form == "csv":
        text = frame.astype({c: "Int64" for c in frame.columns if is_whole(str(c))})
        text.to_csv(path, index=False)  # floats are written by repr: they read back to the same bits
    elif form == "parquet":
        frame.to_parquet(path, index=False)
    else:
        path.write_text(json.dumps(records(frame), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_layers(folder: Path) -> pd.DataFrame:
    """The table of layers of a results directory, from whichever format is there.

    Raises:
        ResultsError: There is none, or it cannot be read.
    """
    import pandas as pd

    try:
        if (path := folder / "layers.parquet").is_file():
            return typed(pd.read_parquet(path))
        if (path := folder / "layers.csv").is_file():
            return typed(read_table(path))
        if (path := folder / "layers.json").is_file():
            return typed(pd.DataFrame(_records(path)))
    except (OSError, ValueError, TypeError, OverflowError) as e:  # of pandas and pyarrow, or a cell of another type
        why = " ".join(str(e).split()) or type(e).__name__
        raise ResultsError(f"{path}: the table cannot be read ({why}); run analyze again") from e
    raise ResultsError(f"{folder}: no layers.parquet, layers.csv or layers.json there; is it an --out of analyze?")


def _records(path: Path) -> list[dict[str, object]]:  # foreign: `typed` reads the cells
    found = parse_json(read_text(path, error=ResultsError), str(path), error=ResultsError, expected="a list of rows")
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise ResultsError(f"{path}: holds {shown(found)}; expected a list of rows")
    return found


def typed(frame: pd.DataFrame) -> pd.DataFrame:
    """A table of layers that was read as texts, with the numbers that were written.

    Raises:
        ValueError: A column that every table has is missing, or a cell is no number.
    """
    import pandas as pd

    known = columns()
    missing = [c for c in known if (known[c].always or c == "name") and c not in frame.columns]
    if missing:
        raise ValueError(f"no column {missing[0]!r}")
    data: dict[str, pd.Series] = {}
    for name, column in frame.items():
        if str(name) in known and known[str(name)].always:
            data[str(name)] = column.astype(np.int64)
        elif is_text(str(name)) or column.dtype == np.float64:
            data[str(name)] = column
        else:  # Python's float: exact for what repr wrote, which pandas' parsers need not be
            values = [math.nan if v is None or v == "" else float(v) for v in column]
            data[str(name)] = pd.Series(values, index=frame.index, dtype="float64")
    return pd.DataFrame(data)
