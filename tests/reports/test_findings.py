"""The sentences, case by case: from matrices to words, and the rules by themselves."""

import dataclasses
import json
import math

import pytest
import torch
from safetensors.torch import save_file

import deltaw
from deltaw.reports import findings, remarks
from deltaw.reports.adapter_ranks import Need
from deltaw.reports.layers import Layers
from deltaw.reports.offer import Offer, extract_command, lora_config, offer
from deltaw.reports.text import number, unmarked
from deltaw.results.analysis import Analysis
from deltaw.results.decay import Decay, Gate
from deltaw.results.rows import Spread
from deltaw.results.summary import AdapterUse, Moved, Ranks, Resolution, RoundingSummary, Summary
from deltaw.results.typical import Typical
from deltaw.results.verdict import Verdict
from deltaw.types import Coverage, Reason, Skipped

N = "\u202f"


def said(f: Summary) -> list[str]:
    return [unmarked(s.text).replace(N, " ") for s in findings.answer(f)]


def test_an_unchanged_pair(kit):
    f = kit.make(kit.nothing).summary
    assert f.verdict == "unchanged"
    assert said(f) == ["Nothing changed: all 39 tensors compared hold the same numbers on both sides."]
    assert [x.value for x in findings.five(f)][:3] == ["0", "0 / 30", "0 / 0"]


def test_no_tensor_at_all():
    f = Analysis([], skipped=[Skipped("a", Reason.FAILED, subject="not finite")]).summary
    assert f.verdict == "empty"
    assert said(f) == ["No tensor of the two checkpoints has a row in this analysis. 1 tensor could not be measured."]


def test_a_full_fine_tune(full_analysis):
    f = full_analysis.summary
    what, real, rank = said(f)
    assert f.verdict == "spread"
    assert what == "30 of 30 matrices changed, all by about 2 % of their norm; so did all 9 vectors."
    assert real == "Storage rounding is negligible (float32)."
    assert rank.startswith("Not low-rank: 90 % of the energy takes ")
    assert "; a rank-16 adapter could keep " in rank


def test_a_merged_lora_in_bf16(lora_analysis):
    f = lora_analysis.summary
    assert f.verdict == "low_rank"
    _, real, rank = said(f)
    assert real.startswith(
        "Storage rounding (bfloat16) explains 0.11 % of the energy in the typical matrix and at most "
    )
    assert real.endswith("in any: the update is real.")
    assert rank.startswith("Low-rank: 4 directions above rounding hold 99.9 % of the energy")
    assert rank.endswith("This is consistent with a merged low-rank update.")


def test_a_small_merged_lora_in_bf16_is_read_without_its_rounding(kit):
    f = kit.make(kit.lora(size=0.0025), hidden=64, dtype="bfloat16").summary
    assert f.resolution.noisy == f.changed_matrices == 28
    assert f.verdict == "low_rank"
    _, real, rank = said(f)
    assert real == (
        "In all 28 changed matrices storage rounding (bfloat16) explains 1 to 50 % of the energy; their ranks are read "
        "without it."
    )
    assert rank.startswith("Low-rank: 4 directions above rounding")
    assert f.rank.rank_90.median <= 4
    assert f.rank.rank_90_ratio.median < 0.15
    assert f.energy["energy_at_16"].median > 0.99
    assert "–" not in [x.value for x in findings.five(f)]
    assert any("28 matrices rounding explains 1–50 %" in unmarked(c.text) for c in remarks.concerns(f))


def test_a_tiny_update_is_mostly_rounding(kit):
    f = kit.make(kit.full(1e-4), dtype="bfloat16").summary
    assert f.verdict == "below_precision"
    _, real, rank = said(f)
    assert real.startswith("Most of it is rounding: in 30 of 30 changed matrices")
    assert "rank cannot be read" in rank
    assert [x.value for x in findings.five(f)][2:] == ["0 / 30", "–", "–"]
    assert remarks.concerns(f)[0].level == "warn"


def test_decay_only(kit):
    f = kit.make(kit.decay(0.02)).summary
    assert f.verdict == "decay_only"
    assert "lies along the base weights themselves: they shrank by one factor (c = 0.02)" in said(f)[2]
    assert "as decoupled weight decay leaves them" in said(f)[2]
    assert said(f)[2].endswith("an adapter has nothing to learn from it.")


