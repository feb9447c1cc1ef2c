"""Every method of the installed peft: ΔW through deltaw equals what merging does, on every kind of layer it takes.

The list is peft's own. A method that is new there, or that stops merging, fails here.
"""

from __future__ import annotations

import dataclasses
import json
import warnings

import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from safetensors.torch import save_file

from deltaw.adapters import methods, open_adapter
from deltaw.adapters.methods import NATIVE, NO_DELTA, supported
from deltaw.checkpoints import open_checkpoint
from deltaw.errors import AdapterError, MissingExtraError

CONFIGS = {kind.value: cls for kind, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
MERGING = sorted(set(CONFIGS) - set(NO_DELTA))
LAYERS = {
    "llama": ("llama", ["q_proj", "down_proj"]),
    "gpt2": ("gpt2", ["c_attn", "c_proj"]),
    "conv": ("convnet", ["conv2", "point", "head"]),
    "conv1d": ("convnet", ["conv1"]),
    "conv3d": ("convnet", ["conv3"]),
    "embedding": ("embeddingnet", ["embedding"]),
    "linear": ("embeddingnet", ["lin"]),
    "norm": ("gpt2", ["ln_1"]),
}
# What a method needs on matrices of width 8 to 32; everything else is its default.
OPTIONS = {
    "ADALORA": {"init_r": 5, "target_r": 3, "total_step": 10},
    "ADAMSS": {"num_subspaces": 2, "subspace_rank": 2},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 4},
    "FOURIERFT": {"n_frequency": 20},
    "FROD": {"progressbar": False},
    "OFT": {"r": 0, "oft_block_size": 4},
    "ROAD": {"group_size": 4},
    "TRAINABLE_TOKENS": {"token_indices": [1, 3]},
    "UNILORA": {"theta_d_length": 16},
    "VBLORA": {"vector_length": 4, "num_vectors": 16, "topk": 2},
    "WAVEFT": {"n_frequency": 20},
}


def config_of(kind, targets, **options):
    cls = CONFIGS[kind]
    names = {f.name for f in dataclasses.fields(cls)}
    values = {"target_modules": targets} | ({"r": 4} if "r" in names else {}) | OPTIONS.get(kind, {}) | options
    if kind == "IA3":
        values["feedforward_modules"] = [t for t in targets if t in {"down_proj", "point"}]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return cls(**values)


def merged_by_peft(oracle, kind, model, targets, folder, **options):
    """ΔW by peft, or None where it does not take this layer."""
    try:
        expected = oracle.make(model, config_of(kind, targets, **options), folder)
    except (ValueError, TypeError, KeyError, NotImplementedError, RuntimeError, AttributeError):
        return None
    return expected if any(d.abs().max() > 0 for d in expected.values()) else None


