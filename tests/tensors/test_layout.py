"""Which outputs of a fused tensor are q, k and v, against the modules of transformers' own reshapes."""

import pytest
import torch

from deltaw.documents import Document
from deltaw.tensors.layout import Layout, expert_stacks, parts, uses_conv1d


def rows(ranges: tuple[tuple[int, int], ...]) -> list[int]:
    return [i for start, stop in ranges for i in range(start, stop)]


def test_gpt2_thirds():
    found = parts("h.0.attn.c_attn.weight", 12, 4, Document({"model_type": "gpt2"}))
    assert {p: rows(r) for p, r in found.items()} == {"q": [0, 1, 2, 3], "k": [4, 5, 6, 7], "v": [8, 9, 10, 11]}


def test_phi3_grouped_heads():
    config = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 8}
    found = parts("layers.0.self_attn.qkv_proj.weight", 16, 8, Document(config))
    assert [len(rows(found[p])) for p in "qkv"] == [8, 4, 4]
    assert parts("layers.0.self_attn.qkv_proj.weight", 17, 8, Document(config)) is None


def test_neox_and_bloom_interleave_by_head():
    heads, size, hidden = 3, 2, 6
    found = parts(
        "layers.0.attention.query_key_value.weight",
        18,
        hidden,
        Document({"num_attention_heads": heads, "hidden_size": hidden}),
    )
    expected = torch.arange(18).view(heads, 3, size)  # what the modules do
    for i, part in enumerate("qkv"):
        assert rows(found[part]) == expected[:, i].flatten().tolist()
    assert parts("layers.0.attention.query_key_value.weight", 18, hidden, Document()) is None


def test_falcon_groups():
    config = {
        "model_type": "falcon",
        "new_decoder_architecture": True,
        "num_attention_heads": 4,
        "num_kv_heads": 2,
        "hidden_size": 8,
    }
    found = parts("h.0.self_attention.query_key_value.weight", 16, 8, Document(config))
    expected = torch.arange(16).view(2, 4, 2)  # (groups, q q k v, head)
    assert rows(found["q"]) == expected[:, :2].flatten().tolist()
    assert rows(found["k"]) == expected[:, 2].flatten().tolist()
    assert rows(found["v"]) == expected[:, 3].flatten().tolist()
    multi = {"model_type": "falcon", "multi_query": True, "num_attention_heads": 4, "hidden_size": 8}
    found = parts("h.0.self_attention.query_key_value.weight", 12, 8, Document(multi))
    assert [len(rows(found[p])) for p in "qkv"] == [8, 2, 2]


def test_codegen_has_four_blocks_of_q_v_and_k():
    found = parts("h.0.attn.qkv_proj.weight", 24, 8, Document({"model_type": "codegen", "n_head": 4, "n_embd": 8}))
    q, v, k = torch.arange(24).view(4, 3, 2).unbind(1)  # CodeGenAttention: four blocks, split into query, value, key
    for part, expected in {"q": q, "k": k, "v": v}.items():
        assert rows(found[part]) == expected.flatten().tolist()


@pytest.mark.parametrize(("model", "module"), [("gpt_bigcode", "attn.c_attn"), ("minimax", "self_attn.qkv_proj")])
def test_other_modules_that_interleave_by_head(model, module):
    config = {"model_type": model, "num_attention_heads": 3, "hidden_size": 6, "multi_query": False}
    found = parts(f"layers.0.{module}.weight", 18, 6, Document(config))
    expected = torch.arange(18).view(3, 3, 2)
    for i, part in enumerate("qkv"):
        assert rows(found[part]) == expected[:, i].flatten().tolist()


def test_bigcode_with_one_head_of_keys():
    config = {"model_type": "gpt_bigcode", "n_head": 3, "n_embd": 6, "multi_query": True}
    found = parts("transformer.h.0.attn.c_attn.weight", 10, 6, Document(config))
    assert [rows(found[p]) for p in "qkv"] == [list(range(6)), [6, 7], [8, 9]]


