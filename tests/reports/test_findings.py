"""The sentences, case by case: from matrices to words, and the rules by themselves."""

import dataclasses
import math

import pytest

from deltaw.reports import findings, remarks
from deltaw.reports.facts import Facts, Spread, gather
from deltaw.reports.layers import Layers
from deltaw.reports.text import unmarked
from deltaw.results.analysis import Analysis
from deltaw.types import Skipped

N = "\u202f"


def facts(analysis: Analysis) -> Facts:
    return gather(Layers(analysis))


def said(f: Facts) -> list[str]:
    return [unmarked(s.text).replace(N, " ") for s in findings.answer(f)]


def test_an_unchanged_pair(kit):
    f = facts(kit.make(kit.nothing))
    assert findings.verdict(f) == "unchanged"
    assert said(f) == ["Nothing changed: all 39 tensors compared hold the same numbers on both sides."]
    assert [x.value for x in findings.five(f)][:3] == ["0", "0 / 39", "0 / 0"]


def test_no_tensor_at_all():
    f = facts(Analysis([], skipped=[Skipped("a", "failed: not finite")]))
    assert findings.verdict(f) == "empty"
    assert said(f) == ["No tensor of the two checkpoints has a row in this analysis. 1 tensor could not be measured."]


def test_a_full_fine_tune(full_analysis):
    f = facts(full_analysis)
    what, real, rank = said(f)
    assert findings.verdict(f) == "spread"
    assert what.startswith("39 of 39 tensors changed; the typical matrix moved by 2 % of its norm")
    assert real.startswith("It is real as far as storage goes: rounding to float32 explains < 0.0001 % of its energy")
    assert rank.startswith("The update is spread over many directions: 90 % of its energy takes ")
    assert "A rank-16 update could keep at best " in rank


def test_a_merged_lora_in_bf16(lora_analysis):
    f = facts(lora_analysis)
    assert findings.verdict(f) == "low_rank"
    _, real, rank = said(f)
    assert "rounding to bfloat16 explains 0.11 %" in real
    assert rank.startswith("4 directions stand above rounding, 99.9 % of the energy")
    assert rank.endswith("This is consistent with a merged low-rank update.")


def test_a_small_merged_lora_in_bf16_gets_no_rank_claim(kit):
    f = facts(kit.make(kit.lora(size=0.0025), hidden=64, dtype="bfloat16"))
    assert f.noisy == f.changed_matrices == 28
    _, real, rank = said(f)
    assert real.startswith("0 of 28 changed matrices stand clear of bfloat16 rounding; in 28 it explains more than 1 %")
    assert rank.startswith("In the typical matrix 4 directions stand above rounding")
    assert rank.endswith("so no rank is claimed.")
    assert "spread" not in rank
    assert [x.value for x in findings.five(f)][3:] == ["–", "–"]
    assert any("28 matrices rounding explains 1–50 %" in unmarked(c.text) for c in remarks.concerns(f))


def test_a_tiny_update_is_mostly_rounding(kit):
    f = facts(kit.make(kit.full(1e-4), dtype="bfloat16"))
    assert findings.verdict(f) == "below_precision"
    _, real, rank = said(f)
    assert real.startswith("Most of it is rounding: in 30 of 30 changed matrices")
    assert "rank cannot be read" in rank
    assert [x.value for x in findings.five(f)][2:] == ["0 / 30", "–", "–"]
    assert remarks.concerns(f)[0].level == "warn"


def test_decay_only(kit):
    f = facts(kit.make(kit.decay(0.02)))
    assert findings.verdict(f) == "decay_only"
    assert "lies along the base weights themselves, with nearly one factor (c = 0.02" in said(f)[2]
    assert "which is what weight decay leaves" in said(f)[2]


def test_growth_is_not_called_decay(kit):
    f = facts(kit.make(kit.decay(-0.02)))
    assert "a uniform growth of the weights" in said(f)[2]
    assert "decay" not in said(f)[2]


def test_embeddings_only(kit):
    f = facts(kit.make(kit.only({"embedding"}, kit.full())))
    assert findings.verdict(f) == "embeddings_only"
    assert said(f)[0].startswith("Only embedding matrices changed (1 of 30 matrices); the typical matrix moved by 2 %")


def test_norms_only(kit):
    f = facts(kit.make(kit.only({"norm"}, kit.full())))
    assert findings.verdict(f) == "vectors_only"
    assert (
        said(f)[0] == "Only 9 vectors (norms and biases) changed; all 30 matrices hold the same numbers on both sides."
    )


