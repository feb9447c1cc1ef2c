"""What is an adapter, and every way in which one can be broken: one line that names both sides."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

import deltaw
from deltaw.adapters import is_adapter, open_adapter
from deltaw.checkpoints import open_checkpoint
from deltaw.errors import AdapterError, CheckpointError

Q = "model.layers.0.self_attn.q_proj"
BASE = {f"{Q}.weight": torch.ones(6, 8), "model.layers.0.norm.weight": torch.ones(8)}


def tensors(module=Q, m=6, n=8, r=2, prefix="base_model.model.", infix=""):
    name = f"{prefix}{module}.lora_"
    return {f"{name}A{infix}.weight": torch.ones(r, n), f"{name}B{infix}.weight": torch.ones(m, r)}


def write(folder, weights=None, **config):
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors() if weights is None else weights, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "org/base"} | config
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def error(folder, base=BASE):
    with pytest.raises(CheckpointError) as caught:
        attempt(folder, base)
    text = str(caught.value)
    assert "\n" not in text
    assert str(folder) in text or folder.name in text
    return text


def attempt(folder, base):
    return open_adapter(folder).updates(None if base is None else open_checkpoint(base))


def test_what_an_opened_adapter_says(tmp_path):
    opened = open_adapter(write(tmp_path / "a"))
    assert (opened.format, opened.base_name, opened.source) == ("peft lora", "org/base", str(tmp_path / "a"))
    assert opened.nbytes == (2 * 8 + 6 * 2) * 4
    assert opened.as_source().tensors == 2
    assert len(opened.files) == 2


def test_what_is_an_adapter(tmp_path):
    folder = write(tmp_path / "a")
    assert is_adapter(folder)
    assert is_adapter(folder / "adapter_model.safetensors")
    assert open_adapter(folder / "adapter_model.safetensors").source == str(folder)
    (folder / "adapter_config.json").unlink()
    assert is_adapter(folder)


def test_weights_in_a_pickle(tmp_path):
    folder = write(tmp_path / "a")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(tensors(), folder / "adapter_model.bin")
    pair = attempt(folder, BASE).pairs[0]
    B, A = pair.ft.delta(None)
    assert torch.equal(B @ A, torch.full((6, 8), 4.0, dtype=torch.float64))


@pytest.mark.parametrize(
    "spelling",
    [
        {},
        {"infix": ".default"},
        {"infix": ".my_adapter"},
        {"prefix": ""},
        {"prefix": "base_model.model._orig_mod."},
        {"prefix": "module.base_model.model."},
    ],
)
def test_names_with_and_without_wrappers(tmp_path, spelling):
    found = attempt(write(tmp_path / "a", tensors(**spelling)), BASE)
    assert [p.name for p in found.pairs] == [f"{Q}.weight"]
    without = {n.removeprefix("model."): t for n, t in BASE.items()}
    assert [p.name for p in attempt(tmp_path / "a", without).pairs] == [f"{Q}.weight".removeprefix("model.")]
    within = {f"language_model.{n}": t for n, t in BASE.items()}
    assert [p.name for p in attempt(tmp_path / "a", within).pairs] == [f"language_model.{Q}.weight"]


def test_a_name_that_two_tensors_could_mean_is_not_guessed(tmp_path):
    folder = write(tmp_path / "a", tensors(module="layers.0.fc", m=6, n=8))
    two = {"encoder.layers.0.fc.weight": torch.ones(6, 8), "decoder.layers.0.fc.weight": torch.ones(6, 8)}
    assert "has no such module" in error(folder, two)


def test_a_square_layer_follows_the_base_or_else_the_config(tmp_path):
    square = {"h.0.attn.c_proj.weight": torch.ones(8, 8), "h.0.attn.c_attn.weight": torch.ones(8, 24)}
    weights = tensors(module="h.0.attn.c_proj", m=8, n=8)
    folder = write(tmp_path / "a", weights, fan_in_fan_out=False)
    assert attempt(folder, square).pairs[0].view.transposed  # c_attn's shape says Conv1D
    linear = {"h.0.attn.other.weight": torch.ones(8, 8)}
    for flag in (True, False):
        folder = write(tmp_path / "b", tensors(module="h.0.attn.other", m=8, n=8), fan_in_fan_out=flag)
        assert attempt(folder, linear).pairs[0].view.transposed is flag


def test_config_without_weights_and_weights_without_config(tmp_path):
    folder = write(tmp_path / "a")
    (folder / "adapter_model.safetensors").unlink()
    assert "adapter_config.json but no weights; expected adapter_model.safetensors" in error(folder)
    folder = write(tmp_path / "b")
    (folder / "adapter_config.json").unlink()
    assert "adapter_model.safetensors but no adapter_config.json" in error(folder)


@pytest.mark.parametrize("text", ["{", "[1]", "", "nonsense"])
def test_a_config_that_is_not_json(tmp_path, text):
    folder = write(tmp_path / "a")
    (folder / "adapter_config.json").write_text(text)
    assert "expected" in error(folder)


def test_unknown_methods_and_options(tmp_path):
    assert "'peft_type' is missing; expected a text" in error(write(tmp_path / "a", peft_type=None))
    assert "peft_type is 'NEW', which the installed peft does not know" in error(write(tmp_path / "b", peft_type="NEW"))
    assert "use_telepathy is set" in error(write(tmp_path / "c", use_telepathy=True))
    for option in ("alora_invocation_tokens", "arrow_config", "use_qalora", "layer_replication"):
        assert f"{option} is set" in error(write(tmp_path / option, **{option: [1]}))
    opened = open_adapter(write(tmp_path / "d", someones_remark="x"))
    assert "someones_remark" in opened.notes[0]


def test_shapes_that_do_not_fit_the_base(tmp_path):
    text = error(write(tmp_path / "a"), {f"{Q}.weight": torch.ones(6, 9)})
    assert f"changes {Q} as 6×8, but {Q}.weight is 6×9 in <dict>" in text


def test_modules_that_the_base_lacks(tmp_path):
    text = error(write(tmp_path / "a", tensors(module="model.layers.9.self_attn.q_proj")))
    assert "adapts 'model.layers.9.self_attn.q_proj', but <dict> has no such module" in text
    assert f"the nearest name there is '{Q}.weight'" in text


def test_a_rank_pattern_that_contradicts_the_tensors(tmp_path):
    text = error(write(tmp_path / "a", rank_pattern={"q_proj": 4}))
    assert (
        f"rank_pattern in adapter_config.json gives {Q} rank 4, but its tensors are lora_A 2×8 and lora_B 6×2" in text
    )
    assert f"r in adapter_config.json gives {Q} rank 3" in error(write(tmp_path / "b", r=3))
    assert 'rank_pattern: "(.*\\\\.)?(()" is not a regular expression' in error(
        write(tmp_path / "a", rank_pattern={"(": 4})
    )
    for bad in (0, 2.5):
        assert "expected a whole number above 0" in error(write(tmp_path / "a", r=bad))
    for bad in ("8", True):
        assert "adapter_config.json: 'r' is " in error(write(tmp_path / "a", r=bad))
    assert "'lora_alpha' is \"x\"; expected a number" in error(write(tmp_path / "a", lora_alpha="x"))


@pytest.mark.parametrize(("keep", "lack"), [("A", "B"), ("B", "A")])
def test_half_a_pair_of_factors(tmp_path, keep, lack):
    weights = {n: t for n, t in tensors().items() if f"lora_{keep}" in n}
    assert f"{Q} has lora_{keep} but no lora_{lack}" in error(write(tmp_path / "a", weights))
    assert f"{Q} has lora_{keep} but no lora_{lack}" in error(tmp_path / "a", None)


def test_incomplete_variants(tmp_path):
    assert "no lora_magnitude_vector" in error(write(tmp_path / "a", use_dora=True))
    magnitudes = tensors() | {f"base_model.model.{Q}.lora_magnitude_vector": torch.ones(6)}
    assert "has a lora_magnitude_vector, but use_dora is off" in error(
        write(tmp_path / "d", magnitudes, use_dora=False)
    )
    assert "no lora_E" in error(write(tmp_path / "b", peft_type="ADALORA", init_r=2))
    weights = tensors() | {f"base_model.model.{Q}.lora_magnitude_vector": torch.ones(5)}
    folder = write(tmp_path / "c", weights, use_dora=True)
    pair = attempt(folder, BASE).pairs[0]
    with pytest.raises(AdapterError, match="5 magnitudes in the adapter for 6 outputs"):
        pair.ft.delta(pair.base.read())


def test_tensors_that_change_the_update_are_not_overlooked(tmp_path):
    weights = tensors() | {f"base_model.model.{Q}.lora_secret.weight": torch.ones(2)}
    assert "lora_secret.weight' is not a tensor of LoRA" in error(write(tmp_path / "a", weights))


def test_two_adapters_in_one_file(tmp_path):
    weights = tensors(infix=".first") | tensors(infix=".second", module="model.layers.1.self_attn.q_proj")
    assert "holds 2 adapters (first, second)" in error(write(tmp_path / "a", weights))


def test_token_rows_and_their_indices(tmp_path):
    base = BASE | {"model.embed_tokens.weight": torch.zeros(10, 4)}
    weights = tensors() | {"base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta": torch.ones(2, 4)}
    assert "2 trained rows" in error(write(tmp_path / "a", weights, trainable_token_indices=[1, 2, 3]), base)
    assert "names none" in error(write(tmp_path / "a", weights), base)
    narrow = base | {"model.embed_tokens.weight": torch.zeros(10, 3)}
    assert "replaces rows up to 2" in error(write(tmp_path / "a", weights, trainable_token_indices=[1, 2]), narrow)


def test_trained_rows_of_tokens_that_the_base_does_not_have(tmp_path):
    base = BASE | {"model.embed_tokens.weight": torch.zeros(10, 4)}
    rows = torch.arange(8.0).reshape(2, 4)
    key = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
    path = write(tmp_path / "a", tensors() | {key: rows}, trainable_token_indices=[1, 10])
    found = attempt(path, base)
    merged = next(p.ft for p in found.pairs if p.name == "model.embed_tokens.weight").read()
    assert torch.equal(merged[1], rows[0])
    assert not merged[2:].any()
    assert [(s.name, s.reason) for s in found.skipped] == [("model.embed_tokens.weight[rows]", "only_in_ft")]
    path = write(tmp_path / "b", tensors() | {key: rows}, trainable_token_indices=[11, 10])
    assert [p.name for p in attempt(path, base).pairs] == [f"{Q}.weight"]


def test_an_empty_file(tmp_path):
    assert "no ΔW can be known" in error(write(tmp_path / "a", {}))


def test_an_embedding_stored_below_its_factors(tmp_path):
    """`save_embedding_layers`: nothing to say if it is the base's; if not, B·A is not the update."""
    name = "model.embed_tokens"
    base = {f"{name}.weight": torch.arange(20.0).reshape(5, 4), **BASE}
    factors = {
        f"base_model.model.{name}.lora_embedding_A": torch.ones(2, 5),
        f"base_model.model.{name}.lora_embedding_B": torch.ones(4, 2),
    }
    stored = f"base_model.model.{name}.base_layer.weight"
    same = attempt(write(tmp_path / "a", tensors() | factors | {stored: base[f"{name}.weight"]}), base)
    assert {p.name for p in same.pairs} == {f"{Q}.weight", f"{name}.weight"}
    assert not same.skipped
    for other, reason in ((torch.ones(5, 4), "base_changed"), (torch.ones(7, 4), "shape_mismatch")):
        found = attempt(write(tmp_path / "b", tensors() | factors | {stored: other}), base)
        assert [(s.name, s.reason) for s in found.skipped] == [(f"{name}.weight", reason)]
        assert {p.name for p in found.pairs} == {f"{Q}.weight"}


