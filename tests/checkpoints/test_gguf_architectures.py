"""Every architecture that is known: transformers' own state comes back from the file that the converter makes of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from gguf.constants import GGMLQuantizationType as Kind
from safetensors.torch import save_file

import deltaw
from deltaw.checkpoints import open_checkpoint
from deltaw.checkpoints.gguf.names import ARCHITECTURES
from tests.checkpoints.converted import gguf_tensors, metadata, write

SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "Llama", {"attention_bias": True}),
    "mistral": ("llama", "Mistral", {}),
    "mixtral": ("llama", "Mixtral", {"num_local_experts": 4}),
    "qwen2": ("qwen2", "Qwen2", {"tie_word_embeddings": True}),
    "qwen2moe": ("qwen2moe", "Qwen2Moe", {**EXPERTS, "shared_expert_intermediate_size": 48}),
    "qwen3": ("qwen3", "Qwen3", {}),
    "qwen3moe": ("qwen3moe", "Qwen3Moe", EXPERTS),
    "gemma": ("gemma", "Gemma", {}),
    "gemma2": ("gemma2", "Gemma2", {}),
    "gemma3": ("gemma3", "Gemma3", {}),
    "phi3": ("phi3", "Phi3", {}),
    "starcoder2": ("starcoder2", "Starcoder2", {}),
    "gpt2": ("gpt2", "GPT2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_inner": 96, "n_positions": 64}),
    "ministral3": ("mistral3", "Ministral3", {}),
    "falcon 7b": ("falcon", "Falcon", {"num_kv_heads": 1}),
    "falcon 40b": ("falcon", "Falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "bloom": ("bloom", "Bloom", {"n_layer": 2, "n_head": 4}),
    "gpt-neox": ("gptneox", "GPTNeoX", {}),
    "bert": ("bert", "Bert", {}),
}


def model(name: str) -> tuple[dict[str, torch.Tensor], Any]:
    _, kind, more = CASES[name]
    word = f"{kind}TextConfig" if kind == "Gemma3" else f"{kind}Config"
    sizes = {"vocab_size": 96} if kind == "GPT2" else SMALL
    if kind in {"GPT2", "Bert", "Falcon", "Bloom", "GPTNeoX"}:
        sizes = {k: v for k, v in sizes.items() if k not in {"num_key_value_heads", "head_dim"}}
    config = getattr(transformers, word)(**{**sizes, **more})
    named = {"GPT2": "GPT2LMHeadModel", "Bert": "BertModel"}
    build = getattr(transformers, named.get(kind, f"{kind}ForCausalLM"))
    torch.manual_seed(3)
    made = build(config, add_pooling_layer=False) if kind == "Bert" else build(config)
    state = {k: v.detach().clone() for k, v in made.state_dict().items() if "position_ids" not in k}
    if config.tie_word_embeddings and "lm_head.weight" in state:
        del state["lm_head.weight"]
    if kind == "Bloom":  # as its checkpoints have it
        state = {k.removeprefix("transformer."): v for k, v in state.items()}
    if kind == "GPTNeoX":
        state = {k.replace("lm_head", "embed_out"): v for k, v in state.items()}
    return {k: torch.randn_like(v) if v.ndim == 1 else v for k, v in state.items()}, config


def test_every_architecture_is_tried():
    assert {arch for arch, _, _ in CASES.values()} == set(ARCHITECTURES)


@pytest.mark.parametrize("name", CASES)
def test_the_state_comes_back(name: str, tmp_path: Path):
    state, config = model(name)
    arch = CASES[name][0]
    tensors = gguf_tensors(state, arch, config)
    opened = open_checkpoint(write(tmp_path / "m.gguf", tensors, arch, **metadata(config)))
    experts = {n for n in state if n.endswith("gate_up_proj") and ".experts" in n}
    assert set(opened.tensors) - {n for n in opened.tensors if ".experts." in n} == {
        n for n in state if ".experts." not in n
    }
    for n, handle in opened.tensors.items():
        if n in state:
            assert handle.shape == tuple(state[n].shape), n
            np.testing.assert_allclose(handle.read(), state[n], atol=2e-7, err_msg=n)
    for n in experts:
        pair = [opened.tensors[n.replace("gate_up", leaf)].read() for leaf in ("gate", "up")]
        assert torch.equal(torch.cat(pair, dim=1), state[n])


@pytest.mark.parametrize("name", CASES)
def test_a_quantised_file_beside_its_original(name: str, tmp_path: Path):
    """All of the model is compared, and all of the change is the rounding that the format says."""
    state, config = model(name)
    arch = CASES[name][0]
    hf = tmp_path / "hf"
    hf.mkdir()
    save_file({k: v.contiguous() for k, v in state.items()}, hf / "model.safetensors")
    (hf / "config.json").write_text(json.dumps(config.to_diff_dict()))
    path = write(tmp_path / "q.gguf", gguf_tensors(state, arch, config), arch, Kind.Q8_0, **metadata(config))
    result = deltaw.analyze(str(hf), str(path))
    assert result.summary.coverage.share == 1.0, result.skipped
    matrices = [r for r in result.rows if r["ft_dtype"] == "q8_0"]
    assert matrices
    for row in matrices:
        assert row["relative_change"] < 0.01, row["name"]
        assert row["rounding_noise"] == pytest.approx(row["fro_norm"], rel=0.1)
        assert row["signal_rank"] == 0
    others = [r for r in result.rows if r["ft_dtype"] != "q8_0"]
    assert max((r["relative_change"] for r in others), default=0) < 1e-6


@pytest.mark.parametrize(("name", "keys"), [("falcon 7b", 16), ("falcon 40b", 32), ("bloom", 64), ("gpt-neox", 64)])
def test_the_parts_of_fused_heads_are_known_without_the_original(name: str, keys: int, tmp_path: Path):
    """Two GGUF files, of which nothing but their metadata says how many heads share a key."""
    state, config = model(name)
    arch = CASES[name][0]
    tensors = gguf_tensors(state, arch, config)
    a = write(tmp_path / "a.gguf", tensors, arch, **metadata(config))
    stored = next(n for n in tensors if n.endswith("0.attn_qkv.weight"))
    moved = tensors[stored].copy()
    moved[64 : 64 + keys] += 0.01  # in the file keys lie behind all queries
    b = write(tmp_path / "b.gguf", {**tensors, stored: moved}, arch, **metadata(config))
    changed = [r for r in deltaw.analyze(str(a), str(b), split_fused=True).rows if r["fro_norm"]]
    assert [(r["part"], r["rows"]) for r in changed] == [("k", keys)]
