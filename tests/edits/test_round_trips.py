"""An extracted adapter is loaded by PEFT, and its model is the fine-tuned one, for every kind of model and module."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import deltaw

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

VOCAB = 40
Model = nn.Module


@pytest.fixture(autouse=True)
def quiet():
    """PEFT and transformers warn about options that are asked for on purpose: a tied head, Conv1D."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def llama(**options: object) -> Model:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=VOCAB, num_key_value_heads=2, **sizes, **options)
    return transformers.LlamaForCausalLM(config)


def gpt2() -> Model:
    config = transformers.GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=2, n_positions=16)
    return transformers.GPT2LMHeadModel(config)


def bert() -> Model:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    return transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=VOCAB, **sizes))


def mixtral() -> Model:
    sizes = {"hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.MixtralConfig(vocab_size=VOCAB, num_key_value_heads=2, num_local_experts=4, **sizes)
    return transformers.MixtralForCausalLM(config)


def qwen3_moe() -> Model:
    config = transformers.Qwen3MoeConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        num_experts=4,
        num_experts_per_tok=2,
    )
    return transformers.Qwen3MoeForCausalLM(config)


MODELS: dict[str, Callable[[], Model]] = {
    "Llama": llama,
    "Llama, tied": lambda: llama(tie_word_embeddings=True),
    "GPT-2": gpt2,
    "BERT": bert,
    "Mixtral": mixtral,
    "Qwen3-MoE": qwen3_moe,
}


def fine_tuned(model: Model, *, rank: int = 3, matrices_only: bool = False) -> Model:
    """Every matrix (each expert of a stack) moves by a matrix of this rank, every vector by some noise."""
    g = torch.Generator().manual_seed(1)
    ft = copy.deepcopy(model)
    with torch.no_grad():
        for p in ft.parameters():
            if p.ndim < 2:
                if not matrices_only:
                    p += 0.1 * torch.randn(p.shape, generator=g)
                continue
            lead = p.shape[:-2] if p.ndim == 3 else ()
            m, n = (p.shape[-2], p.shape[-1]) if p.ndim < 4 else (p.shape[0], p[0].numel())
            delta = 0.05 * torch.randn(*lead, m, rank, generator=g) @ torch.randn(*lead, rank, n, generator=g)
            p += delta.reshape(p.shape)
    return ft


def logits(model: Model) -> torch.Tensor:
    tokens = torch.arange(2 * 9).reshape(2, 9) % VOCAB
    with torch.no_grad():
        return model.eval()(tokens).logits.double()


@pytest.mark.parametrize("name", MODELS)
def test_peft_loads_it_and_the_model_is_the_fine_tuned_one(name: str, tmp_path: Path):
    torch.manual_seed(0)
    base = MODELS[name]()
    ft = fine_tuned(base)
    for model, folder in ((base, "base"), (ft, "ft")):
        model.save_pretrained(tmp_path / folder)
    found = deltaw.extract(tmp_path / "base", tmp_path / "ft", tmp_path / "adapter", rank=3)
    assert not found.skipped
    assert all(row.rank == 3 and row.relative_error < 1e-4 for row in found.layers)
    loaded = type(base).from_pretrained(tmp_path / "base")
    loaded = peft.PeftModel.from_pretrained(loaded, tmp_path / "adapter")
    want = logits(ft)
    assert torch.allclose(logits(loaded), want, atol=2e-4)
    assert torch.allclose(logits(loaded.merge_and_unload()), want, atol=2e-4)
    assert not torch.allclose(logits(base), want, atol=1e-2)
