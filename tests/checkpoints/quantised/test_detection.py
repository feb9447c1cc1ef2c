"""Every format of the table is told from its headers: which tensor is codes, what it stands for, what belongs to it."""

import json
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltaw.checkpoints import QuantisedHandle, UnreadHandle, open_checkpoint
from deltaw.checkpoints.memory import tensor_handles
from deltaw.checkpoints.quantised import detect
from deltaw.documents import Document
from deltaw.pairs.plan import plan
from deltaw.types import Reason

M = "model.layers.0.self_attn.q_proj"
E4M3, E8M0 = torch.float8_e4m3fn, torch.float8_e8m0fnu
STATE = torch.tensor(
    list(json.dumps({"blocksize": 64, "shape": [32, 64], "quant_type": "nf4", "nested_blocksize": 256}).encode()),
    dtype=torch.uint8,
)


def detected(tensors, config):
    return detect(tensors, Document(config))


def empty(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.uint8).view(dtype) if dtype.itemsize == 1 else torch.zeros(shape, dtype=dtype)


f32, i32, u8, i8 = torch.float32, torch.int32, torch.uint8, torch.int8
BNB = {
    "weight": empty(u8, 1024, 1),
    "weight.absmax": empty(f32, 32),
    "weight.quant_map": empty(f32, 16),
    "weight.quant_state.bitsandbytes__nf4": STATE,
}
NESTED = {
    **BNB,
    "weight.absmax": empty(u8, 32),
    "weight.nested_absmax": empty(f32, 1),
    "weight.nested_quant_map": empty(f32, 256),
}
CT = "compressed-tensors"
WORDS = {"weight_packed": empty(i32, 32, 8), "weight_scale": empty(f32, 32, 2), "weight_shape": torch.tensor([32, 64])}
# (label, quantization_config, leaves of one module, the format, the weight's shape)
TABLE: list[tuple[str, Mapping[str, object], dict[str, torch.Tensor], str, tuple[int, ...]]] = [
    (
        "DeepSeek V3",
        {"quant_method": "fp8", "weight_block_size": [16, 16]},
        {"weight": empty(E4M3, 40, 64), "weight_scale_inv": empty(f32, 3, 4)},
        "fp8_block",
        (40, 64),
    ),
    (
        "DeepSeek V3 without a config",
        {},
        {"weight": empty(E4M3, 200, 256), "weight_scale_inv": empty(f32, 2, 2)},
        "fp8_block",
        (200, 256),
    ),
    (
        "DeepSeek V4, E8M0 scales",
        {"quant_method": "fp8", "weight_block_size": [16, 16]},
        {"weight": empty(E4M3, 32, 64), "scale": empty(E8M0, 2, 4)},
        "fp8_block",
        (32, 64),
    ),
    (
        "DeepSeek V4, experts",
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        {"weight": empty(i8, 32, 32), "scale": empty(E8M0, 32, 2)},
        "mxfp4",
        (32, 64),
    ),
    (
        "FP8 per tensor",
        {"quant_method": CT, "format": "float-quantized"},
        {"weight": empty(E4M3, 32, 64), "weight_scale": empty(f32, 1), "input_scale": empty(f32, 1)},
        "fp8_tensor",
        (32, 64),
    ),
    (
        "FP8 per row",
        {"quant_method": "fbgemm_fp8"},
        {"weight": empty(E4M3, 32, 64), "weight_scale": empty(f32, 32, 1)},
        "fp8_row",
        (32, 64),
    ),
    (
        "ModelOpt FP8",
        {"quant_method": "modelopt"},
        {"weight": empty(E4M3, 32, 64), "weight_scale": empty(f32), "input_scale": empty(f32)},
        "fp8_tensor",
        (32, 64),
    ),
    (
        "ComfyUI",
        {},
        {"weight": empty(E4M3, 32, 64), "scale_weight": empty(f32), "scale_input": empty(f32)},
        "fp8_tensor",
        (32, 64),
    ),
    (
        "MXFP8",
        {"quant_method": CT, "format": "mxfp8-quantized"},
        {"weight": empty(E4M3, 32, 64), "weight_scale": empty(u8, 32, 2)},
        "mxfp8",
        (32, 64),
    ),
    (
        "MXFP4",
        {"quant_method": CT, "format": "mxfp4-pack-quantized"},
        {"weight_packed": empty(u8, 32, 32), "weight_scale": empty(u8, 32, 2)},
        "mxfp4",
        (32, 64),
    ),
    (
        "NVFP4",
        {"quant_method": CT, "format": "nvfp4-pack-quantized"},
        {
            "weight_packed": empty(u8, 32, 32),
            "weight_scale": empty(E4M3, 32, 4),
            "weight_global_scale": empty(f32, 1),
            "input_global_scale": empty(f32, 1),
        },
        "nvfp4",
        (32, 64),
    ),
    (
        "ModelOpt NVFP4",
        {"quant_method": "modelopt"},
        {
            "weight": empty(u8, 32, 32),
            "weight_scale": empty(E4M3, 32, 4),
            "weight_scale_2": empty(f32),
            "input_scale": empty(f32),
        },
        "nvfp4",
        (32, 64),
    ),
    ("int4", {"quant_method": CT, "config_groups": {"g": {"weights": {"num_bits": 4}}}}, WORDS, "int4_g32", (32, 64)),
    (
        "int4, asymmetric, by channel",
        {"quant_method": CT},
        {
            **WORDS,
            "weight_scale": empty(f32, 32, 1),
            "weight_zero_point": empty(i32, 4, 1),
            "weight_g_idx": empty(i32, 64),
        },
        "int4_row",
        (32, 64),
    ),
    (
        "int8 packed, odd width",
        {"quant_method": CT},
        {
            "weight_packed": empty(i32, 32, 16),
            "weight_scale": empty(f32, 32, 1),
            "weight_shape": torch.tensor([32, 62]),
        },
        "int8_row",
        (32, 62),
    ),
    (
        "int8",
        {"quant_method": CT, "format": "int-quantized"},
        {"weight": empty(i8, 32, 64), "weight_scale": empty(f32, 32, 1), "weight_zero_point": empty(i8, 32, 1)},
        "int8_row",
        (32, 64),
    ),
    (
        "GPTQ",
        {"quant_method": "gptq", "bits": 4, "group_size": 32},
        {
            "qweight": empty(i32, 8, 32),
            "qzeros": empty(i32, 2, 4),
            "scales": empty(torch.float16, 2, 32),
            "g_idx": empty(i32, 64),
        },
        "gptq_int4_g32",
        (32, 64),
    ),
    (
        "GPTQ, 3 bits, no config",
        {},
        {"qweight": empty(i32, 6, 32), "qzeros": empty(i32, 2, 3), "scales": empty(torch.float16, 2, 32)},
        "gptq_int3_g32",
        (32, 64),
    ),
    (
        "AWQ",
        {"quant_method": "awq", "bits": 4, "group_size": 32},
        {"qweight": empty(i32, 64, 4), "qzeros": empty(i32, 2, 4), "scales": empty(torch.float16, 2, 32)},
        "awq_int4_g32",
        (32, 64),
    ),
    ("nf4", {"quant_method": "bitsandbytes", "load_in_4bit": True}, BNB, "nf4", (32, 64)),
    ("nf4, double", {"quant_method": "bitsandbytes"}, NESTED, "nf4", (32, 64)),
    (
        "LLM.int8",
        {"quant_method": "bitsandbytes"},
        {"weight": empty(i8, 32, 64), "SCB": empty(f32, 32), "weight_format": empty(u8)},
        "bnb_int8",
        (32, 64),
    ),
    ("plain int8", {}, {"qweight": empty(i8, 32, 64), "scale": empty(f32, 32, 1)}, "int8_row", (32, 64)),
    (
        "torchao",
        {"quant_method": "torchao"},
        {"_weight_qdata": empty(i8, 32, 64), "_weight_scale": empty(f32, 32, 1)},
        "int8_row",
        (32, 64),
    ),
    ("an unknown method", {"quant_method": "hqq"}, {"W_q": empty(u8, 16, 64), "meta": empty(f32, 3)}, "hqq", (16, 64)),
    (
        "a scheme that nobody told us of",
        {"quant_method": "next_year"},
        {"weight": empty(u8, 32, 32), "weight_magic": empty(f32, 4)},
        "next-year",
        (32, 32),
    ),
    ("SmoothQuant", {}, {"weight": empty(i8, 32, 64), "a": empty(f32)}, "integer codes", (32, 64)),
    ("a scale of any name", {}, {"weight": empty(i8, 32, 64), "alpha": empty(f32, 32)}, "integer codes", (32, 64)),
    (
        "EETQ, whose codes lie in the order of its kernels",
        {"quant_method": "eetq"},
        {"weight": empty(i8, 64, 64), "weight_scales": empty(f32, 64)},
        "eetq",
        (64, 64),
    ),
    (
        "Marlin",
        {},
        {"B": empty(i32, 4, 64), "s": empty(torch.float16, 1, 32), "workspace": empty(i32, 16)},
        "marlin",
        (4, 64),
    ),
    (
        "SVDQuant, which keeps a part of the weight in a product",
        {},
        {
            "qweight": empty(i8, 32, 32),
            "wscales": empty(torch.bfloat16, 1, 32),
            "proj_down": empty(torch.bfloat16, 64, 4),
            "proj_up": empty(torch.bfloat16, 32, 4),
            "smooth_factor": empty(torch.bfloat16, 64),
        },
        "svdquant",
        (32, 32),
    ),
    (
        "an offset of unknown meaning",
        {},
        {"weight": empty(i8, 32, 64), "weight_scale": empty(f32, 32, 1), "weight_offset": empty(f32, 32, 1)},
        "int8_row",
        (32, 64),
    ),
    (
        "SqueezeLLM",
        {},
        {
            "qweight": empty(i32, 8, 32),
            "lookup_table": empty(f32, 32, 16),
            "rows": empty(i32, 33),
            "vals": empty(f32, 5),
        },
        "gptq",
        (8, 32),
    ),
    (
        "scales of an unknown shape",
        {},
        {"weight": empty(E4M3, 32, 64), "weight_scale": empty(f32, 5, 7)},
        "fp8_block",
        (32, 64),
    ),
]
ROW = pytest.mark.parametrize(("label", "said", "leaves", "form", "shape"), TABLE, ids=[row[0] for row in TABLE])


