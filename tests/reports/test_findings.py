"""The sentences, case by case: from matrices to words, and the rules by themselves."""

import dataclasses
import math

import pytest

from deltaw.reports import findings, remarks
from deltaw.reports.text import unmarked
from deltaw.results.analysis import Analysis
from deltaw.results.decay import Decay, Gate
from deltaw.results.rows import Spread
from deltaw.results.summary import Moved, Ranks, Resolution, Summary
from deltaw.results.verdict import Verdict
from deltaw.types import Reason, Skipped

N = "\u202f"


def said(f: Summary) -> list[str]:
    return [unmarked(s.text).replace(N, " ") for s in findings.answer(f)]


def test_an_unchanged_pair(kit):
    f = kit.make(kit.nothing).summary
    assert f.verdict == "unchanged"
    assert said(f) == ["Nothing changed: all 39 tensors compared hold the same numbers on both sides."]
    assert [x.value for x in findings.five(f)][:3] == ["0", "0 / 39", "0 / 0"]


def test_no_tensor_at_all():
    f = Analysis([], skipped=[Skipped("a", Reason.FAILED, subject="not finite")]).summary
    assert f.verdict == "empty"
    assert said(f) == ["No tensor of the two checkpoints has a row in this analysis. 1 tensor could not be measured."]


def test_a_full_fine_tune(full_analysis):
    f = full_analysis.summary
    what, real, rank = said(f)
    assert f.verdict == "spread"
    assert what.startswith("39 of 39 tensors changed; the typical matrix moved by 2 % of its norm")
    assert real.startswith("It is real as far as storage goes: rounding to float32 explains < 0.0001 % of its energy")
    assert rank.startswith("The update is spread over many directions: 90 % of its energy takes ")
    assert "A rank-16 update could keep at best " in rank


def test_a_merged_lora_in_bf16(lora_analysis):
    f = lora_analysis.summary
    assert f.verdict == "low_rank"
    _, real, rank = said(f)
    assert "rounding to bfloat16 explains 0.11 %" in real
    assert rank.startswith("4 directions stand above rounding, 99.9 % of the energy")
    assert rank.endswith("This is consistent with a merged low-rank update.")


def test_a_small_merged_lora_in_bf16_is_read_without_its_rounding(kit):
    f = kit.make(kit.lora(size=0.0025), hidden=64, dtype="bfloat16").summary
    assert f.resolution.noisy == f.changed_matrices == 28
    assert f.verdict == "low_rank"
    _, real, rank = said(f)
    assert real.startswith("0 of 28 changed matrices stand clear of bfloat16 rounding; in 28 it explains 1 to 50 %")
    assert rank.startswith("4 directions stand above rounding")
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
    assert "lies along the base weights themselves, with nearly one factor (c = 0.02" in said(f)[2]
    assert "which is what weight decay leaves" in said(f)[2]


def test_growth_is_not_called_decay(kit):
    f = kit.make(kit.decay(-0.02)).summary
    assert "a uniform growth of the weights" in said(f)[2]
    assert "decay" not in said(f)[2]


def test_embeddings_only(kit):
    f = kit.make(kit.only({"embedding"}, kit.full())).summary
    assert f.verdict == "embeddings_only"
    assert said(f)[0].startswith("Only embedding matrices changed (1 of 30 matrices); the typical matrix moved by 2 %")


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
    assert text.startswith("These are not a base and its fine-tune: the typical difference is 14")
    assert "rank-16" not in text
    assert "say nothing about a fine-tuning" in text
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
    assert what == "4 of 4 tensors changed; how far, relative to the base, is not known without the base's weights."
    assert real.startswith("It is read from the factors of a lora adapter of rank 8")
    assert rank.startswith(
        "It is low-rank by construction: 90 % of its energy takes 3 of the 8 directions that its factors allow"
    )
    assert remarks.concerns(f) == []  # an adapter leaves tensors alone
    assert not f.has_base


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
        dimensions=Spread(n=10, median=400),
    ),
    energy={"energy_at_16": Spread(n=10, median=0.5)},
)


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (0.05, "is low-rank"),
        (0.15, "is concentrated in few directions"),
        (0.49, "is concentrated in few directions"),
        (0.5, "is spread over many directions"),
        (0.85, "is spread almost as evenly as noise"),
        (1.02, "is spread almost as evenly as noise"),
    ],
)
def test_words_follow_the_ratio_to_noise(ratio, words):
    rank = dataclasses.replace(RESOLVED.rank, rank_90_ratio=Spread(n=10, median=ratio))
    f = dataclasses.replace(RESOLVED, rank=rank)
    assert f"The update {words}: 90 % of its energy" in said(f)[-1]


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


def test_decay_in_words():
    rows = Decay(visible=True, evidence="rows", value=9.45e-5, rows_tensors=2, agree=1, informative=1)
    said = unmarked(remarks.decay(rows).text).replace(N, " ")
    assert "c = 9.45 · 10⁻⁵, in embedding rows that moved by nothing else (2 tensors)" in said
    tensors = dataclasses.replace(rows, evidence="tensors", agree=40, informative=41, exempt=1)
    assert "in 40 of 41 tensors that could tell it from none; 1 tensor" in unmarked(remarks.decay(tensors).text)
    hidden = Decay(gate=Gate(in_the_way=True, dtype="bfloat16", threshold=2**-9))
    assert "bfloat16 could hide one: a shrink below 0.00195" in remarks.decay(hidden).text
    assert remarks.decay(Decay()).text == "No common weight decay is visible."


def test_what_rounding_hides_is_not_in_the_summary(kit):
    f = kit.make(kit.full(1e-4), dtype="bfloat16").summary
    assert f.rank.rank_90.n == 0
    assert math.isnan(f.energy["energy_at_16"].median)
    assert f.precision.signal_rank.n == 30
