"""Block Krylov spaces: leading singular triplets, and what random probes see of all the others.

Golub–Kahan bidiagonalisation of X from a Gaussian block Z = V₁R₀ gives orthonormal U, V and a block upper
bidiagonal B with X·V = U·B and Xᵀ·U = V·Bᵀ + V₊·C·Eᵀ. From the SVD B = P·Θ·Yᵀ come

* Ritz values θ ≤ σ with their residuals ‖Xᵀu − θv‖ = ‖C·P_last‖, a bound on how far the next σ is;
* the weights (Yᵀ·E₁·R₀)² of the Gauss quadrature Σ w·f(θ) ≈ zᵀ·f(√(XᵀX))·z, one column for each probe z of Z;
* with C·Eᵀ appended to B, the Gauss–Radau quadrature whose first node is 0. For f = √λ and its like, whose
  derivatives alternate in sign, the one is above the truth and the other below.

Sources: Golub & Kahan 1965; Musco & Musco 2015 (why few steps from a random block are enough); Golub & Meurant,
Matrices, Moments and Quadrature, 2010, §6 (block quadrature); Parlett, The Symmetric Eigenvalue Problem, §13.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deltaw.spectra.lapack import ROW_BLOCK, gram
from deltaw.spectra.triplets import BoundedTriplets, Triplets
from deltaw.types import Vector

GRAM_FLOOR = 1e-7  # share of the largest below which a value read off a Gram matrix in float64 is rounding
EXHAUSTED = 1e-4  # share of a block below which what is left of it may be rounding
MAX_PASSES = 5  # of reorthogonalisation there


class Operator(NamedTuple):
    """A matrix that is only ever multiplied: X·V by `apply`, Xᵀ·U by `apply_transposed`."""

    shape: tuple[int, int]
    apply: Callable[[Tensor], Tensor]
    apply_transposed: Callable[[Tensor], Tensor]
    dtype: torch.dtype
    device: torch.device

    @property
    def mT(self) -> Operator:  # noqa: N802 (as in torch)
        """The transposed matrix."""
        m, n = self.shape
        return self._replace(shape=(n, m), apply=self.apply_transposed, apply_transposed=self.apply)


class Quadrature(NamedTuple):
    """A quadrature: nodes (d,), descending, and their weights (d, b), as each of b probes sees them."""

    nodes: Vector
    weights: NDArray[np.float64]


class Ritz(NamedTuple):
    """What a Krylov space of dimension d knows of the singular values.

    Attributes:
        values: θ, (d,), descending, float64, on the CPU.
        residuals: (d,): some singular value is within this of θ; on the CPU.
        left, right: (d, d): the Ritz vectors in terms of U and V, on their device.
        gauss: The quadrature rule of these values.
    """

    values: Tensor
    residuals: Tensor
    left: Tensor
    right: Tensor
    gauss: Quadrature


class BlockKrylov:
    """A Krylov space of X (m×n) that grows by one block of b columns on either side with each step."""

    def __init__(self, x: Operator, block: int, capacity: int, generator: torch.Generator | None) -> None:
        m, n = x.shape
        self.x, self.block = x, block
        self.capacity = min(capacity, (min(m, n) // block - 1) * block)
        self._U = torch.empty(m, self.capacity, dtype=x.dtype, device=x.device)
        self._V = torch.empty(n, self.capacity + block, dtype=x.dtype, device=x.device)
        where = generator.device if generator is not None else x.device
        Z = torch.randn(n, block, dtype=x.dtype, device=where, generator=generator).to(x.device)
        self._V[:, :block], self._R0 = torch.linalg.qr(Z)
        self._A: list[Tensor] = []
        self._C: list[Tensor] = []

    @property
    def dimension(self) -> int:
        """Columns of U so far."""
        return len(self._A) * self.block

    @property
    def full(self) -> bool:
        """Whether another step would not fit."""
        return self.dimension + self.block > self.capacity

    def extend(self, steps: int) -> None:
        """Grow to this number of steps in all, as far as the capacity goes."""
        while len(self._A) < steps and not self.full:
            self.step()

    def step(self) -> None:
        """One more block: two products with X."""
        d, b = self.dimension, self.block
        W = self.x.apply(self._V[:, d : d + b])
        self._U[:, d : d + b], A = _orthonormal(W, self._U[:, :d])
        W = self.x.apply_transposed(self._U[:, d : d + b])
        self._V[:, d + b : d + 2 * b], C = _orthonormal(W, self._V[:, : d + b])
        self._A.append(A.double())
        self._C.append(C.double())

    def ritz(self) -> Ritz:
        """Ritz values and vectors, their residuals, and the Gauss quadrature."""
        B = self._bidiagonal()[:, : self.dimension]
        theta, Y = _right_singular(B)
        P = (B @ Y) / theta.clamp(min=torch.finfo(theta.dtype).tiny)
        C = self._C[-1]
        residuals = torch.linalg.vector_norm(C @ P[-self.block :], dim=0)
        # A value that is rounding beside the largest has no P: of its residual no more is known than ‖C‖.
        residuals = residuals.where(theta > GRAM_FLOOR * theta[0], torch.linalg.vector_norm(C))
        values = theta.cpu()
        return Ritz(values, residuals.cpu(), P, Y, Quadrature(values.numpy(), self._weights(Y)))

    def radau(self) -> Quadrature:
        """The Gauss–Radau quadrature with a node at 0."""
        theta, Y = _right_singular(self._bidiagonal())
        theta[self.dimension :] = 0.0
        return Quadrature(theta.cpu().numpy(), self._weights(Y))

    def _bidiagonal(self) -> Tensor:
        """B with C·Eᵀ appended: (d, d + b), on the operator's device."""
        d, b = self.dimension, self.block
        B = torch.zeros(d, d + b, dtype=torch.float64, device=self.x.device)
        for j, (A, C) in enumerate(zip(self._A, self._C, strict=True)):
            rows = slice(j * b, (j + 1) * b)
            B[rows, rows] = A
            B[rows, (j + 1) * b : (j + 2) * b] = C.T
        return B

    def _weights(self, Y: Tensor) -> NDArray[np.float64]:
        weights: NDArray[np.float64] = (Y[: self.block].T @ self._R0.double()).square().cpu().numpy()
        return weights

    def triplets(self, ritz: Ritz, count: int) -> BoundedTriplets:
        """The leading `count` Ritz triplets of its `ritz()`, in the operator's dtype."""
        d = self.dimension

        def vectors(basis: Tensor, small: Tensor) -> Tensor:
            return basis[:, :d] @ small[:, :count].to(basis)

        # Off a Gram matrix, left vectors of small values are not quite orthonormal, and those of zeros are missing.
        Q, R = torch.linalg.qr(ritz.left[:, :count])
        return BoundedTriplets(
            vectors(self._U, Q * torch.where(R.diagonal() < 0, -1.0, 1.0)),
            ritz.values[:count].to(self.x.device),
            vectors(self._V, ritz.right).T,
            ritz.residuals[:count].to(self.x.device),
        )


