"""A whole PEFT model saved as a checkpoint is read as the adapter that it is, or as the model under its names."""

import copy
import json
import warnings

import pytest
import torch

import deltaw
from deltaw.errors import AdapterError
from tests.conftest import pico_state

Q = "model.layers.0.self_attn.q_proj"
CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}


@pytest.fixture
def whole():
    """The base, the state of a PEFT model around it, and the ΔW of its one adapted module."""
    base = pico_state()
    g = torch.Generator().manual_seed(3)
    A, B = torch.randn(4, 16, generator=g), torch.randn(16, 4, generator=g)
    state = {f"base_model.model.{n}": t.clone() for n, t in base.items() if n != f"{Q}.weight"}
    at = f"base_model.model.{Q}"
    state |= {f"{at}.base_layer.weight": base[f"{Q}.weight"].clone()}
    state |= {f"{at}.lora_A.default.weight": A, f"{at}.lora_B.default.weight": B}
    return base, state, 2 * B.double() @ A.double()


def test_a_directory_with_the_config_beside(whole, tmp_path):
    base, state, delta = whole
    torch.save(state, tmp_path / "pytorch_model_fsdp.bin")
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    for source in (tmp_path, tmp_path / "pytorch_model_fsdp.bin"):
        result = deltaw.analyze(base, source)
        rows = {r["name"]: r for r in result.rows}
        assert rows[f"{Q}.weight"]["fro_norm"] == pytest.approx(float(delta.norm()), rel=1e-12)
        assert rows[f"{Q}.weight"]["route"] == "factored"
        assert {r["route"] for n, r in rows.items() if n != f"{Q}.weight"} == {"unchanged"}
        assert result.summary.coverage.share == 1
        assert not result.skipped
        merged = base | {f"{Q}.weight": (base[f"{Q}.weight"].double() + delta).float()}
        assert deltaw.verify(base, source, merged).passed


def test_other_weights_that_were_trained_beside_the_factors_have_rows(whole, tmp_path):
    base, state, _ = whole
    state["base_model.model.model.norm.weight"] += 0.5
    torch.save(state, tmp_path / "model.bin")
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    rows = {r["name"]: r for r in deltaw.analyze(base, tmp_path).rows}
    assert rows["model.norm.weight"]["max_abs"] == pytest.approx(0.5)


def test_a_base_layer_that_is_not_the_bases(whole, tmp_path):
    base, state, _ = whole
    state[f"base_model.model.{Q}.base_layer.weight"] += 1
    torch.save(state, tmp_path / "model.bin")
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    result = deltaw.analyze(base, tmp_path)
    assert [(s.name, s.reason) for s in result.skipped] == [(f"{Q}.weight", "base_changed")]


def test_without_a_config_the_scaling_is_not_known(whole, tmp_path):
    base, state, _ = whole
    torch.save(state, tmp_path / "model.bin")
    for source in (tmp_path, tmp_path / "model.bin", state):
        with pytest.raises(AdapterError, match=r"no adapter_config\.json, which says how they are scaled"):
            deltaw.analyze(base, source)


@pytest.mark.parametrize("adapter", ["default", "mine"])
def test_trained_copies_beside_their_originals(adapter, tmp_path):
    base = pico_state()
    name = "model.embed_tokens"
    state = {f"base_model.model.{n}": t for n, t in base.items() if not n.startswith(name)}
    at = f"base_model.model.{name}"
    state[f"{at}.original_module.weight"] = base[f"{name}.weight"]
    state[f"{at}.modules_to_save.{adapter}.weight"] = base[f"{name}.weight"] + 0.1
    torch.save(state, tmp_path / "m.bin")
    result = deltaw.analyze(base, tmp_path / "m.bin")
    rows = {r["name"]: r for r in result.rows}
    assert rows[f"{name}.weight"]["max_abs"] == pytest.approx(0.1, rel=1e-5)
    assert result.summary.coverage.share == 1
    assert [s.reason for s in result.skipped] == ["not_a_weight"]


def test_a_peft_model_in_memory(llama):
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "v_proj"])
        model = get_peft_model(copy.deepcopy(llama), config)
    with torch.no_grad():
        for n, p in model.named_parameters():
            if "lora_B" in n:
                p.normal_(generator=torch.Generator().manual_seed(1))
    result = deltaw.analyze(llama, model)
    merged = model.merge_and_unload().state_dict()
    changed = {r["name"]: r["fro_norm"] for r in result.rows if r["fro_norm"] > 0}
    want = {n: float((merged[n].double() - t.double()).norm()) for n, t in llama.state_dict().items()}
    assert changed == pytest.approx({n: x for n, x in want.items() if x > 0}, rel=1e-5)
