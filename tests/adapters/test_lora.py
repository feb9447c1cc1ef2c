"""LoRA and its variants: ΔW of every option equals what peft merges, entry by entry."""

from __future__ import annotations

import json
import math
from functools import partial

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig
from peft.tuners.lora.config import BdLoraConfig, KasaConfig, MontecloraConfig, VeloraConfig
from torch import nn

from deltaw.adapters import open_adapter
from deltaw.adapters.variants import KNOWN
from deltaw.checkpoints import open_checkpoint
from deltaw.errors import AdapterError

Lora = partial(LoraConfig, r=4, lora_alpha=7)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"layers.1.self_attn.q_proj": 2, "down_.*": 3}, "alpha_pattern": {"q_proj": 5}},
        {"rank_pattern": {r".*\.0\..*_proj": 6}, "use_rslora": True, "alpha_pattern": {"^model.layers.1.+": 2}},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": False},
        {"init_lora_weights": "mica"},
        {"velora_config": VeloraConfig(num_groups=4)},
        {"monteclora_config": MontecloraConfig()},
    ],
    ids=lambda o: "-".join(o) or "plain",
)
def test_linear(check, llama, options):
    routes, _ = check(llama, Lora(target_modules=["q_proj", "down_proj"], **options))
    assert set(routes.values()) == {"factored"}
    assert len(routes) == 4


def test_conv1d_of_transformers_stored_inputs_first(check, gpt2, tmp_path):
    routes, _ = check(gpt2, Lora(target_modules=["c_attn", "c_proj", "c_fc"]))
    assert len(routes) == 8
    # the config's flag is only right by luck: a model may mix both kinds of layer
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(config | {"fan_in_fan_out": False}))
    pairs = open_adapter(tmp_path / "adapter").updates(open_checkpoint(gpt2)).pairs
    assert all(p.view.transposed for p in pairs)


def test_embedding(check, gpt2, embeddingnet):
    assert set(check(embeddingnet, Lora(target_modules=["embedding", "lin"]))[0].values()) == {"factored"}
    check(gpt2, Lora(target_modules=["c_proj", "wte"]), folder="gpt2")


def test_convolutions_of_every_dimension(check, convnet):
    routes, _ = check(convnet, Lora(target_modules=["conv1", "conv2", "conv3", "point", "head"]))
    assert set(routes.values()) == {"factored"}


def test_a_grouped_convolution_is_refused_with_its_reason(oracle, tmp_path):
    import copy
    import warnings

    from peft import get_peft_model

    class Grouped(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 8, 3, groups=2)
            self.head = nn.Linear(8, 4)

    torch.manual_seed(0)
    model = Grouped()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        get_peft_model(copy.deepcopy(model), Lora(target_modules=["conv", "head"])).save_pretrained(str(tmp_path))
    for base in (open_checkpoint(model), None):
        found = open_adapter(tmp_path).updates(base)
        assert [p.name for p in found.pairs] == ["head.weight"]
        assert [(s.name, s.reason) for s in found.skipped] == [("conv.weight", "no_delta")]
        assert "groups" in found.skipped[0].detail


def test_bias_of_the_factors(check, convnet, tmp_path):
    routes, _ = check(convnet, Lora(target_modules=["conv2", "head"], lora_bias=True))
    assert set(routes) == {"conv2.weight", "conv2.bias", "head.weight", "head.bias"}
    bias = next(p for p in open_adapter(tmp_path / "adapter").updates(None).pairs if p.name == "head.bias")
    assert bias.ft.shape == (4, 1)
    assert bias.ft.delta(None).shape == (4,)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_trained_biases_are_weights(check, convnet, bias):
    routes, _ = check(convnet, Lora(target_modules=["conv2", "head"], bias=bias))
    assert routes["head.bias"] == "dense"


def test_saved_modules_and_trained_tokens_are_weights(check, llama):
    config = Lora(target_modules=["q_proj"], modules_to_save=["lm_head", "model.norm"], trainable_token_indices=[1, 5])
    routes, _ = check(llama, config)
    assert {n for n, r in routes.items() if r == "dense"} == {
        "lm_head.weight",
        "model.norm.weight",
        "model.embed_tokens.weight",
    }


def test_trained_tokens_by_module_name_are_read_in_blocks(check, llama, tmp_path):
    check(llama, Lora(target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [20, 3, 7]}))
    found = open_adapter(tmp_path / "adapter").updates(open_checkpoint(llama))
    handle = next(p.ft for p in found.pairs if p.name == "model.embed_tokens.weight")
    whole = handle.read()
    assert torch.equal(torch.cat([handle.read(slice(i, i + 5)) for i in range(0, 24, 5)]), whole)
    changed = (whole != llama.model.embed_tokens.weight).any(dim=1).nonzero().flatten().tolist()
    assert changed == [3, 7, 20]


@pytest.mark.parametrize("model", ["llama", "gpt2", "convnet", "embeddingnet"])
def test_dora(check, request, model):
    targets = {
        "llama": ["q_proj", "down_proj"],
        "gpt2": ["c_attn", "c_proj"],
        "convnet": ["conv1", "conv2", "conv3", "point", "head"],
        "embeddingnet": ["embedding", "lin"],
    }
    config = LoraConfig(r=3, target_modules=targets[model], use_dora=True)
    routes, _ = check(request.getfixturevalue(model), config)
    assert set(routes.values()) == {"dense"}