def test_growth_is_not_called_decay(kit):
    f = kit.make(kit.decay(-0.02)).summary
    assert f.verdict != "decay_only"
    assert not any("decay" in sentence for sentence in said(f))
    assert "of the update's energy rescales the base (c = −0.02)" in unmarked(remarks.concerns(f)[0].text).replace(
        N, " "
    )
    assert remarks.decay(f.decay).text == "No common weight decay is visible."


def test_embeddings_only(kit):
    f = kit.make(kit.only({"embedding"}, kit.full())).summary
    assert f.verdict == "embeddings_only"
    assert said(f)[0] == "Only embedding matrices changed (1 of 30 matrices) by 2 % of its norm."


def test_norms_only(kit):
    f = kit.make(kit.only({"norm"}, kit.full())).summary
    assert f.verdict == "vectors_only"
    assert (
        said(f)[0] == "Only 9 vectors (norms and biases) changed; all 30 matrices hold the same numbers on both sides."
    )


def test_an_unrelated_model(kit):
    f = kit.make(kit.unrelated).summary
    assert f.verdict == "unrelated"
    text = " ".join(said(f))
    assert text.startswith("These are not a base and its fine-tune: the weights differ by 14")
    assert "rank-16" not in text
    assert text.endswith("describe that difference, not a fine-tune.")
    assert remarks.concerns(f)[0].level == "warn"


def test_an_adapter_without_its_base():
    rows = [
        {
            **{"name": f"m.{i}.q.weight", "stack": "m", "layer": i, "module": "q", "kind": "attention"},
            **{"rows": 64, "cols": 64, "ndim": 2, "ft_dtype": "float32", "route": "factored", "method": "exact"},
            **{"fro_norm": 1.0, "rank_90": 3, "rank_90_null": 32.0, "rank_90_ratio": 3 / 32, "resolution": "resolved"},
            **{"rounding_noise": 0.0, "signal_rank": 8, "energy_at_16": 1.0, "adapter_type": "lora", "adapter_rank": 8},
        }
        for i in range(4)
    ]
    f = Analysis(rows, skipped=[Skipped("m.head", Reason.ONLY_IN_BASE, "the adapter does not change it")]).summary
    assert f.verdict == "adapter"
    what, real, rank = said(f)
    assert what == "4 of 4 matrices changed; how far, relative to the base, only the base's weights could tell."
    assert real == "The update was read from the factors of a LoRA adapter of rank 8, so there is no rounding in it."
    assert rank.startswith("Low-rank by construction: 90 % of the energy takes 3 of the 8 directions that the factors")
    assert remarks.concerns(f) == []  # an adapter leaves tensors alone
    assert not f.has_base


