"""The leading singular triplets of a dense matrix, refined in float64, by the cheaper of two ways.

A block Krylov space finds a few of many in some products; it stops when every residual is below `TOLERANCE`·σ1. Where
many are wanted, or the space fills up without converging, as with a flat spectrum, they are eigenvectors of the Gram
matrix of the shorter side.
"""

from __future__ import annotations

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


def leading_triplets(x: Tensor, rank: int, *, generator: torch.Generator | None = None) -> Triplets:
    """The leading triplets, orthonormal, each with ‖Xᵀu − σv‖ at the rounding of float64.

    Args:
        x: (m, n), any floating dtype, finite.
        rank: How many; at most min(m, n).
        generator: The source of the random start, on x's device or the CPU.

    Returns:
        U (m, r), S (r,) and Vh (r, n) in float64, r = min(rank, m, n).

    Raises:
        TensorError: The eigenvectors of the Gram matrix did not converge.
    """
    x = x.cpu() if x.device.type == "mps" else x  # Apple's GPUs have no float64
    if x.shape[0] < x.shape[1]:
        found = leading_triplets(x.mT, rank, generator=generator)
        return Triplets(found.Vh.mT, found.S, found.U.mT)
    k = x.shape[1]
    rank = min(rank, k)
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
    square = gram(x)
    k = len(square)
    try:
        if square.is_cuda:
            vectors = torch.linalg.eigh(square, UPLO="U")[1][:, k - rank :]
        else:
            from scipy.linalg import eigh

            found = eigh(
                square.numpy(), lower=False, subset_by_index=(k - rank, k - 1), driver="evr", check_finite=False
            )
            vectors = torch.from_numpy(found[1])
    except NOT_CONVERGED as e:
        raise TensorError(f"the singular vectors of a {x.shape[0]}×{k} matrix did not converge") from e
    found = refine(x.mT, vectors.flip(1))
    return Triplets(found.Vh.mT, found.S, found.U.mT)