@ROW
def test_a_row_of_the_table(label, said, leaves, form, shape):
    ordinary = {
        f"{M}.bias": empty(f32, 32),
        "model.norm.weight": torch.ones(64),
        "model.embed_tokens.weight": empty(f32, 9, 64),
    }
    stored = {**{f"{M}.{leaf}": t for leaf, t in leaves.items()}, **ordinary}
    found = detected(tensor_handles(stored), {"quantization_config": said} if said else {})
    (codes,) = found.weights.values()
    assert codes.name == f"{M}.weight"
    assert codes.format == form
    assert codes.shape in {shape, None}
    named = {codes.parts["codes"].name, *found.companions}
    assert named == set(stored) - set(ordinary)
    assert {why.reason for why in found.companions.values()} == {f"quantised: {form}"}


@ROW
def test_codes_are_read_or_skipped_and_companions_are_no_rows(label, said, leaves, form, shape):
    config = {"quantization_config": said} if said else {}
    base = open_checkpoint({f"{M}.weight": empty(f32, *shape), "model.embed.weight": torch.ones(6, 4)})
    stored = {**{f"{M}.{leaf}": t for leaf, t in leaves.items()}, "model.embed.weight": torch.zeros(6, 4)}
    ft = opened(stored, config)
    read = isinstance(ft.tensors[f"{M}.weight"], QuantisedHandle)
    unread = {"hqq", "next-year", "integer codes", "eetq", "marlin", "gptq", "svdquant"}
    assert read == (form not in unread and "unknown" not in label)
    planned = plan(base, ft)
    assert [p.name for p in planned.pairs] == ["model.embed.weight", *[f"{M}.weight"] * read]
    assert {s.name for s in planned.skipped} == {f"{M}.weight"} - {p.name for p in planned.pairs} | set(ft.companions)
    assert {s.reason for s in planned.skipped} <= {f"quantised: {form}"}