@pytest.mark.parametrize(
    ("rank", "starts"),
    [
        (1, "Low-rank by construction: its factors allow one direction."),
        (8, "Low-rank by construction: 90 % of the energy takes 6 of the 8 directions that the factors allow"),
        (24, "Too small to call low-rank or not: 90 % of the energy takes 10 of 24 directions (noise: 14)"),
        (64, "Spread out like noise: "),
    ],
)
def test_factors_that_allow_every_rank_are_not_called_low_rank(tmp_path, rank: int, starts: str):
    g = torch.Generator().manual_seed(3)
    name = "base_model.model.layers.0.mlp.up_proj"
    factors = {
        f"{name}.lora_A.weight": torch.randn(rank, 32, generator=g),
        f"{name}.lora_B.weight": torch.randn(24, rank, generator=g),
    }
    save_file(factors, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 1e-3, "target_modules": ["up_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    base = {"layers.0.mlp.up_proj.weight": torch.randn(24, 32, generator=g)}
    f = deltaw.analyze(base, tmp_path).summary
    assert f.verdict == "adapter"
    assert said(f)[2].startswith(starts)


def test_a_dense_adapter_has_no_rounding():
    adapter = AdapterUse(types=("dora",), rank=Spread(n=10, median=8, low=8, high=8))
    f = dataclasses.replace(RESOLVED, adapter=adapter)
    assert said(f)[1] == "The update was computed from a DoRA adapter of rank 8, so there is no rounding in it."


RESOLVED = Summary(
    verdict=Verdict.SPREAD,
    tensors=10,
    matrices=10,
    changed=10,
    changed_matrices=10,
    resolution=Resolution(resolved=10),
    change=Spread(n=10, median=0.01, low=0.01, high=0.01),
    most_changed_matrices=(Moved("a", "", 0.01),),
    rank=Ranks(
        rank_90=Spread(n=10, median=20),
        rank_90_null=Spread(n=10, median=200),
        dimensions=Spread(n=10, median=400, low=400, high=400),
        typical=Typical("a", 400, 20.0, 20.0, 20.0, 200.0, 0.5),
    ),
    energy={"energy_at_16": Spread(n=10, median=0.5)},
)


def with_ratio(ratio: float, verdict: Verdict = Verdict.SPREAD) -> Summary:
    typical = dataclasses.replace(RESOLVED.rank.typical, rank_90_null=20 / ratio)
    rank = dataclasses.replace(RESOLVED.rank, rank_90_ratio=Spread(n=10, median=ratio), typical=typical)
    return dataclasses.replace(RESOLVED, rank=rank, verdict=verdict)


@pytest.mark.parametrize(
    ("ratio", "verdict", "words"),
    [
        (0.25, Verdict.CONCENTRATED, "Concentrated in few directions"),
        (0.2501, Verdict.SPREAD, "Not low-rank"),
        (0.8499, Verdict.SPREAD, "Not low-rank"),
        (0.85, Verdict.SPREAD, "Spread out like noise"),
        (1.02, Verdict.SPREAD, "Spread out like noise"),
        (0.3, Verdict.NOISY, "Rounding leaves open whether it is low-rank"),
    ],
)
def test_words_follow_the_verdict_and_the_ratio_to_noise(ratio: float, verdict: Verdict, words: str):
    assert said(with_ratio(ratio, verdict))[-1] == (
        f"{words}: 90 % of the energy takes 20 of 400 directions (noise: {number(20 / ratio, 2)}); a rank-16 adapter "
        "could keep 50 %."
    )


@pytest.mark.parametrize(
    ("dimensions", "rank", "ratio", "words"),
    [
        (31, math.nan, 0.4, "Too small to call low-rank or not"),
        (32, math.nan, 0.4, "Not low-rank"),
        (31, math.nan, 0.85, "Spread out like noise"),
        (16, 3.0, 0.37, "Of rank 3"),
        (256, 128.0, 0.7, "Of rank 128"),
        (256, 129.0, 0.7, "Not low-rank"),
    ],
)
def test_small_matrices_and_known_ranks_are_called_what_they_are(
    dimensions: int, rank: float, ratio: float, words: str
):
    f = with_ratio(ratio)
    typical = dataclasses.replace(f.rank.typical, dimensions=dimensions, rank=rank)
    f = dataclasses.replace(f, rank=dataclasses.replace(f.rank, typical=typical))
    assert said(f)[-1].startswith(f"{words}: 90 % of the energy takes ")


def test_a_rank_three_update_of_small_matrices_is_of_rank_three():
    generator = torch.Generator().manual_seed(0)
    base = {f"layers.{i}.w.weight": torch.randn(16, 16, generator=generator) for i in range(4)}
    thin = {n: torch.randn(16, 3, generator=generator) @ torch.randn(3, 16, generator=generator) for n in base}
    rank = said(deltaw.analyze(base, {n: w + 0.01 * thin[n] for n, w in base.items()}).summary)[-1]
    assert rank.startswith("Of rank 3: 90 % of the energy takes ")
    full = {n: w + 0.01 * torch.randn(16, 16, generator=generator) for n, w in base.items()}
    assert said(deltaw.analyze(base, full).summary)[-1].startswith("Spread out like noise")


def test_integer_buffers_of_one_side_are_no_concern():
    base = {"w": torch.eye(16), "position_ids": torch.arange(4), "mask": torch.ones(4, dtype=torch.bool)}
    result = deltaw.analyze(base, {"w": 2 * torch.eye(16)})
    assert {s.name for s in result.skipped} == {"position_ids", "mask"}
    assert result.summary.one_sided == ()
    more = deltaw.analyze(base | {"extra": torch.ones(3)}, {"w": 2 * torch.eye(16)})
    assert more.summary.one_sided == ("extra",)


def test_estimates_are_said_to_be_estimates():
    f = dataclasses.replace(with_ratio(0.3), methods={"estimate": 10})
    assert "takes about 20 of 400" in said(f)[-1]


@pytest.mark.parametrize(
    ("low", "high", "size", "ending"),
    [
        (105, 187, 0.57, "; 90 % in every layer takes ranks 105–187, adapters 57 % as large as the matrices."),
        (8, 8, 0.05, "; 90 % in every layer takes rank 8, adapters 5 % as large as the matrices."),
        (8, 8, 0.999, "; 90 % in every layer takes rank 8, adapters > 99 % as large as the matrices."),
        (300, 300, 1.0, "; 90 % in every layer takes rank 300, adapters larger than the matrices."),
        (8, 8, math.nan, "could keep 50 %."),
    ],
)
def test_what_an_adapter_would_take(low: int, high: int, size: float, ending: str):
    text = unmarked(findings.answer(with_ratio(0.3), Offer(low, high, size, "", 10))[-1].text).replace(N, " ")
    assert text.endswith(ending)


def rounded(high: float, **more: int) -> Summary:
    precision = RoundingSummary(dtypes=("bfloat16",), rounding=Spread(n=10, median=high / 2, high=high))
    return dataclasses.replace(RESOLVED, precision=precision, resolution=Resolution(**(more or {"resolved": 10})))


def test_rounding_is_negligible_or_has_a_number():
    assert said(rounded(0.99e-5))[1] == "Storage rounding is negligible (bfloat16)."
    assert said(rounded(1e-5))[1] == (
        "Storage rounding (bfloat16) explains 0.0005 % of the energy in the typical matrix and at most 0.001 % in any: "
        "the update is real."
    )


def test_rounding_that_hides_some_matrices():
    assert said(rounded(0.4, resolved=8, noisy=2))[1] == (
        "Of 10 changed matrices, storage rounding (bfloat16) explains 1 to 50 % of the energy in 2, whose ranks are "
        "read without it."
    )
    assert said(rounded(0.4, noisy=10))[1] == (
        "In all 10 changed matrices storage rounding (bfloat16) explains 1 to 50 % of the energy; their ranks are read "
        "without it."
    )
    assert said(rounded(0.9, resolved=8, noisy=1, below_precision=1))[1] == (
        "Of 10 changed matrices, storage rounding (bfloat16) explains 1 to 50 % of the energy in 1, whose ranks are "
        "read without it and more than half in 1, whose ranks are not read."
    )


def test_a_rank_that_is_not_exact_has_its_bounds():
    rank = with_ratio(0.1).rank
    rank = dataclasses.replace(rank, typical=dataclasses.replace(rank.typical, rank_90_low=18.0, rank_90_high=25.0))
    assert "takes 20 (18–25) of 400 directions (noise: 200)" in said(dataclasses.replace(RESOLVED, rank=rank))[-1]


def test_numbers_of_one_sentence_are_of_one_matrix():
    """Medians of different shapes do not belong together: 20 of 31 directions, .1 of noise."""
    rank = dataclasses.replace(RESOLVED.rank, dimensions=Spread(n=10, median=31, low=8, high=400))
    assert "takes 20 of 400 directions (noise: 200) in a; " in said(dataclasses.replace(RESOLVED, rank=rank))[-1]


def test_where_there_are_few_directions_no_rank_says_anything():
    few = dataclasses.replace(RESOLVED.rank.typical, dimensions=1, rank_90=1.0, rank_90_null=1.0, energy_at_16=1.0)
    rank = dataclasses.replace(RESOLVED.rank, typical=few, dimensions=Spread(n=10, median=1, low=1, high=1))
    s = dataclasses.replace(RESOLVED, rank=rank)
    assert said(s)[-1] == "The changed matrices have at most 1 direction: too few for a rank to say anything."
    assert [figure.value for figure in findings.five(s)[3:]] == ["–", "–"]
    twelve = dataclasses.replace(few, dimensions=12, rank_90=6.0, rank_90_null=6.1)
    s = dataclasses.replace(RESOLVED, rank=dataclasses.replace(RESOLVED.rank, typical=twelve))
    assert "adapter" not in said(s)[-1]  # of rank 16 it holds every matrix of 12 directions


def test_the_one_matrix_holds(kit):
    s = dataclasses.replace(RESOLVED, verdict=Verdict.VECTORS_ONLY, changed_vectors=1, matrices=1)
    assert said(s)[0].endswith("the one matrix holds the same numbers on both sides.")


def test_the_range_of_the_change():
    def changed(**spread: float) -> str:
        return said(dataclasses.replace(RESOLVED, change=Spread(**spread)))[0]

    assert (
        changed(n=1, median=0.01, low=0.01, high=0.01)
        == "10 of 10 matrices changed, the typical one by 1 % of its norm."
    )
    assert ", all by about 1 % of their norm" in changed(n=2, median=0.01, low=0.01, high=0.01004)
    assert "(1 % to 1.1 %; most in a)" in changed(n=2, median=0.01, low=0.01, high=0.0106)


def test_one_matrix_is_singular():
    f = dataclasses.replace(RESOLVED, matrices=1, changed_matrices=1, vectors=1, changed_vectors=1)
    assert said(f)[0] == "The one matrix changed by 1 % of its norm; so did the one vector."


@pytest.mark.parametrize(("compared", "first"), [(89, "Only 89 % of the base was compared"), (90, "10 of 10 matrices")])
def test_coverage_comes_first_below_nine_tenths(compared: int, first: str):
    f = dataclasses.replace(RESOLVED, coverage=Coverage(9, 10, compared, 100))
    assert said(f)[0].startswith(first)


def test_nothing_is_offered_where_an_adapter_has_nothing_to_hold(kit):
    for change in (kit.decay(0.02), kit.unrelated, kit.nothing, kit.only({"norm"}, kit.full())):
        analysis = kit.make(change)
        assert offer(Layers(analysis)) is None
        assert extract_command(analysis) == ""
    assert offer(Layers(kit.make(kit.full(1e-4), dtype="bfloat16"))) is None


def test_no_command_is_offered_that_does_not_exist(full_analysis, monkeypatch):
    import deltaw

    monkeypatch.setattr(deltaw, "__all__", [n for n in deltaw.__all__ if n != "extract"])
    assert extract_command(full_analysis) == ""
    monkeypatch.setattr(deltaw, "__all__", [*deltaw.__all__, "extract"])
    assert extract_command(full_analysis) == "deltaw extract models/base models/tuned --energy 0.9 --out adapter"


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of transformers, not ours
def test_the_lora_config_is_what_peft_understands(lora_analysis):
    peft = pytest.importorskip("peft", reason="peft is not installed (pip install deltaw[peft])")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    found = offer(Layers(lora_analysis))
    assert found is not None
    assert (found.low, found.high, found.ranks) == (4, 4, "rank 4")
    config = eval(found.config, {"LoraConfig": peft.LoraConfig})  # what a user pastes
    size = {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2, "vocab_size": 64}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**size, num_attention_heads=4))
    adapted = peft.get_peft_model(model, config)
    ranks = {n: p.shape[0] for n, p in adapted.named_parameters() if "lora_A" in n}
    assert len(ranks) == 2 * 7
    assert set(ranks.values()) == {4}