def operator(x: Tensor, dtype: torch.dtype = torch.float32) -> Operator:
    """A dense matrix as an operator.

    float32 products perturb X by 6e-8·‖X‖, far below what an estimate resolves unless nearly all the energy is in the
    leading values, and cost half as much as float64 ones. TF32 (1e-3) or bfloat16 would not do: where the user
    allowed them, the products are made in float64.
    """
    if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        dtype = torch.float64
    x = x.to(dtype)
    # With few columns the time is that of reading x, which a CPU does up to twice as fast in the order of its rows.
    if x.stride(-1) == 1:
        return Operator((x.shape[0], x.shape[1]), lambda V: x @ V, lambda U: (U.T @ x).T, x.dtype, x.device)
    return Operator((x.shape[0], x.shape[1]), lambda V: (V.T @ x.T).T, lambda U: x.T @ U, x.dtype, x.device)


def top_triplets(
    x: Tensor | Operator,
    k: int,
    *,
    generator: torch.Generator | None = None,
    tolerance: float = 1e-5,
    capacity: int | None = None,
) -> BoundedTriplets:
    """The k leading singular triplets.

    Args:
        x: (m, n), dense or as an operator.
        k: How many; at most min(m, n).
        generator: The source of the random start, on x's device or the CPU.
        tolerance: Stop when every residual ‖Xᵀu − σv‖ is below this share of σ1.
        capacity: The largest dimension of the Krylov space; default 512, or 6·k if that is more.

    Returns:
        U (m, k), S (k,), Vh (k, n) and `errors` (k,): each S is within its error of a singular value. A dense
        matrix whose space is full before all errors are below the tolerance is solved by its Gram matrix instead,
        with errors at the rounding of float64.
    """
    op = x if isinstance(x, Operator) else operator(x)
    k = min(k, *op.shape)
    if isinstance(x, Operator) and min(op.shape) <= 2 * k + 16:  # hardly larger than what is asked for
        x = op.apply(torch.eye(op.shape[1], dtype=op.dtype, device=op.device))
    if op.shape[0] < op.shape[1]:
        found = top_triplets(x.mT, k, generator=generator, tolerance=tolerance, capacity=capacity)
        return BoundedTriplets(found.Vh.T, found.S, found.U.T, found.errors)
    block = min(max(8, k // 2 + 4), 64)
    if isinstance(x, Tensor) and op.shape[1] < 2 * block:  # the space would have no room for a step
        return _thin_triplets(x, k)
    space = BlockKrylov(op, block, capacity or max(512, 6 * k), generator)
    while not space.full:
        space.step()
        if space.dimension < k:
            continue
        ritz = space.ritz()
        if float(ritz.residuals[:k].max()) <= tolerance * float(ritz.values[0]):
            return space.triplets(ritz, k)
    if isinstance(x, Tensor):
        return _gram_triplets(x, k)
    return space.triplets(space.ritz(), k)


def refine(x: Tensor, U: Tensor) -> Triplets:
    """Rayleigh–Ritz in float64 over the span of U: σ correct to the square of the angle between U and the truth.

    Args:
        x: (m, n), any floating dtype.
        U: (m, r), nearly orthonormal.
    """
    U, _ = torch.linalg.qr(U.double())
    W = torch.zeros(x.shape[1], U.shape[1], dtype=torch.float64, device=x.device)
    for i in range(0, x.shape[0], ROW_BLOCK):  # in blocks: no float64 copy of x
        W.addmm_(x[i : i + ROW_BLOCK].double().T, U[i : i + ROW_BLOCK])
    V, s, uh = torch.linalg.svd(W, full_matrices=False)
    return Triplets(U @ uh.T, s, V.T)


def _right_singular(B: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values, descending, and right singular vectors (columns) of a small matrix, by its Gram matrix.

    That takes a little more than half the time of an SVD on a CPU, a tenth of it on a GPU, and loses what is below
    GRAM_FLOOR.
    """
    squares, Y = torch.linalg.eigh(B.mT @ B)
    return squares.flip(0).clamp(min=0).sqrt(), Y.flip(1)


def _thin_triplets(x: Tensor, k: int) -> BoundedTriplets:
    """The k leading triplets of a matrix with few columns, from its SVD in float64."""
    U, s, Vh = torch.linalg.svd(x.double(), full_matrices=False)
    return BoundedTriplets(U[:, :k], s[:k], Vh[:k], torch.full_like(s[:k], 2.0**-50) * s[:1])


def _gram_triplets(x: Tensor, k: int) -> BoundedTriplets:
    """The k leading triplets of a tall matrix from the eigenvectors of its Gram matrix."""
    squares, vectors = torch.linalg.eigh(gram(x), UPLO="U")
    V = vectors[:, -k:].flip(1)
    s = squares[-k:].flip(0).clamp(min=0).sqrt()
    found = refine(x.T, V)  # U from X·V, orthonormal also where σ is repeated
    errors = torch.full_like(s, 2.0**-26) * s[:1]
    return BoundedTriplets(found.Vh.T, found.S, found.U.T, errors)


def _orthonormal(W: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Q and R with W = basis·(…) + Q·R, Q orthonormal and orthogonal to the basis.

    Projecting leaves rounding of the size of W: it is done twice where a column has lost half of itself (Daniel,
    Gragg, Kaufman & Stewart 1976). Where hardly more than rounding is left of W (the space is exhausted), Q is
    projected and factorised again until nothing of the basis is left in it.
    """
    norms = torch.linalg.vector_norm(W, dim=0)
    size = norms.max()
    W = torch.addmm(W, basis, basis.T @ W, alpha=-1)
    if bool((torch.linalg.vector_norm(W, dim=0) < norms / 2).any()):
        W = torch.addmm(W, basis, basis.T @ W, alpha=-1)
    Q, R = torch.linalg.qr(W)
    clear = bool(R.diagonal().abs().min() > EXHAUSTED * size)
    for _ in range(MAX_PASSES):
        if clear:
            break
        Q, again = torch.linalg.qr(torch.addmm(Q, basis, basis.T @ Q, alpha=-1))
        R = again @ R
        clear = bool(again.diagonal().abs().min() > 0.5)
    return Q, R
