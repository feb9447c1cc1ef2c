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
        for name, p in ft.named_parameters():
            if p.ndim < 2:
                if not matrices_only:
                    p += 0.1 * torch.randn(p.shape, generator=g)
                continue
            stack = p.ndim == 3 and "experts" in name
            lead, m = (p.shape[:1], p.shape[1]) if stack else ((), p.shape[0])
            n = p.numel() // m // (p.shape[0] if stack else 1)
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


class Net(nn.Module):
    """Convolutions (one in groups), a norm with running sums, an embedding, and a linear layer with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCAB, 16)
        self.conv = nn.Conv1d(16, 24, 3, padding=1)
        self.grouped = nn.Conv1d(24, 24, 3, padding=1, groups=4)
        self.bn = nn.BatchNorm1d(24)
        self.flat = nn.Conv2d(3, 8, 3)
        self.head = nn.Linear(24, 10)

    def forward(self, tokens: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        x = self.bn(self.grouped(self.conv(self.table(tokens).mT)))
        return self.head(x.mean(-1)) + self.flat(image).mean(dim=(1, 2, 3))[:, None]


def test_a_net_of_convolutions_and_an_embedding(tmp_path: Path):
    torch.manual_seed(0)
    base = Net().eval()
    ft = fine_tuned(base)
    ft.bn.running_mean += 0.3
    found = deltaw.extract(base, ft, tmp_path / "adapter", rank=3)
    assert {row.name for row in found.layers} == {f"{n}.weight" for n in ("table", "conv", "flat", "head")}
    assert not found.skipped
    inputs = torch.arange(18).reshape(2, 9), torch.randn(2, 3, 8, 8)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "adapter").eval()
    with torch.no_grad():
        want = ft(*inputs)
        assert torch.allclose(loaded(*inputs), want, atol=1e-4)
        assert torch.allclose(loaded.merge_and_unload()(*inputs), want, atol=1e-4)


def test_a_grown_vocabulary_is_loaded_after_resizing(tmp_path: Path):
    torch.manual_seed(0)
    base = llama()
    ft = copy.deepcopy(base)
    ft.resize_token_embeddings(VOCAB + 3)
    ft = fine_tuned(ft)
    for model, folder in ((base, "base"), (ft, "ft")):
        model.save_pretrained(tmp_path / folder)
    found = deltaw.extract(tmp_path / "base", tmp_path / "ft", tmp_path / "adapter", rank=3)
    assert {s.name for s in found.saved} >= {"model.embed_tokens", "lm_head"}
    assert "resize_token_embeddings" in (tmp_path / "adapter" / "README.md").read_text()
    loaded = type(base).from_pretrained(tmp_path / "base")
    loaded.resize_token_embeddings(VOCAB + 3)
    loaded = peft.PeftModel.from_pretrained(loaded, tmp_path / "adapter")
    assert torch.allclose(logits(loaded), logits(ft), atol=2e-4)


@pytest.mark.parametrize("option", ["use_dora", "use_rslora"])
def test_an_adapter_becomes_a_plain_lora(tmp_path: Path, option: str):
    torch.manual_seed(0)
    base = llama()
    base.save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False, **{option: True})
    tuned = peft.get_peft_model(copy.deepcopy(base), config)
    tuned.save_pretrained(tmp_path / "tuned")
    want = logits(tuned)
    found = deltaw.extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "plain", energy=1.0)
    assert len(found.layers) == 4
    loaded = peft.PeftModel.from_pretrained(type(base).from_pretrained(tmp_path / "base"), tmp_path / "plain")
    assert torch.allclose(logits(loaded), want, atol=2e-4)
