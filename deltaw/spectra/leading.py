"""The leading singular triplets of a dense matrix, refined in float64, by the cheaper of two ways.

A block Krylov space finds a few of many in some products; it stops when every residual is below `TOLERANCE`·σ1. Where
many are wanted, or the space fills up without converging, as with a flat spectrum, they are eigenvectors of the Gram
matrix of the shorter side.

Who asks for the most energy that r directions hold, and not for each direction, is served in single precision: the
energy depends on the square of an error in the directions, so that 1e-7 in those is nothing in it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deltaw.errors import TensorError
from deltaw.spectra.exact import NOT_CONVERGED
from deltaw.spectra.krylov import operator, refine, top_triplets
from deltaw.spectra.lapack import gram
from deltaw.spectra.triplets import Triplets

TOLERANCE = 1e-6  # of σ1: the residual of a triplet
KRYLOV_FROM = 512  # k from which a Krylov space is tried
SHARE = 12  # … for up to k/12 triplets
SINGLE_UP_TO = 2048  # k up to which a Gram matrix in single precision takes less time than the tries of a Krylov space


def leading_triplets(
    x: Tensor, rank: int, *, energy_only: bool = False, generator: torch.Generator | None = None
) -> Triplets:
    """The leading triplets, orthonormal, each with ‖Xᵀu − σv‖ at the rounding of float64.

    Args:
        x: (m, n), any floating dtype, finite.
        rank: How many; at most min(m, n).
        energy_only: Whether they need hold the most energy only: σ and ‖X − USVᵀ‖ right to 1e-7, and U and V
            orthonormal, but a direction by itself no better than float32 tells it from its neighbours.
        generator: The source of the random start, on x's device or the CPU.

    Returns:
        U (m, r), S (r,) and Vh (r, n) in float64, r = min(rank, m, n).

    Raises:
        TensorError: The eigenvectors of the Gram matrix did not converge.
    """
    x = x.cpu() if x.device.type == "mps" else x  # Apple's GPUs have no float64
    if x.shape[0] < x.shape[1]:
        found = leading_triplets(x.mT, rank, energy_only=energy_only, generator=generator)
        return Triplets(found.Vh.mT, found.S, found.U.mT)
    k = x.shape[1]
    rank = min(rank, k)
    if energy_only and k <= SINGLE_UP_TO and x.dtype != torch.float64 and not x.is_cuda:
        return _from_single_gram(x, rank)
    if k >= KRYLOV_FROM and rank * SHARE <= k:
        # What is refined has the square of the residual's error in σ, and its vectors in float64.
        near = top_triplets(operator(x), rank, generator=generator, tolerance=TOLERANCE, capacity=max(128, 4 * rank))
        if float(near.errors.max()) <= TOLERANCE * float(near.S[0]):
            return refine(x, near.U)
    return _from_gram(x, rank)


def _from_gram(x: Tensor, rank: int) -> Triplets:
    """Of a tall matrix: V from XᵀX, then Rayleigh–Ritz over it.

    Raises:
        TensorError: The eigenvectors did not converge.
    """
    found = refine(x.mT, _leading_eigenvectors(gram(x), rank))
    return Triplets(found.Vh.mT, found.S, found.U.mT)


def _from_single_gram(x: Tensor, rank: int) -> Triplets:
    """The same in float32, but for what is orthonormal.

    Raises:
        TensorError: The eigenvectors did not converge.
    """
    largest = float(x.abs().max())
    scale = 2.0 ** math.frexp(largest)[1] if largest else 1.0  # squares neither overflow nor underflow
    a = (x.float() / scale).numpy()
    V = torch.linalg.qr(_leading_eigenvectors(torch.from_numpy(a.T @ a), rank).double()).Q
    U, s, turn = torch.linalg.svd(torch.from_numpy(a @ V.float().numpy()).double(), full_matrices=False)
    return Triplets(U, s * scale, turn @ V.mT)


def _leading_eigenvectors(square: Tensor, count: int) -> Tensor:
    """Of a symmetric matrix of which the upper triangle is read, those of the largest eigenvalues, descending.

    Raises:
        TensorError: They did not converge.
    """
    k = len(square)
    try:
        if square.is_cuda:
            vectors = torch.linalg.eigh(square, UPLO="U")[1][:, k - count :]
        else:
            from scipy.linalg import eigh

            found = eigh(
                square.numpy(), lower=False, subset_by_index=(k - count, k - 1), driver="evr", check_finite=False
            )
            vectors = torch.from_numpy(found[1])
    except NOT_CONVERGED as e:
        raise TensorError(f"the singular vectors of a matrix with {k} columns or rows did not converge") from e
    leading: Tensor = vectors.flip(1)
    return leading