@pytest.mark.parametrize("kind", MERGING)
def test_every_method_of_peft(kind, oracle, request, tmp_path):
    taken = []
    for layer, (fixture, targets) in LAYERS.items():
        model = request.getfixturevalue(fixture)
        expected = merged_by_peft(oracle, kind, model, targets, tmp_path / layer)
        if expected is None:
            continue
        found, _, _ = oracle.stored_deltas(tmp_path / layer, model)
        oracle.assert_same(found, expected, 1e-5)
        taken.append(layer)
    assert taken, (
        f"peft merges {kind} into none of the layers here: is it a method without a ΔW, or are options missing?"
    )


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.lin = torch.nn.Linear(128, 96)
        self.other = torch.nn.Linear(16, 16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("kind", sorted(set(MERGING) - {"TRAINABLE_TOKENS"}))
def test_peft_s_own_merge_is_verified_in_every_dtype(kind, dtype, oracle, tmp_path):
    """peft merges in the storage dtype: that is rounding; the base itself is no merge."""
    import copy

    from peft import get_peft_model

    from deltaw.verification import verify

    model = Layer().to(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft_model = get_peft_model(copy.deepcopy(model), config_of(kind, ["lin"]))
        oracle.randomize(peft_model, 0.1)
        peft_model.save_pretrained(str(tmp_path))
        try:
            merged = peft_model.eval().merge_and_unload().state_dict()
        except (RuntimeError, TypeError) as e:
            pytest.skip(f"peft itself cannot merge {kind} in {dtype}: {e}")
    found = verify(model.state_dict(), tmp_path, merged)
    assert found.passed, found.lines()
    assert all(t.touched for t in found.tensors if t.name == "lin.weight")
    base = verify(model.state_dict(), tmp_path, model.state_dict())
    assert not base.passed


@pytest.mark.parametrize("kind", sorted(set(NO_DELTA) & set(CONFIGS)))
def test_what_has_no_delta_does_not_merge_in_peft_either(kind):
    tuner = PEFT_TYPE_TO_TUNER_MAPPING[next(t for t in PEFT_TYPE_TO_TUNER_MAPPING if t.value == kind)]
    layer = getattr(tuner, "tuner_layer_cls", None)
    if layer is None:
        assert kind == "XLORA" or not hasattr(tuner, "merge_and_unload")
        return
    import importlib
    import inspect

    package = tuner.__module__.rpartition(".")[0]
    own = [
        cls
        for name in ("layer", "model")
        if importlib.util.find_spec(f"{package}.{name}")
        for cls in vars(importlib.import_module(f"{package}.{name}")).values()
        if inspect.isclass(cls)
        and issubclass(cls, layer)
        and cls.__module__.startswith(package)
        and "merge" in vars(cls)
    ]
    assert all("NotImplementedError" in inspect.getsource(cls.merge) for cls in own)


@pytest.mark.parametrize("kind", sorted(NO_DELTA))
def test_what_has_no_delta_is_refused_with_that_reason(kind, tmp_path):
    write(tmp_path, {"peft_type": kind}, {"prompt_embeddings": torch.ones(2, 4)})
    with pytest.raises(AdapterError, match=f"{kind} has no ΔW: it trains|{kind} has no ΔW: a router") as caught:
        open_adapter(tmp_path).updates(open_checkpoint({"a.weight": torch.ones(2, 2)}))
    assert "\n" not in str(caught.value)


def write(folder, config, tensors):
    from safetensors.torch import save_file

    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("kind", ["LOHA", "VERA", "FOURIERFT", "OFT"])
def test_a_bfloat16_base_is_merged_in_float64(kind, oracle, llama, tmp_path):
    """What is random or decomposed happens in the stored dtype, as in peft; the rest does not round."""
    import copy

    model = copy.deepcopy(llama).to(torch.bfloat16)
    expected = merged_by_peft(oracle, kind, model, ["q_proj"], tmp_path)
    found, _, _ = oracle.stored_deltas(tmp_path, model)
    oracle.assert_same(found, expected, 1e-5)


@pytest.mark.parametrize("kind", ["VERA", "PVERA", "RANDLORA"])
def test_random_matrices_that_are_not_stored_are_drawn_again(kind, oracle, llama, tmp_path):
    """They are drawn for the largest of all adapted layers, of which one alone would not know."""
    expected = merged_by_peft(oracle, kind, llama, ["q_proj", "down_proj"], tmp_path, save_projection=False)
    assert expected is not None
    found, _, _ = oracle.stored_deltas(tmp_path, llama)
    oracle.assert_same(found, expected, 1e-5)


def test_values_by_order_need_a_base_that_keeps_it(oracle, llama, tmp_path):
    from safetensors.torch import save_file

    expected = merged_by_peft(
        oracle, "UNILORA", llama, ["q_proj", "down_proj"], tmp_path / "adapter", save_indices=False
    )
    assert expected is not None
    found, _, _ = oracle.stored_deltas(tmp_path / "adapter", llama)
    oracle.assert_same(found, expected, 1e-5)
    (tmp_path / "base").mkdir()
    save_file({n: t.clone() for n, t in llama.state_dict().items()}, tmp_path / "base/model.safetensors")
    with pytest.raises(AdapterError, match=r"by their order in the model, which .*base \(safetensors\) does not keep"):
        open_adapter(tmp_path / "adapter").updates(open_checkpoint(tmp_path / "base"))


def test_frod_without_its_projections_is_refused(oracle, llama, tmp_path):
    assert merged_by_peft(oracle, "FROD", llama, ["q_proj"], tmp_path, save_projection=False) is not None
    with pytest.raises(AdapterError, match="projections are not stored"):
        open_adapter(tmp_path).updates(open_checkpoint(llama))


def test_saved_modules_beside_another_method(oracle, llama, tmp_path):
    expected = merged_by_peft(oracle, "LOHA", llama, ["q_proj"], tmp_path, modules_to_save=["lm_head"])
    found, routes, _ = oracle.stored_deltas(tmp_path, llama)
    oracle.assert_same(found, expected, 1e-5)
    assert "lm_head.weight" in routes


def test_a_saved_head_of_a_tied_base_beside_another_method(oracle, tmp_path):
    llama = oracle.tiny_llama(tie_word_embeddings=True)
    merged_by_peft(oracle, "LOHA", llama, ["q_proj"], tmp_path / "a", modules_to_save=["lm_head"])
    state = {n: t.contiguous() for n, t in llama.state_dict().items() if n != "lm_head.weight"}
    (tmp_path / "base").mkdir()
    save_file(state, tmp_path / "base" / "model.safetensors")
    (tmp_path / "base" / "config.json").write_text('{"tie_word_embeddings": true}')
    found = open_adapter(tmp_path / "a").updates(open_checkpoint(tmp_path / "base"))
    assert {p.name for p in found.pairs if not hasattr(p.ft, "delta")} == {"lm_head.weight"}


def test_the_model_is_never_built(oracle, llama, tmp_path, monkeypatch):
    """Only the module that is asked for is read; injection leaves the global random state alone."""
    merged_by_peft(oracle, "LOHA", llama, ["q_proj"], tmp_path)
    read = []
    from deltaw.checkpoints.memory import MemoryHandle

    original = MemoryHandle.read
    monkeypatch.setattr(MemoryHandle, "read", lambda self, rows=None: (read.append(self.name), original(self, rows))[1])
    pairs = open_adapter(tmp_path).updates(open_checkpoint(llama)).pairs
    assert not read
    state = torch.get_rng_state()
    pairs[0].ft.delta(None)
    assert set(read) == {pairs[0].name}
    assert torch.equal(torch.get_rng_state(), state)


def test_bad_inputs(oracle, llama, tmp_path):
    merged_by_peft(oracle, "LOHA", llama, ["q_proj"], tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    base = open_checkpoint(llama)

    def first_delta(on):
        return open_adapter(tmp_path).updates(on).pairs[0].ft.delta(None)

    def message(changes, on=base):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | changes))
        with pytest.raises(AdapterError) as caught:
            first_delta(on)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "peft_type is 'NEW_METHOD', which the installed peft does not know" in message({"peft_type": "NEW_METHOD"})
    assert "brand_new is set in adapter_config.json" in message({"brand_new": True})
    assert "peft cannot merge LOHA into model.layers.0.self_attn.q_proj" in message({"r": 7})
    assert "does not target this module" in message({"target_modules": ["k_proj"]})
    assert "needs_base" in message({}, on=None)
    other = open_checkpoint({n: t for n, t in llama.state_dict().items() if "layers.1" not in n})
    assert "has no such module" in message({}, on=other)


def test_without_peft(monkeypatch, oracle, llama, tmp_path):
    import builtins

    merged_by_peft(oracle, "LOHA", llama, ["q_proj"], tmp_path)
    real = builtins.__import__

    def no_peft(name, *args, **options):
        if name.split(".")[0] == "peft":
            raise ImportError("No module named 'peft'")
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", no_peft)
    with pytest.raises(MissingExtraError, match=r"pip install 'deltaw\[peft\]'"):
        open_adapter(tmp_path).updates(open_checkpoint(llama))


def test_the_list_of_methods_is_pefts():
    listed = {m.name: m for m in supported()}
    assert set(listed) == set(CONFIGS) | set(NATIVE)
    assert all(m.reason for m in listed.values() if m.how == "refused")
    assert set(NO_DELTA) | methods.CHANGES_BIAS <= set(CONFIGS)


SLOW = "([a-z0-9._]+)+X"  # Python's `re` would not come to an end


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target_modules": SLOW}, "does not target this module"),
        ({"target_modules": "["}, "is not a regular expression"),
        ({"target_modules": 5}, "expected a text, or a list of texts"),
        ({"exclude_modules": SLOW}, ""),
        ({"exclude_modules": "("}, "is not a regular expression"),
        ({"rank_pattern": {SLOW: 4}}, ""),
        ({"rank_pattern": {"a{99999999999}": 4}}, "is not a regular expression"),
        ({"rank_pattern": {"q_proj": 10**12}}, "expected at most"),
        ({"r": 10**9}, "expected at most"),
        ({"r": [4]}, "peft"),
        ({"r": "4"}, "peft"),
        ({"layers_to_transform": [0], "layers_pattern": [SLOW]}, "does not target this module"),
        ({"layers_to_transform": [0], "layers_pattern": ["layers"]}, ""),
        ({"layers_to_transform": 0}, ""),
        ({"layers_to_transform": [1]}, "does not target this module"),
        ({"target_modules": r".*layers\.0\.self_attn\.q_proj"}, ""),
        ({"init_weights": {"a": 1}}, ""),
        ({"rank_dropout": "much"}, ""),
    ],
    ids=str,
)
def test_foreign_values_end_in_a_delta_or_in_one_line(changes, said, oracle, llama, tmp_path):
    oracle.make(llama, config_of("LOHA", ["q_proj"]), tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    base = open_checkpoint(llama)
    try:
        first = next(p for p in open_adapter(tmp_path).updates(base).pairs if ".0." in p.name)
        assert first.ft.delta(None).isfinite().all()
        message = ""
    except AdapterError as e:
        message = str(e)
    assert said in message
    assert not said or message
    assert "\n" not in message