def test_a_head_that_is_tied_to_the_embedding(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    save_file({"model.embed_tokens.weight": torch.ones(6, 8)}, base / "model.safetensors")
    (base / "config.json").write_text('{"tie_word_embeddings": true}')
    found = open_adapter(write(tmp_path / "a", tensors(module="lm_head"))).updates(open_checkpoint(base))
    assert [(p.name, p.base.name) for p in found.pairs] == [("lm_head.weight", "model.embed_tokens.weight")]


def test_a_head_stored_whole_or_in_part_keeps_its_name_too(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    save_file({"model.embed_tokens.weight": torch.ones(6, 8)}, base / "model.safetensors")
    (base / "config.json").write_text('{"tie_word_embeddings": true}')
    rows = {"base_model.model.lm_head.token_adapter.trainable_tokens_delta": torch.zeros(2, 8)}
    whole = {"base_model.model.lm_head.weight": torch.zeros(6, 8)}
    for name, weights in (("rows", rows), ("whole", whole)):
        folder = write(tmp_path / name, weights, trainable_token_indices={"lm_head": [1, 4]})
        (pair,) = open_adapter(folder).updates(open_checkpoint(base)).pairs
        assert (pair.name, pair.ft.name, pair.base.name) == (*["lm_head.weight"] * 2, "model.embed_tokens.weight")
    # Beside its factors, another weight than the base's: the head is what cannot be known.
    folder = write(
        tmp_path / "both",
        tensors() | tensors("lm_head") | {"base_model.model.lm_head.base_layer.weight": torch.zeros(6, 8)},
    )
    found = open_adapter(folder).updates(open_checkpoint(tied_with(base)))
    assert [(s.name, s.reason) for s in found.skipped] == [("lm_head.weight", "base_changed")]


def tied_with(base):
    save_file(
        {"model.embed_tokens.weight": torch.ones(6, 8), f"{Q}.weight": torch.ones(6, 8)}, base / "model.safetensors"
    )
    return base


def test_a_new_head_is_skipped_with_its_shape(tmp_path):
    found = attempt(write(tmp_path / "a", tensors() | {"base_model.model.score.weight": torch.ones(2, 8)}), BASE)
    assert [(s.name, s.reason, s.detail) for s in found.skipped] == [("score.weight", "only_in_ft", "2×8")]
    old = tensors() | {"base_model.model.score.modules_to_save.default.weight": torch.ones(2, 8)}
    assert [s.name for s in attempt(write(tmp_path / "b", old), BASE).skipped] == ["score.weight"]


def test_a_file_of_peft_under_another_name(tmp_path):
    """Its names are PEFT's, and nothing in it says its scale: that stands in the config beside it, or nobody knows."""
    save_file(tensors(), tmp_path / "epoch3.safetensors")
    base = {f"{Q}.weight": torch.randn(6, 8)}
    with pytest.raises(AdapterError, match=r"PEFT's LoRA factors, but no adapter_config.json beside them"):
        deltaw.analyze(base, tmp_path / "epoch3.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["q_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    (row,) = deltaw.analyze(base, tmp_path / "epoch3.safetensors").rows
    assert row["adapter_scaling"] == 3
