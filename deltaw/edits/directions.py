"""The leading directions of a ΔW: σ, u and v, certified, by the cheapest way that gives them.

A few of many come from a block Krylov space, refined in float64; many, or those of a flat spectrum, from the Gram
matrix; those of thin factors from the factors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deltaw.delta.difference import Delta
from deltaw.metrics import noise_edge, numerical_rank
from deltaw.spectra import Noise, Triplets, factored_svd, leading_triplets, low_rank_spectrum, seeded, spectrum
from deltaw.types import Factors, Vector

LEFT = 1e-4  # of ‖ΔW‖F²: what is left where float32 tells it to 1e-7
SMALLEST_IN_FLOAT32 = 1e-20  # ‖ΔW‖F² below which single squares may underflow
EXACT_UP_TO = 512  # k up to which all singular values are found, whatever is asked for


@dataclass(frozen=True)
class KnownSpectrum:
    """What is known of a ΔW's spectrum.

    Attributes:
        values: Its leading singular values, descending; all of them, or all above the edge, or as many as were asked.
        energy: ‖ΔW‖F².
        edge: The largest singular value that rounding alone would show.
        signal: How many stand above it; None where the values end above it.
    """

    values: Vector
    energy: float
    edge: float
    signal: int | None

    @property
    def above(self) -> Vector:
        """The singular values above the edge, as far as they are known."""
        return self.values if self.signal is None else self.values[: self.signal]


def spread(delta: Delta, rank: int | None = None) -> tuple[KnownSpectrum, Triplets | None]:
    """The spectrum of a ΔW as far as a policy needs it, and its triplets where they came with it.

    Args:
        delta: Of a matrix that changed.
        rank: How many directions are wanted, noise or not; None where the values above the edge decide.

    Raises:
        TensorError: An entry is not finite, or no driver converges.
    """
    q = delta.sums.quantities()
    assert q.noise_row is not None
    assert q.noise_col is not None
    edge = noise_edge(q.noise_row, q.noise_col, q.noise_inflation or 1.0)
    energy = float(delta.sums.delta_row_sq.sum())
    rows, cols = delta.sums.rows, delta.sums.cols

    def known(values: Vector, complete: bool) -> KnownSpectrum:
        if edge:
            count = int(np.count_nonzero(values > edge))
            signal = None if count == len(values) and not complete else count
        else:
            signal = numerical_rank(values, rows, cols) if complete else None
        return KnownSpectrum(values, energy, edge, signal)

    if isinstance(delta.value, Factors):
        found = factored_svd(delta.value)
        return known(_array(found.S), complete=True), found
    x = delta.value
    assert x is not None
    noise = Noise(float(delta.sums.noise_row.sum()), delta.sums.noise_row, delta.sums.noise_col)
    if rank is None or min(rows, cols) <= EXACT_UP_TO:
        return known(
            spectrum(x, energy=energy, noise=noise, generator=seeded(x.device, delta.name)).values, complete=True
        ), None
    low = low_rank_spectrum(x, noise, energy=energy, generator=seeded(x.device, delta.name))
    if low is not None:
        return known(low.values, complete=True), None
    found = leading_triplets(x, rank, energy_only=True, generator=seeded(x.device, delta.name))
    return known(_array(found.S), complete=False), found


def triplets(delta: Delta, rank: int) -> Triplets:
    """The leading triplets of a ΔW, in float64.

    Raises:
        TensorError: An entry is not finite.
    """
    if isinstance(delta.value, Factors):
        found = factored_svd(delta.value)
        return Triplets(found.U[:, :rank], found.S[:rank], found.Vh[:rank])
    assert delta.value is not None
    return leading_triplets(delta.value, rank, energy_only=True, generator=seeded(delta.value.device, delta.name))


def residual(delta: Delta, B: Tensor, A: Tensor) -> float:
    """‖ΔW − B·A‖F in float64, in blocks of rows; from the factors alone where ΔW has some.

    Args:
        delta: ΔW, (m, n).
        B, A: (m, r) and (r, n), as they are stored.
    """
    B, A = B.double(), A.double()
    if isinstance(delta.value, Factors):
        left = torch.cat([delta.value.B.double().cpu(), -B.cpu()], dim=1)
        right = torch.cat([delta.value.A.double().cpu(), A.cpu()])
        return float(torch.linalg.vector_norm(factored_svd(Factors(left, right)).S))
    x = delta.value
    assert x is not None
    B, A = B.to(x.device), A.to(x.device)
    energy = float(delta.sums.delta_row_sq.sum())
    if x.dtype == torch.float32 and not x.is_cuda and SMALLEST_IN_FLOAT32 < energy < 1 / SMALLEST_IN_FLOAT32:
        rest = _left(x, B.float(), A.float())
        if rest > LEFT * energy:  # of less, float32 products would tell their own rounding
            return math.sqrt(rest)
    return math.sqrt(_left(x, B, A))


def _left(x: Tensor, B: Tensor, A: Tensor) -> float:
    """‖ΔW − B·A‖F², in the dtype of the factors, summed in float64."""
    total, step = 0.0, max(1, (1 << 22) // max(1, x.shape[1]))
    for i in range(0, x.shape[0], step):
        rest = torch.addmm(x[i : i + step].to(B.dtype), B[i : i + step], A, alpha=-1)
        total += float(torch.linalg.vector_norm(rest, dtype=torch.float64)) ** 2
    return total


def _array(x: Tensor) -> Vector:
    out: Vector = x.detach().to("cpu", torch.float64).numpy()
    return out
