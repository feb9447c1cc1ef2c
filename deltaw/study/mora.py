"""MoRA (Jiang et al. 2024, arXiv:2405.12130): a square trainable matrix between a fixed compression and its inverse.

ΔW·x = up(M·down(x)) with M of r̂ × r̂, r̂ = ⌊√((in + out)·r) + ½⌋: as many parameters as LoRA of rank r, and a rank up to
r̂. No published library has it, so this is its own module, for the two types that the paper recommends: type 1 shares
rows and columns (large ranks), type 6 rotates blocks of the input as RoPE does (small ranks). It saves the layout of
the authors' fork of peft (kongds/MoRA): `use_mora`, `mora_type`, and the same square matrix as `lora_A` and `lora_B`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from deltaw.adapters.mora import width
from deltaw.errors import OptionError
from deltaw.tensors.names import PEFT_PREFIX

TYPES = (1, 6)


class MoRALinear(nn.Module):
    """A frozen linear layer and a MoRA update beside it; M starts at zero.

    Args:
        base: The layer; its parameters are frozen here.
        rank: The rank of the LoRA with as many parameters.
        mora_type: 1 (sharing) or 6 (rotation).
        dropout: Of the update's input, in training.

    Raises:
        OptionError: The type is not one of `TYPES`, or M would be wider than the layer's input.
    """

    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(self, base: nn.Linear, rank: int, mora_type: int = 6, dropout: float = 0.0) -> None:
        super().__init__()
        if mora_type not in TYPES:
            raise OptionError(f"mora_type {mora_type}: expected one of {TYPES}")
        r = width(base.out_features, base.in_features, rank, mora_type)
        if not 0 < r <= base.in_features:
            raise OptionError(
                f"MoRA of rank {rank} on a layer of {base.in_features} inputs and {base.out_features} outputs has "
                f"r̂ = {r}; expected 1 to {base.in_features}: choose another rank"
            )
        self.base, self.r, self.mora_type = base.requires_grad_(False), r, mora_type
        self.dropout = nn.Dropout(dropout)
        weight = base.weight
        self.M = nn.Parameter(torch.zeros(r, r, device=weight.device, dtype=weight.dtype))
        angles = rotation_angles(base.in_features, r).to(weight.device)
        self.register_buffer("cos", angles.cos().to(weight.dtype), persistent=False)
        self.register_buffer("sin", angles.sin().to(weight.dtype), persistent=False)

    @property
    def weight(self) -> torch.Tensor:
        """The frozen base weight: some models read it off their layers."""
        return self.base.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, in) → (…, out)."""
        y: torch.Tensor = self.base(x)
        return y + self.update(self.dropout(x))

    def update(self, x: torch.Tensor) -> torch.Tensor:
        """ΔW·x, (…, in) → (…, out)."""
        blocks = math.ceil(x.shape[-1] / self.r)
        # Where r̂ does not divide the inputs, the last block wraps round to the first columns, as in the fork.
        x = torch.cat([x, x[..., : blocks * self.r - x.shape[-1]]], dim=-1).reshape(*x.shape[:-1], blocks, self.r)
        if self.mora_type == 1:
            y = nn.functional.linear(x.sum(dim=-2), self.M)
        else:
            half = self.r // 2
            turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
            y = nn.functional.linear(x * self.cos + turned * self.sin, self.M).flatten(-2)
        out = self.base.out_features
        return torch.cat([y] * math.ceil(out / y.shape[-1]), dim=-1)[..., :out]


def rotation_angles(in_features: int, r: int) -> torch.Tensor:
    """iθ for block i of the input, (blocks, r̂): θ = cat(f, f), f_j = 10000^(−2j/r̂)."""
    f = 10000.0 ** (-torch.arange(0, r - r % 2, 2, dtype=torch.float64) / r)
    blocks = torch.arange(math.ceil(in_features / r), dtype=torch.float64)
    return torch.outer(blocks, torch.cat([f, f, f[: r % 2]]))  # an odd r̂ is type 1, which never turns


def layers(model: nn.Module) -> Iterator[tuple[str, MoRALinear]]:
    """The MoRA layers of a model, by the name of the layer they stand for."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, MoRALinear))


def inject(model: nn.Module, names: list[str], rank: int, mora_type: int, dropout: float) -> None:
    """Freeze a model and put MoRA beside the named linear layers.

    Raises:
        OptionError: There is no linear layer to adapt, or one is too narrow for the rank.
    """
    if not names:
        raise OptionError("MoRA adapts torch.nn.Linear layers, and this model has none beside its output layer")
    model.requires_grad_(False)
    for name in names:
        parent, _, leaf = name.rpartition(".")
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear), name
        setattr(model.get_submodule(parent), leaf, MoRALinear(layer, rank, mora_type, dropout))


def save(model: nn.Module, out: Path, rank: int, base: str) -> None:
    """Write the adapter as the authors' fork of peft does: `adapter_config.json` and `adapter_model.safetensors`."""
    from safetensors.torch import save_file

    found = dict(layers(model))
    first = next(iter(found.values()))
    config = {
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": rank,
        "lora_dropout": first.dropout.p,
        "mora_type": first.mora_type,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": sorted({name.rpartition(".")[2] for name in found}),
        "task_type": "CAUSAL_LM",
        "use_mora": True,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tensors = {}
    for name, module in found.items():
        M = module.M.detach().cpu().contiguous()
        tensors[f"{PEFT_PREFIX}{name}.lora_A.weight"] = M
        tensors[f"{PEFT_PREFIX}{name}.lora_B.weight"] = M.clone()  # safetensors stores no shared memory
    save_file(tensors, out / "adapter_model.safetensors", metadata={"format": "pt"})