def test_ranks_that_differ_get_a_pattern(kit):
    peft = pytest.importorskip("peft", reason="peft is not installed (pip install deltaw[peft])")

    def change(rng, w0, kind):
        return kit.lora(2 if kind == "attention" else 6)(rng, w0, kind)

    found = offer(Layers(kit.make(change, hidden=64)))
    assert found is not None
    config = eval(found.config, {"LoraConfig": peft.LoraConfig})
    ranks = {config.r, *config.rank_pattern.values()}
    assert (min(ranks), max(ranks)) == (found.low, found.high)
    assert all(config.alpha_pattern[m] == 2 * r for m, r in config.rank_pattern.items())
    assert config.lora_alpha == 2 * config.r


def test_experts_are_a_regular_expression():
    import re

    needs = [Need("mlp.experts.*.up_proj", "mlp", 64, 0, 48, 96, {0.9: 3.0}, {0.9: 4.0})]
    config = lora_config(needs)
    pattern = eval(config, {"LoraConfig": dict})["target_modules"]
    assert re.fullmatch(pattern, "model.layers.3.mlp.experts.12.up_proj")
    assert not re.fullmatch(pattern, "model.layers.3.mlp.up_proj")


def test_concerns_are_silent_where_nothing_is_wrong(kit, full_analysis):
    assert remarks.concerns(kit.make(kit.full()).summary) == []
    (one,) = remarks.concerns(full_analysis.summary)
    assert unmarked(one.text) == "1 tensor exists on one side only: model.rotary.inv_freq."


