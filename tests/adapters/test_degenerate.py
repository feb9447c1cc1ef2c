"""What is pruned to nothing, grown beyond the base, or stored under look-alike names: one module, never the file."""

import copy
import json
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import deltaw
from tests.conftest import pico_state

Q, EMBED = "model.layers.0.self_attn.q_proj", "model.embed_tokens"
AT = "base_model.model."


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def write(folder, tensors, **config):
    folder.mkdir(exist_ok=True)
    save_file({n: t.contiguous().clone() for n, t in tensors.items()}, folder / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(said))
    return folder


def factors(module: str, m: int, n: int) -> dict[str, torch.Tensor]:
    return {f"{AT}{module}.lora_A.weight": normal(2, n), f"{AT}{module}.lora_B.weight": normal(m, 2, seed=1)}


def test_a_module_that_adalora_pruned_to_nothing(llama, tmp_path):
    from peft import AdaLoraConfig, get_peft_model

    config = AdaLoraConfig(init_r=4, target_r=2, lora_alpha=8, total_step=10, target_modules=["q_proj", "v_proj"])
    at = "model.layers.{}.self_attn.{}.lora_E.default"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model = get_peft_model(copy.deepcopy(llama), config)
        for name, p in model.named_parameters():
            if p.requires_grad:
                p.copy_(normal(*p.shape, seed=len(name)))
            if "v_proj.lora_E" in name:
                p.zero_()
        kept = {"q_proj": [True] * 4, "v_proj": [False] * 4}
        model.peft_config["default"].rank_pattern = {
            at.format(i, n): mask for i in range(2) for n, mask in kept.items()
        }
        model.save_pretrained(tmp_path)
        merged = model.merge_and_unload().state_dict()
    assert any(0 in t.shape for t in load_file(tmp_path / "adapter_model.safetensors").values())
    result = deltaw.analyze(llama, tmp_path)
    base = llama.state_dict()
    assert not result.skipped or {s.reason for s in result.skipped} == {"only_in_base"}
    for row in result.rows:
        want = float((merged[row["name"]].double() - base[row["name"]].double()).norm())
        assert row["fro_norm"] == pytest.approx(want, rel=1e-4, abs=1e-12)
        assert row["adapter_rank"] == (0 if "v_proj" in row["name"] else 4)
    assert deltaw.verify(llama, tmp_path, merged).passed


@pytest.mark.parametrize("stored", ["embedding factors", "with its table"])
@pytest.mark.parametrize("tokens", [43, 37])
def test_a_vocabulary_of_another_size_is_compared_where_both_have_rows(stored, tokens, tmp_path):
    base = pico_state()
    A, B = normal(2, tokens), normal(16, 2, seed=1)
    tensors = factors(Q, 16, 16) | {f"{AT}{EMBED}.lora_embedding_A": A, f"{AT}{EMBED}.lora_embedding_B": B}
    table = torch.cat([base[f"{EMBED}.weight"], normal(5, 16)])[:tokens]
    if stored == "with its table":
        tensors[f"{AT}{EMBED}.base_layer.weight"] = table
    path = write(tmp_path / "a", tensors, target_modules=["q_proj", "embed_tokens"])
    result = deltaw.analyze(base, path)
    rows = {r["name"]: r for r in result.rows}
    assert set(rows) == {f"{Q}.weight", f"{EMBED}.weight"}
    common = min(tokens, 40)
    delta = 2 * (B.double() @ A.double()).T[:common]
    row = rows[f"{EMBED}.weight"]
    assert (row["rows"], row["cols"]) == (common, 16)
    assert row["fro_norm"] == pytest.approx(float(delta.norm()), rel=1e-12)
    s = np.linalg.svd(delta.numpy(), compute_uv=False)
    assert np.allclose(result.spectrum(f"{EMBED}.weight").values[:2], s[:2], rtol=1e-10)
    assert row["base_fro_norm"] == pytest.approx(float(base[f"{EMBED}.weight"][:common].double().norm()), rel=1e-9)
    new = [(s.name, s.detail) for s in result.skipped if s.reason == "only_in_ft"]
    assert new == ([(f"{EMBED}.weight[rows]", "3 rows that the base does not have (40 to 42)")] if tokens > 40 else [])
    assert result.summary.coverage.share == 1


def test_a_head_of_a_grown_vocabulary(tmp_path):
    base = pico_state()
    path = write(tmp_path / "a", factors("lm_head", 44, 16), target_modules=["lm_head"])
    (row,) = deltaw.analyze(base, path).rows
    delta = 2 * normal(44, 2, seed=1).double() @ normal(2, 16).double()
    assert row["fro_norm"] == pytest.approx(float(delta[:40].norm()), rel=1e-12)


def test_modules_that_were_saved_whole_keep_apart(tmp_path):
    base, saved = pico_state(), {}
    for i, name in enumerate(("dense", "out_proj"), start=1):
        base[f"classifier.{name}.weight"] = normal(16, 16, seed=i)
        saved[f"{AT}classifier.modules_to_save.{name}.weight"] = base[f"classifier.{name}.weight"] + i
    rows = {r["name"]: r for r in deltaw.analyze(base, write(tmp_path / "a", factors(Q, 16, 16) | saved)).rows}
    assert rows["classifier.dense.weight"]["max_abs"] == pytest.approx(1, rel=1e-6)
    assert rows["classifier.out_proj.weight"]["max_abs"] == pytest.approx(2, rel=1e-6)


@pytest.mark.parametrize("name", ["default", "sst2"])
def test_the_adapters_own_name_is_no_module(name, tmp_path):
    base = pico_state() | {"classifier.dense.weight": normal(16, 16)}
    tensors = {n.replace(".weight", f".{name}.weight"): t for n, t in factors(Q, 16, 16).items()}
    tensors[f"{AT}classifier.modules_to_save.{name}.dense.weight"] = base["classifier.dense.weight"] + 1
    rows = {r["name"]: r for r in deltaw.analyze(base, write(tmp_path / "a", tensors)).rows}
    assert rows["classifier.dense.weight"]["max_abs"] == pytest.approx(1, rel=1e-6)


def test_an_adapter_on_codes_is_measured_from_its_factors(tmp_path):
    """Where the base's weights are not read, what needs W0 is empty, and a merge is not verified."""
    base = pico_state()
    codes = dict(base) | {f"{Q}.weight": base[f"{Q}.weight"].to(torch.float8_e4m3fn)}
    codes[f"{Q}.weight_scale_inv"] = torch.ones(1, 1)
    save_file(codes, tmp_path / "model.safetensors")
    said = {"model_type": "x", "quantization_config": {"quant_method": "exotic"}}
    (tmp_path / "config.json").write_text(json.dumps(said))
    tensors = factors(Q, 16, 16)
    result = deltaw.analyze(tmp_path, write(tmp_path / "a", tensors), alignment=True)
    (row,) = result.rows
    delta = 2 * normal(16, 2, seed=1).double() @ normal(2, 16).double()
    assert row["fro_norm"] == pytest.approx(float(delta.norm()), rel=1e-12)
    assert result.summary.coverage.share == 1