def opened(stored: Mapping[str, torch.Tensor], config: Mapping[str, object]):
    from deltaw.checkpoints.checkpoint import Checkpoint
    from deltaw.checkpoints.unread import without_codes

    return without_codes(Checkpoint("x", "memory", tensor_handles(stored), Document(config)))


def test_gpt_oss_stands_for_transformers_parameter():
    at = "model.layers.0.mlp.experts"
    stored = {
        f"{at}.gate_up_proj_blocks": empty(u8, 4, 48, 2, 16),
        f"{at}.gate_up_proj_scales": empty(u8, 4, 48, 2),
        f"{at}.gate_up_proj_bias": empty(f32, 4, 48),
        f"{at}.down_proj_blocks": empty(u8, 4, 64, 1, 16),
        f"{at}.down_proj_scales": empty(u8, 4, 64, 1),
        f"{at}.down_proj_bias": empty(f32, 4, 64),
    }
    found = detected(tensor_handles(stored), {"quantization_config": {"quant_method": "mxfp4"}})
    assert {n: (c.format, c.shape) for n, c in found.weights.items()} == {
        f"{at}.gate_up_proj": ("mxfp4", (4, 64, 48)),
        f"{at}.down_proj": ("mxfp4", (4, 32, 64)),
    }
    assert set(found.companions) == {f"{at}.gate_up_proj_scales", f"{at}.down_proj_scales"}


