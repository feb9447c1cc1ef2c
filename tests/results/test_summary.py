"""The summary of a model: totals, spreads and rankings by hand, and rows that lack what they should have."""

import json
import math

import pytest

from deltaw.results.analysis import Analysis, load
from deltaw.results.plain import plain
from deltaw.results.rows import Rows, Spread
from deltaw.results.summarize import summarize
from deltaw.results.summary import Resolution
from deltaw.types import Coverage, Reason, Skipped


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
    assert found.delta_norm == pytest.approx(5)
    assert found.base_norm == pytest.approx(math.sqrt(300))
    assert found.relative_change == pytest.approx(5 / math.sqrt(300))
    assert (found.tensors, found.changed, found.matrices, found.changed_matrices) == (3, 2, 3, 2)
    assert (found.parameters, found.parameters_changed) == (60, 40)
    assert found.unchanged_share == pytest.approx(0.5)
    assert found.routes == {"dense": 2, "unchanged": 1}
    every, changed = found.relative_change_all, found.relative_change_changed
    assert (every.n, every.median, every.low, every.high) == (3, 0.3, 0.0, 0.4)
    assert (changed.n, changed.median, changed.low, changed.high) == (2, 0.35, 0.3, 0.4)


def test_skipped_are_counted_by_reason():
    skipped = [
        Skipped("a", Reason.ONLY_IN_BASE),
        Skipped("b", Reason.TIED_TO, subject="x"),
        Skipped("c", Reason.TIED_TO, subject="y"),
        Skipped("d", Reason.FAILED, subject="3 NaN"),
    ]
    found = summarize([], skipped)
    assert found.skipped == {"only_in_base": 1, "tied_to": 2, "failed": 1}
    assert found.failed == 1


def test_the_most_changed():
    rows = [row(f"{i}.m", float(i), module="m") for i in range(1, 8)] + [row("b", 99.0, ndim=1, module="b")]
    found = summarize(rows)
    assert [m.name for m in found.most_changed] == ["b", "7.m", "6.m", "5.m", "4.m"]
    (module,) = found.most_changed_modules  # matrices only
    assert module.module == "m"
    assert module.tensors == 7
    assert module.relative_change == pytest.approx(math.sqrt(140 / 700))


def test_the_change_of_a_kind_is_that_of_its_matrices():
    rows = [row("a", 0.1, kind="attention"), row("b", 0.3, kind="attention"), row("c", 0.02, kind="norm", ndim=1)]
    rows += [row(f"bias {i}", 0.9, kind="attention", ndim=1) for i in range(5)]
    found = summarize(rows).kinds
    assert found["attention"].relative_change == pytest.approx(0.02)
    assert found["norm"].relative_change == pytest.approx(0.002)


def test_ranks_are_quoted_by_the_rule():
    rows = [
        row("a", signal_rank=4, effective_rank_denoised=3.5, effective_rank=300.0, rank_90=200.0, resolution="noisy"),
        row("b", signal_rank=6, effective_rank_denoised=5.5, effective_rank=5.75, rank_90=6.0),
        row("c", signal_rank=0, effective_rank_denoised=0.0, effective_rank=700.0, resolution="below_precision"),
        row("d", 0.0, signal_rank=0, effective_rank_denoised=0.0, effective_rank=0.0, resolution=""),
    ]
    found = summarize(rows)
    assert found.rank.headline == pytest.approx(4.5)
    assert found.rank.effective_rank.n == 2  # the denoised one of `a`, the plain one of `b`, and none of `c`
    assert (found.rank.effective_rank.low, found.rank.effective_rank.high) == (3.5, 5.75)
    assert found.rank.rank_90.n == 1  # `a` has none with the rounding taken out
    assert found.kinds["mlp"].rank_90 == 6
    assert (found.kinds["mlp"].matrices, found.kinds["mlp"].clear) == (3, 1)
    assert found.precision.matrices_with_signal == 2
    assert found.precision.signal_rank.n == 3
    assert found.resolution == Resolution(resolved=1, noisy=1, below_precision=1)


def test_energy_and_kinds():
    rows = [
        row("a", energy_at_16=0.5, energy_at_64=0.75),
        row("b", energy_at_16=1.0, kind="attention"),
        row("c", kind=""),
    ]
    found = summarize(rows)
    assert found.energy["energy_at_16"].median == pytest.approx(0.75)
    assert found.energy["energy_at_64"].n == 1
    assert {k: v.tensors for k, v in found.kinds.items()} == {"mlp": 1, "attention": 1, "other": 1}


def test_a_base_that_is_missing_leaves_sizes_empty():
    bare = {k: v for k, v in row("a", 2.0).items() if k not in ("base_fro_norm", "relative_change")}
    found = summarize([bare])
    assert found.delta_norm == 2
    assert math.isnan(found.relative_change)
    assert found.relative_change_all.n == 0
    assert found.most_changed == found.most_changed_modules == ()


@pytest.mark.parametrize("rows", [[], [{}], [{"name": "x", "fro_norm": math.nan, "route": None, "rank_90": ""}]])
def test_rows_without_columns(rows):
    found = summarize(rows)
    assert found.tensors == len(rows)
    assert found.changed_matrices == 0
    assert math.isnan(found.rank.headline)
    json.dumps(plain(found), allow_nan=False)


def test_a_spread_ignores_what_is_empty():
    rows = Rows(({"x": 1.0}, {"x": None}, {}, {"x": math.nan}, {"x": 3}, {"x": "word"}))
    found = rows.spread("x")
    assert (found.n, found.median, found.low, found.high) == (2, 2.0, 1.0, 3.0)
    assert Spread.of([]) == Spread.of([math.nan]) != Spread.of([0.0])


def test_a_summary_is_computed_once_and_written_as_plain_numbers(tmp_path):
    analysis = Analysis([row("a")], coverage=Coverage(compared_tensors=1, tensors=2, compared_numbers=20, numbers=80))
    assert analysis.summary is analysis.summary
    analysis.save(tmp_path)
    written = json.loads((tmp_path / "analysis.json").read_text())["summary"]
    assert written["verdict"] == "spread"
    assert written["coverage"]["share"] == 0.25
    assert written["decay"]["visible"] is False
    assert written["decay"]["value"] is None
    assert load(tmp_path).summary.coverage == analysis.coverage
