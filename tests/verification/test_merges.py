"""A correct merge passes in every dtype; each way of getting it wrong is found and named."""

from __future__ import annotations

import copy
import json
import math
import warnings

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import deltaw.checkpoints
from deltaw.adapters import open_adapter
from deltaw.cli.program import main
from deltaw.errors import AdapterError, CheckpointError
from deltaw.verification import verify

torch.set_num_threads(1)

TARGETS = ("q_proj", "down_proj")
R, ALPHA = 4, 12.0
SCALE = ALPHA / R


def base_state(dtype=torch.float32, m=48, n=64):
    g = torch.Generator().manual_seed(0)
    state = {}
    for i in range(2):
        for name, shape in (("self_attn.q_proj", (m, n)), ("mlp.down_proj", (n, m)), ("mlp.up_proj", (m, n))):
            state[f"model.layers.{i}.{name}.weight"] = 0.05 * torch.randn(shape, generator=g)
        state[f"model.layers.{i}.norm.weight"] = 1 + 0.1 * torch.randn(n, generator=g)
    return {k: v.to(dtype) for k, v in state.items()}


def write_adapter(folder, state, size=2e-3, dtype=torch.float32, seed=1, **config):
    g = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, w in state.items():
        if name.split(".")[-2] in TARGETS:
            module = "base_model.model." + name.removesuffix(".weight")
            tensors[f"{module}.lora_A.weight"] = (torch.randn(R, w.shape[1], generator=g) * 0.1).to(dtype)
            tensors[f"{module}.lora_B.weight"] = (torch.randn(w.shape[0], R, generator=g) * size).to(dtype)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": R, "lora_alpha": ALPHA, "target_modules": list(TARGETS)} | config
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def merge(state, adapter, times=1.0, dtype=None, only=lambda name: True):
    """W0 + times·ΔW in float64, then stored."""
    out = {k: v.double().clone() for k, v in state.items()}
    for pair in open_adapter(adapter).updates(deltaw.checkpoints.open_checkpoint(state)).pairs:
        if only(pair.name) and hasattr(pair.ft, "delta"):
            B, A = pair.ft.delta(None)
            out[pair.name] += times * (B @ A)
    return {k: v.to(dtype or state[k].dtype) for k, v in out.items()}


@pytest.fixture
def adapter(tmp_path):
    return write_adapter(tmp_path / "adapter", base_state())


def by_name(found):
    return {t.name: t for t in found.tensors}


def touched(name):
    return name.split(".")[-2] in TARGETS


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_rounded_sum_is_equal_bit_for_bit(adapter, dtype):
    state = base_state(dtype)
    found = verify(state, adapter, merge(state, adapter))
    assert found.passed, found.lines()
    assert found.counts == {"equal": 8, "rounding": 0, "differs": 0, "missing": 0}
    assert {t.name for t in found.tensors if t.touched} == {n for n in state if touched(n)}
    for t in found.tensors:
        if t.touched:
            assert t.multiple == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_merge_in_the_storage_dtype_is_equal_up_to_rounding(adapter, dtype):
    state = base_state(dtype)
    merged = dict(state)
    for pair in open_adapter(adapter).updates(deltaw.checkpoints.open_checkpoint(state)).pairs:
        (term,) = pair.ft.terms
        B, A = term.B.read().to(dtype), term.A.read().to(dtype)
        merged[pair.name] = state[pair.name] + (B @ A) * SCALE
    found = verify(state, adapter, merged)
    assert found.passed, found.lines()
    statuses = by_name(found)
    assert any(statuses[n].status == "rounding" for n in state if touched(n))
    assert all(statuses[n].status == "equal" for n in state if not touched(n))


@pytest.mark.parametrize(("base", "stored"), [("float32", "bfloat16"), ("bfloat16", "float32"), ("float32", "float16")])
def test_another_dtype_for_the_merged_checkpoint(adapter, base, stored):
    state = base_state(getattr(torch, base))
    found = verify(state, adapter, merge(state, adapter, dtype=getattr(torch, stored)))
    assert found.passed, found.lines()


