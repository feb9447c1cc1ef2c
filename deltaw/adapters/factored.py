"""ΔW = Σ s·B·A as thin factors: what LoRA and its relatives add, never multiplied out (Hu et al. 2021).

Every layout comes down to one form. A linear layer stores B (m, r) and A (r, n). An embedding stores W (rows are
tokens) and adds (B·A)ᵀ, so Aᵀ and Bᵀ take the places of B and A. A convolution stores A as (r, in, kernel…) and B as
(out, r, 1…). Factors are read and multiplied in float64: the update is small against W0, its rounding is not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Protocol

from deltaw.errors import AdapterError
from deltaw.types import Factors, Handle

if TYPE_CHECKING:
    from torch import Tensor

Form = Callable[..., "Tensor"]


@dataclass(frozen=True)
class FactorSource:
    """One factor: the stored tensors that it is made of, and how. `form` is a module-level function or a partial."""

    handles: tuple[Handle, ...]
    form: Form

    def read(self) -> Tensor:
        """The factor as a float64 matrix of its own: never memory that a handle holds."""
        import torch

        return self.form(*(h.read().to(torch.float64, copy=True) for h in self.handles))


@dataclass(frozen=True, eq=False)
class StackedFactor:
    """A factor of all experts; equal to nothing but itself, so that what is kept of it is never another file's."""

    handle: Handle


@dataclass(frozen=True)
class ExpertPart:
    """The share of one expert in a factor of all: PEFT stores A as (experts·r, in) and B as (out, r·experts)."""

    stack: StackedFactor
    expert: int
    experts: int
    columns: bool  # of B, where the experts of one rank stand beside each other
    transposed: bool = False

    def read(self) -> Tensor:
        """The expert's factor as a float64 matrix of its own."""
        import torch

        whole = _whole(self.stack)
        if self.columns:
            own = whole.reshape(whole.shape[0], -1, self.experts)[:, :, self.expert]
        else:
            own = whole.reshape(self.experts, -1, whole.shape[-1])[self.expert]
        own = own.to(torch.float64, copy=True)
        return own.T if self.transposed else own


@lru_cache(maxsize=2)
def _whole(stack: StackedFactor) -> Tensor:
    """The factor of all experts, kept while its experts are read one after another: they lie interleaved."""
    return stack.handle.read()


class Readable(Protocol):
    """Something that reads one factor."""

    def read(self) -> Tensor:
        """A float64 matrix."""


@dataclass(frozen=True)
class SomeRows:
    """Rows of a factor: what of gate and up together is the gate's, or the tokens that the base has."""

    factor: Readable
    start: int
    stop: int

    def read(self) -> Tensor:
        """The rows as a float64 matrix of its own."""
        return self.factor.read()[self.start : self.stop].clone()


@dataclass(frozen=True)
class Term:
    """One product s·B·A."""

    scaling: float
    B: Readable
    A: Readable


@dataclass(frozen=True)
class LowRank:
    """A factored update of one base tensor; more than one term where an initial adapter is subtracted."""

    name: str
    shape: tuple[int, int]
    terms: tuple[Term, ...]
    adapter_type: str
    rank: int | None
    scaling: float | None
    expert: int | None = None
    transposed: bool = False
    factored: bool = field(default=True, init=False)
    needs_base: bool = field(default=False, init=False)

    def delta(self, base: Tensor | None = None) -> Factors:
        """B (m, r) with the scaling in it and A (r, n), float64, on the device of `base` if there is one.

        Raises:
            AdapterError: The factors do not multiply to `shape`.
        """
        import torch

        left, right = [], []
        for term in self.terms:
            B, A = term.B.read(), term.A.read()
            if B.ndim != 2 or A.ndim != 2 or (B.shape[0], A.shape[1]) != self.shape or B.shape[1] != A.shape[0]:
                raise AdapterError(
                    f"{self.name}: factors {tuple(B.shape)} and {tuple(A.shape)} in the adapter do not multiply "
                    f"to the {self.shape[0]}×{self.shape[1]} of the base"
                )
            left.append(B.mul_(term.scaling))  # in place: at 200,000 rows a copy more is what counts
            right.append(A)
        B = left[0] if len(left) == 1 else torch.cat(left, dim=1)
        A = right[0] if len(right) == 1 else torch.cat(right, dim=0)
        return Factors(B, A) if base is None else Factors(B.to(base.device), A.to(base.device))


def dense(factors: Factors) -> Tensor:
    """The product, (m, n): only where the method itself is not low rank (DoRA)."""
    return factors.B @ factors.A


def matrix(t: Tensor) -> Tensor:
    """First dimension × all others: a linear factor as it is, a convolution's flattened."""
    return t.reshape(t.shape[0], prod(t.shape[1:]))  # not −1: a factor that was pruned away has no entries


def transpose(t: Tensor) -> Tensor:
    """The transposed matrix: an embedding's factor, or one of a tensor stored inputs × outputs."""
    return t.T


def scaled_rows(A: Tensor, E: Tensor) -> Tensor:
    """AdaLoRA's Λ·Q: the rows of A by the singular values E (Zhang et al. 2023)."""
    return matrix(A) * E.reshape(-1, 1)


def block_diagonal(w: Tensor, blocks: int) -> Tensor:
    """BD-LoRA: the blocks are stored on top of each other, and stand on the diagonal."""
    import torch

    out: Tensor = torch.block_diag(*torch.chunk(w, blocks, dim=0))  # type: ignore[no-untyped-call]
    return out


def tucker(mid: Tensor, down: Tensor) -> Tensor:
    """LoCon's core and down factor of a convolution as one A: (s, r, kernel…) and (r, in, 1…) → (s, in·kernel)."""
    r = down.shape[0]
    folded = (mid.reshape(mid.shape[0], r, -1).mT @ down.reshape(r, -1)).mT  # (s, in, kernel)
    return folded.reshape(mid.shape[0], -1)
