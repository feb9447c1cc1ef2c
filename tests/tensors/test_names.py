"""What is read from a tensor's name."""

import pytest

from deltaw.tensors.names import kind, natural, place, unwrap


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.layers.3.self_attn.q_proj.weight", ("model.layers", 3, "self_attn.q_proj")),
        ("module.model.layers.3.self_attn.q_proj.bias", ("model.layers", 3, "self_attn.q_proj.bias")),
        ("transformer.h.11.mlp.c_fc.weight", ("transformer.h", 11, "mlp.c_fc")),
        ("encoder.block.0.layer.1.DenseReluDense.wi_0.weight", ("encoder.block", 0, "layer.1.DenseReluDense.wi_0")),
        ("model.embed_tokens.weight", ("", None, "model.embed_tokens")),
        ("0.weight", ("", 0, "weight")),
        ("tensor", ("", None, "tensor")),
        ("weight", ("", None, "weight")),
    ],
)
def test_place(name: str, expected: tuple[str, int | None, str]):
    assert place(name) == expected


@pytest.mark.parametrize(
    ("name", "ndim", "expected"),
    [
        ("model.layers.0.self_attn.q_proj.weight", 2, "attention"),
        ("model.layers.0.self_attn.q_norm.weight", 1, "norm"),
        ("model.layers.0.mlp.down_proj.weight", 2, "mlp"),
        ("model.layers.0.block_sparse_moe.experts.3.w1.weight", 2, "mlp"),
        ("model.layers.0.input_layernorm.weight", 1, "norm"),
        ("model.norm.weight", 1, "norm"),
        ("model.embed_tokens.weight", 2, "embedding"),
        ("lm_head.weight", 2, "head"),
        ("transformer.wte.weight", 2, "embedding"),
        ("transformer.h.0.attn.c_attn.weight", 2, "attention"),
        ("transformer.h.0.mlp.c_proj.weight", 2, "mlp"),
        ("transformer.h.0.ln_1.weight", 1, "norm"),
        ("transformer.ln_f.bias", 1, "norm"),
        ("embeddings.word_embeddings.weight", 2, "embedding"),
        ("embeddings.LayerNorm.weight", 1, "norm"),
        ("encoder.layer.0.attention.self.query.weight", 2, "attention"),
        ("encoder.layer.0.attention.output.dense.weight", 2, "attention"),
        ("encoder.layer.0.attention.output.LayerNorm.bias", 1, "norm"),
        ("encoder.layer.0.intermediate.dense.weight", 2, "mlp"),
        ("encoder.layer.0.output.dense.weight", 2, "mlp"),
        ("encoder.layer.0.output.LayerNorm.weight", 1, "norm"),
        ("pooler.dense.weight", 2, "other"),
        ("gpt_neox.layers.0.attention.query_key_value.weight", 2, "attention"),
        ("gpt_neox.layers.0.mlp.dense_h_to_4h.weight", 2, "mlp"),
        ("encoder.block.0.layer.1.DenseReluDense.wi_0.weight", 2, "mlp"),
        ("features.0.conv.weight", 4, "conv"),
        ("patch.proj.weight", 4, "conv"),
        ("score.weight", 2, "head"),
        ("w", 2, "other"),
    ],
)
def test_kind(name: str, ndim: int, expected: str):
    assert kind(name, ndim) == expected


def test_unwrap_removes_wrappers_everywhere():
    assert unwrap("module._orig_mod.model.layers.0._fsdp_wrapped_module.mlp.weight") == "model.layers.0.mlp.weight"


def test_natural_order():
    assert sorted(["l.10.w", "l.2.w", "l.1.w", "a"], key=natural) == ["a", "l.1.w", "l.2.w", "l.10.w"]