def test_failed_and_mismatched_tensors_come_first(kit):
    skipped = (
        Skipped("a", Reason.FAILED, subject="3 entries are not finite"),
        Skipped("b", Reason.SHAPE_MISMATCH, "3×4 and 4×4"),
    )
    texts = [unmarked(c.text) for c in remarks.concerns(kit.make(kit.full(), skipped=skipped).summary)]
    assert texts[0].startswith("1 tensor could not be measured")
    assert texts[1].startswith("1 tensor has another shape")


def words(d):
    return unmarked(remarks.decay(d).text).replace(N, " ")


def test_decay_in_words():
    d = Decay(visible=True, evidence="tensors", value=0.0348, low=0.0341, high=0.0355, agree=12, informative=12)
    assert words(d) == (
        "One common shrink is visible, such as decoupled weight decay leaves: c = 0.0348 (0.0341 to 0.0355), in all 12 "
        "matrices that could show it."
    )
    most = dataclasses.replace(d, agree=9, exempt=2, exempt_tensors=("lm_head.weight", "embed.weight"))
    assert words(most).endswith(
        "in 9 of the 12 matrices that could show it; lm_head.weight and embed.weight show none."
    )
    one = dataclasses.replace(d, agree=1, informative=2, exempt=1, exempt_tensors=("a",))
    assert words(one).endswith("in 1 of the 2 matrices that could show it; a shows none.")
    many = dataclasses.replace(d, agree=9, informative=20, exempt=11, exempt_tensors=("a",) * 11)
    assert words(many).endswith("; 11 show none.")
    assert words(dataclasses.replace(d, agree=1, informative=1)).endswith("in the one matrix that could show it.")