def test_stacked_fp8_experts():
    at = "model.layers.0.mlp.experts"
    stored = {f"{at}.gate_up_proj": empty(E4M3, 4, 40, 64), f"{at}.gate_up_proj_scale_inv": empty(f32, 4, 3, 4)}
    found = detected(
        tensor_handles(stored), {"quantization_config": {"quant_method": "fp8", "weight_block_size": [16, 16]}}
    )
    assert found.weights[f"{at}.gate_up_proj"].format == "fp8_block"
    assert not found.weights[f"{at}.gate_up_proj"].problem


def test_mlx():
    leaves = {
        f"{M}.weight": empty(torch.uint32, 32, 8),
        f"{M}.scales": empty(f32, 32, 2),
        f"{M}.biases": empty(f32, 32, 2),
    }
    found = detected(tensor_handles(leaves), {"quantization": {"group_size": 32, "bits": 4}})
    assert found.weights[f"{M}.weight"].format == "mlx_int4_g32"
    assert found.weights[f"{M}.weight"].shape == (32, 64)
    own = {"quantization": {"group_size": 64, "bits": 8, M: {"group_size": 32, "bits": 4}}}
    assert detected(tensor_handles(leaves), own).weights[f"{M}.weight"].format == "mlx_int4_g32"
    assert (
        "does not fit"
        in detected(tensor_handles(leaves), {"quantization": {"group_size": 64, "bits": 8}})
        .weights[f"{M}.weight"]
        .problem
    )


def test_a_missing_companion_and_a_stray_scale():
    fp8 = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [16, 16]}}
    found = detected(tensor_handles({f"{M}.weight": empty(E4M3, 32, 64)}), fp8)
    assert found.weights[f"{M}.weight"].problem == "its scale is missing"
    stray = {f"{M}.weight": empty(torch.bfloat16, 32, 64), f"{M}.weight_scale_inv": empty(f32, 2, 4)}
    found = detected(tensor_handles(stray), fp8)
    assert not found.weights
    assert list(found.companions) == [f"{M}.weight_scale_inv"]


