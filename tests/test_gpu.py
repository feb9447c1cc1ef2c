"""On a GPU the same numbers come out as on the CPU, by every route; skipped where there is none."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import deltaw
from deltaw.activations.file import write_activations
from deltaw.activations.moments import Moments
from tests.checkpoints.quantised import test_analysis as codes
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


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize(
    ("store", "about"), [(codes.quantised, codes.FP8), (codes.int4, codes.INT4)], ids=["fp8", "int4"]
)
def test_quantised_rows_agree_with_the_cpu(tmp_path: Path, mode: str, store: object, about: dict[str, object]):
    """Of what the codes stand for: both sides quantised, a base alone, and an adapter on it."""
    assert callable(store)
    g = torch.Generator().manual_seed(4)
    w0 = 0.02 * torch.randn(256, 192, generator=g)
    w = w0 + 0.002 * torch.randn(256, 192, generator=g)
    base = codes.save(tmp_path / "base", store(w0), about)
    K = codes.K
    factors = {f"{K}lora_A.weight": torch.randn(4, 192, generator=g), f"{K}lora_B.weight": torch.randn(256, 4)}
    fts = {
        "dense": codes.save(tmp_path / "plain", {codes.NAME: w.bfloat16()}, {}),
        "factored": codes.adapter(tmp_path / "adapter", factors),
    }
    for route, ft in (*fts.items(), ("dense", codes.save(tmp_path / "codes", store(w), about))):
        cpu, gpu = both(str(base), str(ft), mode=mode)
        rows = gpu["name"] == codes.NAME
        assert (gpu["route"][rows] == route).all()
        assert rows.any()
        assert_close(cpu, gpu)


def moments(n: int, seed: int) -> Moments:
    """Of inputs that favour some directions."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(4 * n, n, generator=g, dtype=torch.float64) * torch.logspace(0, -2, n, dtype=torch.float64)
    return Moments("moments", x.T @ x, len(x), float(x.square().sum()))


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize(("ft", "shapes"), [(changed, SHAPES[:2]), (merged, LARGE[:1])], ids=["dense", "low rank"])
def test_on_data_rows_agree_with_the_cpu(tmp_path: Path, mode: str, ft: object, shapes: tuple[tuple[int, int], ...]):
    assert callable(ft)
    base = normal(shapes, torch.bfloat16)
    files = tuple(
        write_activations(tmp_path / f"{seed}.safetensors", {k: moments(w.shape[1], seed) for k, w in base.items()})
        for seed in (0, 1)
    )
    cpu, gpu = both(base, ft(base), mode=mode, activations=files)
    assert gpu["relative_change_on_data"].notna().all()
    assert gpu["selectivity"].notna().all()
    assert_close(cpu, gpu)


def test_an_adapter_on_data_agrees_with_the_cpu(tmp_path: Path):
    g = torch.Generator().manual_seed(0)
    base = pico_state()
    name = "model.layers.0.self_attn.q_proj"
    m, n = base[f"{name}.weight"].shape
    factors = {f"{codes.K}lora_A.weight": torch.randn(4, n, generator=g), f"{codes.K}lora_B.weight": torch.randn(m, 4)}
    file = write_activations(tmp_path / "a.safetensors", {f"{name}.weight": moments(n, 0)})
    folders = str(save_single(base, tmp_path / "base")), str(codes.adapter(tmp_path / "adapter", factors))
    cpu, gpu = both(*folders, activations=file)
    assert gpu.set_index("name")["rank_90_on_data"][f"{name}.weight"] > 0
    assert_close(cpu, gpu)


def test_what_a_model_meets_on_the_gpu_is_what_it_meets_on_the_cpu(tmp_path: Path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Embedding(30, 64), torch.nn.Linear(64, 96), torch.nn.ReLU(), torch.nn.Linear(96, 8)
    )
    batches = [torch.randint(0, 30, (4, 16)) for _ in range(3)]
    cpu = deltaw.collect_activations(model.double(), batches, tmp_path / "cpu.safetensors", sketch_above=80)
    gpu = deltaw.collect_activations(model.cuda(), batches, tmp_path / "gpu.safetensors", sketch_above=80)
    for name, form in (("0.weight", "counts"), ("1.weight", "moments"), ("3.weight", "sketch")):
        one, other = cpu.moments(name), gpu.moments(name)
        assert (one.form, one.count) == (other.form, other.count) == (form, 192)
        gram = [x.sums.T @ x.sums if form == "sketch" else x.sums for x in (one, other)]  # rows up to a rotation
        torch.testing.assert_close(gram[1], gram[0], rtol=1e-8, atol=1e-8)


def test_an_extracted_adapter_is_that_of_the_cpu(tmp_path: Path):
    base = normal(((300, 200), (200, 300), (600, 512)), torch.float32)
    ft = merged(base)
    folders = save_single(base, tmp_path / "base"), save_single(ft, tmp_path / "ft")
    cpu, gpu = (deltaw.extract(*folders, tmp_path / d, rank=8, device=d) for d in ("cpu", "cuda"))
    for one, other in zip(cpu.layers, gpu.layers, strict=True):
        assert (one.name, one.rank) == (other.name, other.rank)
        assert other.energy_kept == pytest.approx(one.energy_kept, rel=1e-9)
    one, other = (load_file(tmp_path / d / "adapter_model.safetensors") for d in ("cpu", "cuda"))
    for key in (k for k in one if "lora_A" in k):
        partner = key.replace("lora_A", "lora_B")
        torch.testing.assert_close(other[partner] @ other[key], one[partner] @ one[key], rtol=1e-4, atol=1e-6)


def test_a_model_that_is_trained_on_the_gpu_is_watched():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(96, 128), torch.nn.Tanh(), torch.nn.Linear(128, 96)).cuda()
    base = {name: w.detach().cpu().clone() for name, w in model.state_dict().items()}
    logged: dict[int, dict[str, float]] = {}
    monitor = deltaw.Monitor(model, every=2, log=lambda numbers, step: logged.update({step: numbers}))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for i in (1, 2):
        optimizer.zero_grad()
        model(torch.randn(32, 96, device="cuda")).square().mean().backward()
        optimizer.step()
        monitor.step(i)
    found = deltaw.analyze(base, {name: w.cpu() for name, w in model.state_dict().items()}, device="cpu").to_pandas()
    expected = found.query("ndim == 2")["effective_rank"].median()
    assert logged[2]["deltaw/all/effective_rank"] == pytest.approx(expected, rel=1e-5)