def test_a_shrink_that_is_no_decay_is_called_a_shrink():
    d = Decay(visible=True, evidence="tensors", value=0.1, low=0.08, high=0.12, agree=6, informative=6, like_mean=True)
    assert words(d).startswith(
        "One common shrink is visible, such as an average with other weights leaves (the rest of"
    )
    assert "decay" not in words(d)


def test_rows_are_embedding_rows_in_embeddings_only():
    d = Decay(visible=True, evidence="rows", value=9.45e-5, low=9.4e-5, high=9.5e-5, rows_tensors=2, agree=2)
    assert "in rows that moved by nothing else (2 tensors)" in words(d)
    assert "c = 9.45 · 10⁻⁵ (9.4 · 10⁻⁵ to 9.5 · 10⁻⁵)" in words(d)
    embeddings = dataclasses.replace(d, rows_embeddings=True, rows_tensors=1)
    assert "in embedding rows that moved by nothing else (1 tensor)" in words(embeddings)


def test_no_decay_in_words():
    assert words(Decay()) == "No common weight decay is visible."
    gate = Gate("bfloat16", 2**-9, 0.006, 3, in_the_way=True)
    assert words(Decay(gate=gate)) == (
        "No common weight decay is visible, but bfloat16 could hide one: below 0.00195 it is stored as no change, "
        "below 0.006 as one step at most."
    )
    step = Decay(evidence="step", low=2**-9, high=0.006, agree=3, informative=3, gate=gate)
    assert words(step).startswith(
        "Nearly every entry moved one step of bfloat16 towards zero: a common shrink of between"
    )
    turn = Decay(instead="turn", instead_tensors=28)
    assert words(turn) == (
        "No common weight decay is visible: in 28 matrices the weights shrank no more than they do in a rotation at "
        "constant norm, in pruning or on a coarser grid."
    )
    for word in ("turn", "sparse", "uneven", "norms", "grid"):
        assert words(Decay(instead=word, instead_tensors=1)).startswith(
            "No common weight decay is visible: in 1 matrix"
        )


def test_what_rounding_hides_is_not_in_the_summary(kit):
    f = kit.make(kit.full(1e-4), dtype="bfloat16").summary
    assert f.rank.rank_90.n == 0
    assert math.isnan(f.energy["energy_at_16"].median)
    assert f.precision.signal_rank.n == 30
