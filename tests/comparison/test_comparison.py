"""The tables of a comparison, its files, and planted effects through all of it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import deltaw
from deltaw.comparison.comparison import Comparison
from deltaw.comparison.runs import Runs
from deltaw.comparison.welch import holm
from deltaw.errors import OptionError, ResultsError

Make = Callable[..., deltaw.Analysis]
CONTRACT = [
    *("metric", "group_a", "group_b", "n_layers", "n_seeds_a", "n_seeds_b", "median_a", "median_b", "median_ratio"),
    *("median_difference", "ratio_low", "ratio_high", "difference_low", "difference_high", "cliffs_delta", "p_value"),
    *("p_seeds", "p_adjusted"),
]
FACTORS = {"rank_90": 4.0, "effective_rank": 2.0, "relative_change": 0.5}


def three(analysis: Make, factors: dict[str, float] | None, start: int) -> list[deltaw.Analysis]:
    return [analysis(factors, seed=start + s, seed_noise=0.05) for s in range(3)]


def test_planted_factors_are_covered_and_nothing_else_is_found(analysis: Make) -> None:
    """100 repetitions of three seeds each: rank, energy and distance differ by known factors, the rest does not."""
    covered = dict.fromkeys(FACTORS, 0)
    false, clear, trials = 0, 0, 0
    for i in range(100):
        c = deltaw.compare({"a": three(analysis, FACTORS, 6 * i), "b": three(analysis, None, 6 * i + 3)})
        rows = c.contrasts().set_index("metric")
        for metric, factor in FACTORS.items():
            covered[metric] += rows.loc[metric, "ratio_low"] <= factor <= rows.loc[metric, "ratio_high"]
            clear += rows.loc[metric, "p_adjusted"] < 0.05
        for metric in ("shrinkage", "energy_at_16"):
            false += rows.loc[metric, "p_adjusted"] < 0.05
            trials += 1
    assert min(covered.values()) >= 93, covered
    assert false <= 0.05 * trials
    assert clear >= 0.9 * 300


def test_contrasts_have_the_columns_of_the_contract(analysis: Make) -> None:
    c = deltaw.compare({"full": three(analysis, None, 0), "LoRA": analysis(adapter="lora", rank=16)})
    frame = c.contrasts()
    assert [x for x in frame.columns if x in CONTRACT] == CONTRACT
    assert set(frame["group_a"]) == {"full"}
    row = frame.set_index("metric").loc["rank_90"]
    assert (row["n_layers"], row["n_seeds_a"], row["n_seeds_b"]) == (28, 3, 1)
    assert row["interval_covers"] == "seeds of one group and layers"
    assert "base_fro_norm" not in set(frame["metric"])  # the base's own, equal in all runs
    layers = c.layers()
    mine = layers[layers["run"].str.startswith("full")].groupby("name")["rank_90"].mean()
    theirs = layers[layers["run"] == "LoRA"].groupby("name")["rank_90"].mean()
    assert row["median_a"] == np.median(mine)
    assert row["median_ratio"] == pytest.approx(np.exp(np.median(np.log(mine / theirs))))
    assert frame["p_adjusted"].isna().all()  # a single seed says nothing about others
    assert frame["p_seeds"].isna().all()


def test_numbers_depend_on_the_seed_alone(analysis: Make) -> None:
    runs = {"a": three(analysis, FACTORS, 0), "b": three(analysis, None, 3)}
    first, again, other = (deltaw.compare(runs, seed=s).contrasts() for s in (1, 1, 2))
    pd.testing.assert_frame_equal(first, again)
    assert not first.equals(other)
    # A third group changes no contrast of the others, but Holm's correction.
    more = deltaw.compare(runs | {"c": analysis(seed=9)}, seed=1).contrasts()
    more = more[more["group_b"] == "b"].reset_index(drop=True)
    pd.testing.assert_frame_equal(more.drop(columns="p_adjusted"), first.drop(columns="p_adjusted"))


def test_files(analysis: Make, tmp_path: Path) -> None:
    c = deltaw.compare({"a": three(analysis, FACTORS, 0), "b <script>": analysis(seed=9)})
    out = c.save(tmp_path / "out", report=False)
    for name in ("runs", "layers", "contrasts"):
        frame = pd.read_csv(out / f"{name}.csv")
        assert len(frame) == len(getattr(c, name)())
    layers = pd.read_csv(out / "layers.csv")
    assert list(layers.columns[:3]) == ["run", "group", "name"]
    assert set(layers["run"]) == {"a #1", "a #2", "a #3", "b <script>"}
    assert layers["rank_90"].dtype == np.int64
    assert (layers["relative_change"] == c.layers()["relative_change"]).all()  # bits survive
    c.save(tmp_path / "out", report=False)  # the same runs again
    with pytest.raises(ResultsError, match="comparison of other runs"):
        deltaw.compare({"z": analysis()}).save(tmp_path / "out", report=False)
    deltaw.compare({"z": analysis()}).save(tmp_path / "out", report=False, force=True)
    analysis().save(tmp_path / "analysis")
    with pytest.raises(ResultsError, match="results of an analysis"):
        c.save(tmp_path / "analysis", report=False)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ResultsError, match="is a file"):
        c.save(tmp_path / "file", report=False)


def test_to_dict_is_json(analysis: Make) -> None:
    c = deltaw.compare({"full": analysis(seed=0), "LoRA r=16": analysis(adapter="lora", rank=16, seed=1)})
    document = json.loads(json.dumps(c.to_dict(), allow_nan=False))
    assert document["groups"] == ["full", "LoRA r=16"]
    assert {r["metric"] for r in document["contrasts"]} >= {"rank_90", "shrinkage"}
    assert document["contrasts"][0]["n_layers"] == 28
    assert document["similarity"] == []
    assert document["similarity_note"]


def test_reference(analysis: Make) -> None:
    runs = {"LoRA r=4": analysis(adapter="lora", rank=4), "full": analysis(seed=1), "x": analysis(seed=2)}
    assert deltaw.compare(runs).reference == "full"
    assert deltaw.compare(runs, reference="x").reference == "x"
    with pytest.raises(OptionError, match="Did you mean 'full'"):
        deltaw.compare(runs, reference="ful")
    with pytest.raises(OptionError, match="seed is -1"):
        deltaw.compare(runs, seed=-1)


def test_fingerprints(analysis: Make) -> None:
    c = deltaw.compare({"full": three(analysis, None, 0), "decay": three(analysis, {"rank_90": 2.0}, 3)})
    f = c.fingerprints().set_index("group")
    assert f.loc["decay", "rank_90_effect_low"] <= 2.0 <= f.loc["decay", "rank_90_effect_high"]
    assert np.isnan(f.loc["full", "rank_90_effect"])
    assert f.loc["full", "interval_covers"] == "seeds and layers"
    assert not f.loc["full", "common_shrinkage"]  # it varies by layer
    same = deltaw.compare({"decay": [analysis(shrinkage=0.004, seed=s) for s in range(2)]}).fingerprints()
    assert same.loc[0, "common_shrinkage"]
    assert np.isnan(f.loc["full", "factor_balance"])


def test_settings_choose_what_stands_for_a_group(manifest: Callable[[str], Path], saved: Callable[..., Path]) -> None:
    """Of several tokens and learning rates: the last tokens, and there the one that learned best."""
    runs = []
    for tokens, lr, learning in ((100, 1e-3, 0.9), (200, 1e-3, 0.2), (200, 1e-4, 0.3), (200, 1e-4, 0.4)):
        name = f"r{len(runs)}"
        saved(name, seed=len(runs), factors={"rank_90": 1 + tokens / 100})
        runs.append(
            f'[[runs]]\nname = "{name}"\ngroup = "g"\nmethod = "full"\nseed = {len(runs) % 2}\ntokens = {tokens}\n'
            f'results = "{name}"\n[runs.hyperparameters]\nlearning_rate = {lr}\n[runs.scores]\nlearning = {learning}\n'
        )
    c = deltaw.compare(manifest("\n".join(runs)))
    assert list(c.runs()["represents"]) == [False, False, True, True]
    fingerprint = c.fingerprints().iloc[0]
    assert fingerprint["setting"] == "200 tokens, learning_rate = 0.0001"
    assert fingerprint["n_seeds"] == 2
    curves = c.trajectories()
    rank = curves[curves["metric"] == "rank_90"]
    assert list(rank["tokens"]) == [100, 200]
    assert rank["value"].is_monotonic_increasing
    assert list(rank["curve"].unique()) == ["learning_rate = 0.001"]


def test_scores_only_runs_take_part_in_scores(manifest: Callable[[str], Path], saved: Callable[..., Path]) -> None:
    saved("full")
    c = deltaw.compare(
        manifest(
            '[[runs]]\nname = "full"\nmethod = "full"\nresults = "full"\n'
            "[runs.scores]\nlearning = 0.3\nretention = 0.5\n"
            '[[runs]]\nname = "LoRA r=8"\nmethod = "lora"\n[runs.scores]\nlearning = 0.2\nretention = 0.6\n'
        )
    )
    assert len(c.contrasts()) == 0
    assert list(c.runs()["n_layers"]) == [28, 0]
    effect = c.fingerprints().set_index("group").loc["LoRA r=8"]
    assert effect["retention_effect"] == pytest.approx(0.1)
    assert np.isnan(effect["rank_90"])
    assert verdict(c, "lora-learns-less") == "cannot tell"  # one seed


def verdict(c: deltaw.Comparison, claim: str) -> str:
    return str(c.claims().set_index("claim").loc[claim, "verdict"])


def test_signed_metrics_have_differences_and_no_ratio(analysis: Make) -> None:
    decay = [analysis(shrinkage=0.01 + 1e-5 * s, seed=s) for s in range(3)]
    full = [analysis(shrinkage=-0.001 + 1e-5 * s, seed=3 + s) for s in range(3)]
    c = deltaw.compare({"full": full, "decay": decay})
    row = c.contrasts().set_index("metric").loc["shrinkage"]
    assert row["median_difference"] == pytest.approx(-0.011)
    assert row["difference_low"] <= -0.011 <= row["difference_high"]
    assert np.isnan([row["median_ratio"], row["ratio_low"], row["ratio_high"]]).all()
    assert np.isnan(c.contrasts().set_index("metric").loc["rank_90", "median_difference"])
    assert c.fingerprints().set_index("group").loc["decay", "shrinkage_effect"] == pytest.approx(0.011)


def test_p_adjusted_is_holm_over_the_larger_p_of_the_whole_table(analysis: Make) -> None:
    groups = {"a": three(analysis, FACTORS, 0), "b": three(analysis, None, 3), "c": three(analysis, None, 6)}
    frame = deltaw.compare(groups).contrasts()
    larger = frame[["p_value", "p_seeds"]].max(axis=1).to_numpy()
    assert frame["p_adjusted"].to_numpy() == pytest.approx(holm(larger))


def test_copies_are_no_replicates(analysis: Make) -> None:
    run = analysis(seed=1)
    c = deltaw.compare({"full": [run, run, analysis(seed=2)], "LoRA": three(analysis, None, 3)})
    assert any("'full #2' of 'full #1'" in w and "counted once" in w for w in c.warnings)
    assert set(c.contrasts()["n_seeds_a"]) == {2}
    assert len(c.runs()) == 6
    assert not any("counted once" in w for w in deltaw.compare({"a": three(analysis, None, 0)}).warnings)


def test_equal_scores_are_pointed_out(scored: Callable[..., Runs]) -> None:
    twice = [("full", "full", 0.3, 0.6, {"seed": s}) for s in range(2)]
    c = Comparison(scored(*twice, ("LoRA", "lora", 0.2, 0.6, {})))
    assert any("The same scores to the last digit: 'run1' and 'run0'" in w for w in c.warnings)


def test_all_means_all(analysis: Make) -> None:
    """A fifth of the matrices grew: they did not all shrink."""

    def mixed(seed: int) -> deltaw.Analysis:
        rows = analysis(shrinkage=0.01, seed=seed).rows
        return deltaw.Analysis([dict(r) | ({"shrinkage": -0.05} if i % 5 == 0 else {}) for i, r in enumerate(rows)])

    assert not deltaw.compare({"a": [mixed(s) for s in range(2)]}).fingerprints().loc[0, "common_shrinkage"]


def test_it_says_of_a_run_what_analyze_says(analysis: Make) -> None:
    """Medians are over the matrices that changed: not over vectors, nor over what stood still."""

    def partly(seed: int) -> deltaw.Analysis:
        rows = [dict(r) | {"fro_norm": 1.0} for r in analysis(seed=seed, seed_noise=0.01).rows]
        for r in rows[::2]:
            r |= {"route": "unchanged", "relative_change": 0.0, "rank_90": 0, "fro_norm": 0.0}
        vector = {**rows[1], "name": "norm", "module": "norm", "route": "vector", "ndim": 1, "relative_change": 1e-6}
        return deltaw.Analysis([*rows, vector, {**vector, "name": "bias", "module": "bias"}])

    runs = [partly(s) for s in range(2)]
    c = deltaw.compare({"a": runs})
    medians = [run.summary.change.median for run in runs]
    assert list(c.runs()["relative_change"]) == pytest.approx(medians)
    assert c.fingerprints().loc[0, "relative_change"] == pytest.approx(np.mean(medians), rel=0.02)
    assert c.runs()["rank_90"].min() == min(run.summary.rank.rank_90.median for run in runs) > 0


def test_ranks_are_those_that_may_be_quoted(analysis: Make) -> None:
    """Two groups of merged low-rank updates, one smaller: what is contrasted is the rank without the rounding."""

    def stored(noise: float, plain: float, seed: int) -> deltaw.Analysis:
        rng = np.random.default_rng(seed)
        more = {"fro_norm": 1.0, "rounding_noise": noise, "effective_rank": plain}
        return deltaw.Analysis(
            [dict(r) | more | {"effective_rank_denoised": 7.9 * np.exp(rng.normal(0, 0.01))} for r in analysis().rows]
        )

    groups = {
        g: [stored(n, p, s) for s in seeds] for g, n, p, seeds in (("a", 0.05, 26.0, (1, 2)), ("b", 0.09, 61.8, (3, 4)))
    }
    row = deltaw.compare(groups).contrasts().set_index("metric").loc["effective_rank"]
    assert (row["median_a"], row["median_b"]) == pytest.approx((7.9, 7.9), rel=0.02)
    assert row["ratio_low"] <= 1 <= row["ratio_high"]
