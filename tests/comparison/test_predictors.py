"""Which measure tells forgetting: planted ones are found, intervals come from whole runs, and chance is not decided."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from deltaw.comparison.comparison import Comparison
from deltaw.comparison.evaluations import Score
from deltaw.comparison.manifest import RunSpec
from deltaw.comparison.predictors import predictors_frame
from deltaw.comparison.runs import Run, Runs
from deltaw.reports.comparison import contents, html
from deltaw.reports.predictors import sentences, table
from deltaw.reports.text import unmarked
from tests.comparison.conftest import make_analysis

LAYERS = make_analysis(blocks=2).to_pandas()
SIZES = ("fro_norm", "fro_norm_on_source", "fro_norm_on_data")


def runs_of(n: int, *, noise: float, tokens: int = 1, seed: int = 0, method: str = "full") -> list[Run]:
    """Runs whose loss on the source follows the size on the source, whose plain size is that times noise."""
    g = np.random.default_rng(seed)
    out = []
    for i in range(n):
        for t in range(tokens):
            on_source = math.exp(g.normal())
            plain, on_data = on_source * math.exp(g.normal(0, noise)), math.exp(g.normal())
            sizes = dict(zip(SIZES, (plain, on_source, on_data), strict=True))
            frame = LAYERS.assign(**sizes)
            frame.index = frame["name"]
            spec = RunSpec(
                f"{method}{i}-{t}",
                group=f"{method}",
                seed=i,
                tokens=100 * (t + 1),
                scores={"learning": Score(sizes["fro_norm_on_data"]), "retention": Score(-on_source)},
            )
            out.append(Run(spec, method, frame))
    return out


def test_the_planted_measure_is_the_best():
    frame = predictors_frame(Runs(runs_of(20, noise=2.0), "full"))
    forgetting = frame[(frame["runs"] == "all") & (frame["outcome"] == "retention")].set_index("predictor")
    assert forgetting.index[0] == "fro_norm_on_source"
    assert forgetting.at["fro_norm_on_source", "rho"] == pytest.approx(1)
    assert forgetting.at["fro_norm_on_source", "behind"] == 0
    assert forgetting.at["fro_norm", "behind_low"] > 0
    learning = frame[frame["outcome"] == "learning"].set_index("predictor")
    assert learning.index[0] == "fro_norm_on_data"


def test_it_is_spearmans_and_the_partial_one_of_ranks():
    runs = runs_of(15, noise=0.7, seed=3)
    frame = predictors_frame(Runs(runs, "full")).set_index(["outcome", "predictor"])
    x = np.array([r.layers["fro_norm"].iloc[0] for r in runs])
    y = np.array([-r.score("retention") for r in runs])
    z = np.array([r.score("learning") for r in runs])
    found = frame.loc[("retention", "fro_norm")]
    assert found["rho"] == pytest.approx(stats.spearmanr(x, y).statistic)
    left = [stats.linregress(stats.rankdata(z), stats.rankdata(v)) for v in (x, y)]
    rests = [stats.rankdata(v) - fit.slope * stats.rankdata(z) for v, fit in zip((x, y), left, strict=True)]
    assert found["partial"] == pytest.approx(np.corrcoef(*rests)[0, 1])
    assert found["rho_low"] < found["rho"] < found["rho_high"]


def test_the_points_of_one_run_are_drawn_together():
    many = predictors_frame(Runs(runs_of(24, noise=1.0, seed=1), "full"))
    items = runs_of(24, noise=1.0, seed=1)
    as_six = [replace(r, spec=replace(r.spec, seed=i % 6, tokens=100 * (1 + i // 6))) for i, r in enumerate(items)]
    few = predictors_frame(Runs(as_six, "full"))
    for frame, n in ((many, 24), (few, 6)):
        assert set(frame["n_runs"]) == {n}
        assert set(frame["points"]) == {24}
    assert predictors_frame(Runs(as_six[:4], "full"))["rho_low"].isna().all()  # 4 runs: too few for an interval


def test_chance_is_seldom_decided():
    decided = 0
    for seed in range(25):
        items = runs_of(10, noise=0.5, seed=seed)
        g = np.random.default_rng(100 + seed)
        items = [replace(r, layers=r.layers.assign(**{s: math.exp(g.normal()) for s in SIZES})) for r in items]
        frame = predictors_frame(Runs(items, "full"))
        row = frame[(frame["outcome"] == "retention") & (frame["predictor"] == "fro_norm_on_source")].iloc[0]
        decided += row["rho_low"] > 0 or row["rho_high"] < 0
    assert decided <= 4  # 5 % of 25 is 1; a bootstrap of ten runs is a little narrow


def test_methods_apart_and_matrices_that_all_changed():
    full, lora = runs_of(6, noise=0.3), runs_of(6, noise=0.3, seed=9, method="lora")
    for r in full:
        r.layers.loc[r.layers.index[0], "fro_norm"] = 1e6  # a matrix that LoRA leaves alone
    for r in lora:
        r.layers.loc[r.layers.index[0], ["route", "fro_norm"]] = ["unchanged", 0.0]
    frame = predictors_frame(Runs([*full, *lora], "full"))
    assert list(dict.fromkeys(frame["runs"])) == ["all", "full", "lora"]
    rho = frame[frame["outcome"] == "retention"].set_index(["runs", "matrices", "predictor"])["rho"]
    assert rho[("all", "shared", "fro_norm")] > 0.8
    assert rho[("all", "changed", "fro_norm")] < 0.8  # where the huge matrix of one method decides
    assert ("all", "changed", "relative_change") not in rho.index  # a median over other matrices is another number
    assert rho[("full", "shared", "fro_norm_on_source")] == pytest.approx(1)
    assert ("full", "changed", "fro_norm") not in rho.index  # they all changed the same


def test_without_measures_on_data_there_is_none():
    items = [
        replace(r, layers=r.layers.drop(columns=["fro_norm_on_source", "fro_norm_on_data"]))
        for r in runs_of(6, noise=1)
    ]
    assert not len(predictors_frame(Runs(items, "full")))
    assert "predictors" not in dict(contents(Comparison(Runs(items, "full"))))


def test_the_sentence_says_whether_it_is_decided():
    decided = predictors_frame(Runs(runs_of(20, noise=2.0), "full"))
    (said,) = [unmarked(s.text) for s in sentences(decided)]
    assert said.startswith(
        "What was forgotten goes best with fro_norm_on_source of the matrices that every run changed: ρ = 1 (1 to 1) "
        "over 20 points of 20 runs"
    )
    assert "; the size of the update alone, fro_norm, is behind: ρ = " in said
    open_ = predictors_frame(Runs(runs_of(12, noise=0.01), "full"))
    assert "may be as good" in unmarked(sentences(open_)[0].text) or open_.iloc[0]["predictor"] == "fro_norm"


def test_the_report_has_the_table(tmp_path):
    comparison = Comparison(Runs(runs_of(6, noise=0.5), "full"))
    page = html(comparison)
    assert '<section id="predictors">' in page
    columns, rows = table(comparison.predictors())
    assert [c.key for c in columns] == [
        "runs",
        "matrices",
        "predictor",
        "rho",
        "partial",
        "behind",
        "learning",
        "points",
    ]
    assert len(rows) == len(comparison.predictors()) / 2
    comparison.save(tmp_path, report=False)
    assert (tmp_path / "predictors.csv").read_text().startswith("domain,training,runs,matrices,outcome,predictor,")
