"""The best pair for a data set: not the directions of ΔW that are largest, but those that do most to its inputs.

Of all B·A of rank r the one with the least ‖(ΔW − B·A)·C^½‖F is U·Uᵀ·ΔW, with the r leading left singular vectors U of
ΔW·C^½ (Eckart & Young 1936, for ΔW·C^½): no inverse of C^½ is needed, so that C may be singular. Where an input picks a
row (an embedding), the same holds of the transposes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from deltaw.activations import Activations, open_activations
from deltaw.activations.matching import MatrixInputs, match
from deltaw.activations.moments import Moments
from deltaw.delta.difference import Delta
from deltaw.documents import Document
from deltaw.edits.directions import KnownSpectrum, spread, triplets
from deltaw.errors import EditError
from deltaw.spectra import Triplets, factored_svd, leading_triplets, seeded
from deltaw.types import Factors, Pair, Vector


@dataclass(frozen=True)
class MatrixData:
    """The inputs of one matrix, on the device to compute on.

    Attributes:
        moments: Their second moments.
        turned: Whether they meet the rows of the matrix, as its layout was not known.
        name: What random numbers are seeded by.
    """

    moments: Moments
    turned: bool
    name: str

    @classmethod
    def of(cls, pair: Pair, inputs: MatrixInputs, device: torch.device) -> MatrixData | None:
        """The inputs of a pair's matrix; None where the file has none.

        Raises:
            ActivationsError: They cannot be read.
        """
        moments = inputs.of(pair)
        return None if moments is None else cls(moments.to(device), inputs.turned(pair), pair.key)

    def spread(self, delta: Delta, rank: int | None = None) -> tuple[KnownSpectrum, Triplets | None]:
        """What decides the rank, and the best pairs: as `directions.spread`, with what each direction does to the data.

        Args:
            delta: Of a matrix that changed.
            rank: How many directions are wanted, noise or not; None where those of the part above the noise decide.
        """
        known, _ = spread(delta, rank)
        if rank is not None:
            assert delta.value is not None
            return known, self.directions(delta.value, rank)[1]
        count = len(known.above)
        if not count:
            return known, None
        values, found = self.directions(_above_noise(delta, count), count)
        return replace(known, values=values, signal=len(values)), found

    def best(self, delta: Delta, above: int) -> Triplets:
        """The pairs of the part of a ΔW that stands above the noise, which has that many directions."""
        return self.directions(_above_noise(delta, above), above)[1]

    def directions(self, x: Tensor | Factors, rank: int) -> tuple[Vector, Triplets]:
        """What an update does to the inputs, and the best pair for them.

        Args:
            x: The update, (m, n), or its factors.
            rank: How many directions of its are wanted.

        Returns:
            The singular values of X·C^½, (rank,), and U, S, Vh with U·S·Vh = the best product of that rank: its
            terms are in that order, and each S is how long its term is.

        Raises:
            ActivationsError: The sums are no second moments.
        """
        x = x.mT if self.turned else x
        moved = self.moments.apply(x)
        if isinstance(moved, Factors):
            found = factored_svd(moved)
        else:
            found = leading_triplets(moved, rank, generator=seeded(moved.device, self.name))
        rank = min(rank, len(found.S))
        values: Vector = found.S[:rank].cpu().numpy()
        if self.moments.acts_on_rows:
            return values, _transposed(_projected(x.mT, found.Vh[:rank].mT))
        best = _projected(x, found.U[:, :rank])
        return values, _transposed(best) if self.turned else best

    def within(self, x: Tensor | Factors, norm: float) -> tuple[float, float]:
        """The least and the most that ‖X·C^½‖F may be: the root of the mean of ‖X·x‖² over the inputs.

        They are equal but where C is known by a sketch.

        Args:
            x: The update, (m, n), or its factors.
            norm: ‖X‖F.

        Raises:
            ActivationsError: The sums are no second moments.
        """
        x = x.mT if self.turned else x
        if isinstance(x, Factors):
            moved = self.moments.apply(x)
            assert isinstance(moved, Factors)
            size = float(torch.linalg.vector_norm(factored_svd(moved).S))
        else:
            size = math.sqrt(self.moments.squared_norm(x))
        if not self.moments.error:
            return size, size
        below, above = (part / self.moments.count * norm**2 for part in self.moments.left_open)
        return math.sqrt(max(0.0, size**2 - below)), math.sqrt(size**2 + above)

    def error(self, delta: Delta, B: Tensor, A: Tensor, norm: float) -> float:
        """The most that ‖(ΔW − B·A)·C^½‖F may be.

        Args:
            delta: ΔW, (m, n).
            B, A: (m, r) and (r, n), as they are stored.
            norm: ‖ΔW − B·A‖F.
        """
        x = delta.value
        assert x is not None
        if isinstance(x, Factors):
            left, right = (
                torch.cat([x.B.double().cpu(), -B.double()], dim=1),
                torch.cat([x.A.double().cpu(), A.double()]),
            )
            return self.within(Factors(left, right), norm)[1]
        return self.within(torch.addmm(x.double(), B.to(x.device).double(), A.to(x.device).double(), alpha=-1), norm)[1]


@dataclass(frozen=True)
class DataSet:
    """What pairs are made for.

    Attributes:
        inputs: Of the matrices; None where the largest directions are kept, whatever meets them.
        note: Which matrices have none; empty where all have some.
    """

    inputs: MatrixInputs | None = None
    note: str = ""

    @classmethod
    def of(
        cls,
        given: str | Path | Activations | None,
        pairs: Sequence[Pair],
        configs: Iterable[Document],
        *,
        one_budget: bool,
    ) -> DataSet:
        """The data set of an option.

        Args:
            given: What `collect_activations` wrote.
            pairs: The matrices that are to get a pair.
            configs: The config.json of the sides.
            one_budget: Whether none may lack its inputs, as energies on data and without are no one currency.

        Raises:
            ActivationsError: The file cannot be read, or has the inputs of no matrix.
            EditError: One lacks them.
        """
        if given is None:
            return cls()
        found, note = match(open_activations(given), pairs, configs)
        if note and one_budget:
            raise EditError(f"--parameters is one budget for all matrices, but {note}; leave these out with --exclude")
        return cls(found, note and f"{note}; of these the largest directions are kept")

    @property
    def path(self) -> str:
        """Of the file; empty without one."""
        return "" if self.inputs is None else str(self.inputs.activations.path)

    @property
    def hash(self) -> str:
        """Of the file's content; empty without one."""
        return "" if self.inputs is None else self.inputs.activations.hash

    @property
    def sketched(self) -> bool:
        """Whether some inputs are known by a sketch only, so that errors on them are bounds."""
        return self.inputs is not None and any(m.form == "sketch" for m in self.inputs.activations.matrices.values())

    @property
    def flags(self) -> list[str]:
        """As the command line has it."""
        return ["--activations", self.path] if self.path else []

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know."""
        return (self.note,) if self.note else ()


def _above_noise(delta: Delta, count: int) -> Tensor | Factors:
    """The part of ΔW in its leading directions; all of it where it has factors, which hold no rounding."""
    assert delta.value is not None
    if isinstance(delta.value, Factors):
        return delta.value
    top = triplets(delta, count)
    return Factors(top.U * top.S, top.Vh)


def _projected(x: Tensor | Factors, U: Tensor) -> Triplets:
    """U·(Uᵀ·X), term by term."""
    rows = U.T @ x.B.to(U) @ x.A.to(U) if isinstance(x, Factors) else U.T @ x.to(U)
    length = torch.linalg.vector_norm(rows, dim=1)
    return Triplets(U, length, rows / length.clamp(min=torch.finfo(length.dtype).tiny)[:, None])


def _transposed(x: Triplets) -> Triplets:
    return Triplets(x.Vh.mT, x.S, x.U.mT)
