"""Adapters through the whole of deltaw: the same rows as their merge, without a base, at sizes that fit no matrix."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import save_file

import deltaw
from deltaw.errors import CheckpointError

SAME = [
    "fro_norm", "relative_change", "spectral_norm", "nuclear_norm", "max_abs", "stable_rank", "effective_rank_energy",
    "participation_ratio", "rank_50", "rank_90", "energy_at_1", "energy_at_4", "signal_rank", "cosine_to_base",
    "shrinkage", "norm_growth", "magnitude_change", "direction_change", "rows", "cols",
]  # fmt: skip


def trained(oracle, model, folder, **options):
    """An adapter, and the full checkpoint that merging it in float32 gives."""
    delta = oracle.make(model, LoraConfig(r=4, lora_alpha=8, **options), folder, scale=0.3)
    return {n: (t.double() + delta.get(n, 0)).float() for n, t in model.state_dict().items()}


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("llama", {"target_modules": ["q_proj", "down_proj"], "modules_to_save": ["lm_head"]}),
        ("llama", {"target_modules": ["q_proj", "down_proj"], "use_dora": True}),
        ("gpt2", {"target_modules": ["c_attn", "c_proj", "wte"]}),
        ("convnet", {"target_modules": ["conv2", "conv3", "head"], "lora_bias": True}),
    ],
)
def test_an_adapter_and_its_merge_give_the_same_rows(oracle, request, tmp_path, model, options):
    model = request.getfixturevalue(model)
    merged = trained(oracle, model, tmp_path / "adapter", **options)
    adapter = deltaw.analyze(model, tmp_path / "adapter").to_pandas().set_index("name")
    full = deltaw.analyze(model, merged).to_pandas().set_index("name").loc[adapter.index]
    assert len(adapter) > 2
    for column in SAME:
        a, b = adapter[column].astype(float), full[column].astype(float)
        assert ((a - b).abs() <= 1e-4 * b.abs() + 1e-6).where(b.notna(), a.isna()).all(), column
    assert set(full["adapter_type"].dropna()) <= {""}


def test_the_adapter_columns(oracle, llama, tmp_path):
    trained(oracle, llama, tmp_path / "a", target_modules=["q_proj", "down_proj"], use_rslora=True)
    frame = deltaw.analyze(llama, tmp_path / "a").to_pandas()
    assert set(frame["route"]) == {"factored"}
    assert set(frame["adapter_type"]) == {"lora"}
    assert set(frame["adapter_rank"]) == {4}
    assert frame["adapter_scaling"].tolist() == [4.0] * 4
    assert (frame["factor_balance"] >= 1).all()
    assert (frame["rounding_noise"] == 0).all()
    assert set(frame["resolution"]) == {"resolved"}


def test_without_a_base_the_sizes_and_ranks_are_the_same(oracle, llama, tmp_path):
    trained(oracle, llama, tmp_path / "a", target_modules=["q_proj", "down_proj"], modules_to_save=["lm_head"])
    with_base = deltaw.analyze(llama, tmp_path / "a").to_pandas().set_index("name")
    result = deltaw.analyze(None, tmp_path / "a")
    alone = result.to_pandas().set_index("name")
    assert [(s.name, s.reason) for s in result.skipped] == [("lm_head.weight", "needs_base")]
    for column in ("fro_norm", "effective_rank", "rank_90", "energy_at_1", "max_abs", "factor_balance"):
        assert alone[column].to_numpy() == pytest.approx(with_base.loc[alone.index, column].to_numpy(), rel=1e-12)
    for column in ("relative_change", "cosine_to_base", "shrinkage", "norm_growth"):
        assert alone[column].isna().all()


def test_fused_parts_of_an_adapter(oracle, gpt2, tmp_path):
    for options in ({}, {"use_dora": True}):
        merged = trained(oracle, gpt2, tmp_path / "a", target_modules=["c_attn"], **options)
        parts = deltaw.analyze(gpt2, tmp_path / "a", split_fused=True).to_pandas().set_index(["name", "part"])
        full = deltaw.analyze(gpt2, merged, split_fused=True).to_pandas().set_index(["name", "part"]).loc[parts.index]
        assert sorted({part for _, part in parts.index}) == ["k", "q", "v"]
        assert parts["fro_norm"].to_numpy() == pytest.approx(full["fro_norm"].to_numpy(), rel=1e-4)


MEASURE = """
import resource, sys
import torch
import deltaw.adapters, deltaw.measurement.run, deltaw.measurement.measure, deltaw.spectra
torch.linalg.svd(torch.randn(8, 8, dtype=torch.float64))
megabytes = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = megabytes()
frame = deltaw.measurement.run.analyze(None, sys.argv[1]).to_pandas()
assert frame.loc[0, "rows"] == frame.loc[0, "cols"] == 200_000
print(megabytes() - before)
"""


def test_no_array_of_the_matrix_s_size_is_formed(tmp_path):
    """200,000 × 200,000 at r = 16 would be 298 GiB."""
    g = torch.Generator().manual_seed(0)
    name = "base_model.model.layer.lora_"
    A, B = torch.randn(16, 200_000, generator=g), torch.randn(200_000, 16, generator=g)
    save_file({f"{name}A.weight": A, f"{name}B.weight": B}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 16, "lora_alpha": 32}))
    run = partial(subprocess.run, capture_output=True, text=True, check=True)
    done = run([sys.executable, "-c", MEASURE, str(tmp_path)], env={"OMP_NUM_THREADS": "1", "PATH": ""})
    assert float(done.stdout) < 300


@pytest.mark.parametrize("modules", [("model.embed_tokens", "lm_head"), ("lm_head",)])
def test_a_saved_head_of_a_tied_base_has_a_row_of_its_own(tmp_path, modules):
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(24, 16, generator=g)
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    adapter.mkdir()
    save_file({"model.embed_tokens.weight": weight}, base / "model.safetensors")
    (base / "config.json").write_text('{"tie_word_embeddings": true}')
    stored = {f"{m}.weight": weight + (i + 1) * torch.randn(24, 16, generator=g) for i, m in enumerate(modules)}
    save_file({f"base_model.model.{n}": t for n, t in stored.items()}, adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "modules_to_save": ["embed_tokens", "lm_head"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    result = deltaw.analyze(base, adapter)
    rows = result.to_pandas().set_index("name")
    assert sorted(rows.index) == sorted(stored)
    embedding = "model.embed_tokens.weight"
    assert [s.name for s in result.skipped] == ([] if embedding in stored else [embedding])
    assert rows.at["lm_head.weight", "kind"] == "head"
    for name, tensor in stored.items():
        delta = tensor.double() - weight.double()
        values = torch.linalg.svdvals(delta)
        assert result.spectrum(name).values == pytest.approx(values.numpy(), rel=1e-9)
        assert rows.at[name, "fro_norm"] == pytest.approx(float(delta.norm()), rel=1e-12)
        assert rows.at[name, "relative_change"] == pytest.approx(float(delta.norm() / weight.double().norm()), rel=1e-9)


@pytest.mark.parametrize("base", ["nowhere", "org/base"])
def test_a_base_that_is_not_there_is_named_with_the_adapter(tmp_path, base, monkeypatch):
    def offline(source):
        raise CheckpointError(f"{source}: cannot be fetched")

    monkeypatch.setattr("deltaw.checkpoints.hub.fetch", offline)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    factors = {
        "base_model.model.q.lora_A.weight": torch.ones(2, 8),
        "base_model.model.q.lora_B.weight": torch.ones(6, 2),
    }
    save_file(factors, adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "org/trained"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as caught:
        deltaw.analyze(base, adapter)
    text = str(caught.value)
    assert text.startswith(f"{base}: ")
    assert f"{adapter} is an adapter trained on org/trained: give the base" in text
    with pytest.raises(CheckpointError) as caught:  # a full checkpoint was trained on nothing that it names
        deltaw.analyze(base, {"w": torch.ones(2, 2)})
    assert "adapter trained" not in str(caught.value)
