"""The measurements run and say what they must; what they find is for `make bench` to show."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "task",
    [
        ("matrix", "svdvals", "40", "30"),
        ("matrix", "full", "40", "30"),
        ("matrix", "fast", "30", "40", "4"),
        ("stage", "entries", "40", "30"),
        ("stage", "gram", "30", "40"),
        ("stage", "eigenvalues", "40", "30"),
        ("adapter", "2", "1"),
    ],
)
def test_a_measurement_prints_one_line_of_json(task):
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "work.py", *task], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert found["seconds"] > 0
    assert found["peak_mb"] >= 0


def test_pairs_are_what_they_say(tmp_path):
    script = """
import sys, torch
from pathlib import Path
from safetensors.torch import load_file
from benchmarks import pairs
pairs.HIDDEN = pairs.VOCABULARY = 8
g = torch.Generator().manual_seed(0)
old, new = pairs.merged(96, 64, 3, g)
assert old.dtype == new.dtype == torch.bfloat16
delta = new.double() - old.double()
assert abs(float(delta.norm() / old.double().norm()) - pairs.RELATIVE) < 1e-3
s = torch.linalg.svdvals(delta)
assert s[2] > 10 * s[3] > 0
assert torch.linalg.matrix_rank(pairs.update(20, 30, 5, g)) == 5
for rank in (None, 2):
    base, tuned = pairs.write_pair(Path(sys.argv[1]) / str(rank), layers=1, rank=rank)
    a, b = (load_file(p / "model.safetensors") for p in (base, tuned))
    assert a.keys() == b.keys() and len(a) == 9
    frozen = {name for name in a if torch.equal(a[name], b[name])}
    assert frozen == (set() if rank is None else {"lm_head.weight", "model.embed_tokens.weight"})
"""
    subprocess.run([sys.executable, "-c", script, tmp_path], check=True, cwd=ROOT)
