"""Updates that are no product of thin factors: DoRA, KaSA, and what is added as it is stored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from deltaw.adapters.factored import LowRank
from deltaw.adapters.factored import dense as multiplied
from deltaw.errors import AdapterError
from deltaw.types import Handle

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Around:
    """An update built around a low-rank one; what the subclasses share is what they say of themselves."""

    low_rank: LowRank
    factored: bool = field(default=False, init=False)
    needs_base: bool = field(default=True, init=False)

    @property
    def name(self) -> str:
        """The base tensor."""
        return self.low_rank.name

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs × inputs."""
        return self.low_rank.shape

    @property
    def expert(self) -> int | None:
        """The slice of a 3-D tensor, None for all of it."""
        return self.low_rank.expert

    @property
    def transposed(self) -> bool:
        """Whether the base stores inputs × outputs."""
        return self.low_rank.transposed

    @property
    def adapter_type(self) -> str:
        """The method."""
        return self.low_rank.adapter_type

    @property
    def rank(self) -> int | None:
        """The rank of B·A."""
        return self.low_rank.rank

    @property
    def scaling(self) -> float | None:
        """The factor on B·A."""
        return self.low_rank.scaling


@dataclass(frozen=True)
class Dora(Around):
    """ΔW = m ⊙ (W0 + sBA)/‖W0 + sBA‖ − W0 (Liu et al. 2024): one norm per output row, per column of an embedding."""

    magnitude: Handle | None = None
    columns: bool = False

    def delta(self, base: Tensor | None) -> Tensor:
        """ΔW (m, n), float64.

        Raises:
            AdapterError: There is not one magnitude per output.
        """
        assert base is not None
        assert self.magnitude is not None
        W0 = base.reshape(self.shape).double()
        m = self.magnitude.read().double().flatten().to(W0.device)
        outputs = self.shape[1] if self.columns else self.shape[0]
        if len(m) != outputs:
            raise AdapterError(f"{self.name}: {len(m)} magnitudes in the adapter for {outputs} outputs of the base")
        V = W0 + multiplied(self.low_rank.delta(W0))
        norm = V.norm(dim=0 if self.columns else 1)
        ratio = m / norm
        delta: Tensor = V * (ratio if self.columns else ratio[:, None]) - W0
        return delta


@dataclass(frozen=True)
class Kasa(Around):
    """ΔW = sB·diag(ΔΣ)·A − the r smallest singular components of W0, which KaSA removes first (Wang et al. 2024)."""

    def delta(self, base: Tensor | None) -> Tensor:
        """ΔW (m, n), float64.

        Raises:
            AdapterError: The rank leaves nothing of W0.
        """
        import torch

        assert base is not None
        W0 = base.reshape(self.shape).double()
        r = self.rank or 0
        if r >= min(self.shape):
            raise AdapterError(
                f"{self.name}: KaSA of rank {r} would remove all of a {self.shape[0]}×{self.shape[1]} base"
            )
        U, S, Vh = torch.linalg.svd(W0, full_matrices=False)
        removed: Tensor = (U[:, -r:] * S[-r:]) @ Vh[-r:]
        return multiplied(self.low_rank.delta(W0)) - removed


@dataclass(frozen=True)
class Added:
    """What is added as it is stored, s·D: `lora_bias`, or a difference beside the factors of a single file."""

    name: str
    shape: tuple[int, int]
    handle: Handle
    rank: int | None
    scaling: float
    adapter_type: str
    expert: int | None = field(default=None, init=False)
    transposed: bool = field(default=False, init=False)
    factored: bool = field(default=False, init=False)
    needs_base: bool = field(default=False, init=False)

    def delta(self, base: Tensor | None = None) -> Tensor:
        """ΔW (m, n), or (m,) for a bias, float64."""
        out = self.handle.read().double() * self.scaling
        out = out.reshape(self.shape) if out.ndim > 1 else out
        return out if base is None else out.to(base.device)
