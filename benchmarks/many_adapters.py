"""Synthetic adapters of one base, as many as asked for: what `benchmarks/survey.py` and its tests look at.

Tasks have directions of their own in each matrix; adapters of one task share most of them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import save_file

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Shape:
    """A Llama-shaped model: seven projections in each layer."""

    hidden: int = 1024
    inter: int = 2816
    layers: int = 16

    def matrices(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of each adapted weight, by module."""
        h, i = self.hidden, self.inter
        of_layer = {f"self_attn.{x}_proj": (h, h) for x in "qkvo"}
        of_layer |= {"mlp.gate_proj": (i, h), "mlp.up_proj": (i, h), "mlp.down_proj": (h, i)}
        return {f"model.layers.{n}.{module}": s for n in range(self.layers) for module, s in of_layer.items()}


def write_base(folder: Path, shape: Shape, seed: int = 0) -> Path:
    """A random base in bfloat16."""
    g = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    state = {f"{m}.weight": (0.02 * torch.randn(s, generator=g)).bfloat16() for m, s in shape.matrices().items()}
    save_file(state, folder / "model.safetensors")
    return folder


def write_adapter(folder: Path, factors: dict[str, tuple[torch.Tensor, torch.Tensor]], **config: object) -> Path:
    """A LoRA as PEFT saves it; `factors` maps a module to its B (m, r) and A (r, n)."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for module, (B, A) in factors.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = A.contiguous()
        tensors[f"base_model.model.{module}.lora_B.weight"] = B.contiguous()
    save_file(tensors, folder / "adapter_model.safetensors")
    r = next(iter(factors.values()))[0].shape[1]
    targets = sorted({m.rsplit(".", 1)[-1] for m in factors})
    about = {"peft_type": "LORA", "r": r, "lora_alpha": 2 * r, "target_modules": targets, **config}
    (folder / "adapter_config.json").write_text(json.dumps(about))
    return folder


def task_factors(
    shape: Shape, task: int, seed: int, *, rank: int = 8, alike: float = 0.8, size: float = 1.0
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """An adapter of a task: `alike` of each factor is the task's, the rest its own."""
    common, own = torch.Generator().manual_seed(7919 * task + 1), torch.Generator().manual_seed(104729 * seed + task)
    rest = (1 - alike**2) ** 0.5
    out = {}
    for module, (m, n) in shape.matrices().items():
        B = alike * torch.randn(m, rank, generator=common) + rest * torch.randn(m, rank, generator=own)
        A = alike * torch.randn(rank, n, generator=common) + rest * torch.randn(rank, n, generator=own)
        out[module] = (size * 0.01 * B, 0.01 * A)
    return out


def adjusted_rand(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    """How alike two groupings are, by numbers of groups (N,): 1 the same, 0 as by chance (Hubert & Arabie 1985)."""
    table = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(table, (a, b), 1)

    def two(x: NDArray[np.float64]) -> float:
        return float((x * (x - 1) / 2).sum())

    both, rows, cols = two(table), two(table.sum(1)), two(table.sum(0))
    expected = rows * cols / two(np.array([len(a)]))
    return (both - expected) / ((rows + cols) / 2 - expected)