def test_what_a_quantiser_measured_is_no_weight():
    """Training with fake quantisation keeps weights as they are, and its ranges and scales in modules below them."""
    weight = {f"{M}.weight": torch.ones(8, 4)}
    measured = {
        f"{M}.weight_quantizer._amax": torch.ones(8, 1),
        f"{M}.input_quantizer._amax": torch.ones(1),
        f"{M}._input_quantizer._amax": torch.ones(1),
        f"{M}.weight_fake_quant.scale": torch.ones(8),
        f"{M}.weight_fake_quant.activation_post_process.min_val": torch.ones(8),
        f"{M}.activation_post_process.scale": torch.ones(1),
    }
    # the code book of a model that quantises vectors is one
    book = {"encoder.semantic_quantizer.codebook": torch.ones(6, 4), "vq.quantizer.embed.weight": torch.ones(6, 4)}
    ft = opened({**weight, **measured, **book}, {})
    planned = plan(ft, ft)
    assert {p.name for p in planned.pairs} == {*weight, *book}
    assert {s.name: s.because for s in planned.skipped} == dict.fromkeys(measured, Reason.NOT_A_WEIGHT)


def test_what_only_looks_like_it_is_a_weight():
    stored = {
        "logit_scale": empty(f32),
        "norm.scale": empty(f32, 8),
        "h.0.attn.bias": empty(u8, 1, 1, 8, 8),
        "h.0.attn.c_attn.weight": empty(f32, 8, 24),
        "bn.num_batches_tracked": torch.tensor(3),
        "layer.gamma": empty(f32, 8),
        "embeddings.position_ids": torch.arange(8)[None],
        "attn.relative_position_index": torch.zeros(8, 8, dtype=torch.int32),
        "attn.causal_mask": empty(u8, 8, 8),
        "plain_fp8.weight": empty(E4M3, 8, 8),  # a cast without a scale holds its own values
    }
    assert not detected(tensor_handles(stored), {})
    assert not detected(
        tensor_handles({n: t for n, t in stored.items() if n != "plain_fp8.weight"}),
        {"quantization_config": {"quant_method": "fp8"}},
    )


DTYPES = [E4M3, torch.float8_e5m2, u8, i8, i32, torch.uint32, torch.int16]
SCALES = [
    "weight_scale",
    "weight_scale_inv",
    "scale_weight",
    "scales",
    "SCB",
    "weight.absmax",
    "weight_scale_2",
    "zero_point",
]


@given(
    st.sampled_from(DTYPES),
    st.sampled_from(["weight", "qweight", "weight_packed"]),
    st.lists(st.sampled_from(SCALES), min_size=1, unique=True),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.lists(st.integers(1, 9), max_size=3),
    st.sampled_from(["", "fp8", "gptq", "awq", "bitsandbytes", "x"]),
)
@settings(max_examples=300)
def test_codes_with_companions_have_no_row(dtype, leaf, scales, shape, scale_shape, method):
    raw = torch.zeros((shape[0], shape[1] * dtype.itemsize), dtype=u8).view(dtype)
    stored = {
        f"{M}.{leaf}": raw,
        **{f"{M}.{s}": torch.ones(scale_shape) for s in scales},
        "model.embed.weight": torch.ones(6, 4),
    }
    ft = opened(stored, {"quantization_config": {"quant_method": method}} if method else {})
    found = ft.tensors[f"{M}.weight"]
    assert isinstance(found, (UnreadHandle, QuantisedHandle))
    planned = plan(ft, ft)
    read = isinstance(found, QuantisedHandle)
    assert {p.name for p in planned.pairs} == {"model.embed.weight", *[f"{M}.weight"] * read}
    if read:
        assert found.read().dtype == torch.float32
    assert all(s.because == Reason.QUANTISED for s in planned.skipped)


@given(
    st.dictionaries(
        st.sampled_from(["quant_method", "bits", "group_size", "weight_block_size", "config_groups", "backend"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
            lambda c: st.lists(c, max_size=3) | st.dictionaries(st.text(max_size=5), c, max_size=3),
            max_leaves=6,
        ),
    )
)
@settings(max_examples=200)
def test_no_config_is_too_strange(said):
    for _, _, leaves, _, _ in TABLE[::3]:
        found = detected(
            tensor_handles({f"{M}.{leaf}": t for leaf, t in leaves.items()}), {"quantization_config": said}
        )
        assert found
