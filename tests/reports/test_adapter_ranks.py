import dataclasses
import json
import math

import pytest

from deltaw.reports.adapter_ranks import Need, adapter_size, needs, rank_pattern
from deltaw.reports.layers import Layers

RANKS = {0.9: 8.0, 0.95: 16.0, 0.99: 32.0}
NEED = Need("self_attn.q_proj", "attention", 4, 0, 64, 64, RANKS, RANKS)


def test_a_merged_lora_needs_its_rank(lora_analysis):
    table = {n.module: n for n in needs(Layers(lora_analysis))}
    assert list(table) == [m for m, _, _ in MODULES]
    for need in table.values():
        assert need.count == 4
        assert need.hidden == 0
        assert need.most[0.99] == 4  # what rounding adds above rank 4 is not counted
        assert need.median[0.9] <= need.median[0.95] <= need.median[0.99]


MODULES = (
    *(("self_attn.q_proj", 0, 0), ("self_attn.k_proj", 0, 0), ("self_attn.v_proj", 0, 0), ("self_attn.o_proj", 0, 0)),
    *(("mlp.gate_proj", 0, 0), ("mlp.up_proj", 0, 0), ("mlp.down_proj", 0, 0)),
)


def test_what_rounding_hides_is_counted_and_not_ranked(kit):
    table = needs(Layers(kit.make(kit.full(1e-4), dtype="bfloat16")))
    assert all(n.count == 0 and n.hidden > 0 and math.isnan(n.most[0.9]) for n in table)
    assert rank_pattern(table, 0.9) == "{}"
    assert math.isnan(adapter_size(table, 0.9))


def test_peft_reads_the_pattern_as_it_is_meant():
    other = pytest.importorskip("peft.utils.other", reason="peft is not installed")
    table = [
        dataclasses.replace(NEED, module="output.dense", most={0.9: 5.0}),
        dataclasses.replace(NEED, module="attention.output.dense", most={0.9: 7.0}),
        dataclasses.replace(NEED, module="experts.*.w1", most={0.9: 3.0}),
        dataclasses.replace(NEED, module="c_attn[q]", most={0.9: 2.0}),
        dataclasses.replace(NEED, module="c_attn[k]", most={0.9: 6.0}),
        dataclasses.replace(NEED, module="lm_head", kind="head", most={0.9: 9.0}),
        dataclasses.replace(NEED, module="unknown", most={0.9: math.nan}),
    ]
    pattern = json.loads(rank_pattern(table, 0.9))

    def rank(name: str) -> int | None:
        return pattern.get(other.get_pattern_key(pattern.keys(), name))

    assert rank("encoder.layer.0.attention.output.dense") == 7
    assert rank("encoder.layer.0.output.dense") == 5
    assert rank("model.layers.3.experts.12.w1") == 3
    assert rank("h.0.c_attn") == 6
    assert rank("lm_head") is None
    assert "unknown" not in pattern


def test_the_size_of_the_adapters():
    assert adapter_size([NEED], 0.9) == pytest.approx(8 * 128 / 64**2)
    assert adapter_size([NEED, dataclasses.replace(NEED, kind="head")], 0.9) == pytest.approx(8 * 128 / 64**2)
