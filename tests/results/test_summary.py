"""The summary of a model: totals, spreads and rankings by hand, and rows that lack what they should have."""

import json
import math

import pytest

from deltaw.results.analysis import plain
from deltaw.results.summary import spread, summarize
from deltaw.types import Skipped


def row(name, fro=1.0, base=10.0, **more):
    size = fro / base if base else math.nan
    return {
        "name": name,
        "module": name.split(".", 1)[-1],
        "kind": "mlp",
        "rows": 4,
        "cols": 5,
        "ndim": 2,
        "route": "dense",
        "method": "exact",
        "fro_norm": fro,
        "base_fro_norm": base,
        "relative_change": size,
        "spectral_norm": fro,
        "unchanged_fraction": 0.25,
        "resolution": "resolved",
    } | more


def test_a_model_as_one_vector():
    found = summarize([row("0.a", 3.0), row("0.b", 4.0), row("0.c", 0.0, unchanged_fraction=1.0, route="unchanged")])
    assert found["delta_norm"] == pytest.approx(5)
    assert found["base_norm"] == pytest.approx(math.sqrt(300))
    assert found["relative_change"] == pytest.approx(5 / math.sqrt(300))
    assert (found["tensors"], found["changed"], found["matrices"]) == (3, 2, 2)
    assert (found["parameters"], found["parameters_changed"]) == (60, 40)
    assert found["unchanged_share"] == pytest.approx(0.5)
    assert found["routes"] == {"dense": 2, "unchanged": 1}
    assert found["relative_change_all"] == {"n": 3, "median": 0.3, "low": 0.0, "high": 0.4}
    assert found["relative_change_changed"] == {"n": 2, "median": 0.35, "low": 0.3, "high": 0.4}


def test_skipped_are_counted_by_reason():
    skipped = [
        Skipped("a", "only_in_base"),
        Skipped("b", "tied_to x"),
        Skipped("c", "tied_to y"),
        Skipped("d", "failed: 3 NaN"),
    ]
    found = summarize([], skipped)
    assert found["skipped"] == {"only_in_base": 1, "tied_to": 2, "failed": 1}
    assert found["failed"] == 1


def test_the_most_changed():
    rows = [row(f"{i}.m", float(i), module="m") for i in range(1, 8)] + [row("b", 99.0, ndim=1, module="b")]
    found = summarize(rows)
    assert [m["name"] for m in found["most_changed"]] == ["b", "7.m", "6.m", "5.m", "4.m"]
    (module,) = found["most_changed_modules"]  # matrices only
    assert module["module"] == "m"
    assert module["tensors"] == 7
    assert module["relative_change"] == pytest.approx(math.sqrt(140 / 700))


def test_the_headline_rank_is_the_one_above_the_noise():
    rows = [
        row("a", signal_rank=4, effective_rank_denoised=3.5, effective_rank=300.0, rank_90=200.0, resolution="noisy"),
        row("b", signal_rank=6, effective_rank_denoised=5.5, effective_rank=500.0, rank_90=400.0, resolution="noisy"),
        row("c", signal_rank=0, effective_rank_denoised=0.0, effective_rank=700.0, resolution="below_precision"),
        row("d", 0.0, signal_rank=0, effective_rank_denoised=0.0, effective_rank=0.0, resolution=""),
    ]
    rank = summarize(rows)["rank"]
    assert rank["headline"] == pytest.approx(4.5)
    assert rank["naive"] == pytest.approx(500)
    assert rank["matrices_with_signal"] == 2
    assert rank["keep_90"] == {"n": 2, "median": 300.0, "low": 200.0, "high": 400.0}
    assert rank["signal_rank"]["n"] == 3
    assert summarize(rows)["resolution"] == {"noisy": 2, "below_precision": 1}


def test_energy_and_kinds():
    rows = [
        row("a", energy_at_16=0.5, energy_at_64=0.75),
        row("b", energy_at_16=1.0, kind="attention"),
        row("c", kind=""),
    ]
    found = summarize(rows)
    assert found["energy"]["at_16"]["median"] == pytest.approx(0.75)
    assert found["energy"]["at_64"]["n"] == 1
    assert {k: v["tensors"] for k, v in found["kinds"].items()} == {"mlp": 1, "attention": 1, "other": 1}


def test_a_base_that_is_missing_leaves_sizes_empty():
    bare = {k: v for k, v in row("a", 2.0).items() if k not in ("base_fro_norm", "relative_change")}
    found = summarize([bare])
    assert found["delta_norm"] == 2
    assert math.isnan(found["relative_change"])
    assert found["relative_change_all"]["n"] == 0
    assert found["most_changed"] == found["most_changed_modules"] == []


@pytest.mark.parametrize("rows", [[], [{}], [{"name": "x", "fro_norm": math.nan, "route": None, "rank_90": ""}]])
def test_rows_without_columns(rows):
    found = summarize(rows)
    assert found["tensors"] == len(rows)
    assert found["matrices"] == 0
    assert math.isnan(found["rank"]["headline"])
    json.dumps(plain(found), allow_nan=False)


def test_spread_ignores_what_is_empty():
    assert spread([{"x": 1.0}, {"x": None}, {}, {"x": math.nan}, {"x": 3}, {"x": "word"}], "x") == {
        "n": 2,
        "median": 2.0,
        "low": 1.0,
        "high": 3.0,
    }
