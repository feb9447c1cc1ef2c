"""On a GPU the same numbers come out as on the CPU, by every route; skipped where there is none."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

import deltaw
from tests.conftest import State, changed, pico_state, save_single

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]

SHAPES = ((300, 200), (200, 300), (512, 512), (64, 2000), (1, 50), (50, 1))
LARGE = ((2200, 2048), (2048, 2300))  # large enough for certified low rank on a GPU
LARGEST = ((4300, 4096),)  # … and for estimates
DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


def normal(shapes: tuple[tuple[int, int], ...], dtype: torch.dtype, seed: int = 0) -> State:
    g = torch.Generator().manual_seed(seed)
    return {
        f"layers.{i}.w{m}x{n}.weight": (0.02 * torch.randn(m, n, generator=g)).to(dtype)
        for i, (m, n) in enumerate(shapes)
    }


def merged(base: State, rank: int = 8, size: float = 0.05) -> State:
    """A low-rank update of `size` times the norm, stored in the base's dtype."""
    g = torch.Generator().manual_seed(2)
    out = {}
    for name, w in base.items():
        d = torch.randn(w.shape[0], rank, generator=g) @ torch.randn(rank, w.shape[1], generator=g)
        out[name] = (w.double() + d * (size * w.double().norm() / d.norm())).to(w.dtype)
    return out