@pytest.mark.parametrize(("model", "gate"), [("phi3", [0, 1, 2]), ("gpt_oss", [0, 2, 4])])
def test_gate_and_up(model: str, gate: list[int]):
    found = parts("layers.0.mlp.gate_up_proj.weight", 6, 4, Document({"model_type": model}))
    assert rows(found["gate"]) == gate
    assert sorted(rows(found["gate"]) + rows(found["up"])) == list(range(6))


def test_what_is_not_fused():
    assert parts("layers.0.self_attn.q_proj.weight", 8, 8, Document()) is None
    assert parts("layers.0.mlp.gate_up_proj.weight", 7, 4, Document()) is None


@pytest.mark.parametrize(
    ("name", "shape", "config", "beside"),
    [
        ("mlp.experts.down_proj", (4, 8, 8), {}, {}),
        ("block_sparse_moe.input_linear.weight", (4, 64, 64), {}, {}),
        ("layers.0.moe.up_proj.weight", (4, 64, 64), {}, {}),
        ("qformer.query_tokens", (1, 8, 64), {}, {}),  # one matrix behind the dimension of a batch
        ("ffn.w1", (4, 64, 64), {"num_local_experts": 4}, {}),
        ("ffn.w1", (4, 64, 64), {"text_config": {"num_experts": 4}}, {}),
        ("ffn.w1", (4, 64, 64), {}, {"ffn.router.weight": (4, 64)}),
        ("layers.1.ffn.w1.weight", (4, 64, 64), {}, {"layers.1.ffn.gate.weight": (4, 64)}),
    ],
)
def test_a_stack_of_experts_is_told_by_name_config_or_router(name, shape, config, beside):
    assert expert_stacks([(name, shape), *beside.items()], Document(config)) == {name}


@pytest.mark.parametrize(
    ("name", "shape", "config", "beside"),
    [
        ("conv.weight", (64, 64, 3), {}, {}),
        ("encoder.pos.weight", (64, 64, 25), {}, {}),  # a long kernel
        ("stft.forward_basis", (258, 1, 256), {}, {}),
        ("blocks.0.w", (4, 64, 64), {}, {}),
        ("blocks.0.w", (4, 64, 64), {"num_local_experts": 8}, {}),
        ("layers.0.ffn.w1.weight", (4, 64, 64), {}, {"layers.1.ffn.gate.weight": (4, 64)}),
        ("layers.1.conv.weight", (4, 64, 64), {"num_experts": 4}, {}),
        ("mixture.experts.0.conv1.weight", (8, 4, 3), {}, {}),  # the convolution of one expert
        ("mixture.experts.0.stem.weight", (8, 4, 3), {}, {}),
        ("gemma_expert.stem.weight", (8, 4, 3), {}, {}),  # one model among others
        ("moe_frontend.filters.weight", (8, 1, 25), {}, {}),
        ("decoder.final.weight", (1, 64, 7), {}, {}),  # one output
        ("decoder.final.parametrizations.weight.original1", (1, 64, 7), {}, {}),
        ("w", (64, 64), {}, {}),
    ],
)
def test_other_tensors_of_three_dimensions_are_none(name, shape, config, beside):
    assert not expert_stacks([(name, shape), *beside.items()], Document(config))


@pytest.mark.parametrize("config", [{}, {"model_type": "gpt2"}, {"model_type": "llama"}])
def test_c_attn_tells_its_orientation_whatever_the_config_says(config):
    assert uses_conv1d(Document(config), [("h.0.attn.c_attn.weight", (16, 48))])
    assert not uses_conv1d(Document(config), [("h.0.attn.c_attn.weight", (48, 16))])
    assert uses_conv1d(Document(config), [("h.0.mlp.c_fc.weight", (16, 64))]) == (config == {"model_type": "gpt2"})


def test_experts_that_are_stored_inputs_first():
    shape = (2, 16, 24)
    for model, first in (("llama4", True), ("gpt_oss", True), ("qwen3_moe", False)):
        layout = Layout.of([("l.0.experts.gate_up_proj", shape)], Document({"model_type": model}))
        assert layout.inputs_first("l.0.experts.gate_up_proj", shape) == first
