"""Quantised checkpoints end to end: the rows are those of the dequantised weights, and the grid is the noise."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import deltaw

B = 16
NAME = "model.layers.0.self_attn.q_proj.weight"
K = "base_model.model.model.layers.0.self_attn.q_proj."
FP8 = {"model_type": "deepseek_v3", "quantization_config": {"quant_method": "fp8", "weight_block_size": [B, B]}}
G = torch.Generator().manual_seed(5)
State = dict[str, torch.Tensor]


def rnd(*shape: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=G)


def quantised(w: torch.Tensor) -> State:
    """Block FP8, as DeepSeek has it."""
    m, n = w.shape
    blocks = w.reshape(m // B, B, n // B, B)
    scale = blocks.abs().amax((1, 3)) / 448
    q = (blocks / scale[:, None, :, None]).reshape(m, n).to(torch.float8_e4m3fn)
    return {NAME: q, f"{NAME}_scale_inv": scale, "model.norm.weight": torch.ones(n)}


def value(state: State) -> np.ndarray:
    q, s = state[NAME].double(), state[f"{NAME}_scale_inv"].double()
    return (q * s.repeat_interleave(B, 0).repeat_interleave(B, 1)).numpy()


def save(folder: Path, state: State, config: dict[str, object]) -> Path:
    folder.mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def adapter(folder: Path, tensors: State, **config: object) -> Path:
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    about = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(about))
    return folder


def row(base: Path, ft: Path) -> dict[str, object]:
    result = deltaw.analyze(str(base), str(ft))
    assert all("scale" not in str(r["name"]) and "SCB" not in str(r["name"]) for r in result.rows)
    return next(r for r in result.rows if r["name"] == NAME)


def right(found: dict[str, object], w0: np.ndarray, delta: np.ndarray) -> None:
    assert found["fro_norm"] == pytest.approx(np.linalg.norm(delta), rel=1e-5)
    assert found["base_fro_norm"] == pytest.approx(np.linalg.norm(w0), rel=1e-5)
    assert found["relative_change"] == pytest.approx(np.linalg.norm(delta) / np.linalg.norm(w0), rel=1e-5)
    assert found["spectral_norm"] == pytest.approx(np.linalg.norm(delta, 2), rel=1e-4)


@pytest.fixture
def fp8(tmp_path: Path) -> tuple[Path, Path, State, State]:
    w0 = rnd(32, 48, scale=0.02)
    w0[:16] *= 5
    a, b = quantised(w0), quantised(w0 + rnd(32, 48, scale=0.0008))
    return save(tmp_path / "a", a, FP8), save(tmp_path / "b", b, FP8), a, b


def test_a_pair_of_block_fp8_checkpoints(fp8: tuple[Path, Path, State, State]):
    base, ft, a, b = fp8
    found = row(base, ft)
    right(found, value(a), value(b) - value(a))
    assert (found["base_dtype"], found["ft_dtype"]) == ("fp8_block", "fp8_block")
    assert (found["base_precision"], found["ft_precision"]) == ("fp8_block", "fp8_block")


def test_equal_codes_with_other_scales_are_a_change(tmp_path: Path, fp8: tuple[Path, Path, State, State]):
    base, _, a, _ = fp8
    scaled = {**a, f"{NAME}_scale_inv": 1.05 * a[f"{NAME}_scale_inv"]}
    found = row(base, save(tmp_path / "scaled", scaled, FP8))
    assert found["relative_change"] == pytest.approx(0.05, rel=1e-5)


def test_an_unquantised_base_and_its_fp8_copy(tmp_path: Path):
    w0 = rnd(64, 96, scale=0.02).bfloat16()
    base = save(tmp_path / "base", {NAME: w0, "model.norm.weight": torch.ones(96)}, {"model_type": "deepseek_v3"})
    copy = quantised(w0.float())
    found = row(base, save(tmp_path / "copy", copy, FP8))
    right(found, w0.double().numpy(), value(copy) - w0.double().numpy())
    assert found["rounding_noise"] == pytest.approx(found["fro_norm"], rel=0.08)
    assert found["resolution"] == "below_precision"
    assert found["signal_rank"] == 0


def test_lora_and_dora_on_a_quantised_base(tmp_path: Path, fp8: tuple[Path, Path, State, State]):
    base, _, a, _ = fp8
    A, Bm = rnd(4, 48, scale=0.1), rnd(32, 4, scale=0.02)
    factors = {f"{K}lora_A.weight": A, f"{K}lora_B.weight": Bm}
    product = 2 * Bm.double().numpy() @ A.double().numpy()
    found = row(base, adapter(tmp_path / "lora", factors))
    right(found, value(a), product)
    magnitude = rnd(32).abs() + 0.1
    v = value(a) + product
    dora = magnitude.double().numpy()[:, None] * v / np.linalg.norm(v, axis=1, keepdims=True) - value(a)
    tensors = {**factors, f"{K}lora_magnitude_vector": magnitude}
    right(row(base, adapter(tmp_path / "dora", tensors, use_dora=True)), value(a), dora)


def test_llm_int8(tmp_path: Path):
    w = rnd(24, 32, scale=0.02)
    scb = w.abs().amax(1)
    q = (w / scb[:, None] * 127).round().to(torch.int8)
    state = {
        NAME: q,
        NAME.replace("weight", "SCB"): scb,
        NAME.replace("weight", "weight_format"): torch.tensor(0, dtype=torch.uint8),
    }
    config = {"model_type": "llama", "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}
    base = save(tmp_path / "base", {**state, "model.norm.weight": torch.ones(32)}, config)
    A, Bm = rnd(4, 32, scale=0.1), rnd(24, 4, scale=0.02)
    found = row(base, adapter(tmp_path / "ad", {f"{K}lora_A.weight": A, f"{K}lora_B.weight": Bm}))
    w0 = (q.double() * scb.double()[:, None] / 127).numpy()
    right(found, w0, 2 * Bm.double().numpy() @ A.double().numpy())


def int4(w: torch.Tensor, g: int = 32) -> State:
    m, n = w.shape
    scale = w.reshape(m, n // g, g).abs().amax(-1) / 7
    u = (w / scale.repeat_interleave(g, 1)).round().clamp(-8, 7).long() + 8
    words = torch.zeros(m, n // 8, dtype=torch.int64)
    for i in range(8):
        words |= u[:, i::8] << (4 * i)
    packed = words.to(torch.uint32).view(torch.int32)
    at = NAME.removesuffix("weight")
    return {f"{at}weight_packed": packed, f"{at}weight_scale": scale, f"{at}weight_shape": torch.tensor([m, n])}


INT4 = {
    "quantization_config": {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 4}}}}
}


def low_rank(m: int, n: int, size: float, rank: int = 16) -> torch.Tensor:
    u, v = torch.linalg.qr(rnd(m, rank)).Q, torch.linalg.qr(rnd(n, rank)).Q
    return size / math.sqrt(rank) * u @ v.T


def test_what_stands_above_a_grid(tmp_path: Path):
    """A rank-16 update of 3 % is seen whole above FP8's noise; of 1 % nothing is seen, and nothing false, in int4."""
    w0 = rnd(256, 256)
    base = save(tmp_path / "base", {NAME: w0.bfloat16()}, {})
    w0 = w0.bfloat16().float()
    changed = w0 + low_rank(256, 256, 0.08 * 256)
    found = row(base, save(tmp_path / "fp8", quantised(changed), FP8))
    assert found["signal_rank"] == 16
    found = row(base, save(tmp_path / "int4", int4(w0 + low_rank(256, 256, 0.01 * 256)), INT4))
    assert found["signal_rank"] == 0
    assert found["resolution"] == "below_precision"
    assert found["ft_dtype"] == "int4_g32"
    for seed in range(5):
        noise_only = rnd(256, 256) * torch.exp(rnd(256, 1))
        name = f"plain{seed}"
        plain = save(tmp_path / name, {NAME: noise_only.bfloat16()}, {})
        for label, state, config in (("fp8", quantised, FP8), ("int4", int4, INT4)):
            stored = state(noise_only.bfloat16().float())
            found = row(plain, save(tmp_path / f"{name}{label}", stored, config))
            assert found["signal_rank"] == 0, (seed, label)


def test_merges_on_quantised_bases_are_verified(tmp_path: Path, fp8: tuple[Path, Path, State, State]):
    base, _, a, _ = fp8
    A, Bm = rnd(4, 48, scale=0.1), rnd(32, 4, scale=0.02)
    lora = adapter(tmp_path / "lora", {f"{K}lora_A.weight": A, f"{K}lora_B.weight": Bm})
    merged = torch.from_numpy(value(a)) + 2 * Bm.double() @ A.double()
    norm = {"model.norm.weight": torch.ones(48)}
    assert deltaw.verify(str(base), str(lora), str(save(tmp_path / "m", {NAME: merged.bfloat16(), **norm}, {}))).passed
    assert deltaw.verify(str(base), str(lora), str(save(tmp_path / "q", quantised(merged.float()), FP8))).passed
    raw = a[NAME].double() + 2 * Bm.double() @ A.double()
    assert not deltaw.verify(str(base), str(lora), str(save(tmp_path / "r", {NAME: raw.bfloat16(), **norm}, {}))).passed
    other = quantised((merged + 0.5 * merged.std() * torch.randn(32, 48, generator=G)).float())
    assert not deltaw.verify(str(base), str(lora), str(save(tmp_path / "o", other, FP8))).passed
