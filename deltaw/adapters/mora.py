"""MoRA: ΔW = D·M·C with one square M and fixed, parameter-free compression C and decompression D (Jiang et al. 2024).

The types are those of the authors' fork of PEFT. C (r̂ × in) sums inputs, D (out × r̂) repeats outputs:
1 modulo r̂ / tile; 2 contiguous groups / contiguous; 3 contiguous / tile; 4 modulo / contiguous; 6 every block of r̂
inputs is rotated (as in RoPE) by its own angle and has its own block of outputs. α is ignored, the scale is 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import sqrt
from typing import TYPE_CHECKING

from deltaw.errors import AdapterError
from deltaw.types import Handle

if TYPE_CHECKING:
    from torch import Tensor

KINDS = (1, 2, 3, 4, 6)
CONTIGUOUS_INPUTS = (2, 3)
CONTIGUOUS_OUTPUTS = (2, 4)


@dataclass(frozen=True)
class Mora:
    """The update of one linear layer."""

    name: str
    shape: tuple[int, int]
    handle: Handle
    kind: int
    transposed: bool = False
    expert: int | None = field(default=None, init=False)
    factored: bool = field(default=False, init=False)
    needs_base: bool = field(default=False, init=False)
    adapter_type: str = field(default="mora", init=False)
    scaling: float | None = field(default=1.0, init=False)

    @property
    def rank(self) -> int:
        """r̂, the most that ΔW can have for types 1–4."""
        return self.handle.shape[0]

    def delta(self, base: Tensor | None = None) -> Tensor:
        """ΔW (m, n), float64."""
        M = self.handle.read().double()
        if base is not None:
            M = M.to(base.device)
        return rotated(M, *self.shape) if self.kind == 6 else repeated(M, *self.shape, self.kind)


def width(outputs: int, inputs: int, r: int, kind: int) -> int:
    """r̂: as many parameters as LoRA of rank r has; even for type 6, which pairs the columns."""
    value = int(sqrt((inputs + outputs) * r) + 0.5)
    return value // 2 * 2 if kind == 6 else value


def check(update: Mora, r: int, source: str) -> None:
    """Hold an update's M against the config.

    Raises:
        AdapterError: The type is not known, or M does not have the width that rank and shape give.
    """
    if update.kind not in KINDS:
        known = ", ".join(map(str, KINDS))
        raise AdapterError(f"{source}: mora_type is {update.kind} in adapter_config.json; expected one of {known}")
    expected = width(*update.shape, r, update.kind)
    if update.kind not in CONTIGUOUS_INPUTS and expected > 2 * update.shape[1]:
        raise AdapterError(
            f"{source}: rank {r} gives {update.name} an M of {expected}×{expected}, more than twice its "
            f"{update.shape[1]} inputs, which MoRA cannot compress; give the base that the adapter was trained on"
        )
    if update.rank != expected:
        m, n = update.shape
        raise AdapterError(
            f"{source}: M of {update.name} is {update.rank}×{update.rank}, but rank {r} on the base's {m}×{n} gives "
            f"{expected}×{expected}; give the base that the adapter was trained on"
        )


def groups(n: int, width: int, contiguous: bool) -> Tensor:
    """The slot of each of n coordinates: modulo `width`, or in runs of which the first n mod width are one longer."""
    import torch

    if not contiguous:
        return torch.arange(n) % width
    per, longer = divmod(n, width)
    sizes = torch.full((width,), per)
    sizes[:longer] += 1
    return torch.repeat_interleave(torch.arange(width), sizes)


def repeated(M: Tensor, outputs: int, inputs: int, kind: int) -> Tensor:
    """Types 1–4: entry (o, i) is M[slot of o, slot of i], and the inputs that wrap count once more.

    When r̂ does not divide the inputs, modulo grouping pads x with its own first columns, so those reach two slots.
    """
    r = M.shape[0]
    contiguous = kind in CONTIGUOUS_INPUTS
    columns = M[:, groups(inputs, r, contiguous).to(M.device)]
    padding = -inputs % r
    if not contiguous and padding:
        columns[:, :padding] += M[:, r - padding :]
    return columns[groups(outputs, r, kind in CONTIGUOUS_OUTPUTS).to(M.device)]


def rotated(M: Tensor, outputs: int, inputs: int) -> Tensor:
    """Type 6: M·cos(iθ) + [M[:, r̂/2:], −M[:, :r̂/2]]·sin(iθ) on the diagonal, cut or repeated to the outputs."""
    import torch

    r = M.shape[0]
    blocks = -(-inputs // r)
    f = 10000.0 ** (-torch.arange(0, r, 2, dtype=torch.float64, device=M.device) / r)
    theta = torch.cat((f, f))
    turned = torch.cat((M[:, r // 2 :], -M[:, : r // 2]), dim=1)
    angles = torch.arange(blocks, dtype=torch.float64, device=M.device)[:, None] * theta
    W: Tensor = torch.block_diag(*(M * torch.cos(a) + turned * torch.sin(a) for a in angles))  # type: ignore[no-untyped-call]
    padding = blocks * r - inputs
    if padding:  # the inputs that fill the last block are the first ones again
        W[:, :padding] += W[:, inputs:].clone()
        W = W[:, :inputs]
    W = W[:outputs]
    return W if len(W) == outputs else W.repeat(-(-outputs // len(W)), 1)[:outputs]
