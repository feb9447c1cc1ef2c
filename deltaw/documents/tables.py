"""Tables that lie in files: CSV as texts, cell by cell, so that whoever asks makes the numbers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deltaw.errors import ResultsError

if TYPE_CHECKING:
    import pandas as pd


def read_table(path: Path) -> pd.DataFrame:
    """A CSV file as texts; an empty cell is an empty text.

    Raises:
        ResultsError: There is none, it is no regular file (a pipe would be waited for), or no table.
    """
    import pandas as pd

    if not path.is_file():
        what = "is not a regular file" if path.exists() else "is not there"
        raise ResultsError(f"{path}: {what}; expected a table that deltaw wrote: run the command that wrote it again")
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError, OverflowError) as e:  # of pandas
        why = " ".join(str(e).split()) or type(e).__name__
        raise ResultsError(f"{path}: the table cannot be read ({why}); run the command that wrote it again") from e
