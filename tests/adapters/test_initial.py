"""PiSSA, OLoRA and the like change the base at initialisation: never B·A alone, and ΔW where the start was kept."""

from __future__ import annotations

import copy
import json
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.config import LoraGAConfig
from safetensors.torch import load_file, save_file

from deltaw.adapters import open_adapter
from deltaw.checkpoints import open_checkpoint
from deltaw.errors import AdapterError


def trained(oracle, llama, folder, init, keep, **options):
    """Train as peft says: keep the initial adapter (with init_lora_weights True), then move; the true ΔW."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if init == "lora_ga":
            options["lora_ga_config"] = LoraGAConfig()
        model = copy.deepcopy(llama)
        if init == "lora_ga":
            for m in (layer.self_attn.q_proj for layer in model.model.layers):
                m._peft_loraga_grad = torch.randn_like(m.weight)
        config = LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj"], init_lora_weights=init, **options)
        model = get_peft_model(model, config)
        if keep:
            model.peft_config["default"].init_lora_weights = True
            model.save_pretrained(str(folder / keep))
            model.peft_config["default"].init_lora_weights = init
        oracle.randomize(model, 0.05)
        model.save_pretrained(str(folder / "trained"))
        merged = model.double().merge_and_unload().state_dict()
    base = llama.state_dict()
    return {n: merged[n] - base[n].double() for n in base}


@pytest.mark.parametrize("keep", ["{}_init", "trained/{}_init"])
@pytest.mark.parametrize("init", ["pissa", "pissa_niter_2", "olora", "lora_ga"])
def test_with_the_initial_adapter_the_update_has_twice_the_rank(oracle, llama, tmp_path, init, keep):
    method = init.split("_niter")[0]
    expected = trained(oracle, llama, tmp_path, init, keep.format(method))
    found, routes, skipped = oracle.stored_deltas(tmp_path / "trained", llama)
    # peft stores the residual base in float32
    oracle.assert_same(found, expected, 2e-6)
    assert set(routes.values()) == {"factored"}
    assert not skipped
    opened = open_adapter(tmp_path / "trained")
    assert f"{method}_init" in opened.notes[0]
    B, A = opened.updates(open_checkpoint(llama)).pairs[0].ft.delta(None)
    assert B.shape[1] == A.shape[0] == 8


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_without_it_there_is_a_reason_and_no_number(oracle, llama, tmp_path, init):
    trained(oracle, llama, tmp_path, init, "")
    opened = open_adapter(tmp_path / "trained")
    with pytest.raises(AdapterError, match=rf"base_changed_at_init, {init} takes its initial B·A out of the base"):
        opened.updates(open_checkpoint(llama))


def test_what_does_not_depend_on_the_start_is_still_there(oracle, llama, tmp_path):
    trained(oracle, llama, tmp_path, "pissa", "", modules_to_save=["lm_head"])
    found = open_adapter(tmp_path / "trained").updates(open_checkpoint(llama))
    assert [p.name for p in found.pairs] == ["lm_head.weight"]
    assert {s.reason for s in found.skipped} == {"base_changed_at_init"}


def test_peft_s_own_conversion_is_plain_lora(oracle, llama, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj"], init_lora_weights="pissa")
        model = get_peft_model(copy.deepcopy(llama), config)
        model.peft_config["default"].init_lora_weights = True
        model.save_pretrained(str(tmp_path / "start"))
        oracle.randomize(model, 0.05)
        model.save_pretrained(
            str(tmp_path / "converted"), path_initial_model_for_weight_conversion=str(tmp_path / "start")
        )
        merged = model.double().merge_and_unload().state_dict()
    found, _, _ = oracle.stored_deltas(tmp_path / "converted", llama)
    base = llama.state_dict()
    oracle.assert_same(found, {n: merged[n] - base[n].double() for n in base}, 2e-6)


def edit(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_loftq_and_unknown_initialisations_are_refused_by_name(oracle, llama, tmp_path):
    oracle.make(llama, LoraConfig(r=4, target_modules=["q_proj"]), tmp_path)
    edit(tmp_path, init_lora_weights="loftq")
    with pytest.raises(AdapterError, match="LoftQ trains around a quantised base"):
        open_adapter(tmp_path).updates(open_checkpoint(llama))
    edit(tmp_path, init_lora_weights="brand_new")
    with pytest.raises(AdapterError, match="init_lora_weights is 'brand_new'"):
        open_adapter(tmp_path)


def test_two_initial_adapters_are_not_guessed_between(oracle, llama, tmp_path):
    trained(oracle, llama, tmp_path, "pissa", "pissa_init")
    trained(oracle, llama, tmp_path, "pissa", "trained/pissa_init")
    with pytest.raises(AdapterError, match="two initial adapters"):
        open_adapter(tmp_path / "trained")


def test_an_initial_adapter_of_other_modules_does_not_fit(oracle, llama, tmp_path):
    trained(oracle, llama, tmp_path, "pissa", "")
    oracle.make(llama, LoraConfig(r=4, target_modules=["v_proj"]), tmp_path / "pissa_init")
    with pytest.raises(AdapterError, match=r"the initial adapter beside it lacks model\.layers\.0\.self_attn\.q_proj"):
        open_adapter(tmp_path / "trained").updates(open_checkpoint(llama))


def test_the_initial_adapter_is_part_of_what_the_adapter_is(oracle, llama, tmp_path):
    """ΔW depends on it: what was measured with another start is not resumed from."""
    trained(oracle, llama, tmp_path, "pissa", "pissa_init")
    before = open_adapter(tmp_path / "trained").files
    assert open_adapter(tmp_path / "trained").files == before
    path = tmp_path / "pissa_init" / "adapter_model.safetensors"
    save_file({n: t + 1 for n, t in load_file(path).items()}, path)
    assert open_adapter(tmp_path / "trained").files != before
