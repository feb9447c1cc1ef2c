"""The spectrum of a low-rank update ΔW = B·A from its factors, without forming the m×n product.

With thin QR factorisations B = Q_B·R_B and Aᵀ = Q_A·R_A, the singular values of B·A are those of the r×r matrix
R_B·R_Aᵀ, and its singular vectors are Q_B·u and Q_A·v. In float64 throughout: the cost is O((m + n)·r²), so there is
nothing to save.

Source: Golub & Van Loan, Matrix Computations, 4th ed., §5.4 (the product SVD through two QR factorisations).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from deltaw.errors import NotFiniteError, TensorError
from deltaw.spectra.exact import NOT_CONVERGED
from deltaw.spectra.triplets import Triplets
from deltaw.types import Factors, Spectrum


def factored_singular_values(factors: Factors) -> Spectrum:
    """All singular values of B·A.

    Args:
        factors: B (m, r) and A (r, n), any floating dtype, on one device.

    Returns:
        A complete `Spectrum`: the values of rank r, and exact zeros up to min(m, n).

    Raises:
        TensorError: An entry is not finite, or the SVD of the small matrix does not converge.
    """
    m, n = factors.B.shape[0], factors.A.shape[1]
    _, small, scale, _ = _small(factors)
    values = np.zeros(min(m, n))
    found = _svd(small).S.cpu().numpy() * scale
    values[: len(found)] = found
    return Spectrum(values, m, n, energy=float(values @ values))


def factored_svd(factors: Factors) -> Triplets:
    """The thin SVD of B·A, with min(m, n, r) triplets, in float64 on the factors' device.

    Args:
        factors: B (m, r) and A (r, n), any floating dtype, on one device.

    Returns:
        U (m, q), S (q,) and Vh (q, n), q = min(m, n, r).

    Raises:
        TensorError: An entry is not finite, or the SVD of the small matrix does not converge.
    """
    Q_B, small, scale, Q_A = _small(factors)
    u, s, vh = _svd(small)
    return Triplets(Q_B @ u, s * scale, vh @ Q_A.T)


def _small(factors: Factors) -> tuple[Tensor, Tensor, float, Tensor]:
    """Q_B, R_B·R_Aᵀ/scale, scale and Q_A."""
    B, A = (f.cpu() if f.device.type == "mps" else f for f in factors)  # Apple's GPUs have no float64
    B, b = _unit(B)
    A, a = _unit(A)
    Q_B, R_B = torch.linalg.qr(B)
    Q_A, R_A = torch.linalg.qr(A.T)
    return Q_B, R_B @ R_A.T, a * b, Q_A


def _unit(x: Tensor) -> tuple[Tensor, float]:
    """The factor in float64 over the power of two next to max|x|, so that products neither overflow nor underflow.

    Raises:
        NotFiniteError: An entry is not finite.
    """
    x = x.double()
    peak = float(torch.linalg.vector_norm(x, ord=math.inf)) if x.numel() else 0.0
    if not math.isfinite(peak):
        raise NotFiniteError(
            f"A {x.shape[0]}×{x.shape[1]} factor has entries that are not finite; its update has no spectrum."
        )
    scale = 2.0 ** max(math.frexp(peak)[1], -500) if peak else 1.0
    return x / scale, scale


def _svd(small: Tensor) -> Triplets:
    try:
        return Triplets(*torch.linalg.svd(small, full_matrices=False))
    except NOT_CONVERGED as error:
        r, q = small.shape
        raise TensorError(f"The SVD of the {r}×{q} product of an update's factors did not converge.") from error