def both(
    base: State | str, ft: State | str, device: str = "cuda", **options: object
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows on the CPU and on the GPU; every measured route must be the same."""
    cpu, gpu = (deltaw.analyze(base, ft, device=d, cache=False, **options) for d in ("cpu", device))
    assert [s.name for s in cpu.skipped] == [s.name for s in gpu.skipped]
    cpu_rows, gpu_rows = cpu.to_pandas(), gpu.to_pandas()
    for column in ("name", "part", "route", "method", "resolution"):
        assert (cpu_rows[column] == gpu_rows[column]).all(), column
    return cpu_rows, gpu_rows


def assert_close(cpu: pd.DataFrame, gpu: pd.DataFrame, *, rtol: float = 1e-4) -> None:
    """Exact columns agree; of an estimated column the two intervals meet, as the probes differ."""
    numbers = cpu.select_dtypes("number").columns.drop("seconds")
    for column in numbers:
        if column.removesuffix("_low") in numbers and column.endswith("_low"):
            continue
        if column.endswith("_high"):
            continue
        low, high = f"{column}_low", f"{column}_high"
        if low not in cpu.columns:
            np.testing.assert_allclose(gpu[column], cpu[column], rtol=rtol, atol=1e-7, err_msg=column)
            continue
        known = cpu[low].notna() & gpu[low].notna()
        slack = 1e-4 * cpu[column].abs()
        meet = (gpu[low] <= cpu[high] + slack) & (cpu[low] <= gpu[high] + slack)
        assert meet[known].all(), (
            column,
            cpu.loc[known & ~meet, [low, column, high]],
            gpu.loc[known & ~meet, [low, high]],
        )
        assert (cpu[low].isna() == gpu[low].isna()).all(), column
        exact = ~known & cpu[column].notna()
        np.testing.assert_allclose(gpu[column][exact], cpu[column][exact], rtol=rtol, atol=1e-7, err_msg=column)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_dense_rows_agree_with_the_cpu(dtype: torch.dtype, mode: str):
    base = pico_state(dtype=dtype) | normal(SHAPES, dtype)
    assert_close(*both(base, changed(base, 1e-2), mode=mode))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_large_dense_rows_agree_with_the_cpu(dtype: torch.dtype, mode: str):
    base = normal(LARGEST, dtype)
    cpu, gpu = both(base, changed(base, 1e-3), mode=mode)
    assert set(gpu["method"]) == {"exact" if mode == "exact" else "estimate"}
    assert_close(cpu, gpu)


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_certified_low_rank_agrees_with_the_cpu(mode: str):
    base = normal(LARGE, torch.bfloat16)
    cpu, gpu = both(base, merged(base), mode=mode)
    assert set(gpu["method"]) == {"low_rank"}
    assert (gpu["signal_rank"] == 8).all()
    assert_close(cpu, gpu)


def test_estimates_cover_the_exact_spectrum():
    base = normal(LARGEST, torch.bfloat16)
    ft = changed(base, 1e-3)
    exact = deltaw.analyze(base, ft, device="cpu", cache=False).to_pandas()
    fast = deltaw.analyze(base, ft, device="cuda", mode="fast", cache=False).to_pandas()
    for column in ("effective_rank", "rank_90", "nuclear_norm", "energy_at_16", "participation_ratio"):
        assert (fast[f"{column}_low"] <= exact[column]).all(), column
        assert (exact[column] <= fast[f"{column}_high"]).all(), column


def test_alignment_agrees_with_the_cpu():
    base = pico_state() | normal(((300, 200), (200, 300)), torch.float32) | normal(((1024, 1100),), torch.bfloat16, 3)
    cpu, gpu = both(base, changed(base, 1e-2), alignment=True)
    assert_close(cpu, gpu, rtol=2e-4)


def test_the_residual_of_a_decay_agrees_with_the_cpu():
    base = normal(SHAPES[:4], torch.float32)
    ft = {name: 0.97 * w for name, w in changed(base, 1e-3).items()}
    cpu, gpu = both(base, ft)
    assert (gpu["cosine_to_base"] < -0.02).all()  # the second spectrum was needed
    assert_close(cpu, gpu)


def test_factored_rows_agree_with_the_cpu(tmp_path: Path):
    """LoRA whose second module has a rank of its own."""
    g = torch.Generator().manual_seed(0)
    base = pico_state()
    state = {}
    for module, rank in (("model.layers.0.self_attn.q_proj", 4), ("model.layers.1.mlp.down_proj", 1)):
        m, n = base[f"{module}.weight"].shape
        state[f"base_model.model.{module}.lora_A.weight"] = torch.randn(rank, n, generator=g)
        state[f"base_model.model.{module}.lora_B.weight"] = torch.randn(m, rank, generator=g)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    save_file(state, adapter / "adapter_model.safetensors")
    about = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "rank_pattern": {"model.layers.1.mlp.down_proj": 1}}
    about["target_modules"] = ["q_proj", "down_proj"]
    (adapter / "adapter_config.json").write_text(json.dumps(about))
    cpu, gpu = both(str(save_single(base, tmp_path / "base")), str(adapter), alignment=True)
    assert set(gpu["route"]) == {"factored"}
    assert_close(cpu, gpu)


@pytest.mark.parametrize("shape", [(20, 16), (16, 20), (70, 64), (130, 128), (200, 256)])
def test_stacks_of_small_matrices_agree_with_the_cpu(shape: tuple[int, int]):
    """Experts of one shape are solved in one call."""
    g = torch.Generator().manual_seed(0)
    base = {"layers.0.mlp.experts.weight": 0.02 * torch.randn(12, *shape, generator=g)}
    cpu, gpu = both(base, changed(base))
    assert len(gpu) == 12
    assert_close(cpu, gpu)


def test_what_is_unchanged_costs_no_spectrum():
    base = normal(SHAPES[:2], torch.bfloat16)
    cpu, gpu = both(base, dict(base))
    assert set(gpu["route"]) == {"unchanged"}
    assert_close(cpu, gpu)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_tensor_that_is_not_finite_fails_alone(bad: float):
    base = normal(SHAPES[:3], torch.float32)
    ft = changed(base)
    broken = next(iter(ft))
    ft[broken][3, 4] = bad
    result = deltaw.analyze(base, ft, device="cuda", cache=False)
    assert [s.name for s in result.failed] == [broken]
    assert len(result.rows) == 2


def test_memory_does_not_grow_from_run_to_run():
    base = normal(SHAPES[:3], torch.float32)
    ft = changed(base)
    held = []
    for _ in range(4):
        deltaw.analyze(base, ft, device="cuda", jobs=2, cache=False)
        held.append(torch.cuda.memory_allocated())
    assert held[-1] <= held[1]


def test_rows_do_not_depend_on_the_number_of_streams():
    base = normal(SHAPES[:4] * 4, torch.bfloat16)
    ft = changed(base)
    one, four = (deltaw.analyze(base, ft, device="cuda", jobs=jobs, cache=False).to_pandas() for jobs in (1, 4))
    pd.testing.assert_frame_equal(one.drop(columns="seconds"), four.drop(columns="seconds"))


@pytest.fixture
def little_memory() -> Iterator[None]:
    """The GPU's memory is limited to less than one matrix of 3000² needs."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + 50e6) / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_what_does_not_fit_is_measured_on_the_cpu(little_memory: None, caplog: pytest.LogCaptureFixture):
    g = torch.Generator().manual_seed(0)
    base = {"layers.0.w.weight": torch.randn(3000, 3000, generator=g)} | normal(SHAPES[:1], torch.float32)
    ft = changed(base)
    expected = deltaw.analyze(base, ft, device="cpu", cache=False).to_pandas()
    got = deltaw.analyze(base, ft, device="cuda:0", cache=False)
    assert not got.failed
    np.testing.assert_allclose(got.to_pandas()["effective_rank"], expected["effective_rank"], rtol=1e-6)
    assert any("measured on the CPU" in r.message for r in caplog.records)


def test_tf32_does_not_reach_the_numbers():
    """A user who allowed TF32 for a training gets the same spectra."""
    base = normal(LARGEST, torch.bfloat16)
    ft = changed(base, 1e-3)
    before = torch.get_float32_matmul_precision()
    plain = deltaw.analyze(base, ft, device="cuda", mode="fast", cache=False).to_pandas()
    torch.set_float32_matmul_precision("high")
    try:
        tf32 = deltaw.analyze(base, ft, device="cuda", mode="fast", cache=False).to_pandas()
    finally:
        torch.set_float32_matmul_precision(before)
    np.testing.assert_allclose(tf32["spectral_norm"], plain["spectral_norm"], rtol=1e-5)
    for column in ("effective_rank", "rank_90", "energy_at_16"):  # other probes: the intervals meet
        assert (tf32[f"{column}_low"] <= plain[f"{column}_high"]).all(), column
        assert (plain[f"{column}_low"] <= tf32[f"{column}_high"]).all(), column
