from __future__ import annotations

import math
import tomllib

import pandas as pd
import pytest

from deltaw.study.job import finite
from deltaw.study.outcome import _toml, learned


@pytest.mark.parametrize("value", ["plain", 'with "quotes" \\ and\nlines', "Δ \x7f \x00 é", 3, 1e-5, 0.1, True, 1e22])
def test_values_come_back_from_toml(value: object) -> None:
    assert tomllib.loads(f"x = {_toml(value)}") == {"x": value}


def test_diverged_scores_are_none() -> None:
    assert finite({"a": 1.0, "b": math.nan, "c": math.inf}) == {"a": 1.0, "b": None, "c": None}


def test_learned_is_the_best_point_against_the_base() -> None:
    rows = [
        ("code", "base", 5.0),
        ("code", "full", 4.0),
        ("code", "full", None),
        ("code", "bad", 6.0),
        ("code", "gone", None),
    ]
    points = pd.DataFrame(rows, columns=["target", "arm", "target_loss"]).astype({"target_loss": "Float64"})
    found = learned(points).set_index("arm")
    assert found["fell"].to_dict() == {"full": True, "bad": False, "gone": False}
    assert found.loc["full", "diverged_points"] == 1
    assert found.loc["full", "best_loss"] == 4.0
