"""Some 20,000 damaged inputs of every kind, of which a fifth is measured if it can be."""

from collections import Counter
from pathlib import Path

import pytest

from tests.fuzz.cases import KINDS, Kind, run, working_folder

INPUTS = 1200  # of each kind
SLOW = {
    "journal": 40,
    "analysis.json": 500,
    "layers.csv": 300,
    "spectra": 500,
    "runs.json": 40,
}  # each of these costs a whole run
ANALYZE_EACH = 5


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)
def test_damaged_inputs_end_in_rows_or_in_one_line(kind: Kind, tmp_path: Path):
    inputs = SLOW.get(kind.name, INPUTS)
    counts = Counter(run(kind, working_folder(tmp_path, kind), iter(range(inputs)), analyze_each=ANALYZE_EACH))
    assert counts["used"] + counts["refused"] == inputs
    assert counts["used"] > inputs // 50  # not everything is refused at the door
    assert counts["refused"]
