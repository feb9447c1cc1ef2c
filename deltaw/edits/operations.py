"""What `edit` does to one matrix's update: each operation on ΔW, in the contract's order, in float64.

An intruder's direction of W is scaled as Shuttleworth et al. 2024 do: W + (λ − 1)·σ·u·vᵀ. A new direction may come
among the top k when one is taken out; with λ = 0 the search is repeated until none of them is an intruder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deltaw.alignment.alignment import base_basis, basis
from deltaw.errors import OptionError
from deltaw.spectra import Triplets, leading_triplets, seeded, singular_values
from deltaw.types import JsonValue

PASSES = 20  # of the search for intruders


@dataclass(frozen=True)
class Operations:
    """What is taken out, in the order of the fields.

    Attributes:
        without_decay: Take out the common weight decay.
        denoise: Only directions above the noise edge.
        keep_rank: Only so many directions.
        rescale: With `keep_rank`: at ΔW's norm.
        without_intruders: Scale the intruders among W's top k.
        strength: What is kept of them.
        top_k, epsilon: What an intruder is.
        scale: The factor of what is left.

    Raises:
        OptionError: A value cannot be used.
    """

    without_decay: bool = False
    denoise: bool = False
    keep_rank: int | None = None
    rescale: bool = False
    without_intruders: bool = False
    strength: float = 0.0
    top_k: int = 10
    epsilon: float = 0.5
    scale: float | None = None

    def __post_init__(self) -> None:
        if self.keep_rank is not None and self.keep_rank < 1:
            raise OptionError(f"keep_rank is {self.keep_rank}; expected at least 1")
        if self.rescale and self.keep_rank is None:
            raise OptionError("rescale goes with keep_rank; give both, or neither")
        if self.strength and not self.without_intruders:
            raise OptionError("strength goes with without_intruders; give both, or neither")
        if not 0 <= self.strength <= 1:
            raise OptionError(f"strength is {self.strength}; expected 0 to 1")
        if self.top_k < 1 or not 0 <= self.epsilon <= 1:
            raise OptionError(f"top_k is {self.top_k} and epsilon {self.epsilon}; expected at least 1, and a cosine")
        if self.scale is not None and not math.isfinite(self.scale):
            raise OptionError(f"scale is {self.scale}; expected a finite number")

    def to_dict(self) -> dict[str, JsonValue]:
        """What was asked for, as JSON values."""
        return {n: v for n, v in vars(self).items() if v != getattr(Operations(), n)}


@dataclass(frozen=True)
class EditedRow:
    """What one operation did to one matrix.

    Attributes:
        name, part: The matrix.
        operation: By its option.
        directions: How many directions were taken out or scaled; None where that is not what it does.
        energy_removed: 1 − ‖after‖²/‖before‖² of the update; negative where it grew.
        norm_before, norm_after: ‖ΔW‖F.
    """

    name: str
    part: str
    operation: str
    directions: int | None
    energy_removed: float
    norm_before: float
    norm_after: float


@dataclass(frozen=True)
class Change:
    """An update after one operation, and how many directions that took."""

    operation: str
    delta: Tensor
    directions: int | None


def changes(
    name: str, W0: Tensor, delta: Tensor, asked: Operations, *, decay: float | None, edge: float
) -> list[Change]:
    """The update after each operation that changes it.

    Args:
        name: What random numbers are seeded by.
        W0: (m, n) or (n,), float64.
        delta: W − W0, float64.
        asked: What is to be done.
        decay: The common c, where this tensor shares it.
        edge: The noise edge of ΔW; 0 where nothing was stored.
    """
    out: list[Change] = []

    def now() -> Tensor:
        return out[-1].delta if out else delta

    matrix = delta.ndim == 2 and min(delta.shape) > 0
    if decay is not None:
        out.append(Change("without-decay", now() + decay * W0, None))
    if asked.denoise and matrix and edge:
        values = singular_values(now()).values
        signal = int(np.count_nonzero(values > edge))
        if signal < len(values):
            out.append(Change("denoise", _leading(name, now(), signal), len(values) - signal))
    if asked.keep_rank is not None and matrix and asked.keep_rank < min(delta.shape):
        kept, before = _leading(name, now(), asked.keep_rank), torch.linalg.vector_norm(now())
        after = torch.linalg.vector_norm(kept)
        if asked.rescale and after:
            kept = kept * (before / after)
        out.append(Change("keep-rank", kept, min(delta.shape) - asked.keep_rank))
    if asked.without_intruders and matrix and (found := _without_intruders(W0, now(), asked)) is not None:
        out.append(found)
    if asked.scale is not None and asked.scale != 1:
        out.append(Change("scale", asked.scale * now(), None))
    return out


def _leading(name: str, x: Tensor, rank: int) -> Tensor:
    if not rank:
        return torch.zeros_like(x)
    found: Triplets = leading_triplets(x, rank, generator=seeded(x.device, name))
    out: Tensor = (found.U * found.S) @ found.Vh
    return out


def _without_intruders(W0: Tensor, delta: Tensor, asked: Operations) -> Change | None:
    """The update without (or with weaker) intruders; None where there are none."""
    old = base_basis(W0, None, W0.device)
    W, count = W0 + delta, 0
    for _ in range(PASSES if asked.strength == 0 else 1):
        new = basis(W)
        left, right = new.top(min(asked.top_k, len(new.s)))
        cosines = old.cosines(left, right)[0].abs().max(dim=0).values
        found = torch.nonzero((cosines < asked.epsilon) & (new.s[: len(cosines)] > 0)).flatten()
        if not len(found):
            break
        u, s, v = left[:, found], new.s[found], right[:, found]
        W = W + ((asked.strength - 1) * u * s) @ v.T
        count += len(found)
    return Change("without-intruders", W - W0, count) if count else None


def told(name: str, part: str, delta: Tensor, found: list[Change]) -> list[EditedRow]:
    """The rows of `edit.csv` of one matrix."""
    rows, before = [], float(torch.linalg.vector_norm(delta))
    for change in found:
        after = float(torch.linalg.vector_norm(change.delta))
        removed = 1 - (after / before) ** 2 if before else 0.0
        rows.append(EditedRow(name, part, change.operation, change.directions, removed, before, after))
        before = after
    return rows