def test_an_unrelated_model(kit):
    f = facts(kit.make(kit.unrelated))
    assert findings.verdict(f) == "unrelated"
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
    f = facts(Analysis(rows, skipped=[Skipped("m.head", "only_in_base", "the adapter does not change it")]))
    assert findings.verdict(f) == "adapter"
    what, real, rank = said(f)
    assert what == "4 of 4 tensors changed; how far, relative to the base, is not known without the base's weights."
    assert real.startswith("It is read from the factors of a lora adapter of rank 8")
    assert rank.startswith(
        "It is low-rank by construction: 90 % of its energy takes 3 of the 8 directions that its factors allow"
    )
    assert remarks.concerns(f) == []  # an adapter leaves tensors alone
    assert not f.has_base


RESOLVED = Facts(
    tensors=10,
    matrices=10,
    changed_matrices=10,
    resolved=10,
    change=Spread(0.01, 0.01, 0.01, 0.01, 0.01, 10),
    rank_90=Spread(median=20, count=10),
    rank_90_null=Spread(median=200, count=10),
    dimensions=Spread(median=400, count=10),
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
    f = dataclasses.replace(RESOLVED, rank_90_ratio=Spread(median=ratio, count=10))
    assert f"The update {words}: 90 % of its energy" in said(f)[-1]


@pytest.mark.parametrize(
    ("beyond", "verdict"), [(0.4, "low_rank"), (1.5, "low_rank"), (1.51, "spread"), (30, "spread")]
)
def test_low_rank_needs_a_rest_that_rounding_explains(beyond, verdict):
    f = dataclasses.replace(
        RESOLVED,
        signal_rank=Spread(median=16, low=16, high=16, count=10),
        signal_share=Spread(median=16 / 400, count=10),
        beyond=Spread(median=beyond, count=10),
    )
    assert findings.verdict(f) == verdict


@pytest.mark.parametrize(
    ("cosine", "change", "verdict"), [(0.49, 0.9, "unrelated"), (0.51, 0.9, "spread"), (0.4, 0.4, "spread")]
)
def test_unrelated_needs_both_a_low_cosine_and_a_large_change(cosine, change, verdict):
    f = dataclasses.replace(RESOLVED, cosine=Spread(median=cosine, count=10), change=Spread(median=change, count=10))
    assert findings.verdict(f) == verdict


def test_every_verdict_states_its_rule():
    assert set(findings.RULES) == {
        *("empty", "unchanged", "vectors_only", "unrelated", "adapter"),
        *("embeddings_only", "below_precision", "decay_only", "low_rank", "spread"),
    }


def test_concerns_are_silent_where_nothing_is_wrong(kit, full_analysis):
    assert remarks.concerns(facts(kit.make(kit.full()))) == []
    (one,) = remarks.concerns(facts(full_analysis))
    assert unmarked(one.text) == "1 tensor exists on one side only: model.rotary.inv_freq."


def test_failed_and_mismatched_tensors_come_first(kit):
    skipped = (Skipped("a", "failed: 3 entries are not finite"), Skipped("b", "shape_mismatch", "3×4 and 4×4"))
    texts = [unmarked(c.text) for c in remarks.concerns(facts(kit.make(kit.full(), skipped=skipped)))]
    assert texts[0].startswith("1 tensor could not be measured")
    assert texts[1].startswith("1 tensor has another shape")


def test_decay_in_words():
    assert remarks.decay({}) is None
    visible = {
        "visible": True,
        "evidence": "rows",
        "common": 9.45e-5,
        "rows_tensors": 2,
        "agree": 1,
        "informative": 1,
        "exempt": 0,
    }
    assert "c = 9.45 · 10⁻⁵, in embedding rows that moved by nothing else (2 tensors)" in unmarked(
        remarks.decay(visible).text
    ).replace(N, " ")
    tensors = visible | {"evidence": "tensors", "agree": 40, "informative": 41, "exempt": 1}
    assert "in 40 of 41 tensors that could tell it from none; 1 tensor" in unmarked(remarks.decay(tensors).text)
    hidden = {"visible": False, "gate_in_the_way": True, "gate_dtype": "bfloat16", "gate_threshold": 2**-9}
    assert "bfloat16 could hide one: a shrink below 0.00195" in remarks.decay(hidden).text
    assert remarks.decay({"visible": False, "gate_in_the_way": False}).text == "No common weight decay is visible."


def test_facts_ignore_what_is_hidden_by_rounding(kit):
    f = facts(kit.make(kit.lora(size=0.0025), hidden=64, dtype="bfloat16"))
    assert f.rank_90.count == 0
    assert math.isnan(f.energy_at[16].median)
    assert f.signal_rank.count == 28
