"""All singular values of a dense matrix: the square roots of the eigenvalues of its float64 Gram matrix.

For float32 entries the products in XᵀX are exact in float64 (24 + 24 ≤ 53 bits), so only the sums round, and an
eigenvalue λ = σ² is wrong by at most δ = c·k·ε·λ1 (Weyl; ε = 2⁻⁵³). A singular value is therefore wrong by
min(√δ, δ/2σ): nothing that float32 data could show while σ ≫ √ε·σ1 ≈ 1e-8·σ1. Where so much of Σσ lies below
that that the sum itself would suffer (an exactly low-rank matrix), the singular values are taken from the matrix
itself by LAPACK in float64.

Source: Golub & Van Loan, Matrix Computations, 4th ed., §8.6; Weyl's inequality, §8.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from deltaw.errors import NotFiniteError, TensorError
from deltaw.spectra.lapack import eigenvalues, gram, solver
from deltaw.types import Spectrum, Vector

Driver = Callable[[Tensor, float], Vector | None]  # (tall x, scale) -> singular values of x/scale, descending

# The measured cost model, milliseconds, float32 input, torch 2.13 with MKL (2 cores of an AMD EPYC):
#
#                      128²   384²  384×1536  1024²  2816×1024  1024×2816  2048²  4096²
#   svdvals, as stored  1.0     16        32    120        138        562    962   9077
#   svdvals, tall       0.9      8        16    123        136        142    915      –
#   QR, then svdvals    1.3      9        15    135        168        173    849      –
#   Gram + eigvalsh     0.7     10        11    117        145        167    527   4561
#
# The two halves of the last row were timed apart, both by torch and the product in full, which is twice the work of
# `gram`. So the Gram matrix of the shorter side is level with the best or ahead at every shape, and there is no choice
# to make: the other drivers are there for what it cannot resolve and for where it does not converge.

NOT_CONVERGED = (torch.linalg.LinAlgError, np.linalg.LinAlgError)  # type: ignore[attr-defined]

GRAM_ERROR = 8.0  # δ = GRAM_ERROR·√k·ε·λ1; sums of rounding errors grow like √k (measured: below 2)
AS_QUICK = (
    384  # k up to which LAPACK costs no more: there no value that the Gram matrix cannot resolve is taken from it
)
UNRESOLVED = 2e-6  # share of Σσ that may be in doubt before LAPACK is asked: keeps every metric within 1e-4


def singular_values(x: Tensor, *, moderate: bool = False) -> Spectrum:
    """All singular values of a matrix, correct to 1e-7·σ1.

    Args:
        x: (m, n), any floating dtype, on any device; it is not modified.
        moderate: Whether the entries are known to be finite, and their squares to be far from the ends of float64's
            range: then none of them is looked at to find out.

    Returns:
        A complete `Spectrum` of min(m, n) values; `note` names the drivers that did not converge, if any.

    Raises:
        TensorError: An entry is not finite, or no driver converges.
    """
    rows, cols = x.shape
    x = _tall(x)
    scale = 1.0 if moderate else _power_of_two(x)
    if scale == 0:
        return _spectrum(np.zeros(x.shape[1]), rows, cols)
    failed: list[str] = []
    for name, driver in DRIVERS["cuda" if x.is_cuda else "cpu"].items():
        try:
            values = driver(x, scale)
        except NOT_CONVERGED:
            failed.append(name)
            continue
        if values is None:
            continue
        if np.isfinite(values).all():  # cuSOLVER may report success and return NaN
            note = f"{', '.join(failed)} did not converge; values from {name}" if failed else ""
            return _spectrum(values * scale, rows, cols, note)
        failed.append(name)
    raise TensorError(
        f"The singular values of a {rows}×{cols} matrix did not converge with any of: {', '.join(failed)}. "
        "Check the checkpoint for damaged values, or leave this tensor out with --exclude."
    )


def singular_values_batched(xs: Tensor) -> list[Spectrum]:
    """All singular values of each matrix of a stack; faster than one by one where the matrices are small.

    Args:
        xs: (b, m, n), any floating dtype, on any device.

    Returns:
        One complete `Spectrum` per matrix.

    Raises:
        TensorError: An entry is not finite, or no driver converges for one of them.
    """
    _, rows, cols = xs.shape
    scales = [_power_of_two(x) for x in xs]
    if not all(scales):  # zeros and the like take nobody along
        stacked = [i for i, scale in enumerate(scales) if scale]
        found_of = dict(zip(stacked, singular_values_batched(xs[stacked]), strict=True)) if stacked else {}
        return [found_of[i] if i in found_of else singular_values(x) for i, x in enumerate(xs)]
    tall = _tall(xs)
    d = tall.double() / torch.tensor(scales, dtype=torch.float64, device=tall.device)[:, None, None]
    try:
        squares = torch.linalg.eigvalsh(d.mT @ d).cpu().numpy()
    except NOT_CONVERGED:  # one of them; one by one tells which
        return [singular_values(x) for x in xs]
    found = [_resolved_roots(square) if np.isfinite(square).all() else None for square in squares]
    return [
        singular_values(x) if values is None else _spectrum(values * scale, rows, cols)
        for x, values, scale in zip(xs, found, scales, strict=True)
    ]


def _gram_values(x: Tensor, scale: float) -> Vector | None:
    """Singular values of x/scale from its Gram matrix, or None where it cannot resolve them."""
    with solver(x.device):
        values = eigenvalues(gram(x, scale))
    return _resolved_roots(values)


def _resolved_roots(squares: Vector) -> Vector | None:
    """√λ in descending order, or None if too much of their sum is below what the Gram matrix resolves."""
    values: Vector = np.sqrt(np.maximum(squares[::-1], 0.0))  # rounding puts the zeros of a singular matrix at ±ε·λ1
    delta = GRAM_ERROR * math.sqrt(len(squares)) * 2.0**-53 * float(squares[-1])
    most = math.sqrt(delta)  # a squared value may be off by δ: σ by δ/2σ, and by no more than √δ
    if len(values) <= AS_QUICK and values[-1] < most:  # float32's rounding may lie there, and its edge
        return None
    doubt = np.divide(delta, 2 * values, out=np.full_like(values, most), where=2 * values > most)
    return None if doubt.sum() > UNRESOLVED * values.sum() else values


def _gesdd(x: Tensor, scale: float) -> Vector:
    values: Vector = torch.linalg.svdvals(x.double() / scale).numpy()
    return values


def _gesvd(x: Tensor, scale: float) -> Vector:
    """QR iteration: slower than divide and conquer, and the one that converges where that does not."""
    from scipy.linalg import svd

    values: Vector = svd(
        (x.cpu().double() / scale).numpy(), compute_uv=False, lapack_driver="gesvd", check_finite=False
    )
    return values


def _cusolver(driver: str) -> Driver:
    return lambda x, scale: torch.linalg.svdvals(x.double() / scale, driver=driver).cpu().numpy()


# Asked in this order: the next one where one does not converge, or where the Gram matrix cannot resolve the values.
DRIVERS: dict[str, dict[str, Driver]] = {
    "cpu": {
        "eigvalsh of the Gram matrix": _gram_values,
        "LAPACK gesdd": _gesdd,
        "LAPACK gesvd": _gesvd,
    },
    "cuda": {
        "eigvalsh of the Gram matrix": _gram_values,
        "cuSOLVER gesvd": _cusolver("gesvd"),
        "cuSOLVER gesvdj": _cusolver("gesvdj"),
        "LAPACK gesvd": _gesvd,
    },
}


def _tall(x: Tensor) -> Tensor:
    """The matrix or its transpose, with rows ≥ columns, where float64 exists (Apple's GPUs have none)."""
    if x.device.type == "mps":
        x = x.cpu()
    return x.mT if x.shape[-2] < x.shape[-1] else x


def _power_of_two(x: Tensor) -> float:
    """The power of two next to max|x| (0 for a zero matrix): dividing by it is exact.

    Raises:
        NotFiniteError: An entry is not finite.
    """
    peak = max(abs(float(bound)) for bound in torch.aminmax(x)) if x.numel() else 0.0  # a NaN is both of its bounds
    if not math.isfinite(peak):
        raise NotFiniteError(f"A {x.shape[0]}×{x.shape[1]} matrix has entries that are not finite; it has no spectrum.")
    return 2.0 ** max(math.frexp(peak)[1], -1000) if peak else 0.0


def _spectrum(values: Vector, rows: int, cols: int, note: str = "") -> Spectrum:
    values = np.ascontiguousarray(values, dtype=np.float64)
    return Spectrum(values, rows, cols, energy=float(values @ values), note=note)
