"""A new metric is one function and one field: this makes one in a copy of the package and looks for it everywhere."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
METRIC = '''

@metric(section="size", formula="Σ |Δ|", unit="weight", source="a test")
def made_up(delta_l1: float) -> float:
    """Sum of the absolute changes of all entries."""
    return delta_l1
'''
ENTRY = "| `made_up` | Σ \\|Δ\\| | weight | a test | Sum of the absolute changes of all entries. |"
ASK = f"""
from deltaw.metrics import REGISTRY, evaluate, markdown_table
from deltaw.metrics.quantities import Quantities
from deltaw.results.analysis import Analysis
from deltaw.results.columns import columns

assert evaluate(Quantities(delta_l1=3.5)) == {{"made_up": 3.5}}
assert "made_up" not in evaluate(Quantities(delta_sq=1.0))
assert "made_up" in columns()
assert {ENTRY!r} in markdown_table()
assert Analysis([{{"name": "w", "made_up": 3.5}}]).to_pandas()["made_up"].tolist() == [3.5]
"""
# The copy is the only deltaw that is found: editable installs have finders of their own.
ALONE = """
import sys

sys.meta_path[:] = [f for f in sys.meta_path if str(getattr(f, "__module__", "")).startswith("_frozen_importlib")]
sys.path.insert(0, {folder!r})
import deltaw

assert deltaw.__file__.startswith({folder!r}), deltaw.__file__
"""


@pytest.fixture
def run(tmp_path):
    """Run code in a copy of the package that has one more metric, written to its files as a contributor would."""
    package = tmp_path / "deltaw"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "deltaw", package, ignore=ignore)
    shutil.copytree(ROOT / "cli", package / "cli", ignore=ignore)
    shutil.copytree(ROOT / "reports", package / "reports", ignore=ignore)

    def go(ask, metric=METRIC, field="    delta_l1: float | None = None\n"):
        quantities, size = package / "metrics" / "quantities.py", package / "metrics" / "size.py"
        text = quantities.read_text(encoding="utf-8")
        anchor = "    delta_sq: float | None = None\n"
        assert text.count(anchor) == 1
        quantities.write_text(text.replace(anchor, anchor + field), encoding="utf-8")
        with size.open("a", encoding="utf-8") as file:
            file.write(metric)
        code = ALONE.format(folder=str(tmp_path)) + ask
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    return go


def test_one_function_and_one_field_are_a_column_and_a_glossary_entry(run):
    out = run(ASK)
    assert out.returncode == 0, out.stderr


def test_the_command_lists_it(run):
    out = run("import sys; sys.argv = ['deltaw', 'metrics', 'made_up']; from deltaw.cli import run; run()")
    assert out.returncode == 0, out.stderr
    assert "made_up  [weight]  Σ |Δ|" in out.stdout


def test_a_misspelt_quantity_fails_at_import(run):
    out = run("import deltaw.metrics", metric=METRIC.replace("made_up(delta_l1", "made_up(delta_l"))
    assert out.returncode != 0
    assert "made_up asks for 'delta_l', which is no field of Quantities and no earlier metric" in out.stderr
