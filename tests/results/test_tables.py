"""The table of layers, as a file that others may have written to."""

from pathlib import Path

import pandas as pd
import pytest
import torch

import deltaw
from deltaw.errors import ResultsError


@pytest.mark.parametrize("column", ["name", "rows", "cols", "ndim"])
def test_a_column_that_every_table_has(column: str, tmp_path: Path):
    deltaw.analyze({"a": torch.zeros(3, 4)}, {"a": torch.ones(3, 4)}).save(tmp_path)
    for path in tmp_path.glob("layers.*"):
        path.unlink()
    frame = deltaw.analyze({"a": torch.zeros(3, 4)}, {"a": torch.ones(3, 4)}).to_pandas()
    frame.drop(columns=column).to_csv(tmp_path / "layers.csv", index=False)
    with pytest.raises(ResultsError, match=rf"layers.csv: the table cannot be read \(no column '{column}'\)"):
        deltaw.load(tmp_path)
    frame.to_csv(tmp_path / "layers.csv", index=False)
    assert isinstance(deltaw.load(tmp_path).to_pandas(), pd.DataFrame)
