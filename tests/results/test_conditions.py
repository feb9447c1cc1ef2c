"""`--fail-if`: what it looks at, when it holds, and what is refused."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from deltaw.cli import main
from deltaw.errors import OptionError
from deltaw.results.analysis import Analysis
from deltaw.results.conditions import Condition

VALUES = (0.1, 0.3, None, 0.2, 0.6)
ROWS: list[dict[str, Any]] = [
    {"name": f"t{i}", "part": "q" if i == 4 else "", "relative_change": v, "resolution": r, "layer": i}
    for i, (v, r) in enumerate(zip(VALUES, ("resolved", "noisy", "", "noisy", "below_precision"), strict=True))
]


def check(text: str) -> tuple[float, str, bool]:
    found = Condition.parse(text).check(Analysis(ROWS))
    return found.value, found.name, found.holds


@pytest.mark.parametrize(
    ("text", "value", "name"),
    [
        ("relative_change.max > 0", 0.6, "t4[q]"),
        ("relative_change.min>0", 0.1, "t0"),
        ("  relative_change.mean  >  0 ", 0.3, ""),
        ("relative_change.median > 0", 0.25, ""),
        ("layer.max > 0", 4.0, "t4[q]"),
        ("resolution.noisy > 0", 2.0, ""),
        ("resolution.below_precision > 0", 1.0, ""),
    ],
)
def test_what_it_looks_at(text: str, value: float, name: str):
    found = check(text)
    assert found[0] == pytest.approx(value)
    assert found[1:] == (name, True)


@pytest.mark.parametrize(
    ("op", "below", "at", "above"),
    [
        ("<", True, False, False),
        ("<=", True, True, False),
        (">", False, False, True),
        (">=", False, True, True),
        ("==", False, True, False),
        ("!=", True, False, True),
    ],
)
def test_operators_on_both_sides_of_the_number(op: str, below: bool, at: bool, above: bool):
    for limit, holds in ((3, below), (2, at), (1, above)):
        assert check(f"resolution.noisy {op} {limit}")[2] is holds


@pytest.mark.parametrize("op", ["<", "!=", ">", "=="])
def test_what_no_row_has_holds_of_nothing(op: str):
    for text in (f"intruders.max {op} 0", f"rank_90_low.max {op} 0"):
        value, _, holds = check(text)
        assert math.isnan(value)
        assert not holds


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "cannot be read"),
        ("relative_change.max", "cannot be read"),
        ("relative_change.max > many", "cannot be read"),
        ("relative_change.max > nan", "cannot be read"),
        ("relative_change.max => 1", "cannot be read"),
        ("relative_change.max > 1; import os", "cannot be read"),
        ("relative_change > 1", "nothing behind the column"),
        ("relative_change.p90 > 1", r"\.p90; expected relative_change\.max"),
        ("relative_chang.max > 1", "Did you mean .relative_change"),
        ("kind.max > 1", "kind is a text"),
        ("resolution.max > 1", "expected resolution.resolved"),
        ("resolution > 1", "expected resolution.resolved"),
        ("compared.max > 1", "one number"),
    ],
)
def test_refused(text: str, says: str):
    with pytest.raises(OptionError, match=says):
        Condition.parse(text)


def run(*args: object) -> Any:
    return CliRunner().invoke(main, [str(a) for a in args])


def test_the_command(pico_pair: tuple[Path, Path], tmp_path: Path):
    out = ("--out", tmp_path / "out", "--no-report")
    held = run("analyze", *pico_pair, *out, "--fail-if", "rank_90.max > 0", "--fail-if", "rank_90.max < 0")
    assert held.exit_code == 5
    assert "'rank_90.max > 0' holds: it is " in held.stderr
    assert "'rank_90.max < 0'" not in held.stderr
    assert (tmp_path / "out" / "layers.csv").exists()  # the results are there
    fine = run("analyze", *pico_pair, *out, "--fail-if", "rank_90.max < 0", "--fail-if", "intruders.max > 0")
    assert fine.exit_code == 0
    assert "no row has a value of intruders" in fine.stderr
    document = json.loads(run("analyze", *pico_pair, *out, "--json", "--fail-if", "rank_90.max > 0").stdout)
    assert document["fail_if"][0]["holds"] is True


def test_usage_errors_and_bad_inputs_win(pico_pair: tuple[Path, Path], tmp_path: Path):
    assert run("analyze", *pico_pair, "--fail-if", "rank_9.max > 0").exit_code == 2
    assert run("analyze", tmp_path / "none", pico_pair[1], "--fail-if", "rank_90.max > 0").exit_code == 1
