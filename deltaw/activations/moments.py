"""The second moments C = E[xxᵀ] of one matrix's inputs x, in the three forms in which they are kept.

`moments` holds Σxxᵀ itself; `sketch` a few rows S with SᵀS ≤ Σxxᵀ ≤ SᵀS + error·I (Frequent Directions, for inputs
too wide for the whole); `counts` how often each row of an embedding was looked up, where x is one-hot.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from deltaw.errors import ActivationsError
from deltaw.spectra.lapack import gram
from deltaw.types import Factors

Form = Literal["moments", "sketch", "counts"]
DIMENSIONS = {"moments": 2, "sketch": 2, "counts": 1}
NEGATIVE = 1e-9  # of the largest eigenvalue: below it a negative one is rounding
UNRESOLVED = 1e-13  # of it: below it a sketch's Gram matrix tells no directions
COLUMN_BLOCK = 256  # of a triangular factor: what lies above the blocks is never multiplied
ROW_BLOCK = 1024  # rows of W0 that are multiplied at a time: bounds the memory


@dataclass(frozen=True)
class Moments:
    """The inputs of one matrix on a data set.

    Attributes:
        form: How `sums` holds them.
        sums: Float64: `moments` Σxxᵀ, (n, n); `sketch` S, (r, n); `counts` of the rows of an embedding, (m,).
        count: How many inputs there were.
        energy: Σ‖x‖².
        error: Of a sketch: the largest eigenvalue that Σxxᵀ − SᵀS may have; else 0.
        inputs_first: Whether the model stores the matrix as inputs × outputs (transformers' `Conv1D`).
    """

    form: Form
    sums: Tensor
    count: int
    energy: float
    error: float = 0.0
    inputs_first: bool = False

    @property
    def dimension(self) -> int:
        """Of an input; of an embedding the number of its rows."""
        return self.sums.shape[-1]

    @property
    def acts_on_rows(self) -> bool:
        """Whether an input picks a row of the matrix (an embedding) and does not meet its columns."""
        return self.form == "counts"

    def to(self, device: torch.device) -> Moments:
        """The same on a device; on the CPU instead of Apple's GPUs, which have no float64."""
        if device.type == "mps":
            device = torch.device("cpu")
        return replace(self, sums=self.sums.to(device))

    def covariance(self) -> Tensor:
        """C = Σxxᵀ / count, (n, n); of a sketch without what it leaves out; of counts their shares on the diagonal."""
        if self.form == "counts":
            return torch.diag(self.sums / self.count)
        return (self.sums.T @ self.sums if self.form == "sketch" else self.sums) / self.count

    @cached_property
    def spread(self) -> float:
        """Of a sketch: the part of Σxxᵀ that it leaves out, spread evenly over the n directions; else 0."""
        if self.form != "sketch" or not self.error:
            return 0.0
        left = self.energy - float(self.sums.square().sum())
        return min(max(left, 0.0) / self.dimension, self.error)

    @property
    def left_open(self) -> tuple[float, float]:
        """How much of Σxxᵀ, times I, a sketch may have taken too much and too little; 0 of what is whole."""
        return self.spread, self.error - self.spread

    def apply(self, x: Tensor | Factors) -> Tensor | Factors:
        """X·C^½, up to a rotation of its columns, which changes no singular value; of an embedding C^½·X.

        Args:
            x: (m, n) on the moments' device, or its factors, which stay factors.

        Returns:
            A matrix of as many rows and columns, in float64 (of an embedding in the matrix's own dtype).

        Raises:
            ActivationsError: The sums are no second moments.
        """
        if isinstance(x, Factors):
            B, A = x.B.to(self.sums.device), x.A.to(self.sums.device)
            if self.acts_on_rows:
                return Factors(self._weighted(B.double()), A)
            return Factors(B, self._times_root(A.double()))
        x = x.to(self.sums.device)
        return self._weighted(x) if self.acts_on_rows else self._times_root(x.double())

    def squared_norm(self, x: Tensor) -> float:
        """‖X·C^½‖F² of a matrix, by blocks of its rows.

        Args:
            x: (m, n), of any floating dtype, on any device.

        Raises:
            ActivationsError: The sums are no second moments.
        """
        if self.acts_on_rows:
            weights = self.sums / self.count
            blocks = _blocks(x, self.sums.device)
            return sum(float(block.square().sum(dim=1) @ weights[rows]) for rows, block in blocks)
        return sum(float(self._times_root(block).square().sum()) for _, block in _blocks(x, self.sums.device))

    def _weighted(self, x: Tensor) -> Tensor:
        weighted: Tensor = x * (self.sums / self.count).sqrt().to(x.dtype)[:, None]
        return weighted

    def _times_root(self, x: Tensor) -> Tensor:
        if self.form == "moments":
            root, triangular = self._root
            return _times_lower(x, root) if triangular else x @ root
        directions, values = self._sketched
        least = self.spread**0.5
        inside = (x @ directions) * (values - least)
        whole: Tensor = (least * x + inside @ directions.T) / self.count**0.5
        return whole

    @cached_property
    def _root(self) -> tuple[Tensor, bool]:
        """R with R·Rᵀ = C, and whether it is lower triangular.

        A Cholesky factor, or by eigenvectors where C is singular (fewer inputs than dimensions).

        Raises:
            ActivationsError: C has an eigenvalue below 0.
        """
        C = self.sums / self.count
        factor = torch.linalg.cholesky_ex(C)
        if not int(factor.info):
            return factor.L, True
        values, vectors = torch.linalg.eigh(C)
        if float(values[0]) < -NEGATIVE * float(values[-1].abs()):
            raise ActivationsError(
                f"Σxxᵀ has an eigenvalue of {float(values[0]):.3g} beside {float(values[-1]):.3g}; expected none below "
                "0: collect the activations again"
            )
        return vectors * values.clamp(min=0).sqrt(), False

    @cached_property
    def _sketched(self) -> tuple[Tensor, Tensor]:
        """The directions that a sketch holds as columns, and √(σ² + spread) of each."""
        squares, left = torch.linalg.eigh(gram(self.sums.T.contiguous()), UPLO="U")
        kept = squares > UNRESOLVED * squares[-1]
        directions = (self.sums.T @ left[:, kept]) / squares[kept].sqrt()
        return directions, (squares[kept] + self.spread).sqrt()


def _times_lower(x: Tensor, lower: Tensor) -> Tensor:
    """x·L, without the half of the work that meets L's zeros."""
    out = torch.empty_like(x)
    for start in range(0, x.shape[1], COLUMN_BLOCK):
        columns = slice(start, start + COLUMN_BLOCK)
        torch.mm(x[:, start:], lower[start:, columns], out=out[:, columns])
    return out


def _blocks(x: Tensor, device: torch.device) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of rows in float64 on a device, and where they stand."""
    for start in range(0, len(x), ROW_BLOCK):
        rows = slice(start, start + ROW_BLOCK)
        yield rows, x[rows].to(device).double()
