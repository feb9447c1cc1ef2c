"""Models of transformers written as llama.cpp's converter writes them: renamed, permuted, shifted, stacked."""

import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.constants import GGMLQuantizationType as Kind

EXPERT = re.compile(r"(model\.layers\.\d+\.mlp\.experts)\.(gate_up_proj|down_proj)$")


def permute(w: np.ndarray, heads: int) -> np.ndarray:
    """The converter's own: (heads, 2, d/2) to (heads, d/2, 2)."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def apart(w: np.ndarray, heads: int, keys: int) -> np.ndarray:
    """The converter's own: all queries, all keys, all values."""
    groups = w.reshape(keys, heads // keys + 2, -1, *w.shape[1:])
    return np.concatenate([x.reshape(-1, *w.shape[1:]) for x in (groups[:, :-2], groups[:, -2], groups[:, -1])])


def gguf_tensors(state: dict[str, torch.Tensor], arch: str, config: Any) -> dict[str, np.ndarray]:
    kind = next(k for k, word in gguf.MODEL_ARCH_NAMES.items() if word == arch)
    table = gguf.get_tensor_name_map(kind, 8)
    out: dict[str, np.ndarray] = {}
    for name, tensor in state.items():
        w = tensor.float().numpy()
        if found := EXPERT.match(name):
            parts = {"down_proj": w}
            if found[2] == "gate_up_proj":
                half = w.shape[1] // 2
                parts = {"gate_proj": w[:, :half], "up_proj": w[:, half:]}
            for leaf, part in parts.items():
                new = table.get_name(f"{found[1]}.{leaf}")
                assert new, name
                out[f"{new}.weight"] = part
            continue
        new = table.get_name(name, try_suffixes=(".weight", ".bias"))
        assert new, name
        if arch in {"llama", "mistral3"} and ".attn_q." in new:
            w = permute(w, config.num_attention_heads)
        if arch in {"llama", "mistral3"} and ".attn_k." in new:
            w = permute(w, config.num_key_value_heads)
        if arch in {"falcon", "bloom", "gptneox"} and ".attn_qkv." in new:
            w = apart(w, config.num_attention_heads, getattr(config, "num_kv_heads", config.num_attention_heads))
        if arch.startswith("gemma") and new.endswith("norm.weight"):
            w = w + 1
        if arch == "gpt2" and re.search(r"(attn_qkv|attn_output|ffn_up|ffn_down)\.weight$", new):
            w = w.T
        out[new] = np.squeeze(w)
    return out


def write(
    path: Path, tensors: dict[str, np.ndarray], arch: str, kind: Kind = Kind.F32, shards: int = 0, **metadata: Any
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    split = -(-len(tensors) // shards) if shards else 0
    writer = gguf.GGUFWriter(path, arch, split_max_tensors=split)
    for key, value in metadata.items():
        add = getattr(writer, f"add_{key}")
        add(value)
    writer.add_token_list([f"<{i}>" for i in range(300)])
    for name, w in tensors.items():
        coded = kind if w.ndim > 1 and w.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0 else Kind.F32
        data = gguf.quants.quantize(np.ascontiguousarray(w, dtype=np.float32), coded)
        writer.add_tensor(name, data, raw_dtype=coded)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def metadata(config: Any) -> dict[str, Any]:
    heads = getattr(config, "num_attention_heads", None) or config.n_head
    out = {"block_count": 2, "embedding_length": config.hidden_size, "head_count": heads}
    for said in ("num_key_value_heads", "num_kv_heads"):
        if hasattr(config, said):
            out["head_count_kv"] = getattr(config, said)
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    return out | ({"expert_count": experts} if experts else {})
