"""A model of one module: containers down to its path, the module with W0 in it, placeholders beside it."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from deltaw.adapters.base import Base
from deltaw.checkpoints import numeric
from deltaw.tensors.names import kind as kind_of
from deltaw.types import Handle

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

CONVOLUTIONS = {3: "Conv1d", 4: "Conv2d", 5: "Conv3d"}


@dataclass(frozen=True)
class Stand:
    """A module of the base: where PEFT sees it, what it is, and where its weight and bias are stored."""

    path: str
    kind: str  # Linear, Conv1D (transformers'), Embedding, Conv1d, Conv2d, Conv3d, Norm
    weight: str
    bias: str | None
    shape: tuple[int, ...]

    @property
    def outputs_inputs(self) -> tuple[int, int]:
        """The size of the weight as a matrix, outputs × inputs; an embedding is tokens × width."""
        m, n = self.shape[0], prod(self.shape[1:])
        return (n, m) if self.kind == "Conv1D" else (m, n)

    @property
    def linear(self) -> bool:
        """Whether it is a linear layer, however it is stored."""
        return self.kind in {"Linear", "Conv1D"}


def stand_in(path: str, base: Base) -> Stand:
    """The description of a module of the base, by the shape and name of its weight."""
    weight = base.find(path + ".weight")
    assert weight is not None
    shape = base[weight].shape
    if len(shape) < 2:
        kind = "Norm"
    elif len(shape) > 2:
        kind = CONVOLUTIONS.get(len(shape), "Linear")
    elif kind_of(weight, 2) == "embedding":
        kind = "Embedding"
    else:
        kind = "Conv1D" if base.inputs_first(weight) else "Linear"
    return Stand(path, kind, weight, base.find(path + ".bias"), shape)


def build(stand: Stand, siblings: tuple[Stand, ...], base: Base) -> nn.Module:
    """Siblings as placeholders and `stand` with its stored weights, each under its path, in the siblings' order."""
    from torch import nn

    root = nn.Module()
    stands = siblings if any(s.path == stand.path for s in siblings) else (*siblings, stand)
    for s in stands:
        handles = {"weight": base[s.weight]} | ({"bias": base[s.bias]} if s.bias else {})
        real = s.path == stand.path
        _place(root, s.path, _module(s, {n: _real(h) if real else _placeholder(h) for n, h in handles.items()}))
    return root


def _place(root: nn.Module, path: str, module: nn.Module) -> None:
    from torch import nn

    *parents, leaf = path.split(".")
    for name in parents:
        child = dict(root.named_children()).get(name)
        if child is None:
            child = nn.Module()
            root.add_module(name, child)
        root = child
    root.add_module(leaf, module)


def _real(handle: Handle) -> Tensor:
    return handle.read().clone()


def _placeholder(handle: Handle) -> Tensor:
    """Zeros of the right shape and dtype that share one element."""
    import torch

    dtype: torch.dtype = getattr(torch, numeric(handle.dtype))
    return torch.zeros(1, dtype=dtype).expand(handle.shape)


def _module(stand: Stand, values: dict[str, Tensor]) -> nn.Module:
    """A module of the right class with the given weight and bias; strides and padding do not change ΔW."""
    from torch import nn

    bias = "bias" in values
    out, inputs = stand.outputs_inputs
    module: Any
    if stand.kind == "Conv1D":
        from transformers.pytorch_utils import Conv1D

        module = Conv1D(1, 1)
        module.nf, module.nx = out, inputs
    elif stand.kind == "Linear":
        module = nn.Linear(inputs, out, bias=bias, device="meta")
    elif stand.kind == "Embedding":
        module = nn.Embedding(out, inputs, device="meta")
    elif stand.kind == "Norm":
        module = nn.LayerNorm(out, bias=bias, device="meta")
    else:
        kernel = stand.shape[2:]
        module = getattr(nn, stand.kind)(stand.shape[1], out, kernel, bias=bias, device="meta")
    if stand.kind == "Conv1D" and not bias:
        del module.bias
        module.register_parameter("bias", None)
    for name, value in values.items():
        setattr(module, name, nn.Parameter(value, requires_grad=False))
    return module  # type: ignore[no-any-return]
