"""Tiny models, adapters that peft makes for them, and what merging them does: the oracle of every adapter test."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from deltaw.adapters import open_adapter
from deltaw.checkpoints import open_checkpoint
from deltaw.tensors.matrix import matrix
from deltaw.types import Factors, is_update

torch.set_num_threads(1)


def tiny_llama(**changes):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    options = {
        "vocab_size": 24,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
        "max_position_embeddings": 32,
    }
    return LlamaForCausalLM(LlamaConfig(**(options | changes)))


def tiny_gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=24, n_embd=16, n_layer=2, n_head=4, n_positions=32, bos_token_id=0, eos_token_id=0)
    )


class ConvNet(nn.Module):
    """Convolutions of every dimension, with strides and 1×1 kernels; a linear head."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv1d(4, 6, 3)
        self.conv2 = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.conv3 = nn.Conv3d(4, 8, 2)
        self.point = nn.Conv2d(8, 4, 1)
        self.head = nn.Linear(8, 4)


class EmbeddingNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.lin = nn.Linear(8, 8)


def seeded(cls):
    torch.manual_seed(0)
    return cls()


def make(model, config, folder: Path, scale: float = 0.3):
    """A copy of `model` with a random adapter, saved to `folder`, and the weights that merging it gives (float64).

    Returns:
        Merged minus base by tensor name, all tensors.
    """
    from peft import get_peft_model

    # A tied head is the embedding: peft writes the sum of both updates into it, deltaw reports the one that is stored.
    tied = {"lm_head.weight"} if getattr(getattr(model, "config", None), "tie_word_embeddings", False) else set()
    state = {n: t for n, t in model.state_dict().items() if t.is_floating_point() and n not in tied}
    base = {n: t.detach().double().clone() for n, t in state.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft_model = get_peft_model(copy.deepcopy(model), config)
        randomize(peft_model, scale)
        peft_model.save_pretrained(str(folder), save_embedding_layers=False)
        merged = peft_model.eval().double().merge_and_unload().state_dict()
    assert set(base) <= set(merged), sorted(set(base) - set(merged))
    return {n: merged[n] - base[n] for n in base}


def randomize(peft_model, scale: float = 0.3):
    """What training would do: every trainable parameter moves.

    Save AdaLoRA's `ranknum` and the biases that AdaMSS leaves trainable: PEFT stores neither with the adapter.
    """
    keeps_biases = peft_model.peft_config["default"].__dict__.get("bias", "none") != "none"
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in sorted(peft_model.named_parameters(), key=lambda item: item[0]):
            unsaved = "ranknum" in name or (".base_layer." in name and not keeps_biases)
            if p.requires_grad and p.is_floating_point() and not unsaved:
                p.add_(torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype) * scale)


def stored_deltas(folder: Path, base):
    """ΔW by base tensor, in the layout that the base stores it, through deltaw; what was skipped."""
    checkpoint = open_checkpoint(base)
    found = open_adapter(Path(folder)).updates(checkpoint)
    out = {n: torch.zeros(h.shape, dtype=torch.float64) for n, h in checkpoint.tensors.items()}
    routes = {}
    for pair in found.pairs:
        target = pair.name if pair.name in out else pair.base.name
        delta = one_delta(pair)
        slot = out[target] if pair.view.expert is None else out[target][pair.view.expert]
        view = delta.T if pair.view.transposed else delta
        slot += view.reshape(slot.shape)
        routes[target] = "factored" if is_update(pair.ft) and pair.ft.factored else "dense"
    return out, routes, found.skipped


def one_delta(pair):
    if not is_update(pair.ft):
        return pair.ft.read().double() - pair.base.read().double()
    delta = pair.ft.delta(matrix(pair.base, pair.view) if pair.ft.needs_base else None)
    if isinstance(delta, Factors):
        delta = delta.B @ delta.A
    assert delta.dtype == torch.float64
    return delta


def assert_same(found, expected, tolerance: float = 1e-12):
    """Every tensor: ΔW within `tolerance` of σ1, entry by entry, and the spectra with it."""
    assert any(d.abs().max() > 0 for d in expected.values()), "the oracle changed nothing"
    for name, want in expected.items():
        got = found[name]
        if want.ndim < 2:
            assert torch.allclose(got, want, rtol=tolerance, atol=tolerance), name
            continue
        a, b = (
            torch.linalg.svdvals(x.reshape(-1, *x.shape[-2:]) if x.ndim == 3 else x.flatten(1)) for x in (got, want)
        )
        top = b.max()
        assert (a - b).abs().max() <= tolerance * top + 1e-300, name
        assert (got - want).abs().max() <= tolerance * top + 1e-300, name


@pytest.fixture
def check(tmp_path):
    """`check(model, config, tolerance)`: deltaw's ΔW of a random adapter against peft's merge; routes and skipped."""

    def run(model, config, tolerance=1e-12, folder="adapter"):
        expected = make(model, config, tmp_path / folder)
        found, routes, skipped = stored_deltas(tmp_path / folder, model)
        assert_same(found, expected, tolerance)
        return routes, skipped

    return run


@pytest.fixture(scope="session")
def oracle():
    """The helpers of this file, for tests that need only some of them."""
    return SimpleNamespace(
        make=make,
        stored_deltas=stored_deltas,
        assert_same=assert_same,
        one_delta=one_delta,
        randomize=randomize,
        tiny_llama=tiny_llama,
    )


@pytest.fixture(scope="session")
def llama():
    return tiny_llama()


@pytest.fixture(scope="session")
def gpt2():
    return tiny_gpt2()


@pytest.fixture(scope="session")
def convnet():
    return seeded(ConvNet)


@pytest.fixture(scope="session")
def embeddingnet():
    return seeded(EmbeddingNet)
