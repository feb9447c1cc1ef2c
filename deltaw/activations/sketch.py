"""Σxxᵀ of inputs too wide for the whole of it, as a few rows with a proven error: Frequent Directions.

Rows are gathered until they are twice as many as are kept; then the squared singular values are lowered by that of the
first that is given up, which leaves half of them zero. What is given up in each direction adds up to the error.

Source: Liberty 2013; Ghashami et al. 2016, Theorem 1.1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deltaw.spectra.lapack import gram


class FrequentDirections:
    """A sketch S of the rows that were added: 0 ≤ Σxxᵀ − SᵀS ≤ error·I.

    Args:
        dimension: n, of a row.
        rows: How many rows are kept at least; memory is for twice as many.
        device: Where the rows lie.

    Attributes:
        error: The largest eigenvalue that Σxxᵀ − SᵀS may have.
    """

    def __init__(self, dimension: int, rows: int, device: torch.device) -> None:
        self.error = 0.0
        self._kept = rows
        self._buffer = torch.zeros(2 * rows, dimension, dtype=torch.float64, device=device)
        self._filled = 0

    def add(self, rows: Tensor) -> None:
        """Take in rows, (N, n) float64."""
        while len(rows):
            if self._filled == len(self._buffer):
                self._shrink()
            room = len(self._buffer) - self._filled
            taken = rows[:room]
            self._buffer[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            rows = rows[room:]

    @property
    def rows(self) -> Tensor:
        """S, (at most twice as many rows as are kept, n)."""
        return self._buffer[: self._filled]

    def _shrink(self) -> None:
        squares, left = torch.linalg.eigh(gram(self._buffer.T.contiguous()), UPLO="U")
        given_up = max(float(squares[-self._kept - 1]), 0.0)
        top, vectors = squares[-self._kept :], left[:, -self._kept :]
        factors = ((top - given_up).clamp(min=0) / top.clamp(min=torch.finfo(top.dtype).tiny)).sqrt()
        self._buffer[: self._kept] = factors[:, None] * (vectors.T @ self._buffer)
        self._buffer[self._kept :] = 0
        self._filled = self._kept
        self.error += given_up