def test_a_bfloat16_merge_that_is_widened_afterwards(adapter):
    state = base_state(torch.bfloat16)
    merged = {k: v.float() for k, v in merge(state, adapter).items()}
    assert verify(state, adapter, merged).passed


def test_the_base_itself_is_not_the_merge(adapter):
    for dtype in (torch.float32, torch.bfloat16):
        state = base_state(dtype)
        found = by_name(verify(state, adapter, state))
        for name in state:
            assert found[name].status == ("differs" if touched(name) else "equal")
            if touched(name):
                assert "identical to the base" in found[name].detail
                assert found[name].multiple == 0


@pytest.mark.parametrize(
    ("times", "words"),
    [
        (2.0, "merged twice"),
        (1 / SCALE, "the scaling of 3 is forgotten"),
        (SCALE, "the scaling of 3 is applied twice"),
        (-1.0, "subtracted"),
        (0.5, "rsLoRA's scaling is taken for LoRA's"),
        (1.3, "1.3 times the update"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_multiple_of_the_update_is_named(tmp_path, dtype, times, words):
    state = base_state(dtype)
    adapter = write_adapter(tmp_path / "adapter", state, size=2e-2)
    found = by_name(verify(state, adapter, merge(state, adapter, times)))
    for name in filter(touched, state):
        assert found[name].status == "differs"
        assert words in found[name].detail
        assert found[name].multiple == pytest.approx(times, abs=0.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_layer_left_out(adapter, dtype):
    state = base_state(dtype)
    left_out = "model.layers.1.self_attn.q_proj.weight"
    found = verify(state, adapter, merge(state, adapter, only=lambda name: name != left_out))
    assert [t.name for t in found.tensors if t.status == "differs"] == [left_out]
    assert not found.passed


def test_a_foreign_change_of_one_entry_by_one_ulp(adapter):
    for dtype in (torch.float32, torch.bfloat16):
        state = base_state(dtype)
        merged = merge(state, adapter)
        name = "model.layers.0.mlp.up_proj.weight"
        merged[name] = merged[name].clone()
        merged[name][3, 5] = torch.nextafter(merged[name][3, 5], torch.tensor(math.inf, dtype=dtype))
        found = by_name(verify(state, adapter, merged))
        assert found[name].status == "differs"
        assert "1 of 3,072 entries" in found[name].detail
        assert "does not touch it" in found[name].detail


def test_a_foreign_change_in_a_touched_tensor(adapter):
    state = base_state()
    merged = merge(state, adapter)
    name = "model.layers.0.self_attn.q_proj.weight"
    merged[name][0] += 1e-3
    found = by_name(verify(state, adapter, merged))[name]
    assert found.status == "differs"
    assert "64 of 3,072 entries are off by more than rounding" in found.detail


def test_another_adapter_of_the_same_shape(adapter, tmp_path):
    state = base_state(torch.bfloat16)
    other = write_adapter(tmp_path / "other", state, seed=9)
    found = verify(state, adapter, merge(state, other))
    assert all(by_name(found)[n].status == "differs" for n in state if touched(n))


def test_missing_extra_misshapen_and_not_finite(adapter):
    state = base_state()
    merged = merge(state, adapter)
    del merged["model.layers.0.norm.weight"]
    merged["model.layers.0.mlp.up_proj.weight"] = merged["model.layers.0.mlp.up_proj.weight"][:-1]
    merged["model.layers.1.mlp.down_proj.weight"][0, 0] = math.nan
    merged["model.extra.weight"] = torch.ones(2)
    found = by_name(verify(state, adapter, merged))
    assert found["model.layers.0.norm.weight"].status == "missing"
    assert found["model.layers.0.mlp.up_proj.weight"].detail == "47×64 where 48×64 is expected"
    assert "not finite" in found["model.layers.1.mlp.down_proj.weight"].detail
    assert found["model.extra.weight"].detail == "only the merged checkpoint has it"


def test_an_update_below_the_precision_of_the_base_is_equal_and_said_so(tmp_path):
    state = base_state(torch.bfloat16)
    adapter = write_adapter(tmp_path / "adapter", state, size=1e-9)
    found = verify(state, adapter, state)
    assert found.passed, found.lines()
    assert "below the storage precision" in by_name(found)["model.layers.0.self_attn.q_proj.weight"].detail


def test_wrapper_prefixes_of_the_merged_checkpoint_do_not_matter(adapter):
    state = base_state()
    merged = {k.removeprefix("model."): v for k, v in merge(state, adapter).items()}
    assert verify(state, adapter, merged).passed


def test_a_head_tied_to_the_embedding(tmp_path):
    g = torch.Generator().manual_seed(3)
    weight = torch.randn(20, 8, generator=g)
    folder = tmp_path / "adapter"
    folder.mkdir()
    A, B = torch.randn(2, 20, generator=g), torch.randn(8, 2, generator=g)
    name = "base_model.model.embed_tokens.lora_embedding_"
    save_file({name + "A": A, name + "B": B}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    for state, path in (({"embed_tokens.weight": weight}, "base"), ({}, "merged")):
        state = state or {"embed_tokens.weight": weight + (B @ A).T, "lm_head.weight": (weight + (B @ A).T).clone()}
        (tmp_path / path).mkdir()
        save_file(state, tmp_path / path / "model.safetensors")
        (tmp_path / path / "config.json").write_text('{"tie_word_embeddings": true}')
    found = verify(tmp_path / "base", folder, tmp_path / "merged")
    assert found.passed, found.lines()
    assert by_name(found)["lm_head.weight"].detail == "(tied to embed_tokens.weight)"


@pytest.mark.parametrize(
    ("name", "value", "other"),
    [("logit_scale", torch.tensor(2.0), torch.tensor(5.0)), ("num_batches_tracked", torch.tensor(5), torch.tensor(9))],
)
def test_an_altered_scalar_is_found(adapter, name, value, other):
    state = base_state() | {name: value}
    merged = merge(base_state(), adapter)
    assert verify(state, adapter, merged | {name: value.clone()}).passed
    found = verify(state, adapter, merged | {name: other})
    assert [t.name for t in found.tensors if t.status == "differs"] == [name]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_a_buffer_of_equal_nans_is_equal(adapter, dtype):
    state = base_state() | {"mask": torch.tensor([1.0, math.nan, -0.0]).to(dtype)}
    merged = merge(base_state(), adapter) | {"mask": state["mask"].clone()}
    assert verify(state, adapter, merged).passed
    merged["mask"] = torch.tensor([1.0, 2.0, -0.0]).to(dtype)
    assert by_name(verify(state, adapter, merged))["mask"].status == "differs"


def tied(state, folder):
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text('{"tie_word_embeddings": true}')
    return folder


@pytest.mark.parametrize("modules", [("model.embed_tokens", "lm_head"), ("lm_head",)])
def test_saved_modules_untie_a_head(tmp_path, modules):
    """Llama 3.2 and Qwen store no head: what the adapter stores for it is not the embedding's."""
    state = base_state() | {
        "model.embed_tokens.weight": torch.randn(20, 64, generator=torch.Generator().manual_seed(2))
    }
    base = tied(state, tmp_path / "base")
    adapter = write_adapter(tmp_path / "adapter", state)
    stored = {f"{m}.weight": state["model.embed_tokens.weight"] + i + 1 for i, m in enumerate(modules)}
    path = adapter / "adapter_model.safetensors"
    save_file(load_file(path) | {f"base_model.model.{n}": t for n, t in stored.items()}, path)
    merged = {k: v for k, v in merge(state, adapter).items() if k != "lm_head.weight"} | stored
    found = verify(base, adapter, merged)
    assert found.passed, found.lines()
    assert found.counts["equal"] == len(merged)
    wrong = by_name(verify(base, adapter, merged | {"lm_head.weight": state["model.embed_tokens.weight"]}))
    assert [n for n, t in wrong.items() if t.status != "equal"] == ["lm_head.weight"]
    # Tied again, it holds the embedding and not the head that was trained.
    lost = {k: v for k, v in merged.items() if k != "lm_head.weight"}
    again = by_name(verify(base, adapter, tied(lost, tmp_path / "tied")))
    assert [n for n, t in again.items() if t.status != "equal"] == ["lm_head.weight"]
    assert "(tied to model.embed_tokens.weight)" in again["lm_head.weight"].detail


def quietly(call, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call(*args, **options)


def test_peft_merges_pass_in_bfloat16_and_a_half_merge_does_not(tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            tie_word_embeddings=False,
        )
    ).to(torch.bfloat16)
    base = copy.deepcopy(model.state_dict())
    for settings in ({}, {"use_dora": True}, {"use_rslora": True, "modules_to_save": ["lm_head"]}):
        config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], **settings)
        peft_model = quietly(get_peft_model, copy.deepcopy(model), config)
        g = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for name, p in peft_model.named_parameters():
                if "lora_B" in name or "modules_to_save" in name:
                    p.add_((0.02 * torch.randn(p.shape, generator=g)).to(p.dtype))
        folder = tmp_path / "-".join(["a", *settings])
        quietly(peft_model.save_pretrained, str(folder), save_embedding_layers=False)
        merged = quietly(peft_model.merge_and_unload).state_dict()
        found = verify(base, folder, merged)
        assert found.passed, found.lines()
        merged = merged | {n: base[n] for n in merged if "layers.0" in n}
        assert verify(base, folder, merged).counts["differs"] == 2


def test_weights_that_the_adapter_stores_whole(adapter):
    """modules_to_save: the merged weight is the stored one, not the base's."""
    state = base_state()
    name = "model.layers.0.mlp.up_proj.weight"
    path = adapter / "adapter_model.safetensors"
    stored = state[name] + 1
    save_file(load_file(path) | {f"base_model.model.{name}": stored}, path)
    merged = merge(state, adapter) | {name: stored}
    assert verify(state, adapter, merged).passed
    for other, words in ((state[name], "identical to the base"), (stored + 1, "3,072 of 3,072 entries are off")):
        found = by_name(verify(state, adapter, merged | {name: other}))[name]
        assert (found.status, found.touched) == ("differs", True)
        assert words in found.detail
        assert "the weight that the adapter stores is not in it" in found.detail


def test_what_cannot_be_known_cannot_be_verified(tmp_path):
    state = base_state()
    adapter = write_adapter(tmp_path / "adapter", state, init_lora_weights="pissa")
    with pytest.raises(AdapterError, match="pissa"):
        verify(state, adapter, state)


def saved(state, folder):
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    return str(folder)


def test_command_line(tmp_path, adapter):
    state = base_state()
    base = saved(state, tmp_path / "base")
    good = saved(merge(state, adapter), tmp_path / "good")
    bad = saved(merge(state, adapter, 2.0), tmp_path / "bad")
    run = CliRunner().invoke
    passed = run(main, ["verify", base, str(adapter), good])
    assert passed.exit_code == 0, passed.output
    assert passed.stdout == f"{good} is {base} plus {adapter}: 8 equal (4 changed by the adapter)\n"
    failed = run(main, ["verify", base, str(adapter), bad])
    assert failed.exit_code == 4
    lines = failed.stdout.splitlines()
    assert len(lines) == 5
    assert all("merged twice" in line for line in lines[:-1])
    assert "is NOT" in lines[-1]
    document = run(main, ["verify", base, str(adapter), bad, "--json", "-q"])
    assert document.exit_code == 4
    found = json.loads(document.stdout)
    assert found["counts"] == {"equal": 4, "rounding": 0, "differs": 4, "missing": 0}
    assert not found["passed"]
    missing = run(main, ["verify", base, str(adapter), str(tmp_path / "nowhere")])
    assert missing.exit_code == 1
    assert len(missing.stderr.strip().splitlines()) == 1


def test_a_base_that_is_not_there_is_named_with_the_adapter(tmp_path):
    state = base_state()
    adapter = write_adapter(tmp_path / "adapter", state, base_model_name_or_path="org/trained")
    with pytest.raises(CheckpointError) as caught:
        verify(tmp_path / "nowhere", adapter, state)
    assert all(s in str(caught.value) for s in (str(tmp_path / "nowhere"), str(adapter), "org/trained"))