def test_block_diagonal(check, llama):
    blocks = BdLoraConfig(target_modules_bd_a=["o_proj"], target_modules_bd_b=["q_proj"], nblocks=2)
    routes, _ = check(llama, Lora(target_modules=["q_proj", "o_proj"], use_bdlora=blocks))
    assert set(routes.values()) == {"factored"}


def test_kasa_takes_its_components_out_of_the_base(check, llama):
    # peft truncates W0 in float32; deltaw in float64
    routes, _ = check(llama, Lora(target_modules=["q_proj", "o_proj"], kasa_config=KasaConfig()), tolerance=1e-5)
    assert set(routes.values()) == {"dense"}


def test_multihead_attention(check):
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = nn.MultiheadAttention(8, 2)

    torch.manual_seed(0)
    routes, _ = check(Attention(), Lora(target_modules=["attn"]))
    assert set(routes) == {"attn.in_proj_weight", "attn.out_proj.weight"}


def ada(**options):
    return AdaLoraConfig(**({"init_r": 5, "target_r": 3, "lora_alpha": 7, "total_step": 10} | options))


@pytest.mark.parametrize(
    ("model", "targets"), [("llama", ["q_proj", "down_proj"]), ("gpt2", ["c_attn"]), ("convnet", ["conv2", "head"])]
)
def test_adalora(check, request, model, targets):
    routes, _ = check(request.getfixturevalue(model), ada(target_modules=targets))
    assert set(routes.values()) == {"factored"}


def test_adalora_with_pruned_ranks(oracle, tmp_path, llama):
    """Loading a pruned adapter keeps the scaling of the initial rank, whatever rank is left."""
    import copy
    import warnings

    from peft import PeftModel, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(copy.deepcopy(llama), ada(target_modules=["q_proj"]))
        oracle.randomize(model)
        pattern = {
            f"model.layers.{i}.self_attn.q_proj.lora_E": keep for i, keep in enumerate([[1, 0, 1, 1, 0], [1] * 5])
        }
        model.peft_config["default"].rank_pattern = {k: list(map(bool, v)) for k, v in pattern.items()}
        model.save_pretrained(str(tmp_path))
        merged = PeftModel.from_pretrained(copy.deepcopy(llama), str(tmp_path)).double().merge_and_unload().state_dict()
    found, _, _ = oracle.stored_deltas(tmp_path, llama)
    base = llama.state_dict()
    oracle.assert_same(found, {n: merged[n] - base[n].double() for n in base}, 1e-12)
    ranks = {p.name: p.ft.rank for p in open_adapter(tmp_path).updates(open_checkpoint(llama)).pairs}
    assert sorted(ranks.values()) == [3, 5]


def test_what_an_update_says_of_itself(check, llama, tmp_path):
    check(llama, Lora(target_modules=["q_proj", "down_proj"], use_rslora=True))
    pair = next(p for p in open_adapter(tmp_path / "adapter").updates(open_checkpoint(llama)).pairs if "down" in p.name)
    update = pair.ft
    assert (update.shape, update.rank, update.adapter_type) == ((16, 32), 4, "lora")
    assert update.scaling == pytest.approx(7 / math.sqrt(4))
    assert update.factored
    assert not update.needs_base
    B, A = update.delta(None)
    assert (B.shape, A.shape, B.dtype) == ((16, 4), (4, 32), torch.float64)


def test_without_a_base_the_factors_are_the_same(check, gpt2, convnet, tmp_path):
    for model, targets in ((gpt2, ["c_attn", "wte"]), (convnet, ["conv2", "head"])):
        name = targets[0]
        check(model, Lora(target_modules=targets), folder=name)
        opened = open_adapter(tmp_path / name)
        alone = {p.name: p.ft.delta(None) for p in opened.updates(None).pairs}
        for pair in opened.updates(open_checkpoint(model)).pairs:
            for a, b in zip(alone[pair.name], pair.ft.delta(None), strict=True):
                assert torch.equal(a, b)


def test_without_a_base_what_needs_it_is_skipped(check, llama, tmp_path):
    check(llama, Lora(target_modules=["q_proj"], modules_to_save=["lm_head"]))
    found = open_adapter(tmp_path / "adapter").updates(None)
    assert [(s.name, s.reason) for s in found.skipped] == [("lm_head.weight", "needs_base")]
    assert all(p.base is None for p in found.pairs)
    check(llama, Lora(target_modules=["q_proj"], use_dora=True), folder="dora")
    with pytest.raises(AdapterError, match="needs_base"):
        open_adapter(tmp_path / "dora").updates(None)


def test_updates_can_be_sent_to_another_process(check, llama, tmp_path):
    import pickle

    check(llama, Lora(target_modules=["q_proj"], use_dora=True))
    pair = open_adapter(tmp_path / "adapter").updates(open_checkpoint(llama)).pairs[0]
    there = pickle.loads(pickle.dumps(pair.ft))
    W0 = pair.base.read()
    assert torch.equal(there.delta(W0), pair.ft.delta(W0))


def test_every_field_of_pefts_configs_is_known():
    """A field that is new in peft may change ΔW: read it, or refuse it, then list it in variants.py."""
    import dataclasses

    for cls in (LoraConfig, AdaLoraConfig):
        assert {f.name for f in dataclasses.fields(cls)} - KNOWN == set()
