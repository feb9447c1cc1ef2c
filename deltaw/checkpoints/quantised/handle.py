"""A weight that is stored as codes, read as what it stands for."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Literal

from deltaw.checkpoints.quantised import scaled
from deltaw.checkpoints.quantised.module import FORMAT, Codes, ScaledBytes, Values
from deltaw.checkpoints.quantised.values import inside
from deltaw.errors import CheckpointError
from deltaw.types import Handle

if TYPE_CHECKING:
    import torch

Known = Literal["variance", "noise", "ends"]  # what is known of every entry beside its value


@dataclass(frozen=True)
class QuantisedHandle:
    """A quantised weight by its own name and shape; its dtype is the name of the format.

    Attributes:
        codes: What it is stored in, and what reads it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    codes: Codes

    @property
    def nbytes(self) -> int:
        """Stored bytes of the codes and of everything that belongs to them."""
        return self.codes.nbytes

    @property
    def storage(self) -> Hashable:
        """That of its codes."""
        return (self.dtype, self.codes.parts["codes"].storage)

    def read(self, rows: slice | None = None) -> torch.Tensor:
        """The weight in float32, or some rows of its first dimension.

        Raises:
            CheckpointError: The bytes cannot be read.
        """
        return self._found(lambda values: values.weight(), rows)

    def variance(self, rows: slice | None = None) -> torch.Tensor:
        """The variance of the rounding in every entry, in float64, where cells are evenly filled: width²/12.

        Raises:
            CheckpointError: The bytes cannot be read.
        """
        return self._found(lambda values: values.variance(), rows)

    def noise(self, rows: slice | None = None) -> torch.Tensor:
        """The variance of the rounding in every entry, in float64, as far as the other codes of its group tell it.

        Raises:
            CheckpointError: The bytes cannot be read.
        """

        def found(values: Values) -> torch.Tensor:
            even = values.variance()
            return inside(even, values.weight(), values.group) if values.group else even

        return self._found(found, rows)

    def stored(self) -> ScaledBytes | None:
        """The matrix as it is stored, where that is a byte for every entry, times a scale; else None.

        Raises:
            CheckpointError: The bytes cannot be read.
        """
        return scaled.stored(self.codes) if self.codes.dequantise is scaled.dequantise else None

    def over(self, stored: Handle) -> QuantisedHandle:
        """The same weight with its codes read from another tensor, such as its rows in another order."""
        parts = {**self.codes.parts, "codes": stored}
        return replace(self, codes=replace(self.codes, parts=parts))

    def ends(self, rows: slice | None = None) -> torch.Tensor:
        """−1 where a code is the lowest of its grid, 1 where it is the highest, else 0; int8.

        Raises:
            CheckpointError: The bytes cannot be read.
        """
        import torch

        def found(values: Values) -> torch.Tensor:
            return torch.zeros_like(values.weight(), dtype=torch.int8) if values.ends is None else values.ends()

        return self._found(found, rows)

    def beside(self, what: Known) -> Beside:
        """One of these as a tensor of its own, to be looked at as the weight is."""
        return Beside(self, what)

    def _found(self, what: Callable[[Values], torch.Tensor], rows: slice | None) -> torch.Tensor:
        start, stop, step = (rows or slice(None)).indices(self.shape[0])
        assert step == 1, "rows are read in blocks"
        want = (max(0, stop - start), *self.shape[1:])
        if not prod(want):
            import torch

            return what(Values(lambda: torch.zeros(want), lambda: torch.zeros(want, dtype=torch.float64)))
        assert self.codes.dequantise is not None
        try:
            found = what(self.codes.dequantise(self.codes, slice(start, stop)))
        except (IndexError, RuntimeError) as e:  # torch's words for what does not fit
            why = (str(e).splitlines() or [""])[0][:200]
            raise CheckpointError(f"{self.name!r} ({self.dtype}): its codes do not fit their companions ({why})") from e
        if tuple(found.shape) != want:
            raise CheckpointError(
                f"{self.name!r} ({self.dtype}) came out as {tuple(found.shape)}, expected {want}; its codes do not fit "
                "their companions"
            )
        return found


@dataclass(frozen=True)
class Beside:
    """What is known of every entry of a quantised weight beside its value; a `Handle` itself.

    Attributes:
        of: The weight.
        what: The variance of its rounding, where cells are evenly filled or as far as is known, or which codes are
            outermost.
    """

    of: QuantisedHandle
    what: Known

    @property
    def name(self) -> str:
        """The weight's name."""
        return self.of.name

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape."""
        return self.of.shape

    @property
    def dtype(self) -> str:
        """As it is read."""
        return "int8" if self.what == "ends" else "float64"

    @property
    def nbytes(self) -> int:
        """The bytes of the codes."""
        return self.of.nbytes

    @property
    def storage(self) -> Hashable:
        """That of the codes."""
        return (self.what, self.of.storage)

    def read(self, rows: slice | None = None) -> torch.Tensor:
        """All, or some rows.

        Raises:
            CheckpointError: The bytes cannot be read.
        """
        read = {"variance": self.of.variance, "noise": self.of.noise, "ends": self.of.ends}[self.what]
        return read(rows)


@lru_cache
def numeric(dtype: str) -> str:
    """The dtype that a tensor is read as, by torch's name: float32 for a format of codes."""
    return "float32" if FORMAT.match(dtype) else dtype
