"""Codes are read as what they stand for: every format against a plain loop over its definition, and the traps."""

import json
import math

import numpy as np
import pytest
import torch

from deltaw.checkpoints.checkpoint import Checkpoint
from deltaw.checkpoints.memory import tensor_handles
from deltaw.checkpoints.quantised import QuantisedHandle
from deltaw.checkpoints.unread import UnreadHandle, without_codes
from deltaw.documents import Document

G = torch.Generator().manual_seed(3)
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]
M = "model.layers.0.self_attn.q_proj"
State = dict[str, torch.Tensor]


def rand(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=G) + 0.5


def ints(low: int, high: int, *shape: int) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=G)


def handle(
    leaves: State, quantization: dict[str, object], name: str = f"{M}.weight", module: str = M
) -> QuantisedHandle:
    key = (
        "quantization" if "group_size" in quantization and "quant_method" not in quantization else "quantization_config"
    )
    stored = {f"{module}.{leaf}": t for leaf, t in leaves.items()}
    opened = without_codes(Checkpoint("x", "memory", tensor_handles(stored), Document({key: quantization})))
    found = opened.tensors[name]
    assert isinstance(found, QuantisedHandle), getattr(found, "detail", found)
    return found


def check(found: QuantisedHandle, want: np.ndarray) -> None:
    """The same numbers in float32, whole and by rows, with a variance for each."""
    weight = found.read()
    assert weight.dtype == torch.float32
    assert found.shape == weight.shape == want.shape
    np.testing.assert_allclose(weight.numpy(), want.astype(np.float32), rtol=1.2e-7, atol=0)
    for start, stop in ((0, 1), (1, want.shape[0]), (want.shape[0] // 2, want.shape[0] // 2)):
        assert torch.equal(found.read(slice(start, stop)), weight[start:stop])
        assert torch.equal(found.variance(slice(start, stop)), found.variance()[start:stop])
    assert found.variance().shape == want.shape
    assert bool((found.variance() >= 0).all())


def pack(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Rows of codes as one stream of bits, in 32-bit words."""
    rows = []
    for row in values.tolist():
        stream = sum(int(v) << (bits * i) for i, v in enumerate(row))
        words = math.ceil(len(row) * bits / 32)
        rows.append([(stream >> (32 * w)) & 0xFFFFFFFF for w in range(words)])
    return torch.tensor(rows, dtype=torch.int64).to(torch.uint32)


def signed(words: torch.Tensor) -> torch.Tensor:
    return words.view(torch.int32)


def by_block(scale: torch.Tensor, block: tuple[int, int], m: int, n: int) -> np.ndarray:
    return np.array([[float(scale[i // block[0], j // block[1]]) for j in range(n)] for i in range(m)])


FP8 = {"quant_method": "fp8", "weight_block_size": [16, 16]}


@pytest.mark.parametrize(("m", "n"), [(32, 48), (40, 50), (5, 70)])
def test_fp8_blocks_with_partial_edges(m: int, n: int):
    q = (rand(m, n) * 4 - 4).to(torch.float8_e4m3fn)
    scale = rand(-(-m // 16), -(-n // 16))
    found = handle({"weight": q, "weight_scale_inv": scale}, FP8)
    assert found.dtype == "fp8_block"
    check(found, q.double().numpy() * by_block(scale, (16, 16), m, n))


def test_a_block_is_not_told_from_shapes():
    """DeepSeek's 576 rows in blocks of 128 have five scales: 576/5 is no block."""
    q, scale = (rand(576, 256) - 1).to(torch.float8_e4m3fn), rand(5, 2)
    found = handle({"weight": q, "weight_scale_inv": scale}, {"quant_method": "fp8", "weight_block_size": [128, 128]})
    check(found, q.double().numpy() * by_block(scale, (128, 128), 576, 256))


def test_exponents_as_scales():
    q, e = (rand(32, 64) - 1).to(torch.float8_e4m3fn), ints(100, 140, 2, 4).to(torch.uint8)
    two = 2.0 ** (e.double() - 127)
    check(handle({"weight": q, "weight_scale_inv": e}, FP8), q.double().numpy() * by_block(two, (16, 16), 32, 64))
    e = ints(100, 140, 32, 2).to(torch.uint8)
    found = handle({"weight": q, "weight_scale": e}, {"quant_method": "compressed-tensors"})
    assert found.dtype == "mxfp8"
    check(found, q.double().numpy() * by_block(2.0 ** (e.double() - 127), (1, 32), 32, 64))
    assert handle({"weight": q, "weight_scale": torch.full((32, 2), 255, dtype=torch.uint8)}, FP8).read().isnan().all()


@pytest.mark.parametrize("shape", [(), (1,), (12,), (12, 1)])
def test_fp8_by_tensor_and_row(shape: tuple[int, ...]):
    q, scale = (rand(12, 20) - 1).to(torch.float8_e4m3fn), rand(*shape)
    each = scale.double().reshape(-1, 1).numpy() if shape and shape[0] == 12 else float(scale)
    check(handle({"weight": q, "weight_scale": scale}, {"quant_method": "fbgemm_fp8"}), q.double().numpy() * each)
    check(handle({"weight": q, "scale_weight": scale}, {}), q.double().numpy() * each)


def test_stacked_fp8_experts():
    q, scale = (rand(3, 20, 40) - 1).to(torch.float8_e4m3fn), rand(3, 2, 3)
    at = "model.layers.0.mlp.experts"
    found = handle({"gate_up_proj": q, "gate_up_proj_scale_inv": scale}, FP8, f"{at}.gate_up_proj", at)
    want = np.stack([q[e].double().numpy() * by_block(scale[e], (16, 16), 20, 40) for e in range(3)])
    check(found, want)


def test_plain_int8_and_llm_int8():
    q, scale = ints(-127, 128, 12, 20).to(torch.int8), rand(12)
    check(
        handle({"weight": q, "SCB": scale}, {"quant_method": "bitsandbytes"}),
        q.double().numpy() * scale.double().numpy()[:, None] / 127,
    )
    check(handle({"qweight": q, "scale": scale[:, None]}, {}), q.double().numpy() * scale.double().numpy()[:, None])
    zero = ints(-5, 5, 12, 4).to(torch.int8)
    found = handle(
        {"weight": q, "weight_scale": rand(12, 4), "weight_zero_point": zero}, {"quant_method": "compressed-tensors"}
    )
    scale4 = found.codes.parts["scale"].read()
    want = (q.double().numpy() - by_block(zero, (1, 5), 12, 20)) * by_block(scale4, (1, 5), 12, 20)
    check(found, want)


def fp4_bytes(codes: torch.Tensor) -> torch.Tensor:
    return (codes[..., 0::2] | (codes[..., 1::2] << 4)).to(torch.uint8)


def test_mxfp4_and_nvfp4():
    codes = ints(0, 16, 12, 64)
    values = np.array(E2M1)[codes.numpy()]
    e = ints(110, 130, 12, 2).to(torch.uint8)
    ct = {"quant_method": "compressed-tensors"}
    want = values * by_block(2.0 ** (e.double() - 127), (1, 32), 12, 64)
    check(handle({"weight_packed": fp4_bytes(codes), "weight_scale": e}, ct), want)
    v4 = handle({"weight": fp4_bytes(codes).view(torch.int8), "scale": e.view(torch.float8_e8m0fnu)}, FP8)
    assert v4.dtype == "mxfp4"
    check(v4, want)
    scale, overall = rand(12, 4).to(torch.float8_e4m3fn), rand(1)
    found = handle({"weight_packed": fp4_bytes(codes), "weight_scale": scale, "weight_global_scale": overall}, ct)
    check(found, values * by_block((scale.float() / overall), (1, 16), 12, 64))
    found = handle(
        {"weight": fp4_bytes(codes), "weight_scale": scale, "weight_scale_2": overall[0]}, {"quant_method": "modelopt"}
    )
    check(found, values * by_block((scale.float() * overall), (1, 16), 12, 64))


def test_gpt_oss_is_transposed_as_transformers_has_it():
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    at = "model.layers.0.mlp.experts"
    blocks, scales = ints(0, 256, 3, 24, 2, 16).to(torch.uint8), ints(110, 130, 3, 24, 2).to(torch.uint8)
    found = handle(
        {"gate_up_proj_blocks": blocks, "gate_up_proj_scales": scales},
        {"quant_method": "mxfp4"},
        f"{at}.gate_up_proj",
        at,
    )
    assert found.shape == (3, 64, 24)
    check(found, convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).double().numpy())


@pytest.mark.parametrize(("bits", "n"), [(4, 64), (8, 64), (4, 61), (8, 30)])
def test_packed_integers(bits: int, n: int):
    u = ints(0, 2**bits, 12, n)
    config = {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": bits}}}}
    size = torch.tensor([12, n])
    scale = rand(12, 1)
    leaves = {"weight_packed": signed(pack(u, bits)), "weight_scale": scale, "weight_shape": size}
    half = 2 ** (bits - 1)
    check(handle(leaves, config), (u.double().numpy() - half) * scale.double().numpy())
    if n == 64:
        scale, z = rand(12, 2), ints(0, 2**bits, 12, 2)
        zero = signed(pack(z.T, bits)).T.contiguous()  # along the rows
        leaves = {
            "weight_packed": signed(pack(u, bits)),
            "weight_scale": scale,
            "weight_shape": size,
            "weight_zero_point": zero,
        }
        want = (u.double().numpy() - by_block(z, (1, 32), 12, n)) * by_block(scale, (1, 32), 12, n)
        check(handle(leaves, config), want)
        order = torch.randperm(n, generator=G) // 32
        leaves["weight_g_idx"] = order
        want = (u.double().numpy() - z[:, order].numpy()) * scale[:, order].double().numpy()
        check(handle(leaves, config), want)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("act_order", [False, True])
def test_gptq(bits: int, version: str, act_order: bool):
    inputs, outputs, g = 64, 32, 32
    q, z = ints(0, 2**bits, inputs, outputs), ints(0, 2**bits, 2, outputs)
    scale = rand(2, outputs).half()
    index = torch.randperm(inputs, generator=G) // g if act_order else torch.arange(inputs) // g
    stored = (z - 1) % 2**bits if version == "gptq" else z
    leaves = {
        "qweight": signed(pack(q.T, bits)).T.contiguous(),
        "qzeros": signed(pack(stored, bits)),
        "scales": scale,
        "g_idx": index.int(),
    }
    found = handle(leaves, {"quant_method": "gptq", "bits": bits, "group_size": g, "checkpoint_format": version})
    assert found.dtype == f"gptq_int{bits}_g32"
    check(found, ((q - z[index]).double() * scale[index].double()).T.numpy())
    if act_order:  # no group lies together, so that nothing can be told from one
        assert torch.equal(found.noise(), found.variance())


def test_awq():
    inputs, outputs = 64, 32
    q, z, scale = ints(0, 16, inputs, outputs), ints(0, 16, 2, outputs), rand(2, outputs).half()

    def words(codes: torch.Tensor) -> torch.Tensor:
        order = [0, 2, 4, 6, 1, 3, 5, 7]  # AutoAWQ packs these outputs from the lowest bits up
        out = torch.zeros(codes.shape[0], codes.shape[1] // 8, dtype=torch.int64)
        for word in range(out.shape[1]):
            for i, column in enumerate(order):
                out[:, word] |= codes[:, 8 * word + column] << (4 * i)
        return out.to(torch.uint32).view(torch.int32)

    leaves = {"qweight": words(q), "qzeros": words(z), "scales": scale}
    found = handle(leaves, {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"})
    index = torch.arange(inputs) // 32
    check(found, ((q - z[index]).double() * scale[index].double()).T.numpy())


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("storage", [torch.uint8, torch.bfloat16])
@pytest.mark.parametrize("shape", [(32, 64), (6, 50)])
def test_bitsandbytes_four_bits(double: bool, storage: torch.dtype, shape: tuple[int, int]):
    m, n = shape
    code = torch.sort(torch.cat([torch.zeros(1), 2 * torch.rand(15, generator=G) - 1])).values
    picked = ints(0, 16, m * n)
    octets = ((picked[0::2] << 4) | picked[1::2]).to(torch.uint8)
    blocks = -(-m * n // 64)
    state: dict[str, object] = {"blocksize": 64, "shape": [m, n], "quant_type": "nf4"}
    absmax = rand(blocks)
    leaves = {"weight": octets.view(storage)[:, None], "weight.absmax": absmax, "weight.quant_map": code}
    if double:
        nested_code, index, outer = (
            torch.linspace(-1, 1, 256),
            ints(0, 256, blocks).to(torch.uint8),
            rand(-(-blocks // 4)),
        )
        state |= {"nested_blocksize": 4, "nested_offset": 0.75, "nested_dtype": "float32"}
        leaves |= {"weight.absmax": index, "weight.nested_absmax": outer, "weight.nested_quant_map": nested_code}
        absmax = nested_code[index.int()] * outer[torch.arange(blocks) // 4] + 0.75
    leaves["weight.quant_state.bitsandbytes__nf4"] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    want = code.double()[picked] * absmax.double()[torch.arange(m * n) // 64]
    check(handle(leaves, {"quant_method": "bitsandbytes", "load_in_4bit": True}), want.reshape(m, n).numpy())


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_mlx(bits: int):
    q, scale, bias = ints(0, 2**bits, 12, 64), rand(12, 2), rand(12, 2)
    leaves = {"weight": pack(q, bits), "scales": scale, "biases": bias}
    want = q.double().numpy() * by_block(scale, (1, 32), 12, 64) + by_block(bias, (1, 32), 12, 64)
    found = handle(leaves, {"group_size": 32, "bits": bits})
    np.testing.assert_allclose(found.read().numpy(), want, rtol=3e-7)
    assert found.dtype == f"mlx_int{bits}_g32"


def test_a_step_of_mlx_below_zero_has_its_highest_code_at_the_lower_end():
    q, bias = torch.arange(16).repeat(2, 2), torch.zeros(2, 1)
    scale = torch.tensor([[0.5], [-0.5]])
    found = handle({"weight": pack(q, 4), "scales": scale, "biases": bias}, {"group_size": 32, "bits": 4})
    assert found.read()[:, 15].tolist() == [7.5, -7.5]
    assert found.ends()[:, :16].tolist() == [[-1, *[0] * 14, 1], [1, *[0] * 14, -1]]


def test_what_does_not_fit_is_not_read():
    q = (rand(32, 48) - 1).to(torch.float8_e4m3fn)
    for leaves in ({"weight": q, "weight_scale_inv": rand(3, 7)}, {"weight": q}):
        stored = {f"{M}.{leaf}": t for leaf, t in leaves.items()}
        opened = without_codes(
            Checkpoint("x", "memory", tensor_handles(stored), Document({"quantization_config": FP8}))
        )
        found = opened.tensors[f"{M}.weight"]
        assert isinstance(found, UnreadHandle)
        assert found.reason.startswith("quantised: fp8")


def test_the_variance_is_that_of_the_rounding():
    """Gaussian weights on every grid: the predicted mean square of the error is the true one."""
    w = torch.randn(256, 512, generator=G)
    scale = w.abs().amax(1, keepdim=True) / 448
    q = (w / scale).to(torch.float8_e4m3fn)
    found = handle({"weight": q, "weight_scale": scale}, {"quant_method": "fbgemm_fp8"})
    assert 0.97 <= noise(found, w) <= 1.05
    groups = w.reshape(256, 16, 32)
    scale = groups.abs().amax(-1) / 7
    q4 = (groups / scale[..., None]).round().clamp(-8, 7).reshape(256, 512).int() + 8
    leaves = {"weight_packed": signed(pack(q4, 4)), "weight_scale": scale, "weight_shape": torch.tensor([256, 512])}
    assert 0.97 <= noise(handle(leaves, {"quant_method": "compressed-tensors"}), w) <= 1.05
    scale = w.abs().amax(1, keepdim=True) / 127
    q8 = (w / scale).round().to(torch.int8)
    found = handle({"weight": q8, "weight_scale": scale}, {"quant_method": "compressed-tensors"})
    assert 0.97 <= noise(found, w) <= 1.05


@pytest.mark.parametrize(("size", "even"), [(3, 1.01), (10, 1.004), (20, 1.044), (30, 1.24)])
def test_one_large_weight_in_a_group_leaves_the_others_in_the_cell_of_zero(size: int, even: float):
    """The true mean square is that of the others, and not of a cell that they do not fill: their share tells."""
    w = torch.randn(2048, 128, generator=G)
    w[:, 0] = size
    scale = w.abs().amax(1, keepdim=True) / 7.5
    q = (w / scale).round().clamp(-8, 7)
    leaves = {"weight_packed": signed(pack(q.long() + 8, 4)), "weight_scale": scale}
    leaves["weight_shape"] = torch.tensor(w.shape)
    found = handle(leaves, {"quant_method": "compressed-tensors"})
    true = (found.read().double() - w.double()).square().sum()
    assert noise(found, w) == pytest.approx(even, rel=0.01)
    assert 0.99 <= math.sqrt(found.noise().sum() / true) <= 1.03
    assert torch.equal(found.noise(slice(3, 9)), found.noise()[3:9])


def noise(found: QuantisedHandle, w: torch.Tensor) -> float:
    """The predicted size of the rounding, in units of the true one."""
    return math.sqrt(found.variance().sum() / (found.read().double() - w.double()).square().sum())


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_compressed_tensors_reads_the_same(bits: int):
    """The reference library packs its own codes; they are read back here."""
    oracle = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    half = 2 ** (bits - 1)
    u, zero, scale = ints(-half, half, 12, 50).to(torch.int8), ints(-half, half, 12, 2).to(torch.int8), rand(12, 2)
    leaves = {
        "weight_packed": oracle.pack_to_int32(u, bits),
        "weight_scale": scale,
        "weight_shape": torch.tensor([12, 50]),
        "weight_zero_point": oracle.pack_to_int32(zero, bits, packed_dim=0),
    }
    want = (u.double().numpy() - by_block(zero, (1, 25), 12, 50)) * by_block(scale, (1, 25), 12, 50)
    config = {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": bits}}}}
    check(handle(leaves, config), want)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [False, True])
def test_bitsandbytes_reads_the_same(kind: str, double: bool):
    bnb = pytest.importorskip("bitsandbytes.functional")
    # Rows of whole blocks: on a CPU its version 0.50 dequantises others wrongly (25 % off where the codes are 9 %).
    w = torch.randn(64, 128, generator=G)
    q, state = bnb.quantize_4bit(w, quant_type=kind, compress_statistics=double)
    leaves = {"weight": q} | {f"weight.{k}": v for k, v in state.as_dict(packed=True).items()}
    found = handle(leaves, {"quant_method": "bitsandbytes", "load_in_4bit": True})
    assert found.dtype == kind
    check(found, bnb.dequantize_4bit(q, state).double().numpy())
    assert 0.97 <= noise(found, w) <= 1.2


def test_a_reader_is_told_of_the_format_and_of_what_it_moves():
    def notes(leaves: State, config: dict[str, object]) -> str:
        stored = {f"{M}.{leaf}": t for leaf, t in leaves.items()}
        opened = without_codes(
            Checkpoint("x", "memory", tensor_handles(stored), Document({"quantization_config": config}))
        )
        return "\n".join(opened.notes)

    fp8 = {"weight": rand(12, 20).to(torch.float8_e4m3fn), "weight_scale": rand(12, 1)}
    assert "1 weight is stored as fp8_row" in notes(fp8, {"quant_method": "fbgemm_fp8"})
    assert "moves scale" not in notes(fp8, {"quant_method": "fbgemm_fp8"})
    assert "a rotation moves scale" in notes(fp8, {"quant_method": "compressed-tensors", "transform_config": {"a": 1}})
    words = torch.zeros(64, 4, dtype=torch.int32)
    awq = {"qweight": words, "qzeros": words[:2], "scales": rand(2, 32).half()}
    assert "AWQ moves scale" in notes(awq, {"quant_method": "awq", "bits": 4})
    gptq = {"qweight": words.T.repeat(2, 1), "qzeros": words[:2, :8], "scales": rand(2, 64).half()}
    assert "GPTQ's errors" in notes({**gptq, "qzeros": torch.zeros(2, 8, dtype=torch.int32)}, {"quant_method": "gptq"})
